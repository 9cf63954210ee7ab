"""Quantised and repeated values, on which a density can grow without bound."""

import warnings
from typing import Any

import numpy as np
from sklearn.utils import check_array

from sklvebm.messages import naming_columns
from sklvebm.preprocessing.value_steps import step_of
from sklvebm.runtime import without_numpy_errors
from sklvebm.validation import as_plain_array, check_random_state

_MAX_NARROW_WIDTH = 0.35  # steps; narrower components resolve single values of a column
_MAX_FLOOR_MULTIPLE = 3.0  # covariance floors; smaller variances count as degenerate
_MIN_COMPONENT_ROWS = 5  # smaller components are overfitting and cause no warning
# smallest relevant step of a column, in standard deviations of the covariance floor, and the
# smallest floor for this rule, standardised units squared
_MIN_STEP_SHARE, _MIN_FLOOR = 1e-3, 1e-6
_MAX_REPEATED_SHARE = 0.1  # of the rows; more repeated rows cause a warning


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
        Smallest distance of two values, in the units of the column, if more than 5 % of the values
        repeat others; 0 if fewer repeat, or all are the same.

    See Also
    --------
    dequantize : Adds noise as wide as these steps.

    Notes
    -----
    Two numbers count as one value if they differ by a few rounding errors of their own size, such
    as 0.1 + 0.2 and 0.3. Columns of single precision have the rounding errors of single precision.
    A column whose values are as dense as its precision allows has no step.

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

    The expected log density of the noisy rows is a lower bound on the log of the probability of
    the rounded rows divided by the step. Continuous columns stay unchanged.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows; not modified.
    step : "auto", float or array-like of shape (n_features,), default="auto"
        Width of the noise in each column, 0 for none; "auto" takes `resolution(X)`. For the scores
        of other rows, pass the steps of the training rows.
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
    GaussianMargins : Fits the edges of such columns.

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
    """Warn if a mixture fitted to rows X has narrow components on repeated values.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    weights : ndarray of shape (n_mixture_components,)
        Weights of the components.
    covariances : ndarray of shape (n_covariances, n_features, n_features)
        Their covariances.
    covariance_of : ndarray of shape (n_mixture_components,)
        Index of each component's covariance.
    floor : float
        Ridge on their diagonals, standardised units squared.
    """
    varying = np.ptp(X, axis=0) > 0.0
    narrowest = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2).min(axis=0))
    # standardisation leaves rounding errors; steps below this size are irrelevant
    least = _MIN_STEP_SHARE * np.sqrt(max(floor, _MIN_FLOOR))
    step = np.array([step_of(column, least) for column in X.T])
    columns = np.flatnonzero((step > 0.0) & (narrowest < _MAX_NARROW_WIDTH * step) & varying)
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
    # eigenvalues of many columns take seconds: a root of the difference exists above the limit
    limit = _MAX_FLOOR_MULTIPLE * floor
    is_flat = not _exceeds(np.einsum("k,kde->de", shares, kept), limit)
    # a component with one or two rows is overfitting, not a property of the data
    populated = weights * len(X) >= _MIN_COMPONENT_ROWS
    # the largest eigenvalue is at least the largest variance
    narrow = np.diagonal(kept, axis1=1, axis2=2).max(axis=1) < limit
    narrow[narrow] = [np.linalg.eigvalsh(one)[-1] < limit for one in kept[narrow]]
    if is_flat or (populated & narrow[covariance_of]).any():
        warnings.warn(
            "The density is as narrow as its covariance floor, in a direction or around a point: "
            "columns depend on each other, rows are repeated, or there are hardly more rows than "
            f"columns. {remedy} what repeats.",
            UserWarning,
            stacklevel=2,
        )


def _exceeds(covariance: np.ndarray, limit: float) -> bool:
    """Return whether all eigenvalues of a covariance (D, D) exceed a limit."""
    try:
        np.linalg.cholesky(covariance - limit * np.eye(len(covariance)))
    except np.linalg.LinAlgError:
        return False
    return True


def warn_of_repeated_rows(share: float) -> None:
    """Warn if many rows repeat others: they were rounded, and their density is not smooth."""
    if share > _MAX_REPEATED_SHARE:
        warnings.warn(
            f"{100.0 * share:.0f} % of the rows of X repeat other rows. Copies count as one row of "
            "that weight. If they come from rounding, scores can be too good: use "
            "sklvebm.dequantize.",
            UserWarning,
            stacklevel=2,
        )
