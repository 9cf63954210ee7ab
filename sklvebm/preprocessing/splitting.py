"""Splits into fitted and held-out rows that keep copies of a row on one side."""

import math
from typing import NamedTuple

import numpy as np

from sklvebm.row_blocks import has_copies


def repeats_together(X: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an order of rows in which copies of a row are neighbours.

    Parts of this order that end between groups share no copies: held-out copies of training rows
    would hide overfitting. A group takes the place of its first row.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows.
    order : ndarray of shape (n_samples,)
        A permutation of their indices; returned unchanged where no rows repeat.
    """
    if not has_copies(X):
        return order
    _, group = np.unique(X[order], axis=0, return_inverse=True)
    group = group.reshape(-1)
    if group.max(initial=-1) + 1 == len(order):
        return order
    first = np.full(len(order), len(order))
    np.minimum.at(first, group, np.arange(len(order)))
    return order[np.argsort(first[group], kind="stable")]


_MAX_MONITOR_ROWS = 1000
_MAX_HELD_OUT_SHARE = 0.5  # of the rows, if groups of copies are larger than the wanted share


class Rows(NamedTuple):
    """Indices of fitted and monitored rows of X."""

    fitted: np.ndarray  # rows that reference and energy are fitted to
    monitor: np.ndarray  # rows that the ELBO is monitored on


def split_rows(X: np.ndarray, held_out_share: float, random_state: np.random.RandomState) -> Rows:
    """Hold rows out for early stopping; with a share of zero, monitor some of the training rows.

    Copies of a row stay on one side. A group with more than half of the rows is fitted.
    """
    n_samples = len(X)
    order = random_state.permutation(n_samples)
    if held_out_share == 0.0 or n_samples < 3:
        return Rows(np.arange(n_samples), order[:_MAX_MONITOR_ROWS])
    n_held_out = min(max(1, math.ceil(held_out_share * n_samples)), n_samples - 1)
    if not has_copies(X):
        return Rows(np.sort(order[n_held_out:]), order[:n_held_out][:_MAX_MONITOR_ROWS])
    order = repeats_together(X, order)
    starts = np.flatnonzero([True, *(X[order[1:]] != X[order[:-1]]).any(axis=1)])
    sizes = np.diff([*starts, n_samples])
    # a larger group is fitted, together with at least half of the other rows
    most = max(n_held_out, int(_MAX_HELD_OUT_SHARE * n_samples))
    n_others = int(sizes[sizes <= most].sum())
    wanted = n_held_out if n_others == n_samples else min(n_held_out, n_others // 2)
    held_out, n_taken = np.zeros(n_samples, dtype=bool), 0
    for start, size in zip(starts, sizes, strict=True):
        if n_taken < wanted and n_taken + size <= most:
            held_out[start : start + size] = True
            n_taken += size
    if n_taken == 0:  # nearly all rows are copies of one
        held_out[:n_held_out] = True
    monitor = order[held_out]
    return Rows(np.sort(order[~held_out]), monitor[:_MAX_MONITOR_ROWS])
