"""The rows of one fit: an array as it is, or a random part of many rows that are not in memory."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator

from sklvebm.estimators._common.reading import CheckedSource
from sklvebm.estimators._common.validation import (
    check_observed,
    checked_rows,
    checked_weights,
    weighted_rows,
)
from sklvebm.preprocessing.moments import Extremes, extremes_of, standardisation_of_blocks
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.row_sources import as_source
from sklvebm.row_weights import DistinctRows
from sklvebm.runtime import working_memory

# of a source: more rows would take longer, and change little (docs/user_guide/rows_on_disk.md)
_MOST_ROWS, _FEWEST_ROWS = 100_000, 20_000
_SHARE_OF_MEMORY = 0.25  # of scikit-learn's working memory, for the fitted rows


class RowsToFit(NamedTuple):
    """What a fit uses of X and of sample_weight."""

    X: np.ndarray  # (n_fitted, D), float64 or float32
    sample_weight: Any = None  # of these rows
    places: np.ndarray | None = None  # (n_fitted,), their numbers in a source; None counts them
    n_samples: int = 0  # rows of the source
    units: Standardisation | None = None  # of all rows of the source

    def distinct(self, least: int) -> DistinctRows:
        """Return the rows of positive weight, copies joined; see `weighted_rows`."""
        found = weighted_rows(self.X, self.sample_weight, least)
        return found if self.places is None else found._replace(places=self.places[found.places])

    @property
    def summary(self) -> str | None:
        """A line on the part that is fitted, for the progress of a fit; None if it is all rows."""
        if self.places is None:
            return None
        return f"{len(self.X)} random rows of {self.n_samples} are fitted, in units of all"


def most_rows(n_features: int) -> int:
    """Return how many rows of a source a fit has in memory at most."""
    affordable = int(_SHARE_OF_MEMORY * working_memory() / (8 * n_features))
    return min(_MOST_ROWS, max(_FEWEST_ROWS, affordable))


def rows_to_fit(
    estimator: BaseEstimator, X: Any, sample_weight: Any, *, reset: bool, least: int, may_miss: bool
) -> RowsToFit:
    """Return the rows of a fit, checked.

    An array in memory is fitted as it is. So is a source of as few rows as `most_rows`. Of a larger
    one, two passes check every row and find the units, and a random part is fitted. This part
    depends on the number of rows and on an integer `random_state`, so that a fit which is continued
    has the same one.

    Parameters
    ----------
    estimator : BaseEstimator
        Stores the columns if `reset`, otherwise has them.
    X : array-like or RowSource of shape (n_samples, n_features)
        Rows in the units of the data.
    sample_weight : array-like of shape (n_samples,) or None
        How often each row counts.
    reset : bool
        Whether these are the rows of a new fit.
    least : int
        Smallest number of rows.
    may_miss : bool
        Whether cells may be missing, NaN.

    Raises
    ------
    ValueError, TypeError
        If rows or weights are not usable, or X has other columns than the rows fitted.
    """
    how: dict[str, Any] = {"reset": reset, "least": least, "may_miss": may_miss}
    source = as_source(X)
    if source is None:
        return RowsToFit(checked_rows(estimator, X, **how), sample_weight)
    rows = CheckedSource(estimator, source, **how)
    n_fitted = most_rows(rows.shape[1])
    if len(rows) <= n_fitted:
        return RowsToFit(checked_rows(estimator, X, **how), sample_weight)
    row_weights = checked_weights(sample_weight, rows, least)
    places = _random_places(estimator, len(rows), n_fitted, row_weights)
    some, extremes = _first_pass(rows, places)
    if reset:
        check_observed(~np.isnan(extremes.first))
    units = standardisation_of_blocks(_weighted(rows, row_weights), some, extremes)
    weights = None if row_weights is None else row_weights[places]
    return RowsToFit(some, weights, places, len(rows), units)


def _random_places(
    estimator: Any, n_rows: int, n_wanted: int, row_weights: np.ndarray | None
) -> np.ndarray:
    """Return the numbers of random rows of positive weight, ascending, (n_wanted,) or fewer."""
    seed = estimator.random_state
    own = int(seed) if isinstance(seed, int | np.integer) else 0
    random = np.random.RandomState([own, n_rows % 2**32])
    if row_weights is None:
        return _distinct_numbers(random, n_rows, n_wanted)
    positive = np.flatnonzero(row_weights > 0.0)
    return positive[_distinct_numbers(random, len(positive), min(n_wanted, len(positive)))]


def _distinct_numbers(random: np.random.RandomState, n_numbers: int, n_wanted: int) -> np.ndarray:
    """Return different random numbers below a limit, ascending, without an array of all of them."""
    if 2 * n_wanted >= n_numbers:
        return np.sort(random.permutation(n_numbers)[:n_wanted])
    found = np.empty(0, dtype=np.int64)
    while len(found) < n_wanted:
        drawn = random.randint(n_numbers, size=n_wanted, dtype=np.int64)
        found = np.unique(np.concatenate([found, drawn]))
    return np.sort(random.choice(found, n_wanted, replace=False))


def _first_pass(rows: CheckedSource, places: np.ndarray) -> tuple[np.ndarray, Extremes]:
    """Return the rows at given places, ascending, and the extremes of all rows."""
    some = np.empty((len(places), rows.shape[1]), dtype=rows.dtype)
    extremes: Extremes | None = None
    for part, block in rows.blocks():
        first, last = np.searchsorted(places, [part.start, part.stop])
        some[first:last] = block[places[first:last] - part.start]
        found = extremes_of(block)
        extremes = found if extremes is None else extremes.joined(found)
    assert extremes is not None
    return some, extremes


def _weighted(
    rows: CheckedSource, row_weights: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield the rows of a source in blocks, with their weights or None."""
    for part, block in rows.blocks():
        yield block, None if row_weights is None else row_weights[part]
