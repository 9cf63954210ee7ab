"""`ImputationDisplay`: what a density says about missing cells."""

from typing import Any, Self

import numpy as np

from sklvebm.plotting._panels import checked_rows, columns_of, names_of, panels
from sklvebm.validation import in_container_of

_LEVEL = 0.9  # probability of the intervals


class ImputationDisplay:
    """Picture of two columns: complete rows, and conditional means of the others with intervals.

    Make one by `ImputationDisplay.from_estimator`, which also draws it.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, 2)
        Two columns, NaN in missing cells.
    means : ndarray of shape (n_samples, 2)
        The same, with conditional means in missing cells.
    intervals : ndarray of shape (n_samples, 2, 2)
        Lower and upper ends, in this order, of central 90 % intervals: sample, end, column.
    feature_names : list of str
        Names of both columns.
    true_rows : ndarray of shape (n_samples, 2) or None, default=None
        Values of all cells, where they are known.

    Attributes
    ----------
    ax_ : matplotlib axes
        The axes that were drawn on; those around the panels if there are several.
    axes_ : ndarray of shape (1, 1) or (1, 2)
        The panels.
    figure_ : matplotlib figure
        Their figure.
    coverage_ : float
        Share of missing cells whose true value is within its interval; NaN if none is known.

    See Also
    --------
    ParticleImputer : Fills missing cells in a pipeline.
    CalibrationDisplay : Whether such intervals hold on complete rows.

    Notes
    -----
    Rows without either cell are drawn as one point with a line in both directions. With true
    values, a second panel has imputed against true cells, in standard deviations of the column.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import MixtureStack
    >>> from sklvebm.plotting import ImputationDisplay
    >>> X = np.random.RandomState(0).normal(size=(200, 2))
    >>> X[:, 1] += 2.0 * X[:, 0]
    >>> holes = X.copy()
    >>> holes[::4, 1] = np.nan
    >>> model = MixtureStack(max_components=1, random_state=0).fit(holes)
    >>> display = ImputationDisplay.from_estimator(model, holes, X_true=X)
    >>> bool(0.75 < display.coverage_ < 1.0)
    True
    """

    def __init__(
        self,
        *,
        rows: np.ndarray,
        means: np.ndarray,
        intervals: np.ndarray,
        feature_names: list[str],
        true_rows: np.ndarray | None = None,
    ) -> None:
        self.rows = rows
        self.means = means
        self.intervals = intervals
        self.feature_names = feature_names
        self.true_rows = true_rows

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        features: Any = (0, 1),
        X_true: Any = None,
        max_rows: int = 500,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Fill two columns by conditional means and intervals, and draw them.

        Parameters
        ----------
        estimator : estimator
            Fitted density with `conditional_mean` and `conditional_quantiles`, or an imputer that
            has one as `estimator_`.
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        features : sequence of two int or str, default=(0, 1)
            Columns to show.
        X_true : array-like of shape (n_samples, n_features) or None, default=None
            The same rows without missing cells, where they are known.
        max_rows : int, default=500
            Rows to show, at most: the first ones.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : ImputationDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        TypeError
            If the estimator has no conditional distributions.
        ValueError
            If X or a parameter is not usable.
        """
        density = estimator
        if not hasattr(density, "conditional_quantiles"):
            density = getattr(estimator, "estimator_", None)
        if not hasattr(density, "conditional_quantiles"):
            raise TypeError(f"{type(estimator).__name__} has no conditional_quantiles.")
        rows = checked_rows(X, may_miss=True)[:max_rows]
        names = names_of(X, rows.shape[1], estimator)
        columns = columns_of(features, names)
        if len(columns) != 2:
            raise ValueError(f"features must be two columns, got {len(columns)}.")
        # an imputer passes plain rows to its density
        framed = in_container_of(X, rows) if hasattr(density, "feature_names_in_") else rows
        tails = (0.5 - 0.5 * _LEVEL, 0.5 + 0.5 * _LEVEL)
        true_rows = None
        if X_true is not None:
            true_rows = checked_rows(X_true)[:max_rows]
            if true_rows.shape != rows.shape:
                raise ValueError(f"X_true must have the shape of X, got {np.shape(X_true)}.")
            true_rows = true_rows[:, columns]
        display = cls(
            rows=rows[:, columns],
            means=np.asarray(density.conditional_mean(framed))[:, columns],
            intervals=np.asarray(density.conditional_quantiles(framed, tails))[:, :, columns],
            feature_names=[names[column] for column in columns],
            true_rows=true_rows,
        )
        return display.plot(ax, **options)

    def plot(self, ax: Any = None, *, color: str = "tab:red") -> Self:
        """Draw rows and imputed cells.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        color : str, default="tab:red"
            Colour of imputed rows.

        Returns
        -------
        self : ImputationDisplay
            With `ax_`, `axes_`, `figure_` and `coverage_`.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        shape = (1, 1 if self.true_rows is None else 2)
        self.ax_, self.axes_ = panels(type(self).__name__, ax, shape, size=(4.8, 4.0))
        self.figure_ = self.ax_.figure
        panel, is_missing = self.axes_[0, 0], np.isnan(self.rows)
        complete = ~is_missing.any(axis=1)
        panel.scatter(
            *self.rows[complete].T, s=10, color="0.6", linewidths=0, label="complete rows"
        )
        means, (low, high) = self.means[~complete], np.moveaxis(self.intervals[~complete], 1, 0)
        line = {"color": color, "lw": 0.6, "alpha": 0.7}
        # a mean may lie outside of its interval, as error bars cannot
        panel.hlines(means[:, 1], low[:, 0], high[:, 0], **line)
        panel.vlines(means[:, 0], low[:, 1], high[:, 1], **line)
        panel.scatter(
            *means.T,
            s=10,
            color=color,
            zorder=3,
            label=f"means of missing cells, {100 * _LEVEL:.0f} % intervals",
        )
        panel.set(xlabel=self.feature_names[0], ylabel=self.feature_names[1])
        panel.legend(fontsize="small")
        self.coverage_ = np.nan
        if self.true_rows is not None:
            self._draw_truth(self.axes_[0, 1], is_missing, color)
        return self

    def _draw_truth(self, panel: Any, is_missing: np.ndarray, color: str) -> None:
        """Draw imputed against true cells, in standard deviations."""
        true_rows: Any = self.true_rows
        mean, scale = true_rows.mean(axis=0), true_rows.std(axis=0)
        scale = np.where(scale > 0.0, scale, 1.0)

        def cells(values: np.ndarray) -> np.ndarray:
            found: np.ndarray = ((values - mean) / scale)[is_missing]
            return found

        truth, means = cells(true_rows), cells(self.means)
        low, high = cells(self.intervals[:, 0]), cells(self.intervals[:, 1])
        if len(truth):
            self.coverage_ = float(((low <= truth) & (truth <= high)).mean())
        panel.vlines(truth, low, high, color=color, lw=0.6, alpha=0.7)
        panel.scatter(truth, means, s=10, color=color, zorder=3)
        panel.axline((0.0, 0.0), slope=1.0, color="0.3", lw=0.8)
        panel.set(xlabel="true cell, standard deviations", ylabel="imputed cell")
        panel.set_title(
            f"{100 * self.coverage_:.0f} % of true cells within {100 * _LEVEL:.0f} % intervals "
            f"({len(truth)} cells)",
            fontsize="medium",
        )
