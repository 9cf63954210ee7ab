"""Sums over pairs of rows, in blocks, for two-sample statistics."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist, pdist
from sklearn.utils import check_array

OfDistances = Callable[[np.ndarray], np.ndarray]  # elementwise, of squared distances

_BLOCK_PAIRS = 2**22  # pairs in memory at a time: 32 MiB
_N_MEDIAN_ROWS = 1000  # rows of each sample for the median distance


def check_two_samples(X: Any, Y: Any, *, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return both samples as float64 arrays of equally many features."""
    X, Y = (
        check_array(rows, dtype=np.float64, ensure_min_samples=least, input_name=name)
        for rows, name in ((X, "X"), (Y, "Y"))
    )
    if X.shape[1] != Y.shape[1]:
        raise ValueError(
            f"X and Y must have equally many features, got {X.shape[1]} and {Y.shape[1]}."
        )
    return X, Y


def blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield slices of rows whose pairs with all columns are at most one block."""
    size = max(1, _BLOCK_PAIRS // n_columns)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def mean_between(X: np.ndarray, Y: np.ndarray, function: OfDistances) -> float:
    """Return the mean of a function of squared distances over all pairs (x, y)."""
    total = sum(
        float(function(cdist(X[rows], Y, "sqeuclidean")).sum()) for rows in blocks(len(X), len(Y))
    )
    return total / (len(X) * len(Y))


def mean_within(X: np.ndarray, function: OfDistances) -> float:
    """Return the mean of a function of squared distances over pairs of different rows."""
    n, total = len(X), 0.0
    for rows in blocks(n, n):
        # by symmetry, pairs with later rows count twice, and earlier rows are skipped
        values = function(cdist(X[rows], X[rows.start :], "sqeuclidean"))
        own = values[:, : len(values)]
        total += float(own.sum() - np.trace(own) + 2.0 * values[:, len(values) :].sum())
    return total / (n * (n - 1))


def median_distance(X: np.ndarray, Y: np.ndarray) -> float:
    """Return the median distance of pairs of pooled rows; one if all rows are equal."""
    pooled = np.concatenate([each[:: -(-len(each) // _N_MEDIAN_ROWS)] for each in (X, Y)])
    distances = pdist(pooled)
    # with repeated rows, the median may be zero
    return float(np.median(distances) or distances.mean() or 1.0)
