"""Values of a two-sample metric between samples of the same distribution."""

from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_array

from sklvebm.validation import Interval, check_random_state, validate_params


class NoiseFloor(NamedTuple):
    """Values of a metric between disjoint random parts of one sample, in the metric's unit.

    Attributes
    ----------
    median : float
        Median over the splits.
    lower, upper : float
        Quantiles over the splits.
    values : ndarray of shape (n_splits,)
        One value for each split.

    See Also
    --------
    noise_floor : Computes it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import NoiseFloor
    >>> floor = NoiseFloor(0.02, lower=0.01, upper=0.04, values=np.array([0.01, 0.02, 0.04]))
    >>> 0.3 > floor.upper  # a distance that chance does not explain
    True
    """

    median: float
    lower: float
    upper: float
    values: np.ndarray


@validate_params(
    {
        "metric": [callable],
        "X": ["array-like"],
        "n_splits": [Interval(Integral, 1, None, closed="left")],
        "n_rows": [Interval(Integral, 1, None, closed="left"), None],
        "quantiles": [tuple, list],
        "random_state": ["random_state"],
    }
)
def noise_floor(
    metric: Callable[[np.ndarray, np.ndarray], float],
    X: Any,
    *,
    n_splits: int = 20,
    n_rows: int | None = None,
    quantiles: tuple[float, float] = (0.05, 0.95),
    random_state: Any = None,
) -> NoiseFloor:
    """Return the values of a two-sample metric between random halves of one sample.

    A value between model and held-out rows within this range shows no difference of the model from
    the data, with this number of rows. Report the floor with every value.

    Parameters
    ----------
    metric : callable
        Maps two arrays of rows to a number, for instance `energy_distance`. Fix parameters that the
        metric would choose from the rows, for instance by `functools.partial`.
    X : array-like of shape (n_samples, n_features)
        Independent rows of one distribution.
    n_splits : int, default=20
        Random divisions.
    n_rows : int or None, default=None
        Rows in each part, at most half of X; None takes half. Use the size of the samples to be
        compared, because most metrics are smaller between larger samples.
    quantiles : tuple of two floats, default=(0.05, 0.95)
        Lower and upper quantile that are returned.
    random_state : int, RandomState, Generator or None, default=None
        Source of the divisions.

    Returns
    -------
    floor : NoiseFloor
        `median`, `lower`, `upper` and `values`, in the metric's unit.

    Raises
    ------
    ValueError
        If X has too few rows or a parameter is not legal.

    See Also
    --------
    mode_coverage : Which modes of a sample are missed.
    energy_distance : A metric to find the floor of.

    Notes
    -----
    Divisions share rows. Quantiles are therefore less certain than the number of splits suggests.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import energy_distance, noise_floor
    >>> X = np.random.RandomState(0).randn(400, 2)
    >>> floor = noise_floor(energy_distance, X, random_state=0)
    >>> bool(floor.upper < energy_distance(X[:200], X[200:] + 0.5))
    True
    """
    X = check_array(X, dtype=np.float64, ensure_min_samples=2, input_name="X")
    n_rows = len(X) // 2 if n_rows is None else n_rows
    if 2 * n_rows > len(X):
        raise ValueError(f"n_rows must be at most half of the {len(X)} rows of X, got {n_rows}.")
    legal = len(quantiles) == 2 and 0.0 <= quantiles[0] <= quantiles[1] <= 1.0
    if not legal:
        raise ValueError(f"quantiles must be (lower, upper) within [0, 1], got {quantiles}.")
    random_state = check_random_state(random_state)
    values = np.empty(n_splits)
    for split in range(n_splits):
        order = random_state.permutation(len(X))[: 2 * n_rows]
        values[split] = metric(X[order[:n_rows]], X[order[n_rows:]])
    lower, median, upper = np.quantile(values, [quantiles[0], 0.5, quantiles[1]])
    return NoiseFloor(float(median), float(lower), float(upper), values)
