"""`CalibrationDisplay`: conditional quantiles against held-out rows."""

from typing import Any, Self

import numpy as np

from sklvebm.metrics.calibration import CalibrationReport, conditional_calibration
from sklvebm.plotting._panels import checked_rows, columns_of, names_of, panels, some_rows
from sklvebm.validation import in_container_of

_BAND = 1.96  # standard errors within which 95 percent of right models are


class CalibrationDisplay:
    """Picture of calibration: probability integral transforms, and coverage of intervals.

    Make one by `CalibrationDisplay.from_estimator` or `from_report`, which also draw it.

    Parameters
    ----------
    report : CalibrationReport
        Transforms, coverage and tests.
    feature_names : list of str
        Names of the columns of the report.

    Attributes
    ----------
    ax_ : matplotlib axes
        The axes that were drawn on, around the panels.
    axes_ : ndarray of shape (1, 2)
        The panels.
    figure_ : matplotlib figure
        Their figure.

    See Also
    --------
    sklvebm.metrics.conditional_calibration : Computes the report.
    SampleComparisonDisplay : Draws of the model beside rows.

    Notes
    -----
    Left: histogram of the transforms of all columns; flat if the conditionals are right. A bump in
    the middle means intervals that are too wide, a hollow ones that are too narrow, a slope a bias.
    Right: share of cells within central intervals against the nominal probability, one line for
    each column. Grey areas are what chance explains in 95 percent of cases, with one column. The
    title has the smallest p-value of the columns, times their number.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import MixtureStack
    >>> from sklvebm.plotting import CalibrationDisplay
    >>> X = np.random.RandomState(0).normal(size=(300, 2))
    >>> model = MixtureStack(max_components=1, random_state=0).fit(X[:200])
    >>> display = CalibrationDisplay.from_estimator(model, X[200:])
    >>> display.report.calibrated()
    True
    """

    def __init__(self, *, report: CalibrationReport, feature_names: list[str]) -> None:
        self.report = report
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        features: Any = None,
        max_rows: int = 200,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Measure the calibration of a fitted density on held-out rows, and draw it.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `conditional_quantiles`.
        X : array-like of shape (n_samples, n_features)
            Rows without missing cells that the estimator was not fitted to.
        features : sequence of int or str, or None, default=None
            Columns to examine; None examines all.
        max_rows : int, default=200
            Rows to examine, at most, spread evenly over X.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : CalibrationDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If X or a parameter is not usable.
        """
        rows = checked_rows(X)
        names = names_of(X, rows.shape[1], estimator)
        columns = columns_of(range(len(names)) if features is None else features, names)
        levels = tuple(np.arange(1, 10) / 10)
        kept = in_container_of(X, some_rows(rows, max_rows))
        report = conditional_calibration(estimator, kept, columns=columns, levels=levels)
        return cls.from_report(report, feature_names=names, ax=ax, **options)

    @classmethod
    def from_report(
        cls,
        report: CalibrationReport,
        *,
        feature_names: Any = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Draw a report of `conditional_calibration`.

        Parameters
        ----------
        report : CalibrationReport
            The report.
        feature_names : sequence of str or None, default=None
            Names of all columns of X; None is x0, x1, ...
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : CalibrationDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        names = [
            f"x{column}" if feature_names is None else str(feature_names[column])
            for column in report.columns
        ]
        return cls(report=report, feature_names=names).plot(ax, **options)

    def plot(self, ax: Any = None, *, n_bins: int = 10, color: str = "tab:blue") -> Self:
        """Draw transforms and coverage.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        n_bins : int, default=10
            Bins of the histogram.
        color : str, default="tab:blue"
            Colour of the histogram.

        Returns
        -------
        self : CalibrationDisplay
            With `ax_`, `axes_` and `figure_`.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        self.ax_, self.axes_ = panels(type(self).__name__, ax, (1, 2), size=(4.2, 3.6))
        self.figure_ = self.ax_.figure
        left, right = self.axes_[0]
        transforms, share = self.report.transforms, 1.0 / n_bins
        # columns of one row depend on each other: the error is that of one column
        error = _BAND * np.sqrt(share * (1.0 - share) / len(transforms)) * n_bins
        left.hist(transforms.ravel(), bins=n_bins, range=(0.0, 1.0), density=True, color=color)
        left.axhspan(1.0 - error, 1.0 + error, color="0.5", alpha=0.35, lw=0)
        left.set(xlabel="probability integral\ntransform", ylabel="density", xlim=(0.0, 1.0))
        levels, chance = self.report.levels, _BAND * self.report.coverage_error
        right.fill_between(levels, levels - chance, levels + chance, color="0.5", alpha=0.35, lw=0)
        right.plot([0.0, 1.0], [0.0, 1.0], color="0.3", lw=0.8)
        for name, coverage in zip(self.feature_names, self.report.coverage.T, strict=True):
            right.plot(levels, coverage, marker=".", ms=3, lw=1, label=name)
        right.set(xlabel="nominal probability\nof the interval", ylabel="share of cells within")
        if len(self.feature_names) <= 10:
            right.legend(fontsize="small")
        p_value = min(1.0, self.report.p_values.min() * len(self.feature_names))
        left.set_title(f"uniform: p = {p_value:.2g}", fontsize="medium")
        return self
