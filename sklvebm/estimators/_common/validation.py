"""Validation of rows and their weights: finite numbers, with errors that name the column."""

from collections.abc import Sized
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import has_fit_parameter

from sklvebm.estimators._common.reading import CheckedSource, validated
from sklvebm.row_blocks import has_copies
from sklvebm.row_sources import as_source
from sklvebm.row_weights import DistinctRows, chosen_weights, distinct_rows, relative
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
    X : array-like or RowSource of shape (n_samples, n_features)
        Rows in the units of the data; those of a source are read into memory.
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
    how: dict[str, Any] = {"reset": reset, "least": least, "may_miss": may_miss}
    # an array that is mapped from a file needs no copy
    source = None if isinstance(X, np.ndarray) else as_source(X)
    if source is not None:
        rows = CheckedSource(estimator, source, **how).gathered()
    else:
        rows = validated(estimator, X, **how)
    if may_miss and reset:
        check_observed(~np.isnan(rows).all(axis=0))
    return rows


def check_observed(has_value: np.ndarray) -> None:
    """Raise ValueError if columns have no observed value, by flags (n_features,); names them."""
    if not has_value.all():
        raise ValueError(
            f"Columns {np.flatnonzero(~has_value).tolist()} of X have no observed value: all their "
            "cells are NaN. Nothing can be learned about them; drop these columns."
        )


def checked_weights(sample_weight: Any, X: Sized, least: int = 1) -> np.ndarray | None:
    """Return the weights of rows, with mean one over the rows of positive weight.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,) or None
        Non-negative and finite; only ratios matter.
    X : ndarray of shape (n_samples, ...) or another object with a length
        The rows.
    least : int, default=1
        Rows of positive weight, at least.

    Returns
    -------
    row_weights : ndarray of shape (n_samples,) or None
        Float64; None where all weights are equal.

    Raises
    ------
    ValueError
        If weights are negative, not finite or of another length, or too few of them are positive.
    """
    if sample_weight is None:
        return None
    weights: np.ndarray = check_array(
        as_plain_array(sample_weight),
        ensure_2d=False,
        dtype=np.float64,
        ensure_non_negative=True,
        input_name="sample_weight",
    )
    if weights.shape != (len(X),):
        raise ValueError(
            f"sample_weight.shape must be {(len(X),)}, one weight for each row, got "
            f"{weights.shape}."
        )
    n_positive = int((weights > 0.0).sum())
    if n_positive < least:
        rows = "one row" if least == 1 else f"{least} rows"
        raise ValueError(
            f"sample_weight must be above zero for at least {rows}, and is for {n_positive} of "
            f"{len(weights)}."
        )
    return relative(weights)


def check_takes_weights(estimator: Any, row_weights: np.ndarray | None) -> None:
    """Raise TypeError if there are weights and the `fit` of an estimator takes none."""
    if row_weights is not None and not has_fit_parameter(estimator, "sample_weight"):
        raise TypeError(
            f"{type(estimator).__name__}.fit takes no sample_weight; pass a density that does, "
            "such as MixtureStack or ParticleLVEBM."
        )


def weighted_rows(X: np.ndarray, sample_weight: Any, least: int) -> DistinctRows:
    """Return the rows of positive weight with observed cells, without copies.

    Rows without an observed cell say nothing. They are no copies of each other, and where weights
    or copies are among the others, they are left out if two others remain.

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
    row_weights = checked_weights(sample_weight, X, least)
    kept = np.ones(len(X), dtype=bool) if row_weights is None else row_weights > 0.0
    is_missing = np.isnan(X)
    empty = is_missing[kept].all(axis=0) & ~is_missing.all(axis=0)
    if empty.any():
        raise ValueError(
            f"Columns {np.flatnonzero(empty).tolist()} of X have no observed value in rows of "
            "positive sample_weight. Nothing can be learned about them; drop these columns."
        )
    observed = kept & ~is_missing.all(axis=1)
    if row_weights is None and not observed.all() and not has_copies(X[observed]):
        return DistinctRows(X, None, np.arange(len(X)), 0.0)
    kept = observed if observed.sum() > 1 else kept
    if kept.all():
        return distinct_rows(X, row_weights)
    distinct = distinct_rows(X[kept], chosen_weights(row_weights, kept))
    return distinct._replace(places=np.flatnonzero(kept)[distinct.places])
