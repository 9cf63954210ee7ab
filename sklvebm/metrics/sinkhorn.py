"""Sinkhorn divergence: debiased entropic optimal transport."""

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning

from sklvebm.metrics._pairwise import blocks, check_two_samples, median_distance
from sklvebm.validation import Interval, validate_params

_RELATIVE_EPSILON = 0.05  # in squared median distances of pooled rows
_COOLING = 0.25  # of consecutive ε, which halves the length scale


@validate_params(
    {
        "X": ["array-like"],
        "Y": ["array-like"],
        "epsilon": [Interval(Real, 0, None, closed="neither"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
    }
)
def sinkhorn_divergence(
    X: Any, Y: Any, *, epsilon: float | None = None, max_iter: int = 1000, tol: float = 1e-3
) -> float:
    r"""Return the Sinkhorn divergence of two samples.

    .. math:: S_\epsilon(X, Y) = \mathrm{OT}_\epsilon(X, Y) - \tfrac12 \mathrm{OT}_\epsilon(X, X)
        - \tfrac12 \mathrm{OT}_\epsilon(Y, Y), \qquad
        \mathrm{OT}_\epsilon = \min_\pi \sum_{ij} \pi_{ij} |x_i - y_j|^2
        + \epsilon\, \mathrm{KL}(\pi \,\|\, \mu \otimes \nu)

    It tends to the squared Wasserstein distance for small ε and to the squared distance of the
    means for large ε. Up to the tolerance, it is positive unless the samples are equal [1]_.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows of one sample.
    Y : array-like of shape (n_other_samples, n_features)
        Rows of the other.
    epsilon : float or None, default=None
        Strength ε of the entropy, in squared units of X: differences between rows below its square
        root are smoothed. None takes 5 % of the squared median distance of pooled rows. Values with
        different ε cannot be compared.
    max_iter : int, default=1000
        Upper limit on the iterations for each of the three terms.
    tol : float, default=1e-3
        Mean relative error of the rows' masses in the plan at which the iteration stops. The result
        is more accurate, since it is stationary in the potentials.

    Returns
    -------
    divergence : float
        In squared units of X.

    Raises
    ------
    ValueError
        If numbers of features differ or a parameter is not legal.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` iterations did not reach `tol`.

    See Also
    --------
    wasserstein_distance_2 : Exact, for up to a few thousand rows.

    Notes
    -----
    The iteration is in the log domain and lowers ε step by step. Its time and memory are
    proportional to the product of the numbers of rows, with 8 bytes for each pair.

    References
    ----------
    .. [1] J. Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn
       divergences", AISTATS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import sinkhorn_divergence
    >>> X = np.random.RandomState(0).randn(100, 2)
    >>> round(sinkhorn_divergence(X, X + [3.0, 4.0]), 2)
    25.0
    """
    X, Y = check_two_samples(X, Y, least=1)
    if epsilon is None:
        epsilon = _RELATIVE_EPSILON * median_distance(X, Y) ** 2
    control: dict[str, Any] = {"epsilon": epsilon, "max_iter": max_iter, "tol": tol}
    return (
        _cost_between(cdist(X, Y, "sqeuclidean"), **control)
        - 0.5 * _cost_within(cdist(X, X, "sqeuclidean"), **control)
        - 0.5 * _cost_within(cdist(Y, Y, "sqeuclidean"), **control)
    )


def _cost_between(cost: np.ndarray, *, epsilon: float, max_iter: int, tol: float) -> float:
    """Return the entropic cost between two samples from their cost matrix."""
    f, g = np.zeros(len(cost)), np.zeros(cost.shape[1])
    for blur in _blurs(cost, epsilon):
        f = _soft_minimum(cost, g, blur)
        g = _soft_minimum(cost.T, f, blur)
    for _ in range(max_iter):
        f, old = _soft_minimum(cost, g, epsilon), f
        g = _soft_minimum(cost.T, f, epsilon)
        if np.abs(f - old).mean() <= tol * epsilon:
            break
    else:
        _warn(max_iter, tol)
    return float(f.mean() + g.mean())


def _cost_within(cost: np.ndarray, *, epsilon: float, max_iter: int, tol: float) -> float:
    """Return the entropic cost of a sample to itself, which has one potential."""
    f = np.zeros(len(cost))
    for blur in _blurs(cost, epsilon):
        f = 0.5 * (f + _soft_minimum(cost, f, blur))
    for _ in range(max_iter):
        # the change of a potential over ε is the logarithm of a row's mass; the mean of old and
        # new, because the plain iteration oscillates between two potentials
        f, old = 0.5 * (f + _soft_minimum(cost, f, epsilon)), f
        if np.abs(f - old).mean() <= 0.5 * tol * epsilon:
            break
    else:
        _warn(max_iter, tol)
    return float(2.0 * f.mean())


def _blurs(cost: np.ndarray, epsilon: float) -> np.ndarray:
    """Return values of ε from the largest cost down to the wanted one, which is not included."""
    n_steps = int(max(0.0, np.ceil(np.log(epsilon / max(cost.max(), epsilon)) / np.log(_COOLING))))
    return epsilon * _COOLING ** -np.arange(n_steps, 0, -1.0)


def _soft_minimum(cost: np.ndarray, potential: np.ndarray, epsilon: float) -> np.ndarray:
    """Return -ε log mean_j exp((potential_j - cost_ij) / ε), shape (n_rows,)."""
    result = np.empty(len(cost))
    for rows in blocks(*cost.shape):
        exponent = (potential - cost[rows]) / epsilon
        largest = exponent.max(1)
        exponent -= largest[:, None]
        result[rows] = largest + np.log(np.exp(exponent, out=exponent).mean(1))
    return -epsilon * result


def _warn(max_iter: int, tol: float) -> None:
    warnings.warn(
        f"Sinkhorn's iteration did not reach tol={tol:g} in {max_iter} iterations; increase "
        "max_iter or epsilon.",
        ConvergenceWarning,
        stacklevel=5,
    )
