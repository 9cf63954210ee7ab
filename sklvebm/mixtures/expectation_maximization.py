"""Expectation maximisation for Gaussian mixtures, fast for many components in few dimensions.

scikit-learn's `GaussianMixture` loops over components with full covariances. Here, each step is two
matrix products with the pairwise products of features, for all components at once. The tests
compare both steps with scikit-learn's. Unlike there, each component's covariance is averaged with
the pooled covariance, which counts as half a row, so that no component collapses on a single row.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.cluster import kmeans_plusplus
from sklearn.mixture import GaussianMixture

from sklvebm.mixtures.components import LOG_2PI

_MAX_ITERATIONS = 50
_MIN_GAIN_PER_ITERATION = 1e-3  # nats per row; a smaller gain ends the iterations
PRIOR_ROWS = 0.5  # weight of the pooled covariance in each component's own, in rows
_LOG_START = 100.0  # standardised units; k-means++ uses logarithms of larger values
# number of features up to which products of features are cheaper than residuals per component
_MAX_FEATURES_WITH_PRODUCTS = 24
# largest squared value over smallest variance of expanded quadratic forms, whose terms cancel, with
# an error of 0.001 nats at this limit
_MAX_EXPANDED_SQUARE = 1e13
# With this many rows for each of D + 1 parameters, a component's own variance is reliable, and the
# pooled variance in its prior is limited to this multiple of it.
_TRUSTED_ROWS_PER_COLUMN, _MAX_POOLED_RATIO = 5.0, 10.0


class Mixture(NamedTuple):
    """A Gaussian mixture of M components over D features."""

    weights: np.ndarray  # (M,), summing to one
    means: np.ndarray  # (M, D)
    # "full": (M, D, D), "tied": (D, D), "diag": (M, D)
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
        """Return the covariances (K, D, D) and the index of each component's, (M,)."""
        n_components, n_features = self.means.shape
        if self.covariance_type == "tied":
            return self.covariances[None], np.zeros(n_components, dtype=np.int64)
        each = np.arange(n_components)
        if self.covariance_type == "full":
            return self.covariances, each
        return self.covariances[:, :, None] * np.eye(n_features), each


def from_scikit_learn(mixture: GaussianMixture) -> Mixture:
    """Convert a fitted mixture of scikit-learn, of any covariance type."""
    kind, covariances = mixture.covariance_type, mixture.covariances_
    if kind == "spherical":
        kind, covariances = "diag", np.repeat(covariances[:, None], mixture.means_.shape[1], axis=1)
    return Mixture(mixture.weights_, mixture.means_, covariances, kind)


class Statistics:
    """Rows with the products of features that the covariance type needs.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows of about unit scale around zero: products of larger values lose digits.
    covariance_type : {"full", "tied", "diag"}
        Determines the products.
    least_variance : float
        Smallest variance of any component; there are no products if squares are too large for it.
    """

    def __init__(self, X: np.ndarray, covariance_type: str, least_variance: float = 1e-6) -> None:
        self.X = X
        self.products: Any = None  # (n_samples, n_pairs) where products are cheaper
        self.pairs: Any = None  # indices of their features
        # the quotient is compared before it is squared: squares may overflow
        farthest = np.abs(X).max(initial=0.0) / np.sqrt(max(least_variance, 1e-300))
        self.is_large = bool(farthest > np.sqrt(_MAX_EXPANDED_SQUARE))
        n_features = X.shape[1]
        if self.is_large:
            return
        if covariance_type == "diag":
            self.products = X**2
        elif covariance_type == "full" and n_features <= _MAX_FEATURES_WITH_PRODUCTS:
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

    Slower than the expanded forms, and accurate for components at any distance from zero.
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
    # an off-diagonal product occurs twice in the form
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

    The ridge is added to variances; one number, or one for each column, (n_features,). Covariances
    of components are averaged with the pooled covariance, which counts as `prior_rows` rows: a
    component with one row has no covariance of its own.
    """
    counts = responsibilities.sum(0) + 10.0 * np.finfo(float).eps
    means = (responsibilities.T @ rows.X) / counts[:, None]
    if covariance_type == "diag":
        covariances = _variances(rows, responsibilities, counts, means)
    elif covariance_type == "tied":
        covariances = _common_covariance(rows, responsibilities, counts, means)
    else:
        covariances = _full_covariances(rows, responsibilities, counts, means)
    moments = Mixture(counts, means, covariances, covariance_type)
    return of_moments(moments, ridge, prior_rows)


def of_moments(moments: Mixture, ridge: float | np.ndarray, prior_rows: float) -> Mixture:
    """Return the mixture with given moments, the weights of which are numbers of rows.

    Ridge and prior are those of `maximise`. Covariances of `moments` may be overwritten.
    """
    counts, means, covariances, kind = moments
    n_features = means.shape[1]
    if kind == "diag":
        covariances = _shrunk(covariances, counts, prior_rows) + ridge
    elif kind == "tied":
        covariances += ridge * np.eye(n_features)
    else:
        covariances = _shrunk(covariances, counts, prior_rows)
        covariances[:, np.arange(n_features), np.arange(n_features)] += ridge
    return Mixture(counts / counts.sum(), means, covariances, kind)


def _shrunk(covariances: np.ndarray, counts: np.ndarray, prior_rows: float) -> np.ndarray:
    """Return covariances (M, D, D) or variances (M, D) averaged with the pooled one.

    The pooled covariance counts as `prior_rows` rows, and components with large variances dominate
    it. For a component with enough rows, the prior variance is limited to a multiple of its own:
    otherwise half a row in three hundred can make it a thousand times too wide.
    """
    pooled = np.average(covariances, axis=0, weights=counts)
    share = (prior_rows / (counts + prior_rows)).reshape(-1, *[1] * pooled.ndim)
    is_full = covariances.ndim == 3
    own = np.diagonal(covariances, axis1=1, axis2=2) if is_full else covariances
    own = np.maximum(own, 0.0)  # rounding
    common = np.diag(pooled) if is_full else pooled
    least = np.minimum(common, _MAX_POOLED_RATIO * own)
    columns = own.shape[1] + 1
    # `unknown` is exactly zero for trusted components: the pooled variance has no upper limit
    known = ((counts - columns) / ((_TRUSTED_ROWS_PER_COLUMN - 1.0) * columns)).clip(0.0, 1.0)
    unknown = ((1.0 - known) ** 2)[:, None]
    prior = least + unknown * (common - least)
    if is_full:
        # pooled correlations, with the component's own prior variances
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
    """Return the index of the nearest centre (M, D) of every row, (n_samples,)."""
    return ((centres**2).sum(1) - 2.0 * (X @ centres.T)).argmin(1)


def _drawn_in(X: np.ndarray) -> np.ndarray:
    """Return rows in which values beyond a hundred grow by their logarithm.

    Squared distances then keep their digits. Otherwise copies of one distant row have distances
    above zero by rounding, and k-means++ draws all centres there.
    """
    size = np.abs(X)
    far = np.maximum(size, _LOG_START)
    return np.where(
        size > _LOG_START,
        np.sign(X) * _LOG_START * (1.0 + np.log(far / _LOG_START)),
        X,
    )


def _log_sum_exp(log_values: np.ndarray) -> np.ndarray:
    """Return the log-sum-exp over columns; the argument becomes its softmax, in place."""
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
        Seed of k-means++, which draws the first centres.
    start_rows : ndarray of shape (n_samples, n_start_columns) or None, default=None
        Rows on which the start measures distances; None uses X.

    Returns
    -------
    mixture : Mixture
        After 50 iterations, or once one of them gains less than 0.001 nats per row.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is numerically singular: a component has rows of very different size.
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
        if now - before < _MIN_GAIN_PER_ITERATION:
            break
        before = now
    return mixture
