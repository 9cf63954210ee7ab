"""Rows held out for early stopping: rows that repeat each other stay on one side."""

import math
from typing import NamedTuple

import numpy as np


def repeats_together(X: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an order of rows in which those that repeat each other are neighbours.

    Cut anywhere between groups, no part then has copies of another's rows, on which overfitting
    would look like success. A group of repeated rows is where its first row was.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows.
    order : ndarray of shape (n_samples,)
        A permutation of their places; returned as it is where no rows repeat.
    """
    _, group = np.unique(X[order], axis=0, return_inverse=True)
    group = group.reshape(-1)
    if group.max(initial=-1) + 1 == len(order):
        return order
    first = np.full(len(order), len(order))
    np.minimum.at(first, group, np.arange(len(order)))
    return order[np.argsort(first[group], kind="stable")]


_MAX_MONITOR_ROWS = 1000
_MOST_HELD_OUT = 0.5  # of the rows, where many repeat each other


class Rows(NamedTuple):
    """Where each row of X goes."""

    fitted: np.ndarray  # indices of the rows that reference and energy are fitted to
    monitor: np.ndarray  # indices of the rows that the ELBO is monitored on


def split_rows(X: np.ndarray, held_out_share: float, random_state: np.random.RandomState) -> Rows:
    """Hold rows out for early stopping; with a share of zero, monitor some of the training rows.

    Rows of X that repeat each other stay on one side; where they are most of all rows, on that of
    the fitted ones.
    """
    n_samples = len(X)
    order = random_state.permutation(n_samples)
    if held_out_share == 0.0 or n_samples < 3:
        return Rows(np.arange(n_samples), order[:_MAX_MONITOR_ROWS])
    n_held_out = min(max(1, math.ceil(held_out_share * n_samples)), n_samples - 1)
    order = repeats_together(X, order)
    starts = np.flatnonzero([True, *(X[order[1:]] != X[order[:-1]]).any(axis=1)])
    sizes = np.diff([*starts, n_samples])
    # a larger group is not held out: what is fitted would lack most rows, and must have others
    most = max(n_held_out, int(_MOST_HELD_OUT * n_samples))
    n_others = int(sizes[sizes <= most].sum())
    wanted = n_held_out if n_others == n_samples else min(n_held_out, n_others // 2)
    held_out, n_taken = np.zeros(n_samples, dtype=bool), 0
    for start, size in zip(starts, sizes, strict=True):
        if n_taken < wanted and n_taken + size <= most:
            held_out[start : start + size] = True
            n_taken += size
    if n_taken == 0:  # hardly anything but copies of one row
        held_out[:n_held_out] = True
    monitor = order[held_out]
    return Rows(np.sort(order[~held_out]), monitor[:_MAX_MONITOR_ROWS])
