"""`SampleComparisonDisplay`: draws of a model beside rows."""

from typing import Any, Self

import numpy as np

from sklvebm.metrics.kernel_discrepancy import PermutationTest, mmd_permutation_test
from sklvebm.plotting._panels import (
    checked_rows,
    columns_of,
    label_grid,
    names_of,
    panels,
    some_rows,
)

MAX_SHOWN = 5  # features that are shown unless others are asked for


class SampleComparisonDisplay:
    """Picture of draws beside rows: marginals, pairs, and a two-sample test.

    Make one by `SampleComparisonDisplay.from_estimator` or `from_predictions`, which also draw it.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_shown)
        Rows of the data.
    draws : ndarray of shape (n_draws, n_shown)
        Rows of the model.
    feature_names : list of str
        Names of the features shown.
    test : PermutationTest
        Two-sample test by the maximum mean discrepancy of all features.

    Attributes
    ----------
    ax_ : matplotlib axes
        The axes that were drawn on; those around the panels if there are several.
    axes_ : ndarray of shape (n_shown, n_shown)
        The panels: marginals on the diagonal, rows of the data below it, draws above it.
    figure_ : matplotlib figure
        Their figure.

    See Also
    --------
    sklvebm.metrics.mmd_permutation_test : The test.
    DensityDisplay : The density itself.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.plotting import SampleComparisonDisplay
    >>> X = np.random.RandomState(0).normal(size=(200, 2))
    >>> display = SampleComparisonDisplay.from_predictions(X[:100], X[100:], random_state=0)
    >>> display.axes_.shape, display.test.p_value > 0.01
    ((2, 2), True)
    """

    def __init__(
        self,
        *,
        rows: np.ndarray,
        draws: np.ndarray,
        feature_names: list[str],
        test: PermutationTest,
    ) -> None:
        self.rows = rows
        self.draws = draws
        self.feature_names = feature_names
        self.test = test

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        features: Any = None,
        n_samples: int | None = None,
        random_state: Any = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Draw rows from a fitted density and show them beside others.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `sample`.
        X : array-like of shape (n_samples, n_features)
            Rows without missing cells; held-out rows for a fair test.
        features : sequence of int or str, or None, default=None
            Features to show; None shows the first five.
        n_samples : int or None, default=None
            Number of draws; None takes as many as X has rows, at most 1,000.
        random_state : int, RandomState, Generator or None, default=None
            Source of draws and permutations.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : SampleComparisonDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If X or a parameter is not usable.
        """
        rows = checked_rows(X)
        n_samples = min(len(rows), 1000) if n_samples is None else n_samples
        draws = _drawn(estimator, n_samples, random_state)
        return cls.from_predictions(
            rows,
            draws,
            feature_names=names_of(X, rows.shape[1], estimator),
            features=features,
            random_state=random_state,
            ax=ax,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        X: Any,
        draws: Any,
        *,
        feature_names: list[str] | None = None,
        features: Any = None,
        random_state: Any = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Show given draws beside rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        draws : array-like of shape (n_draws, n_features)
            Draws.
        feature_names : list of str or None, default=None
            Names of all columns; None takes those of X.
        features : sequence of int or str, or None, default=None
            Features to show; None shows the first five.
        random_state : int, RandomState, Generator or None, default=None
            Source of the permutations.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : SampleComparisonDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If shapes do not match.
        """
        # the test takes the square of the number of rows
        rows, drawn = some_rows(checked_rows(X)), some_rows(checked_rows(draws))
        names = feature_names or names_of(X, rows.shape[1])
        columns = columns_of(
            range(min(MAX_SHOWN, len(names))) if features is None else features, names
        )
        scale = rows.std(axis=0)
        scale[scale == 0.0] = 1.0
        # in standard deviations, so that no unit dominates
        test = mmd_permutation_test(rows / scale, drawn / scale, random_state=random_state)
        display = cls(
            rows=rows[:, columns],
            draws=drawn[:, columns],
            feature_names=[names[column] for column in columns],
            test=test,
        )
        return display.plot(ax, **options)

    def plot(
        self, ax: Any = None, *, colors: tuple[str, str] = ("0.25", "tab:orange"), s: float = 5.0
    ) -> Self:
        """Draw marginals and pairs.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        colors : tuple of two str, default=("0.25", "tab:orange")
            Colours of rows and of draws.
        s : float, default=5.0
            Area of a point, square points of print.

        Returns
        -------
        self : SampleComparisonDisplay
            With `ax_`, `axes_` and `figure_`.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        n = len(self.feature_names)
        size = (2.1, 1.9) if n > 1 else (5.0, 3.8)
        self.ax_, self.axes_ = panels(type(self).__name__, ax, (n, n), size=size)
        self.figure_ = self.ax_.figure
        limits = [_limits(self.rows[:, i], self.draws[:, i]) for i in range(n)]
        for i, j in np.ndindex(n, n):
            panel: Any = self.axes_[i, j]
            panel.set_xlim(*limits[j])
            if i == j:
                bins = np.linspace(*limits[i], 31)
                for values, color in zip((self.rows, self.draws), colors, strict=True):
                    panel.hist(values[:, i], bins, density=True, histtype="step", color=color)
                continue
            shown, color = (self.rows, colors[0]) if i > j else (self.draws, colors[1])
            panel.scatter(shown[:, j], shown[:, i], s=s, color=color, alpha=0.6, linewidths=0)
            panel.set_ylim(*limits[i])
        if n > 1:
            label_grid(self.axes_, self.feature_names)
        else:
            self.axes_[0, 0].set(xlabel=self.feature_names[0], ylabel="density")
        self._add_title(colors)
        return self

    def _add_title(self, colors: tuple[str, str]) -> None:
        """Say which colour is which, and what the test found."""
        first, last = self.axes_[0, 0], self.axes_[0, -1]
        for label, color in zip(("rows", "draws"), colors, strict=True):
            last.plot([], [], color=color, label=label)
        last.legend(
            loc="lower right", bbox_to_anchor=(1.03, 0.98), ncols=2, frameon=False, fontsize="small"
        )
        first.set_title(
            f"two-sample test: p = {self.test.p_value:.2g}", fontsize="medium", loc="left"
        )


def _drawn(estimator: Any, n_samples: int, random_state: Any) -> np.ndarray:
    """Return draws of an estimator; `GaussianMixture` takes no seed and returns labels, too."""
    try:
        draws = estimator.sample(n_samples, random_state=random_state)
    except TypeError:
        draws = estimator.sample(n_samples)
    return checked_rows(draws[0] if isinstance(draws, tuple) else draws)


def _limits(*samples: np.ndarray) -> tuple[float, float]:
    """Return limits that show all but stray values of two samples."""
    both = np.concatenate(samples)
    low, high = np.quantile(both, [0.002, 0.998])
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
