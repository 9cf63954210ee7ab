"""Standardisation of columns: far outliers do not set a scale, and rows out of reach are named."""

import warnings
from typing import NamedTuple

import numpy as np

_REACH = 20.0  # interquartile ranges: values farther from the median count as that far in the scale
_UNREACHABLE = 1e30  # scales of a column: squares must be finite in single precision
_FAR = 1e6  # scales: values farther out are named
_MOST_NAMED = 3  # rows of a column
_ROUNDINGS = 8.0  # spacings of floating-point numbers: values no farther apart are one
FAR_OUT = 1e100  # standardised units: squares are finite, and all that counts is the direction
_OVERFLOWING = 1e150  # standard deviations: squares and products with precisions may be infinite


class Standardisation(NamedTuple):
    """Affine map of the data to zero mean and unit variance, column by column."""

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,), standard deviation, 1 for constant columns

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Return standardised rows in float64; X is not modified."""
        with np.errstate(over="ignore"):  # what is beyond all numbers is infinitely far out
            rows = np.subtract(X, self.mean, dtype=np.float64)
            rows /= self.scale  # in place: rows can be most of the memory there is
        return rows

    def invert(self, X: np.ndarray) -> np.ndarray:
        """Return rows in the units of the data, float64."""
        return X * self.scale + self.mean

    @property
    def log_jacobian(self) -> float:
        """Log density in data units minus log density in standardised units, in nats."""
        return -float(np.log(self.scale).sum())


def fit_standardisation(X: np.ndarray) -> Standardisation:
    """Measure mean and standard deviation of each column, outliers moved in.

    Warns
    -----
    UserWarning
        If columns are constant, where a density has no scale, or values are a million scales from
        the others.
    """
    X = np.asarray(X, dtype=np.float64)
    inner = without_outliers(X)
    mean = inner.mean(axis=0)
    # the squares of the smallest numbers are zero
    spread = np.abs(inner - mean).max(axis=0)
    unit = np.where((spread > 0.0) & (spread < 1.0 / _OVERFLOWING), spread, 1.0)
    scale = unit * (inner / unit).std(axis=0)
    # 0.1 + 0.2 and 0.3 are one value
    constant = np.ptp(X, axis=0) <= _ROUNDINGS * np.spacing(np.abs(X).max(axis=0))
    if constant.any():
        warnings.warn(
            f"Columns {np.flatnonzero(constant).tolist()} of X are constant. Their density is set "
            "by a variance floor of 1e-6; remove them, or compare scores on this X only.",
            UserWarning,
            stacklevel=5,
        )
    standardisation = Standardisation(
        np.where(constant, X[0], mean), np.where(constant, 1.0, scale)
    )
    far = np.abs(standardisation.apply(X)) > _FAR
    if far.any():
        warnings.warn(_far_values(X, far), UserWarning, stacklevel=5)
    return standardisation


def _far_values(X: np.ndarray, far: np.ndarray) -> str:
    """Return the message on values of X (N, D) that are far out by flags (N, D)."""
    columns, found = np.flatnonzero(far.any(axis=0)), []
    for column in columns[:_MOST_NAMED]:
        rows, others = np.flatnonzero(far[:, column]), X[~far[:, column], column]
        distance = np.abs(X[rows, column] - others.mean()).max() / others.std()
        distance = min(distance, np.finfo(np.float64).max)
        names = ", ".join(str(row) for row in rows[:_MOST_NAMED])
        more = f" and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else ""
        subject, verb = ("row", "is") if len(rows) == 1 else ("rows", "are")
        found.append(
            f"{subject} {names}{more} of column {column} {verb} "
            f"{distance:.0e} scales from the others".replace("e+", "e")
        )
    if len(columns) > _MOST_NAMED:
        found.append(f"{len(columns) - _MOST_NAMED} more columns have such rows")
    text = "; ".join(found)
    return (
        f"{text[0].upper()}{text[1:]}. If such values stand for missing or unknown ones, remove "
        "their rows; else transform the columns, by a logarithm for example."
    )


def zero_where_squares_overflow(log_density: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return log densities (N,) of standardised rows (N, D), -inf instead of NaN very far out.

    Every reference is zero there, but the difference of two infinite terms is no number.
    """
    far = np.abs(rows).max(axis=1) > _OVERFLOWING
    return np.where(np.isnan(log_density) & far, -np.inf, log_density)


def check_reach(standardised: np.ndarray, X: np.ndarray) -> None:
    """Raise ValueError if rows (n_samples, n_features) are too far out for any density.

    Raises
    ------
    ValueError
        Names rows, columns, and what such values often are.
    """
    far = ~(np.abs(standardised) < _UNREACHABLE)
    if not far.any():
        return
    rows, columns = np.flatnonzero(far.any(1)), np.flatnonzero(far.any(0))
    first = X[rows[0], np.flatnonzero(far[rows[0]])[0]]
    named = ", ".join(map(str, rows[:_MOST_NAMED])) + (", ..." if len(rows) > _MOST_NAMED else "")
    raise ValueError(
        f"Rows [{named}] of X are {_UNREACHABLE:g} scales or more from the others in columns "
        f"{columns.tolist()} (for instance {first:.4g}), farther than any density can be "
        "computed. If such values are codes for missing ones, replace them or drop the rows."
    )


def finite(rows: np.ndarray) -> np.ndarray:
    """Return rows with the largest numbers in place of infinite ones."""
    most = np.finfo(np.float64).max
    return np.clip(rows, -most, most)


def without_outliers(X: np.ndarray) -> np.ndarray:
    """Return X with values far out moved in, so that few of them do not set a scale."""
    low, middle, high = np.quantile(X, [0.25, 0.5, 0.75], axis=0)
    reach = _REACH * (high - low)
    for column in np.flatnonzero(~(reach > 0.0)):
        # half of the values are the same: the others say how far apart values are
        away = np.abs(X[:, column] - middle[column])
        others = away[away > 0.0]
        reach[column] = 2.0 * _REACH * np.median(others) if len(others) else np.inf
    return np.clip(X, middle - reach, middle + reach)
