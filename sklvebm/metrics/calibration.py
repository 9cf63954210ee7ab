"""Calibration of conditional quantiles on held-out rows."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kstest
from sklearn.utils import check_array

from sklvebm.validation import (
    HasMethods,
    Interval,
    as_plain_array,
    in_container_of,
    validate_params,
)


class CalibrationReport(NamedTuple):
    """Where cells lie within their conditional distributions given the other cells of their rows.

    Attributes
    ----------
    transforms : ndarray of shape (n_samples, n_columns)
        Probability integral transforms: the conditional distribution function of a cell at its
        value. Uniform on [0, 1] in each column if the conditionals are right.
    p_values : ndarray of shape (n_columns,)
        Kolmogorov-Smirnov tests of uniformity, one for each column.
    levels : ndarray of shape (n_levels,)
        Nominal probabilities of central intervals.
    coverage : ndarray of shape (n_levels, n_columns)
        Share of cells within their central intervals.
    coverage_error : ndarray of shape (n_levels,)
        Standard error of a share at its nominal level, for this number of rows.
    widths : ndarray of shape (n_levels, n_columns)
        Mean width of the intervals, in standard deviations of the column: of two calibrated models,
        the one with narrower intervals predicts more.
    columns : ndarray of shape (n_columns,)
        Columns of X that were examined.

    See Also
    --------
    conditional_calibration : Computes it.
    sklvebm.plotting.CalibrationDisplay : Draws it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import MixtureStack
    >>> from sklvebm.metrics import conditional_calibration
    >>> X = np.random.RandomState(0).normal(size=(300, 2))
    >>> model = MixtureStack(max_components=1, random_state=0).fit(X[:200])
    >>> report = conditional_calibration(model, X[200:])
    >>> report.calibrated()
    True
    """

    transforms: np.ndarray
    p_values: np.ndarray
    levels: np.ndarray
    coverage: np.ndarray
    coverage_error: np.ndarray
    widths: np.ndarray
    columns: np.ndarray

    def calibrated(self, level: float = 0.05) -> bool:
        """Return whether no column contradicts uniform transforms.

        Parameters
        ----------
        level : float, default=0.05
            Probability of an objection to right conditionals, at most; shared by the columns.

        Returns
        -------
        calibrated : bool
            Whether the smallest p-value, times the number of columns, is at least `level`.
        """
        return bool(self.p_values.min() * len(self.p_values) >= level)

    def report(self) -> str:
        """Return the measurements as readable text.

        Returns
        -------
        text : str
            A line for every column: p-value, coverage at the levels, mean widths.
        """
        heads = "  ".join(f"{100 * level:3.0f} % (width)" for level in self.levels)
        lines = [f"column   p-value  {heads}"]
        for place, column in enumerate(self.columns):
            cells = "  ".join(
                f"{100 * share:5.1f} ({width:5.2f})"
                for share, width in zip(self.coverage[:, place], self.widths[:, place], strict=True)
            )
            lines.append(f"{column:6d}   {self.p_values[place]:7.4f}  {cells}")
        errors = "  ".join(f"+- {100 * error:4.1f}      " for error in self.coverage_error)
        return "\n".join([*lines, f"chance            {errors}"])


@validate_params(
    {
        "estimator": [HasMethods(["conditional_quantiles"])],
        "X": ["array-like"],
        "columns": ["array-like", None],
        "levels": [tuple, list],
        "n_quantiles": [Interval(Integral, 3, None, closed="left")],
    }
)
def conditional_calibration(
    estimator: Any,
    X: Any,
    *,
    columns: Any = None,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    n_quantiles: int = 19,
) -> CalibrationReport:
    """Measure the calibration of a density's conditional quantiles on held-out rows.

    Each cell in turn is hidden, and its quantiles given the other cells of its row are compared
    with its value.

    Parameters
    ----------
    estimator : estimator
        Fitted, with `conditional_quantiles(X, quantiles)`, such as `MixtureStack`.
    X : array-like of shape (n_samples, n_features)
        Rows without missing cells that the estimator was not fitted to.
    columns : array-like of int or None, default=None
        Columns to examine; None examines all.
    levels : sequence of float, default=(0.5, 0.8, 0.9, 0.95)
        Nominal probabilities of central intervals, between zero and one.
    n_quantiles : int, default=19
        Even quantiles, between which transforms are interpolated. Cells of a column beyond the
        outermost quantiles are spread evenly over the tail, in the order of their distances.

    Returns
    -------
    report : CalibrationReport
        Transforms, each in [0, 1], tests, coverage and widths.

    Raises
    ------
    ValueError
        If X has missing cells, or a parameter is not legal.

    See Also
    --------
    sklvebm.plotting.CalibrationDisplay : Draws the report.
    noise_floor : What a two-sample metric reads by chance.

    Notes
    -----
    Calibration is no measure of sharpness: a model that takes all columns for independent may be
    calibrated, with wide intervals. Compare `widths`, or held-out scores. Columns of integers have
    no uniform transforms; `dequantize` such rows first.

    References
    ----------
    .. [1] T. Gneiting, F. Balabdaoui, A. E. Raftery, "Probabilistic forecasts, calibration and
       sharpness", Journal of the Royal Statistical Society B 69, 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import MixtureStack
    >>> from sklvebm.metrics import conditional_calibration
    >>> X = np.random.RandomState(0).normal(size=(300, 2))
    >>> model = MixtureStack(max_components=1, random_state=0).fit(X[:200])
    >>> report = conditional_calibration(model, X[200:], levels=(0.9,))
    >>> bool(abs(report.coverage[0, 0] - 0.9) < 3 * report.coverage_error[0])
    True
    """
    rows = check_array(as_plain_array(X), dtype=np.float64, input_name="X")
    chosen = np.arange(rows.shape[1]) if columns is None else np.asarray(columns)
    if chosen.ndim != 1 or not np.isin(chosen, np.arange(rows.shape[1])).all():
        raise ValueError(f"columns must be indices below {rows.shape[1]}, got {columns!r}.")
    nominal = np.asarray(levels, dtype=np.float64)
    if nominal.ndim != 1 or not ((nominal > 0.0) & (nominal < 1.0)).all():
        raise ValueError(f"levels must lie between zero and one, got {levels!r}.")
    grid = np.arange(1, n_quantiles + 1) / (n_quantiles + 1)
    ends = np.concatenate([0.5 - 0.5 * nominal, 0.5 + 0.5 * nominal])
    # ends of intervals are often quantiles of the grid: the rounding lets them be asked for once
    asked, places = np.unique(np.concatenate([grid, ends]).round(9), return_inverse=True)
    transforms = np.empty((len(rows), len(chosen)))
    coverage, widths = np.empty((2, len(nominal), len(chosen)))
    for place, column in enumerate(chosen):
        hidden = rows.copy()
        hidden[:, column] = np.nan
        asked_of = in_container_of(X, hidden)
        found = estimator.conditional_quantiles(asked_of, asked.tolist())[:, places, column]
        values, spread = rows[:, column], rows[:, column].std() or 1.0
        transforms[:, place] = _transforms(values, found[:, : len(grid)], grid)
        low, high = found[:, len(grid) :].reshape(len(rows), 2, -1).transpose(1, 2, 0)
        coverage[:, place] = ((low <= values) & (values <= high)).mean(axis=1)
        widths[:, place] = (high - low).mean(axis=1) / spread
    return CalibrationReport(
        transforms=transforms,
        p_values=np.array([kstest(each, "uniform").pvalue for each in transforms.T]),
        levels=nominal,
        coverage=coverage,
        coverage_error=np.sqrt(nominal * (1.0 - nominal) / len(rows)),
        widths=widths,
        columns=chosen,
    )


def _transforms(values: np.ndarray, quantiles: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return distribution functions (N,) at values, interpolated between quantiles (N, Q)."""
    found = np.array(
        [np.interp(value, row, grid) for value, row in zip(values, quantiles, strict=True)]
    )
    spread = quantiles[:, -1] - quantiles[:, 0]
    spread[spread == 0.0] = 1.0
    below, above = quantiles[:, 0] - values, values - quantiles[:, -1]
    for distances, is_upper in ((below, False), (above, True)):
        beyond = np.flatnonzero(distances > 0.0)
        nearest_first = beyond[np.argsort(distances[beyond] / spread[beyond], kind="stable")]
        depth = (np.arange(len(beyond)) + 0.5) / max(1, len(beyond)) * grid[0]
        found[nearest_first] = grid[-1] + depth if is_upper else grid[0] - depth
    return found
