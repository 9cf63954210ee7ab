"""Expectation maximisation for Gaussian mixtures, fast for many components in few dimensions.

scikit-learn's `GaussianMixture` loops over components with full covariances. Here, each step is two
matrix products with the pairwise products of features, for all components at once, and small fits
of the same kind run side by side on arrays with a leading axis. The tests compare both steps with
scikit-learn's. Unlike there, each component's covariance is averaged with the pooled covariance,
which counts as half a row, so that no component collapses on a single row.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.mixture import GaussianMixture

from sklvebm.mixtures.components import LOG_2PI
from sklvebm.mixtures.factor_analysis import FactorFit, dense, log_densities
from sklvebm.mixtures.policy import rank_of
from sklvebm.mixtures.starts import Starts

_MAX_ITERATIONS = 50
_MIN_GAIN_PER_ITERATION = 1e-3  # nats per row; a smaller gain ends the iterations
PRIOR_ROWS = 0.5  # weight of the pooled covariance in each component's own, in rows
# number of features up to which products of features are cheaper than residuals per component
_MAX_FEATURES_WITH_PRODUCTS = 24
# With more rows than this for each column, rows are multiplied by inverse triangular roots, which
# takes less time than solving for each of them.
_ROWS_PER_INVERTED_COLUMN = 2
# largest squared value over smallest variance of expanded quadratic forms, whose terms cancel, with
# an error of 0.001 nats at this limit
_MAX_EXPANDED_SQUARE = 1e13
# With this many rows for each of D + 1 parameters, a component's own variance is reliable, and the
# pooled variance in its prior is limited to this multiple of it.
_TRUSTED_ROWS_PER_COLUMN, _MAX_POOLED_RATIO = 5.0, 10.0
# Fits run side by side up to this number of responsibilities. Beyond, NumPy's overhead per call no
# longer counts, and one fit at a time stays in the processor's cache.
_MAX_BATCH_RESPONSIBILITIES = 300_000


class Mixture(NamedTuple):
    """A Gaussian mixture of M components over D features."""

    weights: np.ndarray  # (M,), summing to one
    means: np.ndarray  # (M, D)
    # "full": (M, D, D), "tied": (D, D), "diag": (M, D), "low-rank": (M, D, rank + 1), loadings and
    # variances
    covariances: np.ndarray
    covariance_type: str

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Return log densities of rows X, (n_samples,), nats."""
        if self.covariance_type == "low-rank":
            joint = log_densities(X, self.means, self.covariances) + np.log(self.weights)
            return _log_sum_exp(joint)
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
        if self.covariance_type == "low-rank":
            return dense(self.covariances), each
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
    X : ndarray of shape (..., n_samples, n_features)
        Rows of about unit scale around zero: products of larger values lose digits. Leading axes
        count fits side by side.
    covariance_type : {"full", "tied", "diag"}
        Determines the products.
    least_variance : float
        Smallest variance of any component; there are no products if squares are too large for it.
    row_weights : ndarray of shape (..., n_samples) or None, default=None
        How often each row counts; None counts each row once.
    """

    def __init__(
        self,
        X: np.ndarray,
        covariance_type: str,
        least_variance: float = 1e-6,
        row_weights: np.ndarray | None = None,
    ) -> None:
        self.X, self.row_weights = X, row_weights
        self.products: Any = None  # (n_samples, n_pairs) where products are cheaper
        self.pairs: Any = None  # indices of their features
        # the quotient is compared before it is squared: squares may overflow
        farthest = np.abs(X).max(initial=0.0) / np.sqrt(max(least_variance, 1e-300))
        self.is_large = bool(farthest > np.sqrt(_MAX_EXPANDED_SQUARE))
        n_features = X.shape[-1]
        if self.is_large:
            return
        if covariance_type == "diag":
            self.products = X**2
        elif covariance_type == "full" and n_features <= _MAX_FEATURES_WITH_PRODUCTS:
            self.pairs = np.triu_indices(n_features)
            self.products = X[..., self.pairs[0]] * X[..., self.pairs[1]]

    def of_fits(self, kept: np.ndarray) -> "Statistics":
        """Return the statistics of some of the fits side by side, (n_fits,) bool."""
        if kept.all():
            return self
        part = copy.copy(self)
        part.X = self.X[kept]
        part.products = None if self.products is None else self.products[kept]
        part.row_weights = None if self.row_weights is None else self.row_weights[kept]
        return part

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over rows of values (..., n_samples)."""
        if self.row_weights is None:
            return values.mean(-1)
        return (self.row_weights * values).sum(-1) / self.row_weights.sum(-1)


def log_joint(rows: Statistics, mixture: Mixture) -> np.ndarray:
    """Return `log w_m N(x; m_m, C_m)` of every row and component, (..., n_samples, M), nats."""
    X, means = rows.X, mixture.means
    if rows.is_large:
        quadratic, log_det = _residual_forms(X, mixture)
    elif mixture.covariance_type == "diag":
        precisions = 1.0 / mixture.covariances
        quadratic = rows.products @ _transposed(precisions)
        quadratic -= 2.0 * (X @ _transposed(means * precisions))
        quadratic += (means**2 * precisions).sum(-1)[..., None, :]
        log_det = np.log(mixture.covariances).sum(-1)
    elif mixture.covariance_type == "tied":
        lower = np.linalg.cholesky(mixture.covariances)
        white, centres = (_whitened(part, lower) for part in (X, means))
        quadratic = (white**2).sum(-1)[..., None] - 2.0 * (white @ _transposed(centres))
        quadratic += (centres**2).sum(-1)[..., None, :]
        log_det = 2.0 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)[..., None]
    else:
        quadratic, log_det = _full_forms(rows, mixture)
    log_det = log_det + X.shape[-1] * LOG_2PI
    quadratic += (log_det - 2.0 * np.log(mixture.weights))[..., None, :]
    quadratic *= -0.5
    return quadratic


def _transposed(matrices: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrices, -1, -2)


def _whitened(X: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return rows X (..., n_samples, D) in units of covariances with triangular root `lower`."""
    if X.shape[-2] > _ROWS_PER_INVERTED_COLUMN * X.shape[-1]:
        return X @ _transposed(np.linalg.inv(lower))
    if X.ndim == 2:
        return solve_triangular(lower, X.T, lower=True, check_finite=False).T
    return np.stack([_whitened(*of_fit) for of_fit in zip(X, lower, strict=True)])


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


def _full_forms(rows: Statistics, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Return quadratic forms (..., n_samples, M) and log determinants (..., M)."""
    X, means = rows.X, mixture.means
    if rows.products is None:
        if len(X) <= _ROWS_PER_INVERTED_COLUMN * X.shape[1]:
            return _residual_forms(X, mixture)
        return _forms_of_products(X, mixture)
    precisions = np.linalg.inv(mixture.covariances)
    first, second = rows.pairs
    # an off-diagonal product occurs twice in the form
    coefficients = precisions[..., first, second] * (2.0 - (first == second))
    pull = np.einsum("...mde,...me->...md", precisions, means)
    quadratic = rows.products @ _transposed(coefficients)
    quadratic -= 2.0 * (X @ _transposed(pull))
    quadratic += (pull * means).sum(-1)[..., None, :]
    return quadratic, np.linalg.slogdet(mixture.covariances)[1]


def _forms_of_products(X: np.ndarray, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Return the forms of full covariances by one product of X (n_samples, D) for all of them."""
    lower = np.linalg.cholesky(mixture.covariances)
    inverse = np.linalg.inv(lower)
    white = (X @ _transposed(inverse.reshape(-1, X.shape[1]))).reshape(len(X), *mixture.means.shape)
    white -= (inverse @ mixture.means[:, :, None])[:, :, 0]
    log_det = 2.0 * np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
    return np.einsum("nmd,nmd->nm", white, white), log_det


def maximise(
    rows: Statistics,
    responsibilities: np.ndarray,
    covariance_type: str,
    ridge: float | np.ndarray,
    prior_rows: float = 0.0,
) -> Mixture:
    """Return the likeliest mixture given responsibilities (..., n_samples, M): the M step.

    The ridge is added to variances; one number, or one for each column, (n_features,). Covariances
    of components are averaged with the pooled covariance, which counts as `prior_rows` rows: a
    component with one row has no covariance of its own.
    """
    if rows.row_weights is not None:
        responsibilities = responsibilities * rows.row_weights[..., None]
    counts = responsibilities.sum(-2) + 10.0 * np.finfo(float).eps
    means = (_transposed(responsibilities) @ rows.X) / counts[..., None]
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
    n_features = means.shape[-1]
    if kind == "diag":
        covariances = _shrunk(covariances, counts, prior_rows) + ridge
    elif kind == "tied":
        covariances += ridge * np.eye(n_features)
    else:
        covariances = _shrunk(covariances, counts, prior_rows)
        covariances[..., np.arange(n_features), np.arange(n_features)] += ridge
    return Mixture(counts / counts.sum(-1, keepdims=True), means, covariances, kind)


def _shrunk(covariances: np.ndarray, counts: np.ndarray, prior_rows: float) -> np.ndarray:
    """Return covariances (..., M, D, D) or variances (..., M, D) averaged with the pooled one.

    The pooled covariance counts as `prior_rows` rows, and components with large variances dominate
    it. For a component with enough rows, the prior variance is limited to a multiple of its own:
    otherwise half a row in three hundred can make it a thousand times too wide.
    """
    is_full = covariances.ndim == counts.ndim + 2
    each = counts.reshape(*counts.shape, 1, 1) if is_full else counts[..., None]
    axis = counts.ndim - 1
    pooled = (each * covariances).sum(axis, keepdims=True) / each.sum(axis, keepdims=True)
    share = prior_rows / (each + prior_rows)
    own = np.diagonal(covariances, axis1=-2, axis2=-1) if is_full else covariances
    own = np.maximum(own, 0.0)  # rounding
    common = np.diagonal(pooled, axis1=-2, axis2=-1) if is_full else pooled
    least = np.minimum(common, _MAX_POOLED_RATIO * own)
    columns = own.shape[-1] + 1
    # `unknown` is exactly zero for trusted components: the pooled variance has no upper limit
    known = ((counts - columns) / ((_TRUSTED_ROWS_PER_COLUMN - 1.0) * columns)).clip(0.0, 1.0)
    unknown = ((1.0 - known) ** 2)[..., None]
    prior = least + unknown * (common - least)
    if is_full:
        # pooled correlations, with the component's own prior variances
        size = np.sqrt(prior / np.where(common > 0.0, common, 1.0))
        prior = pooled * size[..., :, None] * size[..., None, :]
    return covariances + share * (prior - covariances)


def _variances(
    rows: Statistics, responsibilities: np.ndarray, counts: np.ndarray, means: np.ndarray
) -> np.ndarray:
    if rows.products is not None:
        variances = (_transposed(responsibilities) @ rows.products) / counts[..., None] - means**2
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
    X = rows.X if rows.row_weights is None else rows.X * rows.row_weights[..., None]
    scatter = _transposed(X) @ rows.X - _transposed(counts[..., None] * means) @ means
    return scatter / counts.sum(-1)[..., None, None]


def _full_covariances(
    rows: Statistics, responsibilities: np.ndarray, counts: np.ndarray, means: np.ndarray
) -> np.ndarray:
    covariances = np.empty((*means.shape, means.shape[-1]))
    if rows.products is None:
        for m, (weight, mean) in enumerate(zip(responsibilities.T, means, strict=True)):
            scaled = np.sqrt(weight)[:, None] * (rows.X - mean)
            covariances[m] = scaled.T @ scaled / counts[m]  # half the products: one factor
        return covariances
    first, second = rows.pairs
    moments = (_transposed(responsibilities) @ rows.products) / counts[..., None]
    moments -= means[..., first] * means[..., second]
    covariances[..., first, second] = moments
    covariances[..., second, first] = moments
    return covariances


def _log_sum_exp(log_values: np.ndarray) -> np.ndarray:
    """Return the log-sum-exp over the last axis; the argument becomes its softmax, in place."""
    largest = log_values.max(-1, keepdims=True)
    log_values -= largest
    np.exp(log_values, out=log_values)
    total = log_values.sum(-1, keepdims=True)
    log_values /= total
    return (np.log(total) + largest)[..., 0]


def fit_mixture(
    X: np.ndarray,
    n_components: int,
    covariance_type: str,
    ridge: float | np.ndarray,
    seed: int,
    *,
    row_weights: np.ndarray | None = None,
) -> Mixture:
    """Fit one Gaussian mixture to rows X (n_samples, n_features); see `fit_mixtures`.

    `seed` is that of k-means++, which draws the first centres. `row_weights` (n_samples,) say how
    often each row counts; None counts each row once.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is numerically singular: a component has rows of very different size.
    """
    start = Start(X, Starts(X, seed, row_weights).labels(n_components), row_weights)
    return _fit_side_by_side([start], n_components, covariance_type, ridge)[0]


class Start(NamedTuple):
    """Rows of one fit, and where expectation maximisation begins.

    Attributes
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    labels : ndarray of shape (n_samples,)
        First component of every row.
    row_weights : ndarray of shape (n_samples,) or None
        How often each row counts; None counts each row once.
    """

    X: np.ndarray
    labels: np.ndarray
    row_weights: np.ndarray | None = None


def fit_mixtures(
    starts: list[Start], n_components: int, covariance_type: str, ridge: float | np.ndarray
) -> list[Mixture | None]:
    """Fit Gaussian mixtures of one kind by expectation maximisation.

    Parameters
    ----------
    starts : list of Start
        One for each fit; all rows have the same columns.
    n_components : int
        Components M of each mixture.
    covariance_type : {"full", "tied", "diag"} or "low-rank-<r>"
        A covariance for each component, one for all, variances for each, or r directions and
        variances for each.
    ridge : float or ndarray of shape (n_features,)
        Added to variances, squared units of the rows.

    Returns
    -------
    mixtures : list of Mixture or None
        After 50 iterations, or once one of them gains less than 0.001 nats per row. None where a
        covariance is numerically singular: a component has rows of very different size.
    """
    if (rank := rank_of(covariance_type)) is not None:
        return [_fit_factors(start, n_components, rank, ridge) for start in starts]
    n_rows, n_features = max(len(start.X) for start in starts), starts[0].X.shape[1]
    has_products = covariance_type != "full" or n_features <= _MAX_FEATURES_WITH_PRODUCTS
    of_one = n_rows * max(n_components, n_features)
    size = max(1, _MAX_BATCH_RESPONSIBILITIES // of_one) if has_products else 1
    found: list[Mixture | None] = []
    for first in range(0, len(starts), size):
        batch = starts[first : first + size]
        try:
            found += _fit_side_by_side(batch, n_components, covariance_type, ridge)
        except np.linalg.LinAlgError:  # of at least one of them
            for start in batch:
                try:
                    found += _fit_side_by_side([start], n_components, covariance_type, ridge)
                except np.linalg.LinAlgError:
                    found.append(None)
    return found


def _fit_factors(
    start: Start, n_components: int, rank: int, ridge: float | np.ndarray
) -> Mixture | None:
    fit = FactorFit(start.X, rank, ridge, PRIOR_ROWS, start.row_weights)
    try:
        fit.run(start.labels, n_components)
    except np.linalg.LinAlgError:
        return None
    return Mixture(fit.weights, fit.means, fit.covariances, "low-rank")


def _fit_side_by_side(
    starts: list[Start], n_components: int, covariance_type: str, ridge: float | np.ndarray
) -> list[Mixture]:
    """Fit the mixtures of all starts; raise LinAlgError if any of them is singular."""
    rows, responsibilities = _joined(starts, n_components, covariance_type, float(np.min(ridge)))
    if rows.is_large and len(starts) > 1:
        raise np.linalg.LinAlgError("rows are too far apart for products")
    found: dict[int, Mixture] = {}
    running, before = np.arange(len(starts)), np.full(len(starts), -np.inf)
    for iteration in range(_MAX_ITERATIONS):
        mixture = maximise(rows, responsibilities, covariance_type, ridge, PRIOR_ROWS)
        responsibilities = log_joint(rows, mixture)
        now = np.atleast_1d(rows.mean(_log_sum_exp(responsibilities)))
        if not np.isfinite(now).all():
            raise np.linalg.LinAlgError("rows are too far apart for these components")
        is_last = iteration == _MAX_ITERATIONS - 1
        ends = (now - before < _MIN_GAIN_PER_ITERATION) | is_last
        if len(starts) == 1:
            if ends[0]:
                return [mixture]
            before = now
            continue
        for place in np.flatnonzero(ends):
            weights, means, covariances = (part[place] for part in mixture[:3])
            found[int(running[place])] = Mixture(weights, means, covariances, covariance_type)
        if ends.all():
            break
        rows, responsibilities = rows.of_fits(~ends), responsibilities[~ends]
        running, before = running[~ends], now[~ends]
    return [found[number] for number in range(len(starts))]


def _joined(
    starts: list[Start], n_components: int, covariance_type: str, least_variance: float
) -> tuple[Statistics, np.ndarray]:
    """Return rows and first responsibilities of fits, with a leading axis if there are several."""
    if len(starts) == 1:
        X, labels, row_weights = starts[0]
        rows = Statistics(X, covariance_type, least_variance, row_weights)
        return rows, np.eye(n_components)[labels]
    n_rows = max(len(start.X) for start in starts)
    X = np.zeros((len(starts), n_rows, starts[0].X.shape[1]))
    row_weights = np.zeros((len(starts), n_rows))  # zero after the end of a shorter fit
    responsibilities = np.zeros((len(starts), n_rows, n_components))
    for number, (own, labels, weights) in enumerate(starts):
        X[number, : len(own)] = own
        row_weights[number, : len(own)] = 1.0 if weights is None else weights
        responsibilities[number, np.arange(len(own)), labels] = 1.0
    rows = Statistics(X, covariance_type, least_variance, row_weights)
    return rows, responsibilities
