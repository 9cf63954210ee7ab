"""Validation of X: a float array of finite numbers, with errors that name the column."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from sklvebm.messages import naming_columns
from sklvebm.row_weights import DistinctRows, checked_weights, distinct_rows, positive_rows
from sklvebm.validation import as_plain_array


def checked_rows(
    estimator: BaseEstimator,
    X: Any,
    *,
    reset: bool,
    least: int = 1,
    may_miss: bool = False,
) -> np.ndarray:
    """Return X as a float array (n_samples, n_features), checked by scikit-learn.

    Parameters
    ----------
    estimator : BaseEstimator
        Stores the columns if `reset`, otherwise has them.
    X : array-like of shape (n_samples, n_features)
        Rows in the units of the data.
    reset : bool
        Whether these are the rows of a new fit.
    least : int, default=1
        Smallest number of rows.
    may_miss : bool, default=False
        Whether cells may be missing, NaN. Rows of a new fit need one observed cell in each column.

    Raises
    ------
    ValueError, TypeError
        If X is not usable, or has other columns than the rows fitted.
    """
    with naming_columns(X):
        rows: np.ndarray = validate_data(
            estimator,
            as_plain_array(X),
            reset=reset,
            dtype=[np.float64, np.float32],
            order="C",
            ensure_min_samples=least,
            ensure_all_finite="allow-nan" if may_miss else True,
        )
    if may_miss and reset:
        empty = np.flatnonzero(np.isnan(rows).all(axis=0))
        if len(empty):
            raise ValueError(
                f"Columns {empty.tolist()} of X have no observed value: all their cells are NaN. "
                "Nothing can be learned about them; drop these columns."
            )
    return rows


def weighted_rows(X: np.ndarray, sample_weight: Any, least: int) -> DistinctRows:
    """Return the rows of positive weight without copies.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows checked by `checked_rows`.
    sample_weight : array-like of shape (n_samples,) or None
        How often each row counts.
    least : int
        Smallest number of rows of positive weight.

    Raises
    ------
    ValueError
        If weights are unusable, or leave a column without an observed cell.
    """
    rows, row_weights = positive_rows(X, checked_weights(sample_weight, X, least))
    if len(rows) < len(X):
        empty = np.isnan(rows).all(axis=0) & ~np.isnan(X).all(axis=0)
        if empty.any():
            raise ValueError(
                f"Columns {np.flatnonzero(empty).tolist()} of X have no observed value in rows of "
                "positive sample_weight. Nothing can be learned about them; drop these columns."
            )
    return distinct_rows(rows, row_weights)
