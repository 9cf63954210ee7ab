"""Chooses the reference from standardised rows: a Gaussian mixture, or probabilistic PCA."""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import multivariate_normal
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from sklvebm.estimators._boundary import without_outliers
from sklvebm.estimators.quantisation import warn_of_unbounded_density
from sklvebm.reference import MixtureReference

_COMPONENT_GRID = (1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 85, 110, 150, 200)
_COVARIANCE_TYPES = ("full", "tied", "diag")
_COARSE = 3  # every third grid point first, then the neighbours of the best
_N_WORSE = 3  # coarse points without improvement that end the search of a covariance type
_MAX_SELECTION_ROWS, _MAX_FITTED_ROWS = 5000, 20_000
_FEW_ROWS = 500  # fewer are cut into more folds, and start from a larger ridge
_MANY_FOLDS, _FOLDS = 5, 3
_TIE = 0.25  # standard errors of a paired difference
_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3)  # standardised units squared
_FIRST_RIDGE = 1e-3
_COVARIANCE_FLOOR = 1e-6  # standardised units squared; scikit-learn's own reg_covar
_LATENT_VARIANCE_FLOOR = 0.01  # of the prior variance 1
_WIDE_WEIGHT = 0.05  # until it is fitted
# enough for wells to be seen where no data are; the rest of the rows must stay the mixture's
_LEAST_WIDE_WEIGHT, _MOST_WIDE_WEIGHT = 0.01, 0.3
_WIDE_SPREAD = 2.0  # standard deviations of the data


class LatentMap(NamedTuple):
    """Probabilistic PCA: posterior of z given x is `N(matrix (x - mean), diag(variance))`."""

    matrix: np.ndarray  # (L, D)
    variance: np.ndarray  # (L,)
    mean: np.ndarray  # (D,)
    covariance: np.ndarray  # (D, D), of x under the model


def probabilistic_pca(X: np.ndarray, n_components: int) -> LatentMap:
    """Fit probabilistic PCA in closed form.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    n_components : int
        Latents L. Those beyond the rank of X carry nothing: their posterior is their prior.

    Returns
    -------
    latent_map : LatentMap
        Posterior map and marginal covariance. When no direction is left to estimate the noise
        from, its variance is zero, latents are whitened scores, and their posterior variance is a
        floor of 0.01 (the prior variance is 1).
    """
    n_samples, n_features = X.shape
    mean = X.mean(axis=0)
    centred = X - mean
    divisor = max(n_samples - 1, 1)  # as sklearn.decomposition.PCA
    eigenvalues, vectors = np.linalg.eigh(centred.T @ centred / divisor)
    eigenvalues, vectors = eigenvalues[::-1].clip(min=0.0), vectors[:, ::-1]
    # a sign that does not depend on the LAPACK in use
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(n_features)])
    vectors = vectors * signs
    kept = min(n_components, n_features)
    noise = eigenvalues[kept:].mean() if kept < n_features else 0.0
    top = eigenvalues[:kept]
    used = top > max(noise, 1e-10 * eigenvalues[0], 1e-300)
    matrix = np.zeros((n_components, n_features))
    variance = np.ones(n_components)
    scale = np.sqrt(np.where(used, top - noise, 0.0)) / np.where(used, top, 1.0)
    matrix[:kept] = scale[:, None] * vectors[:, :kept].T
    shrunk = np.where(used, noise / np.where(used, top, 1.0), 1.0)
    variance[:kept] = shrunk.clip(min=_LATENT_VARIANCE_FLOOR)
    floor = max(noise, _COVARIANCE_FLOOR)
    signal = np.where(used, top - noise, 0.0)
    covariance = (vectors[:, :kept] * signal) @ vectors[:, :kept].T + floor * np.eye(n_features)
    return LatentMap(matrix, variance, mean, covariance)


def select_mixture(
    X: np.ndarray,
    random_state: np.random.RandomState,
    least_wide_weight: float = _LEAST_WIDE_WEIGHT,
) -> tuple[GaussianMixture, float]:
    """Return a Gaussian mixture and the weight of a wide component, chosen by cross-validation.

    First components and covariance type, then a ridge on the covariances. Candidates are scored
    with the wide component, as they will be used: without it, the rows in the tails decide alone.
    BIC would be cheaper, but takes too few components for curved data, and trusts likelihoods that
    few rows in many dimensions make meaningless.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows; at most 5,000 random ones choose, at most 20,000 are fitted.
    random_state : numpy.random.RandomState
        Source of folds, initialisations and choices.
    least_wide_weight : float, default=0.01
        Lower limit of the weight.

    Returns
    -------
    mixture : GaussianMixture
        Fitted to the rows.
    wide_weight : float
        Weight of the wide component that held-out rows want beside it.
    """
    seed = random_state.randint(np.iinfo(np.int32).max)
    X = X[random_state.permutation(len(X))[:_MAX_FITTED_ROWS]]
    folds = _folds(X[:_MAX_SELECTION_ROWS])
    if not folds:
        return _fitted_mixture(X, 1, "diag", _COVARIANCE_FLOOR, seed), _WIDE_WEIGHT
    wide = np.concatenate([fold[2] for fold in folds])

    @functools.cache
    def held_out(n_components: int, covariance_type: str, ridge: float) -> np.ndarray:
        parts = []
        for train, test, _ in folds:
            n_fitted = min(n_components, len(train))
            mixture = _fitted_mixture(train, n_fitted, covariance_type, ridge, seed)
            parts.append(mixture.score_samples(test))
        return np.concatenate(parts)

    def losses_of_rows(*candidate) -> np.ndarray:
        main = np.log1p(-_WIDE_WEIGHT) + held_out(*candidate)
        return -np.logaddexp(main, np.log(_WIDE_WEIGHT) + wide)

    first = _FIRST_RIDGE if len(X) < _FEW_ROWS else _COVARIANCE_FLOOR
    rows: dict[tuple[int, str], np.ndarray] = {}

    def loss(*candidate) -> float:
        rows[candidate] = losses_of_rows(*candidate, first)
        return rows[candidate].mean()

    losses = _search_components(X, loss)
    best = rows[min(losses, key=losses.get)]
    # the fewest parameters among those that are as good as the best within a share of the noise
    error = {c: (r - best).std() / np.sqrt(len(best)) for c, r in rows.items()}
    near = [c for c in rows if losses[c] - best.mean() <= _TIE * error[c]]
    choice = min(near, key=lambda candidate: _n_parameters(*candidate, X.shape[1]))
    ridge = _search_ridge(lambda ridge: losses_of_rows(*choice, ridge).mean(), first)
    weight = fitted_wide_weight(held_out(*choice, ridge), wide, least_wide_weight)
    return _fitted_mixture(X, *choice, ridge, seed), weight


def fitted_wide_weight(
    main: np.ndarray, wide: np.ndarray, least: float = _LEAST_WIDE_WEIGHT
) -> float:
    """Return the likeliest weight of the second of two densities, not below a floor, by EM.

    Parameters
    ----------
    main, wide : ndarray of shape (n_samples,)
        Log densities of held-out rows under both, nats.
    least : float, default=0.01
        The floor.
    """
    weight = _WIDE_WEIGHT
    for _ in range(100):
        share = expit(np.log(weight) - np.log1p(-weight) + wide - main)
        weight = float(np.clip(share.mean(), least, _MOST_WIDE_WEIGHT))
    return weight


def _search_ridge(loss: Callable[[float], float], first: float) -> float:
    """Return the ridge with the least loss, searched from the first one in both directions."""
    losses = {first: loss(first)}
    position = _RIDGES.index(first)
    for side in (_RIDGES[position + 1 :], _RIDGES[:position][::-1]):
        for ridge in side:
            losses[ridge] = loss(ridge)
            if losses[ridge] > min(losses.values()):
                break
    return min(losses, key=losses.get)


def _n_parameters(n_components: int, covariance_type: str, n_features: int) -> int:
    of_covariance = {
        "full": n_components * n_features * (n_features + 1) // 2,
        "tied": n_features * (n_features + 1) // 2,
        "diag": n_components * n_features,
    }
    return n_components * (n_features + 1) - 1 + of_covariance[covariance_type]


def _folds(X: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return training rows, test rows and the wide component's log density of these."""
    n_folds = _MANY_FOLDS if len(X) < _FEW_ROWS else _FOLDS
    if len(X) < n_folds:
        return []
    folds, order = [], np.arange(len(X))
    for part in np.array_split(order, n_folds):
        train = X[np.setdiff1d(order, part)]
        wide = multivariate_normal(train.mean(0), wide_covariance(train))
        folds.append((train, X[part], wide.logpdf(X[part]).reshape(-1)))
    return folds


def wide_covariance(X: np.ndarray) -> np.ndarray:
    """Return the covariance (D, D) of the defensive component for rows X."""
    n_features, X = X.shape[1], without_outliers(X)
    spread = np.cov(X.T, bias=True).reshape(n_features, -1) if len(X) > 1 else np.eye(n_features)
    return _WIDE_SPREAD**2 * (spread + _COVARIANCE_FLOOR * np.eye(n_features))


def _search_components(
    X: np.ndarray, loss: Callable[[int, str], float]
) -> dict[tuple[int, str], float]:
    """Return the losses of all covariance types, over components until they stop helping."""
    # with fewer than five rows a component, k-means meets empty clusters
    most_components = max(1, len(np.unique(X, axis=0)) // 5)
    losses: dict[tuple[int, str], float] = {}
    for covariance_type in _COVARIANCE_TYPES:
        grid = [
            n_components
            for n_components in _COMPONENT_GRID
            if n_components <= most_components
            and _n_parameters(n_components, covariance_type, X.shape[1]) <= 0.5 * X.size
        ] or [1]
        found: dict[int, float] = {}
        for position in range(0, len(grid), _COARSE):
            found[position] = loss(grid[position], covariance_type)
            # shells look like one Gaussian until there are many components
            if position - min(found, key=found.get) >= _N_WORSE * _COARSE:
                break
        centre = min(found, key=found.get)
        for position in range(max(0, centre - _COARSE + 1), min(len(grid), centre + _COARSE)):
            if position not in found:
                found[position] = loss(grid[position], covariance_type)
        losses |= {(grid[p], covariance_type): value for p, value in found.items()}
    return losses


def _fitted_mixture(
    X: np.ndarray, n_components: int, covariance_type: str, ridge: float, seed: int
) -> GaussianMixture:
    mixture = GaussianMixture(
        n_components, covariance_type=covariance_type, reg_covar=ridge, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(X)


def full_covariances(mixture: GaussianMixture) -> np.ndarray:
    """Return the component covariances of any covariance type, (M, D, D)."""
    n_components, n_features = mixture.means_.shape
    covariances = mixture.covariances_
    if mixture.covariance_type == "full":
        return covariances
    if mixture.covariance_type == "tied":
        return np.broadcast_to(covariances, (n_components, n_features, n_features))
    if mixture.covariance_type == "spherical":
        covariances = np.repeat(covariances[:, None], n_features, axis=1)
    return np.stack([np.diag(variances) for variances in covariances])


def fit_reference(
    X: np.ndarray,
    n_components: int,
    kind: str | GaussianMixture | MixtureReference,
    random_state: np.random.RandomState,
    *,
    least_wide_weight: float = _LEAST_WIDE_WEIGHT,
) -> MixtureReference:
    """Fit the reference to standardised rows.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    n_components : int
        Latents.
    kind : {"mixture", "gaussian"}, GaussianMixture or MixtureReference
        Gaussian mixture with one wide defensive component; the Gaussian of probabilistic PCA; a
        mixture estimator, of which a clone is fitted and given the wide component; or a complete
        reference in standardised units, which is copied.
    random_state : numpy.random.RandomState
        Source of the mixture's initialisations.
    least_wide_weight : float, default=0.01
        Lower limit of the wide component's weight, for "mixture".

    Returns
    -------
    reference : MixtureReference
        Float64, on the CPU.
    """
    if isinstance(kind, MixtureReference):
        if (kind.n_features, kind.n_latents) != (X.shape[1], n_components):
            raise ValueError(
                f"reference must have n_features={X.shape[1]} and n_latents={n_components}, got "
                f"n_features={kind.n_features} and n_latents={kind.n_latents}."
            )
        return copy.deepcopy(kind).cpu().double()
    latent = probabilistic_pca(X, n_components)
    maps = {
        "latent_map": torch.from_numpy(latent.matrix),
        "latent_variance": torch.from_numpy(latent.variance),
        "location": torch.from_numpy(latent.mean),
    }
    if kind != "gaussian":
        # X is NumPy here; mixtures refuse to start from k-means under array API dispatch
        # and are slower on several threads than on one
        with config_context(array_api_dispatch=False), threadpool_limits(1):
            is_estimator = isinstance(kind, GaussianMixture)
            mixture, wide_weight = (
                (clone(kind).fit(X), _WIDE_WEIGHT)
                if is_estimator
                else select_mixture(X, random_state, least_wide_weight)
            )
    else:
        return MixtureReference(
            torch.ones(1),
            torch.from_numpy(latent.mean)[None],
            torch.from_numpy(latent.covariance)[None],
            **maps,
        )
    covariances = np.array(full_covariances(mixture))
    warn_of_unbounded_density(X, mixture.weights_, covariances, mixture.reg_covar)
    return MixtureReference(
        torch.from_numpy(mixture.weights_),
        torch.from_numpy(mixture.means_),
        torch.from_numpy(covariances),
        **maps,
        wide_weight=wide_weight,
        wide_covariance=torch.from_numpy(wide_covariance(X)),
    )
