"""Standardisation of columns that is robust to distant outliers, and errors that name them."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sklvebm.preprocessing.margins import Bins, Margin, margin_from_plain, plain_margin
from sklvebm.row_blocks import MappedRows, Sliceable, has_missing, row_blocks, sum_of_blocks

_SORTED_NUMBERS = 2**17  # of the columns whose quartiles are found together
_MAX_QUARTILE_RANGES = 20.0  # interquartile ranges from the median; clips values for the scale
# distances in standardised units
_WARNING_DISTANCE = 1e6  # larger values cause a warning
_MAX_DISTANCE = 1e30  # larger values are an error: squares must be finite in single precision
MAX_SQUARABLE = 1e100  # larger rows are rescaled, so that their squares are finite
_OVERFLOW_DISTANCE = 1e150  # squares and products with precisions may be infinite
_MAX_NAMED = 3  # rows and columns in one message
_MAX_EQUAL_SPACINGS = 8.0  # spacings of floating-point numbers within which values are equal


class _Statistics(NamedTuple):
    """Functions of an array that reduce an axis, with or without missing cells."""

    mean: Callable[..., np.ndarray]
    std: Callable[..., np.ndarray]
    min: Callable[..., np.ndarray]
    max: Callable[..., np.ndarray]
    quantile: Callable[..., np.ndarray]


def _statistics_of(X: np.ndarray) -> _Statistics:
    """Return the statistics for an array: those of observed cells where some are missing."""
    if has_missing(X):
        return _Statistics(np.nanmean, np.nanstd, np.nanmin, np.nanmax, np.nanquantile)
    return _Statistics(np.mean, np.std, np.min, np.max, np.quantile)


class Standardisation(NamedTuple):
    """Map of the data to zero mean and unit variance, column by column.

    Affine, unless `margins` holds densities of standardised columns: these columns become normal
    (`sklvebm.preprocessing.margins`).
    """

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,), standard deviation, 1 for constant columns
    margins: tuple[Margin | None, ...] | None = None  # (D,); None leaves columns as they are

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Return standardised rows in float64; X is not modified."""
        return self.mapped(self._scaled(X))

    def view(self, X: np.ndarray) -> MappedRows:
        """Return standardised rows that are computed when a part of them is asked for."""
        return MappedRows(X, self.apply)

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # an overflow to infinity is an infinite distance
            rows = np.subtract(X, self.mean, dtype=np.float64)
            rows /= self.scale  # in place, because rows can take most of the memory
        return rows

    def mapped(self, rows: np.ndarray) -> np.ndarray:
        """Return rows, standardised by mean and scale, with normal columns; modifies them."""
        for j, margin in self.mapped_columns():
            rows[:, j] = margin.to_normal(rows[:, j])[0]
        return rows

    def mapped_columns(self) -> list[tuple[int, Margin]]:
        """Return index and density of every column that has one."""
        return [(j, margin) for j, margin in enumerate(self.margins or ()) if margin is not None]

    def invert(self, X: np.ndarray) -> np.ndarray:
        """Return rows (..., D) in the units of the data, float64."""
        if self.margins is not None:
            X = np.array(X, dtype=np.float64)
            for j, margin in self.mapped_columns():
                X[..., j] = margin.from_normal(X[..., j])
        return X * self.scale + self.mean

    @property
    def log_jacobian(self) -> float:
        """Log density in data units minus log density after mean and scale, nats."""
        return -float(np.log(self.scale).sum())

    def log_jacobian_of(self, X: np.ndarray) -> float | np.ndarray:
        """Return the log density of rows X (N, D) in their units minus that of the mapped rows.

        Of the observed cells, nats: one number, or (N,) where it differs between rows.
        """
        scales: float | np.ndarray = self.log_jacobian
        if has_missing(X):
            scales = -(~np.isnan(X) @ np.log(self.scale))
        if not self.margins or len(X) == 0:
            return scales
        slopes = [self.log_slopes(self._scaled(X[part])) for part in row_blocks(X)]
        return scales + np.concatenate(slopes)

    def log_slopes(self, rows: np.ndarray) -> np.ndarray:
        """Return the sum of the margins' log slopes of rows after mean and scale, (N,), nats."""
        total = np.zeros(len(rows))
        for j, margin in self.mapped_columns():
            total += np.nan_to_num(margin.to_normal(rows[:, j])[1], nan=0.0)
        return total

    @property
    def word(self) -> str:
        """Value of the estimators' parameter `margins` that describes the map."""
        if self.margins is None:
            return "none"
        are_bins = all(isinstance(margin, Bins) for _, margin in self.mapped_columns())
        return "histogram" if are_bins else "all"

    @property
    def is_mapped(self) -> np.ndarray:
        """Whether each column becomes normal, (D,)."""
        mapped = np.zeros(len(self.mean), dtype=bool)
        mapped[[j for j, _ in self.mapped_columns()]] = True
        return mapped

    @property
    def n_bins(self) -> np.ndarray:
        """Bins of each column, (D,); 0 for columns without a histogram."""
        count = np.zeros(len(self.mean), dtype=np.int64)
        for j, margin in self.mapped_columns():
            if isinstance(margin, Bins):
                count[j] = len(margin.edges) - 1
        return count

    def plain(self) -> dict[str, Any]:
        """Describe the map by arrays and plain types."""
        parts: dict[str, Any] = {"mean": self.mean, "scale": self.scale}
        if self.margins is not None:
            parts["margins"] = [plain_margin(margin) for margin in self.margins]
        return parts


def standardisation_from_plain(parts: dict[str, Any]) -> Standardisation:
    """Undo `Standardisation.plain`; a description without margins has none."""
    margins = parts.get("margins")
    if margins is not None:
        margins = tuple(margin_from_plain(margin) for margin in margins)
    return Standardisation(parts["mean"], parts["scale"], margins)


def fit_standardisation(
    X: np.ndarray, row_weights: np.ndarray | None = None, places: np.ndarray | None = None
) -> Standardisation:
    """Estimate mean and standard deviation of each column, with outliers clipped.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows, NaN in missing cells.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.
    places : ndarray of shape (n_samples,) or None, default=None
        Numbers by which messages name the rows; None counts them.

    Warns
    -----
    UserWarning
        If columns are constant, or values are a million standard deviations from the others.
    """
    X, of = np.asarray(X, dtype=np.float64), _statistics_of(X)
    if row_weights is None and X.flags.c_contiguous and not has_missing(X):
        mean, scale = _moments_by_blocks(X)
    else:
        mean, scale = _moments(X, row_weights)
    constant = are_constant(of.min(X, axis=0), of.max(X, axis=0))
    warn_of_constant_columns(constant, stacklevel=6)
    standardisation = Standardisation(
        np.where(constant, _first_observed(X), mean), np.where(constant, 1.0, scale)
    )
    if any(is_far(standardisation.apply(X[b])).any() for b in row_blocks(X)):
        far = is_far(standardisation.apply(X))
        places = np.arange(len(X)) if places is None else places
        warnings.warn(_far_values(X, far, places), UserWarning, stacklevel=5)
    return standardisation


def are_constant(least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return whether columns are constant, (D,), by their extremes (D,)."""
    # 0.1 + 0.2 and 0.3 are equal
    largest = np.maximum(np.abs(most), np.abs(least))
    return most - least <= _MAX_EQUAL_SPACINGS * np.spacing(largest)


def warn_of_constant_columns(constant: np.ndarray, stacklevel: int = 6) -> None:
    """Warn of columns that are constant, given by flags (D,)."""
    if constant.any():
        warnings.warn(
            f"Columns {np.flatnonzero(constant).tolist()} of X are constant. Their density is set "
            "by a variance floor of 1e-6; remove them, or compare scores on this X only.",
            UserWarning,
            stacklevel=stacklevel,
        )


def is_far(standardised: np.ndarray) -> np.ndarray:
    """Return which standardised cells are so distant that a warning names them."""
    return np.abs(standardised) > _WARNING_DISTANCE


def variance_unit(spread: np.ndarray) -> np.ndarray:
    """Return the unit of a column in which its variance is computed, from its largest distance."""
    # squares of the smallest floating-point numbers underflow to zero
    return np.where((spread > 0.0) & (spread < 1.0 / _OVERFLOW_DISTANCE), spread, 1.0)


def _moments(X: np.ndarray, row_weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (D,) of the observed cells, distant ones clipped."""
    inner, of = without_outliers(X), _statistics_of(X)
    mean = of.mean(inner, axis=0) if row_weights is None else _mean(inner, row_weights)
    unit = variance_unit(of.max(np.abs(inner - mean), axis=0))
    if row_weights is None:
        return mean, unit * of.std(inner / unit, axis=0)
    return mean, unit * np.sqrt(_mean(((inner - mean) / unit) ** 2, row_weights))


def _moments_by_blocks(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same of complete rows of equal weight, without arrays of the size of X."""
    limits, n_rows = clipping_limits(X), len(X)

    def blocks() -> Iterator[np.ndarray]:
        return (np.clip(X[part], *limits) for part in row_blocks(X))

    mean = sum_of_blocks(blocks()) / n_rows
    spread = np.max([np.abs(block - mean).max(axis=0) for block in blocks()], axis=0)
    unit = variance_unit(spread)
    centre = sum_of_blocks(block / unit for block in blocks()) / n_rows
    variance = sum_of_blocks((block / unit - centre) ** 2 for block in blocks()) / n_rows
    return mean, unit * np.sqrt(variance)


def _mean(X: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean of the observed cells of each column of X (N, D), (D,)."""
    weights = np.where(np.isnan(X), 0.0, row_weights[:, None])
    return (np.nan_to_num(X, nan=0.0) * (weights / weights.sum(axis=0))).sum(axis=0)


def _first_observed(X: np.ndarray) -> np.ndarray:
    """Return the first value of each column of X (N, D) that is not missing, (D,)."""
    return X[np.isnan(X).argmin(axis=0), np.arange(X.shape[1])]


def _far_values(X: np.ndarray, far: np.ndarray, places: np.ndarray) -> str:
    """Return the message on distant values of X (N, D), given by flags (N, D) and places (N,)."""
    columns, found = np.flatnonzero(far.any(axis=0)), []
    for column in columns[:_MAX_NAMED]:
        rows, others = np.flatnonzero(far[:, column]), X[~far[:, column], column]
        distance = np.abs(X[rows, column] - np.nanmean(others)).max() / np.nanstd(others)
        distance = min(distance, np.finfo(np.float64).max)
        names = ", ".join(str(row) for row in np.sort(places[rows])[:_MAX_NAMED])
        more = f" and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
        subject, verb = ("row", "is") if len(rows) == 1 else ("rows", "are")
        found.append(
            f"{subject} {names}{more} of column {column} {verb} "
            f"{distance:.0e} scales from the others".replace("e+", "e")
        )
    if len(columns) > _MAX_NAMED:
        found.append(f"{len(columns) - _MAX_NAMED} more columns have such rows")
    text = "; ".join(found)
    return (
        f"{text[0].upper()}{text[1:]}. If such values stand for missing or unknown ones, remove "
        "their rows; else transform the columns, by a logarithm for example."
    )


def zero_where_squares_overflow(log_density: np.ndarray, rows: Sliceable) -> np.ndarray:
    """Return log densities (N,) of standardised rows (N, D), with -inf for NaN of distant rows.

    The reference underflows to zero there, and the difference of two infinite terms is NaN.
    """
    unknown = np.flatnonzero(np.isnan(log_density))
    if len(unknown) == 0:
        return log_density
    far = np.abs(rows[unknown]).max(axis=1) > _OVERFLOW_DISTANCE
    filled = log_density.copy()
    filled[unknown[far]] = -np.inf
    return filled


def check_reach(standardised: np.ndarray, X: np.ndarray, places: np.ndarray | None = None) -> None:
    """Raise ValueError if rows (n_samples, n_features) are too distant for any density.

    Messages name the rows by `places` (n_samples,), or count them.

    Raises
    ------
    ValueError
        Names rows and columns.
    """
    if not any(_out_of_reach(standardised[b], X[b]).any() for b in row_blocks(X)):
        return
    far = _out_of_reach(standardised, X)
    rows, columns = np.flatnonzero(far.any(1)), np.flatnonzero(far.any(0))
    first = X[rows[0], np.flatnonzero(far[rows[0]])[0]]
    numbers = rows if places is None else np.sort(places[rows])
    named = ", ".join(map(str, numbers[:_MAX_NAMED]))
    named += ", ..." if len(rows) > _MAX_NAMED else ""
    raise ValueError(
        f"Rows [{named}] of X are {_MAX_DISTANCE:g} scales or more from the others in columns "
        f"{columns.tolist()} (for instance {first:.4g}), farther than any density can be "
        "computed. If such values are codes for missing ones, replace them or drop the rows."
    )


def _out_of_reach(standardised: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return which cells are too distant for any density."""
    return ~(np.abs(standardised) < _MAX_DISTANCE) & ~np.isnan(X)


def finite(rows: np.ndarray) -> np.ndarray:
    """Return rows with infinite values replaced by the largest finite numbers."""
    most = np.finfo(np.float64).max
    return np.clip(rows, -most, most)


def without_outliers(X: np.ndarray) -> np.ndarray:
    """Return X with distant values clipped, so that few of them do not determine the scale."""
    return np.clip(X, *clipping_limits(X))


def clipping_limits(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits (D,) beyond which `without_outliers` clips the columns of X."""
    of, levels = _statistics_of(X), [0.25, 0.5, 0.75]
    if of.quantile is np.quantile:
        # few columns at a time, because NumPy copies what it sorts
        width = max(1, _SORTED_NUMBERS // max(1, len(X)))
        parts = (X[:, first : first + width] for first in range(0, X.shape[1], width))
        low, middle, high = np.concatenate([np.quantile(p, levels, axis=0) for p in parts], axis=1)
    else:
        low, middle, high = of.quantile(X, levels, axis=0)
    reach = _MAX_QUARTILE_RANGES * (high - low)
    for column in np.flatnonzero(~(reach > 0.0)):
        # half of the values are equal: the distances of the others give the scale
        away = np.abs(X[:, column] - middle[column])
        others = away[away > 0.0]
        reach[column] = 2.0 * _MAX_QUARTILE_RANGES * np.median(others) if len(others) else np.inf
    return middle - reach, middle + reach
