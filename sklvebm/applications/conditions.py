"""`sample_within`: draws of a density whose columns lie within given bounds."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklvebm.estimators._common.frames import features_of, framed, plain_arrays
from sklvebm.estimators._common.parameters import Number
from sklvebm.runtime import draw_seed, generator_of, without_numpy_errors

_FIRST_DRAWS, _MOST_DRAWS_AT_ONCE = 256, 2**16  # rows of one call of `sample`
_SPARE = 1.2  # draws beyond those that the acceptance so far asks for


class Accepted(NamedTuple):
    """Draws within bounds.

    Attributes
    ----------
    X : ndarray of shape (n_samples, n_features) or frame
        Independent rows within the bounds, in the units of the training data.
    acceptance : float
        Share of all draws that were within the bounds: an estimate of their probability under the
        model.
    """

    X: Any
    acceptance: float


@without_numpy_errors
def sample_within(
    model: Any,
    bounds: Mapping[Any, tuple[float | None, float | None]],
    n_samples: int = 1,
    *,
    random_state: Any = None,
    max_draws: int = 1_000_000,
) -> Accepted:
    """Draw rows whose columns lie within bounds, by rejection.

    Rows are drawn from the model until enough of them are within the bounds. They are exact draws
    of the conditional distribution, if those of the model are exact. To fix a column at a value,
    use `sample_conditional` on a row with NaN in the other columns.

    Parameters
    ----------
    model : estimator
        Fitted, with `sample(n_samples, random_state)`: a density of this package.
    bounds : mapping from column to (low, high)
        Columns by name or number. None is no bound; bounds are included.
    n_samples : int, default=1
        Number of rows.
    random_state : int, RandomState, Generator or None, default=None
        None gives new draws at each call, an integer the same ones.
    max_draws : int, default=1_000_000
        Upper limit on the draws of the model.

    Returns
    -------
    accepted : Accepted
        Named tuple `(X, acceptance)`.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    TypeError, ValueError
        If a column is unknown or an interval is empty; if fewer than `n_samples` of `max_draws`
        rows are within the bounds.

    See Also
    --------
    MixtureStack.sample_conditional : Draws of some cells given the others.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import MixtureStack, sample_within
    >>> X = load_iris(as_frame=True).data
    >>> model = MixtureStack(random_state=0).fit(X)
    >>> long = {"petal length (cm)": (5.0, None)}
    >>> rows, acceptance = sample_within(model, long, 50, random_state=0)
    >>> bool((rows[:, 2] >= 5.0).all()), 0.2 < acceptance < 0.4
    (True, True)
    """
    if isinstance(model, type) or not hasattr(model, "sample"):
        raise TypeError(f"model must be fitted and have sample, got {model!r}.")
    check_is_fitted(model)
    for name, value in (("n_samples", n_samples), ("max_draws", max_draws)):
        Number(True, 1).check(name, value)
    low, high = _limits(model, bounds)
    source = generator_of(random_state)
    found: list[np.ndarray] = []
    n_found = n_drawn = 0
    wanted = max(n_samples, _FIRST_DRAWS)
    while n_found < n_samples and n_drawn < max_draws:
        size = min(wanted, max_draws - n_drawn, _MOST_DRAWS_AT_ONCE)
        with plain_arrays():
            rows = np.asarray(model.sample(size, random_state=draw_seed(source)))
        rows = rows[((rows >= low) & (rows <= high)).all(axis=1)]
        found.append(rows)
        n_found, n_drawn = n_found + len(rows), n_drawn + size
        # without any accepted row, the next call is twice as large as all before
        share = n_found / n_drawn if n_found else 0.5 / n_drawn
        wanted = math.ceil(_SPARE * (n_samples - n_found) / share)
    acceptance = n_found / n_drawn
    if n_found < n_samples:
        raise ValueError(
            f"{n_found} of {n_drawn} draws are within the bounds, fewer than "
            f"n_samples={n_samples}. Widen the bounds, or increase max_draws."
        )
    return Accepted(framed(model, np.concatenate(found)[:n_samples]), acceptance)


def _limits(model: Any, bounds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper limit of every column, (n_features,) each."""
    if not isinstance(bounds, Mapping) or not bounds:
        raise TypeError(
            f"bounds must be a non-empty mapping from columns to (low, high), got {bounds!r}."
        )
    names = features_of(model)
    low, high = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    for column, interval in bounds.items():
        place = _place(column, names)
        low[place], high[place] = _interval(column, interval)
    return low, high


def _place(column: Any, names: list[str]) -> int:
    if column in names:
        return names.index(column)
    is_number = isinstance(column, int | np.integer) and not isinstance(column, bool)
    if is_number and 0 <= column < len(names):
        return int(column)
    raise ValueError(f"bounds have the column {column!r}, which is none of {names}.")


def _interval(column: Any, interval: Any) -> tuple[float, float]:
    if isinstance(interval, str) or not hasattr(interval, "__len__") or len(interval) != 2:
        raise TypeError(f"bounds[{column!r}] must be a pair (low, high), got {interval!r}.")
    for limit in interval:
        if not (limit is None or (isinstance(limit, Real) and not math.isnan(float(limit)))):
            raise TypeError(f"bounds[{column!r}] must hold numbers or None, got {interval!r}.")
    low = -np.inf if interval[0] is None else float(interval[0])
    high = np.inf if interval[1] is None else float(interval[1])
    if not low < high:
        raise ValueError(f"bounds[{column!r}] must have low < high, got {interval!r}.")
    return low, high
