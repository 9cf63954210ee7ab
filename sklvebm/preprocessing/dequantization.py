"""Rounded and repeated values, on which a density can grow without bound: found, and softened."""

import warnings
from typing import Any

import numpy as np
from sklearn.utils import check_array

from sklvebm.messages import naming_columns
from sklvebm.preprocessing.value_steps import step_of
from sklvebm.runtime import without_numpy_errors
from sklvebm.validation import as_plain_array, check_random_state

_NARROW = 0.35  # steps: components narrower than this resolve single values of a quantised column
_FLOORED = 3.0  # times the covariance floor
_POPULATED = 5  # rows of a component that is taken at its word
_OF_FLOOR, _LEAST_FLOOR = 1e-3, 1e-6  # of the standard deviation that the floor allows
_REPEATED = 0.1  # share of rows that repeat others, which is worth a word


@without_numpy_errors
def resolution(X: Any) -> np.ndarray:
    """Return the step between neighbouring values of each quantised column, 0 for others.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows.

    Returns
    -------
    step : ndarray of shape (n_features,)
        Smallest distance of two values, in the units of the column, where more than 5 % of the
        values repeat others; 0 where values hardly repeat, or are all the same.

    See Also
    --------
    dequantize : Adds noise as wide as these steps.

    Notes
    -----
    Two numbers are one value if they differ by a few roundings of themselves, as 0.1 + 0.2 and 0.3
    do, however large other values of the column are. Columns of single precision are judged by
    their own rounding. A column whose values are as dense as its precision allows has no step.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import resolution
    >>> continuous = np.linspace(0.0, 1.0, 50) ** 2
    >>> resolution(np.column_stack([continuous, np.round(continuous, 1)])).round(3)
    array([0. , 0.1])
    """
    with naming_columns(X):
        X = check_array(as_plain_array(X), dtype=[np.float64, np.float32])
    return np.array([step_of(column) for column in X.T])


@without_numpy_errors
def dequantize(X: Any, *, step: Any = "auto", random_state: Any = None) -> np.ndarray:
    """Add uniform noise of one step to quantised columns, which makes them continuous.

    The expected log density of the noisy rows is a lower bound on the log probability of the
    rounded ones, divided by the step. Continuous columns stay as they are.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows; not modified.
    step : "auto", float or array-like of shape (n_features,), default="auto"
        Width of the noise in each column, 0 for none; "auto" takes `resolution(X)`. Give the
        training rows' steps when other rows are to be scored.
    random_state : int, RandomState, Generator or None, default=None
        Source of the noise.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
        Rows plus noise between -step / 2 and step / 2, float64.

    Raises
    ------
    ValueError
        If a step is negative or not finite, or there is not one for each column.

    See Also
    --------
    GaussianMargins : Follows the edges that such columns have.

    References
    ----------
    .. [1] L. Theis, A. van den Oord and M. Bethge, "A note on the evaluation of generative
       models", ICLR 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import dequantize
    >>> X = load_iris().data
    >>> float(abs(dequantize(X, random_state=0) - X).max()) <= 0.05
    True
    """
    with naming_columns(X):
        X = check_array(as_plain_array(X), dtype=[np.float64, np.float32])
    width = resolution(X) if isinstance(step, str) and step == "auto" else step
    try:
        width = np.broadcast_to(np.asarray(width, dtype=np.float64), X.shape[1])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"step must be 'auto', a number or one number for each of {X.shape[1]} columns, "
            f"got {step!r}."
        ) from error
    if not (np.isfinite(width).all() and (width >= 0.0).all()):
        raise ValueError(f"step must be finite and not negative, got {step!r}.")
    X = X.astype(np.float64)
    return X + width * check_random_state(random_state).uniform(-0.5, 0.5, size=X.shape)


def warn_of_unbounded_density(
    X: np.ndarray,
    weights: np.ndarray,
    covariances: np.ndarray,
    covariance_of: np.ndarray,
    floor: float,
) -> None:
    """Warn where a mixture fitted to rows X has put narrow components on repeated values.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    weights : ndarray of shape (n_mixture_components,)
        Weights of the components.
    covariances : ndarray of shape (n_covariances, n_features, n_features)
        Their covariances.
    covariance_of : ndarray of shape (n_mixture_components,)
        Which of them each component has.
    floor : float
        What was added to their diagonals.
    """
    varying = np.ptp(X, axis=0) > 0.0
    narrowest = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2).min(axis=0))
    # subtracting the mean left errors of any size, but narrower steps than this do not matter
    least = _OF_FLOOR * np.sqrt(max(floor, _LEAST_FLOOR))
    step = np.array([step_of(column, least) for column in X.T])
    columns = np.flatnonzero((step > 0.0) & (narrowest < _NARROW * step) & varying)
    remedy = "Scores there say little; pass X through sklvebm.dequantize, or drop"
    if len(columns):
        warnings.warn(
            f"Columns {columns.tolist()} of X hold few distinct values, and the density has put "
            f"narrow peaks on them, where it can grow without bound. {remedy} the columns.",
            UserWarning,
            stacklevel=2,
        )
        return
    kept = covariances if varying.all() else covariances[:, varying][:, :, varying]
    if not kept.size:
        return
    shares = np.bincount(covariance_of, weights, minlength=len(kept))
    pooled = np.linalg.eigvalsh(np.einsum("k,kde->de", shares, kept))[0]
    # a component of a row or two is the mixture's overfitting, not a property of the data
    populated = weights * len(X) >= _POPULATED
    widest = np.array([np.linalg.eigvalsh(one)[-1] for one in kept])[covariance_of]
    point_masses = populated & (widest < _FLOORED * floor)
    if pooled < _FLOORED * floor or point_masses.any():
        warnings.warn(
            "The density is as narrow as its covariance floor, in a direction or around a point: "
            "columns depend on each other, rows are repeated, or there are hardly more rows than "
            f"columns. {remedy} what repeats.",
            UserWarning,
            stacklevel=2,
        )


def warn_of_repeated_rows(X: np.ndarray) -> None:
    """Warn if many rows repeat others: held-out rows are then no test."""
    share = 1.0 - len(np.unique(X, axis=0)) / len(X)
    if share > _REPEATED:
        warnings.warn(
            f"{100.0 * share:.0f} % of the rows of X repeat other rows. Early stopping cannot see "
            "overfitting on rows that it also trains on, and scores can be too good; drop "
            "repeated rows, or use sklvebm.dequantize if they come from rounding.",
            UserWarning,
            stacklevel=2,
        )
