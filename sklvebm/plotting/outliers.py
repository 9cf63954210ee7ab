"""`OutlierDisplay`: which cells make rows improbable."""

from typing import Any, Self

import numpy as np

from sklvebm.plotting._panels import checked_rows, names_of, panels
from sklvebm.validation import in_container_of


class OutlierDisplay:
    """Picture of the share of each cell in the surprise of its row.

    Make one by `OutlierDisplay.from_estimator` or `from_predictions`, which also draw it.

    Parameters
    ----------
    shares : ndarray of shape (n_shown, n_features)
        Share of each cell, nats above that of ordinary rows.
    decision : ndarray of shape (n_shown,)
        Score of each row above the threshold, nats; negative for outliers.
    row_names : list of str
        Names of the rows.
    feature_names : list of str
        Names of the columns.

    Attributes
    ----------
    ax_ : matplotlib axes
        The axes that were drawn on.
    figure_ : matplotlib figure
        Their figure.

    See Also
    --------
    DensityOutlierDetector.explain_outlier : Computes the shares.
    DensityDisplay : The density of one or two columns.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import DensityOutlierDetector, MixtureStack
    >>> from sklvebm.plotting import OutlierDisplay
    >>> X = np.random.RandomState(0).normal(size=(200, 3))
    >>> X[7, 2] = 6.0
    >>> density = MixtureStack(max_components=1, random_state=0)
    >>> detector = DensityOutlierDetector(density, random_state=0).fit(X)
    >>> display = OutlierDisplay.from_estimator(detector, X, n_rows=4)
    >>> display.row_names[0], int(display.shares[0].argmax())
    ('7', 2)
    """

    def __init__(
        self,
        *,
        shares: np.ndarray,
        decision: np.ndarray,
        row_names: list[str],
        feature_names: list[str],
    ) -> None:
        self.shares = shares
        self.decision = decision
        self.row_names = row_names
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        n_rows: int = 10,
        method: str = "leave_one_out",
        random_state: Any = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Explain the rows with the lowest scores, and draw the shares of their cells.

        Parameters
        ----------
        estimator : DensityOutlierDetector
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Rows.
        n_rows : int, default=10
            Rows to show, at most; the lowest score is on top.
        method : {"leave_one_out", "shapley"}, default="leave_one_out"
            As in `DensityOutlierDetector.explain_outlier`.
        random_state : int, RandomState, Generator or None, default=None
            Source of the orders of "shapley".
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : OutlierDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        TypeError
            If the detector's density does not allow missing cells.
        ValueError
            If X or a parameter is not usable.
        """
        if n_rows < 1:
            raise ValueError(f"n_rows must be at least 1, got {n_rows}.")
        rows = checked_rows(X, may_miss=True)
        decision = np.asarray(estimator.decision_function(X), dtype=np.float64)
        order = np.argsort(decision, kind="stable")[:n_rows]
        lowest = in_container_of(X, rows[order])
        index = getattr(X, "index", None)
        return cls.from_predictions(
            estimator.explain_outlier(lowest, method=method, random_state=random_state),
            decision[order],
            row_names=[str(place if index is None else index[place]) for place in order],
            feature_names=names_of(X, rows.shape[1], estimator),
            ax=ax,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        shares: Any,
        decision: Any,
        *,
        row_names: list[str] | None = None,
        feature_names: list[str] | None = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Draw given shares.

        Parameters
        ----------
        shares : array-like of shape (n_samples, n_features)
            Share of each cell, nats.
        decision : array-like of shape (n_samples,)
            Score of each row above the threshold, nats; negative for outliers.
        row_names : list of str or None, default=None
            Names of the rows; None is their numbers.
        feature_names : list of str or None, default=None
            Names of the columns; None takes those of `shares`.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : OutlierDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If shapes do not match.
        """
        values, scores = checked_rows(shares), np.asarray(decision, dtype=np.float64)
        if scores.shape != (len(values),):
            raise ValueError(f"decision must hold {len(values)} values, got {scores.shape}.")
        display = cls(
            shares=values,
            decision=scores,
            row_names=row_names or [str(place) for place in range(len(values))],
            feature_names=feature_names or names_of(shares, values.shape[1]),
        )
        return display.plot(ax, **options)

    def plot(self, ax: Any = None, *, max_share: float | None = None, cmap: str = "Reds") -> Self:
        """Draw a table of colours, one row for each row and one column for each column.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        max_share : float or None, default=None
            Shares above are drawn alike, nats; None is the largest one, at most 10.
        cmap : str, default="Reds"
            Colour map. Shares below zero are drawn like zero.

        Returns
        -------
        self : OutlierDisplay
            With `ax_` and `figure_`.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        n_rows, n_columns = self.shares.shape
        size = (min(14.0, 2.6 + 0.5 * n_columns), min(12.0, 1.6 + 0.32 * n_rows))
        self.ax_, _ = panels(type(self).__name__, ax, (1, 1), size=size)
        self.figure_ = self.ax_.figure
        top = min(10.0, max(1.0, self.shares.max())) if max_share is None else max_share
        image = self.ax_.imshow(self.shares, cmap=cmap, vmin=0.0, vmax=top, aspect="auto")
        for (row, column), share in np.ndenumerate(self.shares):
            if n_columns <= 15 and share >= 1.0:
                color = "white" if share > 0.6 * top else "black"
                style = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
                self.ax_.text(column, row, f"{share:.1f}", **style)
        labels = [
            f"{name}  ({score:+.1f})"
            for name, score in zip(self.row_names, self.decision, strict=True)
        ]
        self.ax_.set_yticks(range(n_rows), labels, fontsize=8)
        for label, score in zip(self.ax_.get_yticklabels(), self.decision, strict=True):
            label.set_color("crimson" if score < 0.0 else "black")
        self.ax_.set_xticks(
            range(n_columns), self.feature_names, rotation=60, ha="right", fontsize=8
        )
        self.ax_.set_ylabel("row  (score above threshold, nats)")
        extend = "max" if self.shares.max() > top else "neither"
        self.figure_.colorbar(image, ax=self.ax_, label="share of the cell, nats", extend=extend)
        return self
