"""Expectation maximisation for Gaussian mixtures, fast for many components in few dimensions.

scikit-learn's `GaussianMixture` goes through full covariances one component at a time; here all
components are two matrix products with the products of features. Both steps are compared with
scikit-learn's in the tests. Other than there, a component's covariance is averaged with that of all
components, which counts as half a row: components do not collapse on single rows.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.cluster import kmeans_plusplus
from sklearn.mixture import GaussianMixture

from sklvebm.mixtures.components import LOG_2PI

_MAX_ITERATIONS = 50
PRIOR_ROWS = 0.5  # that the common covariance counts as in each component's own
_LEAST_PROGRESS = 1e-3  # nats per row and iteration
# features up to which products of features are cheaper than residuals of every component
_FEW_FEATURES = 24
_DRAWN_IN = 100.0  # standard deviations, from which starts see logarithms
# squares of rows, over the least variance, up to which quadratic forms may be expanded: the terms
# cancel, and leave an error of a thousandth of a nat
_MOST_CANCELLED = 1e13
# a component's own variance is trusted from so many times as many rows as columns and a mean; the
# common one counts as at most so many times it then
_TRUSTED_ROWS, _MOST_POOLED = 5.0, 10.0


class Mixture(NamedTuple):
    """A Gaussian mixture of M components over D features."""

    weights: np.ndarray  # (M,), summing to one
    means: np.ndarray  # (M, D)
    # (M, D, D) of "full", (D, D) of "tied", (M, D) of "diag"
    covariances: np.ndarray
    covariance_type: str

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Return log densities of rows X, (n_samples,), nats."""
        variances = self.covariances
        if self.covariance_type != "diag":
            variances = np.diagonal(variances, axis1=-2, axis2=-1)
        rows = Statistics(X, self.covariance_type, float(variances.min()))
        return _log_sum_exp(log_joint(rows, self))

    def covariance_matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the covariances (K, D, D) and which of them each component has, (M,)."""
        n_components, n_features = self.means.shape
        if self.covariance_type == "tied":
            return self.covariances[None], np.zeros(n_components, dtype=np.int64)
        each = np.arange(n_components)
        if self.covariance_type == "full":
            return self.covariances, each
        return self.covariances[:, :, None] * np.eye(n_features), each


def from_scikit_learn(mixture: GaussianMixture) -> Mixture:
    """Return a fitted mixture of scikit-learn, of any covariance type, as one of ours."""
    kind, covariances = mixture.covariance_type, mixture.covariances_
    if kind == "spherical":
        kind, covariances = "diag", np.repeat(covariances[:, None], mixture.means_.shape[1], axis=1)
    return Mixture(mixture.weights_, mixture.means_, covariances, kind)


class Statistics:
    """Rows, with the products of features that a covariance type sums over.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows of about unit scale around zero: products cancel digits far away from it.
    covariance_type : {"full", "tied", "diag"}
        Whose products.
    least_variance : float
        Of any component: where squares of rows are too large beside it, no products are made.
    """

    def __init__(self, X: np.ndarray, covariance_type: str, least_variance: float = 1e-6) -> None:
        self.X = X
        self.products: Any = None  # an array where products pay
        self.pairs: Any = None  # which features they are products of
        # divided first: squares may overflow
        farthest = np.abs(X).max(initial=0.0) / np.sqrt(max(least_variance, 1e-300))
        self.is_large = bool(farthest > np.sqrt(_MOST_CANCELLED))
        n_features = X.shape[1]
        if self.is_large:
            return
        if covariance_type == "diag":
            self.products = X**2
        elif covariance_type == "full" and n_features <= _FEW_FEATURES:
            self.pairs = np.triu_indices(n_features)
            self.products = X[:, self.pairs[0]] * X[:, self.pairs[1]]


def log_joint(rows: Statistics, mixture: Mixture) -> np.ndarray:
    """Return `log w_m N(x; m_m, C_m)` of every row and component, (n_samples, M), nats."""
    X, means = rows.X, mixture.means
    if rows.is_large:
        quadratic, log_det = _residual_forms(X, mixture)
    elif mixture.covariance_type == "diag":
        precisions = 1.0 / mixture.covariances
        quadratic = rows.products @ precisions.T - 2.0 * (X @ (means * precisions).T)
        quadratic += (means**2 * precisions).sum(1)
        log_det = np.log(mixture.covariances).sum(1)
    elif mixture.covariance_type == "tied":
        lower = np.linalg.cholesky(mixture.covariances)
        white, centres = (_whitened(part, lower) for part in (X, means))
        quadratic = (white**2).sum(1)[:, None] - 2.0 * (white @ centres.T) + (centres**2).sum(1)
        log_det = 2.0 * np.log(np.diag(lower)).sum()
    else:
        quadratic = _full_quadratic_forms(rows, mixture)
        log_det = np.linalg.slogdet(mixture.covariances)[1]
    quadratic += log_det + X.shape[1] * LOG_2PI - 2.0 * np.log(mixture.weights)
    quadratic *= -0.5
    return quadratic


def _whitened(X: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return rows X (n_samples, D) in units of a covariance with triangular root `lower`."""
    return solve_triangular(lower, X.T, lower=True, check_finite=False).T


def _residual_forms(X: np.ndarray, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Return quadratic forms (n_samples, M) and log determinants (M,), without expanding squares.

    Slower than the expanded forms, and right however far from zero components are.
    """
    covariances, of = mixture.covariances, np.arange(len(mixture.means))
    if mixture.covariance_type == "diag":
        forms = [
            ((X - mean) ** 2 / variance).sum(1)
            for mean, variance in zip(mixture.means, covariances, strict=True)
        ]
        return np.stack(forms, 1), np.log(covariances).sum(1)
    if mixture.covariance_type == "tied":
        covariances, of = covariances[None], np.zeros_like(of)
    lower = np.linalg.cholesky(covariances)
    log_det = 2.0 * np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
    forms = [
        (_whitened(X - mean, lower[k]) ** 2).sum(1)
        for mean, k in zip(mixture.means, of, strict=True)
    ]
    return np.stack(forms, 1), log_det[of]


def _full_quadratic_forms(rows: Statistics, mixture: Mixture) -> np.ndarray:
    X, means = rows.X, mixture.means
    if rows.products is None:
        return _residual_forms(X, mixture)[0]
    precisions = np.linalg.inv(mixture.covariances)
    first, second = rows.pairs
    # off the diagonal, each product stands for two entries
    coefficients = precisions[:, first, second] * (2.0 - (first == second))
    pull = np.einsum("mde,me->md", precisions, means)
    quadratic = rows.products @ coefficients.T
    quadratic -= 2.0 * (X @ pull.T)
    quadratic += (pull * means).sum(1)
    return quadratic


def maximise(
    rows: Statistics,
    responsibilities: np.ndarray,
    covariance_type: str,
    ridge: float | np.ndarray,
    prior_rows: float = 0.0,
) -> Mixture:
    """Return the likeliest mixture given responsibilities (n_samples, M): the M step.

    The ridge is added to the variance of every column, or of each its own, (n_features,). With
    `prior_rows`, covariances of components are averaged with that of all components, which counts
    as so many rows: a component that holds one row has no spread of its own.
    """
    X = rows.X
    counts = responsibilities.sum(0) + 10.0 * np.finfo(float).eps
    means = (responsibilities.T @ X) / counts[:, None]
    n_features = X.shape[1]
    if covariance_type == "diag":
        variances = _variances(rows, responsibilities, counts, means)
        covariances = _shrunk(variances, counts, prior_rows) + ridge
    elif covariance_type == "tied":
        covariances = _common_covariance(rows, responsibilities, counts, means)
        covariances += ridge * np.eye(n_features)
    else:
        covariances = _full_covariances(rows, responsibilities, counts, means)
        covariances = _shrunk(covariances, counts, prior_rows)
        covariances[:, np.arange(n_features), np.arange(n_features)] += ridge
    return Mixture(counts / counts.sum(), means, covariances, covariance_type)


def _shrunk(covariances: np.ndarray, counts: np.ndarray, prior_rows: float) -> np.ndarray:
    """Return the covariances (M, D, D) or variances (M, D) with so many rows of their mean added.

    The mean is that of all components, and the largest of them set it. A component that has rows
    enough to know its own variance takes a multiple of that instead, where it is less: half a row
    in three hundred must not make small rows a thousand times as wide as they are.
    """
    pooled = np.average(covariances, axis=0, weights=counts)
    share = (prior_rows / (counts + prior_rows)).reshape(-1, *[1] * pooled.ndim)
    is_full = covariances.ndim == 3
    own = np.diagonal(covariances, axis1=1, axis2=2) if is_full else covariances
    own = np.maximum(own, 0.0)  # rounding
    common = np.diag(pooled) if is_full else pooled
    least = np.minimum(common, _MOST_POOLED * own)
    columns = own.shape[1] + 1
    # exactly zero from there on: the common one may be any number of times as large
    known = ((counts - columns) / ((_TRUSTED_ROWS - 1.0) * columns)).clip(0.0, 1.0)
    unknown = ((1.0 - known) ** 2)[:, None]
    prior = least + unknown * (common - least)
    if is_full:
        # the common correlations, with a scale of the component's own
        size = np.sqrt(prior / np.where(common > 0.0, common, 1.0))
        prior = pooled * size[:, :, None] * size[:, None, :]
    return covariances + share * (prior - covariances)


def _variances(
    rows: Statistics, responsibilities: np.ndarray, counts: np.ndarray, means: np.ndarray
) -> np.ndarray:
    if rows.products is not None:
        variances = (responsibilities.T @ rows.products) / counts[:, None] - means**2
        return np.maximum(variances, 0.0)
    residuals = (
        weight @ (rows.X - mean) ** 2
        for weight, mean in zip(responsibilities.T, means, strict=True)
    )
    return np.stack(list(residuals)) / counts[:, None]


def _common_covariance(
    rows: Statistics, responsibilities: np.ndarray, counts: np.ndarray, means: np.ndarray
) -> np.ndarray:
    if rows.is_large:
        each = _full_covariances(rows, responsibilities, counts, means)
        return np.average(each, axis=0, weights=counts)
    return (rows.X.T @ rows.X - (counts * means.T) @ means) / counts.sum()


def _full_covariances(
    rows: Statistics, responsibilities: np.ndarray, counts: np.ndarray, means: np.ndarray
) -> np.ndarray:
    n_components, n_features = means.shape
    covariances = np.empty((n_components, n_features, n_features))
    if rows.products is None:
        for m, (weight, mean) in enumerate(zip(responsibilities.T, means, strict=True)):
            centred = rows.X - mean
            covariances[m] = (weight * centred.T) @ centred / counts[m]
        return covariances
    first, second = rows.pairs
    moments = (responsibilities.T @ rows.products) / counts[:, None]
    moments -= means[:, first] * means[:, second]
    covariances[:, first, second] = moments
    covariances[:, second, first] = moments
    return covariances


def _nearest(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the number of the nearest centre (M, D) of every row, (n_samples,)."""
    return ((centres**2).sum(1) - 2.0 * (X @ centres.T)).argmin(1)


def _drawn_in(X: np.ndarray) -> np.ndarray:
    """Return rows with numbers beyond a hundred by their logarithm: squares keep their digits.

    Else copies of one row far out seem apart, and k-means++ puts all centres there.
    """
    size = np.abs(X)
    far = np.maximum(size, _DRAWN_IN)
    return np.where(size > _DRAWN_IN, np.sign(X) * _DRAWN_IN * (1.0 + np.log(far / _DRAWN_IN)), X)


def _log_sum_exp(log_values: np.ndarray) -> np.ndarray:
    """Return the log of the sum over columns, and turn the argument into shares of it, in place."""
    largest = log_values.max(1, keepdims=True)
    log_values -= largest
    np.exp(log_values, out=log_values)
    total = log_values.sum(1, keepdims=True)
    log_values /= total
    return (np.log(total) + largest)[:, 0]


def fit_mixture(
    X: np.ndarray,
    n_components: int,
    covariance_type: str,
    ridge: float | np.ndarray,
    seed: int,
    *,
    start_rows: np.ndarray | None = None,
) -> Mixture:
    """Fit a Gaussian mixture by expectation maximisation.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows, at least as many as components.
    n_components : int
        Components M.
    covariance_type : {"full", "tied", "diag"}
        A covariance for each component, one for all, or variances for each.
    ridge : float or ndarray of shape (n_features,)
        Added to variances, squared units of X.
    seed : int
        Of the start: rows go to the nearest of the centres that k-means++ draws.
    start_rows : ndarray of shape (n_samples, n_features) or None, default=None
        The rows as the start sees them; None is as they are.

    Returns
    -------
    mixture : Mixture
        After 50 iterations, or once one of them gains less than 0.001 nats per row.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is singular to rounding: rows of very different size share a component.
    """
    rows = Statistics(X, covariance_type, float(np.min(ridge)))
    seen = X if start_rows is None else start_rows
    if rows.is_large:
        seen = _drawn_in(seen)
    centres, _ = kmeans_plusplus(seen, n_components, random_state=seed)
    responsibilities = np.zeros((len(X), n_components))
    responsibilities[np.arange(len(X)), _nearest(seen, centres)] = 1.0
    before = -np.inf
    for _ in range(_MAX_ITERATIONS):
        mixture = maximise(rows, responsibilities, covariance_type, ridge, PRIOR_ROWS)
        responsibilities = log_joint(rows, mixture)
        now = _log_sum_exp(responsibilities).mean()
        if not np.isfinite(now):
            raise np.linalg.LinAlgError("rows are too far apart for these components")
        if now - before < _LEAST_PROGRESS:
            break
        before = now
    return mixture
