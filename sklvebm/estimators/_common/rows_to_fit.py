"""The rows of one fit: an array as it is, or a random part of many rows that are not in memory."""

from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator

from sklvebm.communication import Communicator
from sklvebm.estimators._common.fit_on_ranks import gathered_rows
from sklvebm.estimators._common.reading import CheckedSource
from sklvebm.estimators._common.validation import (
    check_observed,
    checked_rows,
    checked_weights,
    weighted_rows,
)
from sklvebm.preprocessing.moments import (
    ColumnSummary,
    Extremes,
    extremes_of,
    standardisation_of,
    summary_of_blocks,
)
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.row_sources import as_source
from sklvebm.row_weights import DistinctRows, chosen
from sklvebm.runtime import working_memory
from sklvebm.validation import as_plain_array

# of a source: more rows would take longer, and change little (docs/user_guide/rows_on_disk.md)
_MOST_ROWS, _FEWEST_ROWS = 100_000, 20_000
_SHARE_OF_MEMORY = 0.25  # of scikit-learn's working memory, for the fitted rows


class RowsToFit(NamedTuple):
    """What a fit uses of X and of sample_weight."""

    X: np.ndarray  # (n_fitted, D), float64 or float32
    sample_weight: Any = None  # of these rows
    places: np.ndarray | None = None  # (n_fitted,), their numbers in a source; None counts them
    n_samples: int = 0  # rows of positive weight of which they are a part
    columns: ColumnSummary | None = None  # of all rows; None where these are all

    def distinct(self, least: int) -> DistinctRows:
        """Return the rows of positive weight, copies joined; see `weighted_rows`."""
        found = weighted_rows(self.X, self.sample_weight, least)
        return found if self.places is None else found._replace(places=self.places[found.places])

    def units(self) -> Standardisation | None:
        """Return the units of all rows, with warnings of odd columns; None where these are all."""
        return None if self.columns is None else standardisation_of(self.columns)

    @property
    def text(self) -> str | None:
        """A line on the part that is fitted, for the progress of a fit; None if it is all rows."""
        if self.columns is None:
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
    weights = None
    if checked_weights(sample_weight, rows, least) is not None:
        weights = np.asarray(as_plain_array(sample_weight), dtype=np.float64)
    places = _random_places(estimator, len(rows), n_fitted, weights)
    some, extremes = _first_pass(rows, places)
    if reset:
        check_observed(~np.isnan(extremes.first))
    columns = summary_of_blocks(_weighted(rows, weights), some, extremes)
    n_samples = len(rows) if weights is None else int((weights > 0.0).sum())
    return RowsToFit(some, chosen(weights, places), places, n_samples, columns)


def gathered_on_first(ranks: Communicator, estimator: BaseEstimator, rows: RowsToFit) -> RowsToFit:
    """Return the rows of all ranks on rank 0; on others, those of the rank.

    Where the rows of a rank are a part, rank 0 gets a part from each, in proportion to its rows.

    Parameters
    ----------
    ranks : Communicator
        Processes that fit together.
    estimator : BaseEstimator
        Before its fit.
    rows : RowsToFit
        Of this rank.

    Raises
    ------
    ValueError, RankError
        As `gathered_rows`.
    """
    if ranks.size == 1:
        return rows
    is_part = [ranks.broadcast(rows.columns is not None, rank) for rank in range(ranks.size)]
    if not any(is_part):
        return RowsToFit(*gathered_rows(ranks, estimator, rows.X, rows.sample_weight))
    rows = _summarised(rows)
    counts = [ranks.broadcast(rows.n_samples, rank) for rank in range(ranks.size)]
    share = min(1.0, most_rows(rows.X.shape[1]) / sum(counts))
    kept = np.random.RandomState(counts).permutation(len(rows.X))
    kept = np.sort(kept[: max(1, round(share * rows.n_samples))])
    X, weights = gathered_rows(ranks, estimator, rows.X[kept], chosen(rows.sample_weight, kept))
    found = ranks.collect(rows.columns)
    columns = reduce(ColumnSummary.joined, found) if found else None
    return RowsToFit(X, weights, None, sum(counts), columns)


def _summarised(rows: RowsToFit) -> RowsToFit:
    """Return rows of positive weight with their number and the summary of their columns."""
    if rows.columns is not None:
        return rows
    X, weights = rows.X, None
    if rows.sample_weight is not None:
        weights = np.asarray(as_plain_array(rows.sample_weight), dtype=np.float64)
        X, weights = X[weights > 0.0], weights[weights > 0.0]
    columns = summary_of_blocks([(X, weights)], X, extremes_of(X))
    return RowsToFit(X, weights, None, len(X), columns)


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
