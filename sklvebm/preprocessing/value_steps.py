"""The step between the values of a quantised column, relative to rounding errors."""

from typing import NamedTuple

import numpy as np

from sklvebm.runtime import without_numpy_errors

_MAX_TIED_SHARE = 0.05  # of values that repeat others, for a column to count as continuous
# A *tolerance* is the distance within which two numbers count as one value, in spacings of
# floating-point numbers: of stored values, and of differences of larger rounded numbers.
_MAX_EQUAL_SPACINGS, _DIFFERENCE_SPACINGS = 8.0, 2.0**18
_MIN_CLEAR_TOLERANCES = 8.0  # tolerances between neighbouring values of a quantised column
# smallest ratio of a distance between values to a distance within a value for which the tolerance
# may be widened, for columns in double precision and those rounded to single precision
_MIN_GAP_RATIO, _MIN_GAP_RATIO_SINGLE = 2e10, 100.0
_EQUAL_GAP_SHARE = 1e-2  # of the step; distances this close to the smallest one estimate the step
_STEP_ERROR = 1e-3  # of the step, largest rounding error of its estimate
_MAX_ZEROS = 4  # different results of computations whose exact result is zero


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
        Values in their original precision.
    least : float, default=0.0
        Smallest tolerance, in the units of the column.
    """
    if _are_apart(column, least):
        return 0.0
    value, n_rows = np.unique(column, return_counts=True)
    tolerance = np.maximum(_MAX_EQUAL_SPACINGS * _rounding(value), least)
    values = _Values(value.astype(np.float64), n_rows, tolerance)
    values = _joined(values, _gaps(values) <= _between(tolerance))  # 0.1 + 0.2 and 0.3
    wider = _DIFFERENCE_SPACINGS * np.spacing(np.abs(values.value).astype(column.dtype))
    joined = _joined_if_apart(values, wider.astype(np.float64), _MIN_GAP_RATIO)
    values = joined if _are_multiples(joined) else values  # 10.1 - 10 and 0.1
    single = values.value.astype(np.float32)
    is_single = bool((single == values.value).all())
    if is_single and column.dtype != np.float32:
        wider = _MAX_EQUAL_SPACINGS * np.spacing(np.abs(single)).astype(np.float64)
        values = _joined_if_apart(values, wider, _MIN_GAP_RATIO_SINGLE)
    values = _joined_zeros(values)
    single = values.value.astype(np.float32)
    gap, tolerance = _gaps(values), _between(values.tolerance)
    clear = gap > _MIN_CLEAR_TOLERANCES * tolerance
    # ties of values as dense as rounding allows are caused by rounding
    alone = np.concatenate([[True], clear]) & np.concatenate([clear, [True]])
    n_tied = (values.n_rows - 1)[alone].sum()
    if not clear.any() or n_tied <= _MAX_TIED_SHARE * len(column):
        return 0.0
    alike = np.flatnonzero(clear & (gap <= (1.0 + _EQUAL_GAP_SHARE) * gap[clear].min()))
    # the distance with the smallest rounding error gives the step
    rounding = _between(np.spacing(np.abs(single if is_single else values.value)))
    place = alike[rounding[alike].argmin()]
    step = float(gap[place])
    return _shortest(step, min(_STEP_ERROR * step, max(tolerance[place], 4.0 * rounding[place])))


def _are_apart(column: np.ndarray, least: float) -> bool:
    """Return whether all values differ by more than any tolerance, as in most columns."""
    if column.dtype != np.float64 or len(column) < _MAX_ZEROS:
        return False
    value = np.sort(column)
    most = max(abs(value[0]), abs(value[-1]))
    # twice the widest tolerance: two values around zero may both be rounding errors
    widest = 2.0 * max(least, _DIFFERENCE_SPACINGS * np.spacing(most))
    if not np.diff(value).min() > widest:
        return False
    return bool((column.astype(np.float32) != column).any())  # those are compared more coarsely


def _rounding(value: np.ndarray) -> np.ndarray:
    """Return the rounding error of each value (n,); exact integers have none."""
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
    """Merge neighbours that are equal by flags (n - 1,).

    Runs longer than twice the tolerance stay separate: their values are as dense as rounding
    allows.
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
    """Merge values within a wider tolerance (n,) if other distances are larger by a ratio."""
    gap = _gaps(values)
    same = gap <= _between(wider)
    if not same.any() or same.all() or gap[~same].min() < ratio * gap[same].max():
        return values
    return _joined(values._replace(tolerance=np.maximum(wider, values.tolerance)), same)


def _are_multiples(values: _Values) -> bool:
    """Return whether values are multiples of their smallest distance."""
    multiples = values.value / _gaps(values).min(initial=np.inf)
    return bool(np.abs(multiples - np.rint(multiples)).max() <= _STEP_ERROR)


def _joined_zeros(values: _Values) -> _Values:
    """Merge the few values around zero that are rounding errors of the typical distance."""
    gap = _gaps(values)
    if len(gap) < _MAX_ZEROS:
        return values
    zero = _DIFFERENCE_SPACINGS * np.finfo(np.float64).eps * np.median(gap)
    small = np.abs(values.value) <= zero
    if not 1 < small.sum() <= _MAX_ZEROS:
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
