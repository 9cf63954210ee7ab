r"""Which cells make a row improbable: shares of `-log p(x)` for every column.

With `v(S) = -log p(x_S)`, the surprise of a set of cells, the leave-one-out share of a cell is

.. math:: v(1, \ldots, D) - v(\text{all but } j) = -\log p(x_j \mid x_{\text{rest}})

and its Shapley value is the mean of `v(S, j) - v(S)` over all orders in which cells are revealed,
S being those before j. The values of all cells sum to `v(1, ..., D)` [1]_.

References
----------
.. [1] L. S. Shapley, "A value for n-person games", Contributions to the Theory of Games 2, 1953.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_BLOCK_ROWS = 2**15  # rows scored at once

# rows (N, D), with NaN in hidden cells, repeated B times in turn -> log-densities (B * N,), nats
LogDensity = Callable[[np.ndarray], np.ndarray]


class Shares(NamedTuple):
    """Shares of rows, one for each order of revealing cells, or one that is exact."""

    values: np.ndarray  # (n_orders, N, D), nats
    is_exact: bool


def surprises(log_density: LogDensity, rows: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Return `-log p` of sets of cells (B, D) of rows (N, D), (B, N), nats; zero for no cell."""
    found = np.empty((len(sets), len(rows)))
    at_once = max(1, _BLOCK_ROWS // max(1, len(rows)))
    for first in range(0, len(sets), at_once):
        shown = sets[first : first + at_once, None]
        masked = np.where(shown, rows, np.nan).reshape(-1, rows.shape[1])
        found[first : first + at_once] = -log_density(masked).reshape(len(shown), len(rows))
    return found


def leave_one_out(log_density: LogDensity, rows: np.ndarray) -> Shares:
    """Return `-log p(x_j | x_rest)` of every cell of rows (N, D), by one batched call."""
    n_columns = rows.shape[1]
    sets = np.concatenate([np.ones((1, n_columns), bool), ~np.eye(n_columns, dtype=bool)])
    found = surprises(log_density, rows, sets)
    return Shares((found[0] - found[1:]).T[None], True)


def shapley(log_density: LogDensity, rows: np.ndarray, orders: np.ndarray | None) -> Shares:
    """Return Shapley values of the cells of rows (N, D).

    Parameters
    ----------
    log_density : callable
        Log-densities of rows with hidden cells.
    rows : ndarray of shape (N, D)
        Rows.
    orders : ndarray of shape (n_orders, D) or None
        Orders of revealing the columns; None evaluates all sets of columns, exactly.
    """
    if orders is None:
        return Shares(_all_sets(log_density, rows)[None], True)
    n_orders, n_columns = orders.shape
    ranks = np.argsort(orders, axis=1)
    # (n_orders, D + 1, D): the columns revealed after 0, 1, ..., D steps
    shown = ranks[:, None] < np.arange(n_columns + 1)[:, None]
    sets, which = np.unique(shown.reshape(-1, n_columns), axis=0, return_inverse=True)
    found = surprises(log_density, rows, sets)[which.reshape(n_orders, n_columns + 1)]
    steps = np.diff(found, axis=1).transpose(0, 2, 1)  # (n_orders, N, D), in each order's turn
    return Shares(np.take_along_axis(steps, ranks[:, None], 2), False)


def _all_sets(log_density: LogDensity, rows: np.ndarray) -> np.ndarray:
    """Return exact Shapley values (N, D) from all 2^D sets of columns."""
    n_columns = rows.shape[1]
    numbers = np.arange(2**n_columns)
    sets = (numbers[:, None] >> np.arange(n_columns)) & 1 == 1
    found = surprises(log_density, rows, sets)
    n_before, values = sets.sum(1), np.empty(rows.shape)
    for column in range(n_columns):
        without = numbers[~sets[:, column]]
        # 1 / D times the share of sets of this size
        weights = [1.0 / (n_columns * math.comb(n_columns - 1, n)) for n in n_before[without]]
        steps = found[without | (1 << column)] - found[without]
        values[:, column] = np.array(weights) @ steps
    return values


def random_orders(
    n_columns: int, n_chains: int, random: np.random.RandomState
) -> np.ndarray | None:
    """Return orders of columns, each followed by its reverse, or None if all sets cost no more.

    What a column adds early in an order and late in the reverse is averaged in the pair.
    """
    if 2**n_columns <= n_chains * (n_columns - 1) + 2:
        return None
    orders = [random.permutation(n_columns) for _ in range((n_chains + 1) // 2)]
    return np.array([one for order in orders for one in (order, order[::-1])])


def above_baseline(own: Shares, baseline: Shares) -> tuple[np.ndarray, np.ndarray]:
    """Return shares (N, D) minus the mean of those of baseline rows, and standard errors (N, D).

    Both have the same orders, so that a part of their errors cancels.
    """
    differences = own.values - baseline.values.mean(axis=1, keepdims=True)
    means = differences.mean(axis=0)
    if own.is_exact:
        return means, np.zeros_like(means)
    pairs = differences.reshape(-1, 2, *differences.shape[1:]).mean(axis=1)
    return means, pairs.std(axis=0, ddof=1) / math.sqrt(len(pairs))
