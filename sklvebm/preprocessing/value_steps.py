"""The step between the values of a quantised column, judged by the rounding of each value."""

from typing import NamedTuple

import numpy as np

from sklvebm.runtime import without_numpy_errors

_TIED = 0.05  # share of values that repeat others, above which a column is not continuous
_ROUNDINGS = 8.0  # spacings of floating-point numbers up to which two values are one
_CLEAR = 8.0  # times that: distance of the values of a quantised column from each other
_DIFFERENCES = 2.0**18  # spacings: a difference of rounded numbers carries the errors of its terms
_APART, _APART_SINGLE = 2e10, 100.0  # ratios of distances between values and within one
_ALIKE, _DIGITS = 1e-2, 1e-3  # of a step: other distances that stand for it, and its own error
_MOST_ZEROS = 4  # different results of computations whose exact result is zero


class _Values(NamedTuple):
    """Different values of a column, ascending."""

    value: np.ndarray  # (n,), float64
    n_rows: np.ndarray  # (n,)
    tolerance: np.ndarray  # (n,), distance up to which a neighbour is the same value


@without_numpy_errors
def step_of(column: np.ndarray, least: float = 0.0) -> float:
    """Return the step of a column, 0 where values hardly repeat or are all the same.

    Parameters
    ----------
    column : ndarray of shape (n_samples,)
        In the precision that its values were rounded to.
    least : float, default=0.0
        Distance up to which values are the same, whatever their size.
    """
    value, n_rows = np.unique(column, return_counts=True)
    tolerance = np.maximum(_ROUNDINGS * _rounding(value), least)
    values = _Values(value.astype(np.float64), n_rows, tolerance)
    values = _joined(values, _gaps(values) <= _between(tolerance))  # 0.1 + 0.2 and 0.3
    wider = _DIFFERENCES * np.spacing(np.abs(values.value).astype(column.dtype))
    joined = _joined_if_apart(values, wider.astype(np.float64), _APART)
    values = joined if _are_multiples(joined) else values  # 10.1 - 10 and 0.1
    single = values.value.astype(np.float32)
    is_single = bool((single == values.value).all())
    if is_single and column.dtype != np.float32:
        wider = _ROUNDINGS * np.spacing(np.abs(single)).astype(np.float64)
        values = _joined_if_apart(values, wider, _APART_SINGLE)
    values = _joined_zeros(values)
    single = values.value.astype(np.float32)
    gap, tolerance = _gaps(values), _between(values.tolerance)
    clear = gap > _CLEAR * tolerance
    # ties of values that are as dense as rounding allows come from the rounding
    alone = np.concatenate([[True], clear]) & np.concatenate([clear, [True]])
    n_tied = (values.n_rows - 1)[alone].sum()
    if not clear.any() or n_tied <= _TIED * len(column):
        return 0.0
    alike = np.flatnonzero(clear & (gap <= (1.0 + _ALIKE) * gap[clear].min()))
    # the largest values know the step least
    rounding = _between(np.spacing(np.abs(single if is_single else values.value)))
    place = alike[rounding[alike].argmin()]
    step = float(gap[place])
    return _shortest(step, min(_DIGITS * step, max(tolerance[place], 4.0 * rounding[place])))


def _rounding(value: np.ndarray) -> np.ndarray:
    """Return the rounding error of each value (n,); integers that a float can hold have none."""
    rounding = np.spacing(np.abs(value)).astype(np.float64)
    is_integer = bool((value == np.floor(value)).all())
    return np.where(is_integer & (rounding <= 1.0), 0.0, rounding)


def _gaps(values: _Values) -> np.ndarray:
    """Return the distances of neighbours, (n - 1,)."""
    return np.diff(values.value)


def _between(size: np.ndarray) -> np.ndarray:
    """Return the larger number of each pair of neighbours, (n - 1,)."""
    return np.maximum(size[:-1], size[1:])


def _joined(values: _Values, same: np.ndarray) -> _Values:
    """Make one value of neighbours that are the same by flags (n - 1,).

    Runs that are longer than twice the tolerance stay as they are: their values are as dense as
    rounding allows.
    """
    begin = np.concatenate([[True], ~same])
    first, run = np.flatnonzero(begin), np.cumsum(begin) - 1
    last = np.append(first[1:], len(begin)) - 1
    extent = values.value[last] - values.value[first]
    allowed = 2.0 * np.maximum(values.tolerance[first], values.tolerance[last])
    too_long = extent > allowed
    if too_long.any():
        return _joined(values, same & ~too_long[run[1:]])
    middle = values.value[first] + 0.5 * extent
    return _Values(middle, np.add.reduceat(values.n_rows, first), values.tolerance[first])


def _joined_if_apart(values: _Values, wider: np.ndarray, ratio: float) -> _Values:
    """Join values by a wider tolerance (n,) if all others are farther apart by a ratio."""
    gap = _gaps(values)
    same = gap <= _between(wider)
    if not same.any() or same.all() or gap[~same].min() < ratio * gap[same].max():
        return values
    return _joined(values._replace(tolerance=np.maximum(wider, values.tolerance)), same)


def _are_multiples(values: _Values) -> bool:
    """Return whether values are multiples of their smallest distance."""
    multiples = values.value / _gaps(values).min(initial=np.inf)
    return bool(np.abs(multiples - np.rint(multiples)).max() <= _DIGITS)


def _joined_zeros(values: _Values) -> _Values:
    """Join the few values around zero that are rounding errors of the typical distance."""
    gap = _gaps(values)
    if len(gap) < _MOST_ZEROS:
        return values
    zero = _DIFFERENCES * np.finfo(np.float64).eps * np.median(gap)
    small = np.abs(values.value) <= zero
    if not 1 < small.sum() <= _MOST_ZEROS:
        return values
    tolerance = np.where(small, 2.0 * zero, values.tolerance)
    return _joined(values._replace(tolerance=tolerance), small[:-1] & small[1:])


def _shortest(step: float, error: float) -> float:
    """Return the number with the fewest digits within the rounding error of a step."""
    for n_digits in range(17):
        candidate = float(f"{step:.{n_digits}e}")
        if abs(candidate - step) <= error:
            return candidate
    return step
