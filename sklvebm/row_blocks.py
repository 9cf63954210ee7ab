"""Many rows in blocks: what is computed without another array of their size.

Results are those of the same operation on all rows, to the last bit.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

_NUMBERS_IN_A_BLOCK = 2**20  # 8 MB in double precision
_NAN, _ODD = np.uint64(0x7FF8000000000000), np.uint64(0x9E3779B97F4A7C15)


class Sliceable(Protocol):
    """Rows, or what is computed from rows when a part is asked for."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, part: Any) -> np.ndarray: ...


class MappedRows:
    """Rows of a function of rows, computed when they are asked for.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows, in memory or mapped from a file; not modified.
    function : callable
        Maps rows to rows of the same shape, each by itself.
    """

    def __init__(self, X: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.X, self.function, self.shape = X, function, X.shape

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, part: Any) -> np.ndarray:
        return self.function(self.X[part])


def row_blocks(rows: Sliceable) -> Iterator[slice]:
    """Yield slices of rows, in order, of some megabytes each."""
    n_rows, n_columns = rows.shape
    # NumPy adds a single column in an order of its own
    size = max(1, n_rows if n_columns == 1 else _NUMBERS_IN_A_BLOCK // max(1, n_columns))
    for first in range(0, n_rows, size):
        yield slice(first, min(first + size, n_rows))


def has_missing(rows: Sliceable) -> bool:
    """Return whether a cell of rows (N, D) is NaN."""
    X = rows.X if isinstance(rows, MappedRows) else rows
    return any(bool(np.isnan(X[part]).any()) for part in row_blocks(X))


def sum_of_blocks(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sum over all rows of blocks (n, D), (D,), added row by row as NumPy does."""
    total: np.ndarray | None = None
    for block in blocks:
        part = block if total is None else np.concatenate([total[None], block])
        total = part.sum(axis=0)
    if total is None:
        raise ValueError("blocks must not be empty.")
    return total


def has_copies(X: np.ndarray) -> bool:
    """Return whether rows X (N, D) may repeat; NaN equals NaN here, and 0.0 equals -0.0.

    False is certain. True is wrong with a probability of about `N^2 / 4e19`. Takes 8 bytes per row.
    """
    keys = np.empty(len(X), dtype=np.uint64)
    for part in row_blocks(X):
        keys[part] = _keys(X[part])
    keys.sort()
    return bool((keys[1:] == keys[:-1]).any())


def _keys(X: np.ndarray) -> np.ndarray:
    """Return 64 bits for each row (N,), equal for equal rows and mixed well for others."""
    bits = (X + 0.0).astype(np.float64, copy=False).view(np.uint64)  # one zero
    bits = np.where(np.isnan(X), _NAN, bits)
    key = np.full(len(X), _ODD)
    for column in bits.T:
        key ^= column
        key *= _ODD
        key ^= key >> np.uint64(29)
        key *= _ODD
        key ^= key >> np.uint64(32)
    return key
