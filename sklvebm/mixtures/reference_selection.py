"""Fits the reference to standardised rows: Gaussian mixtures, or probabilistic PCA."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.mixture import GaussianMixture

from sklvebm.mixtures.choice import choose_mixture
from sklvebm.mixtures.expectation_maximization import from_scikit_learn
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.search import (
    COVARIANCE_FLOOR,
    DEFENSIVE_WEIGHT,
    TAIL_SCALES,
    TAIL_SHARES,
    column_scales,
    defensive_covariance,
    plain_arrays_on_one_thread,
)
from sklvebm.mixtures.stacking import (
    MAX_SELECTION_ROWS,
    MIN_DEFENSIVE_WEIGHT,
    MixtureChoice,
    MixtureEnsemble,
    fit_ensemble,
)
from sklvebm.preprocessing.dequantization import warn_of_unbounded_density
from sklvebm.preprocessing.scaling import without_outliers

_LATENT_VARIANCE_FLOOR = 0.01  # of posterior variances; the prior variance is 1
# weight of the defensive components beside a single Gaussian: they change no digit within thirty
# standard deviations, and dominate beyond
_GAUSSIAN_TAIL_WEIGHT = 1e-200
_MAX_FLOOR = 1e-3  # standardised units squared; larger ridges smooth the density


class LatentMap(NamedTuple):
    """Probabilistic PCA: posterior of z given x is `N(matrix (x - mean), diag(variance))`."""

    matrix: np.ndarray  # (L, D)
    variance: np.ndarray  # (L,)
    mean: np.ndarray  # (D,)
    covariance: np.ndarray  # (D, D), of x under the model


def probabilistic_pca(
    X: np.ndarray, n_components: int, row_weights: np.ndarray | None = None
) -> LatentMap:
    """Fit probabilistic PCA in closed form.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    n_components : int
        Latents L. The posterior of those beyond the rank of X is their prior.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.

    Returns
    -------
    latent_map : LatentMap
        Posterior map and marginal covariance. With L >= D, the noise variance is zero, latents are
        whitened scores, and their posterior variance is a floor of 0.01 (the prior variance is 1).
    """
    n_samples, n_features = X.shape
    X = without_outliers(X)  # otherwise few outliers determine the latents
    mean = np.average(X, axis=0, weights=row_weights)
    centred = np.subtract(X, mean, out=X)  # the clipped copy is not needed any more
    weighted = centred if row_weights is None else centred * row_weights[:, None]
    divisor = max(n_samples - 1, 1)  # as sklearn.decomposition.PCA
    if n_features > n_samples:  # singular vectors of few rows are those of the covariance
        scale = 1.0 if row_weights is None else np.sqrt(row_weights)[:, None]
        _, values, transposed = np.linalg.svd(scale * centred / np.sqrt(divisor), False)
        eigenvalues = np.pad(values**2, (0, n_features - len(values)))
        vectors = np.pad(transposed.T, ((0, 0), (0, n_features - len(values))))
    else:
        eigenvalues, vectors = np.linalg.eigh(weighted.T @ centred / divisor)
        eigenvalues, vectors = eigenvalues[::-1].clip(min=0.0), vectors[:, ::-1]
    # signs that do not depend on the LAPACK implementation
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
    floor = max(noise, COVARIANCE_FLOOR)
    signal = np.where(used, top - noise, 0.0)
    covariance = (vectors[:, :kept] * signal) @ vectors[:, :kept].T + floor * np.eye(n_features)
    return LatentMap(matrix, variance, mean, covariance)


class Anchor(NamedTuple):
    """A fitted ensemble with its covariance floor and defensive weights."""

    ensemble: MixtureEnsemble
    floor: float  # standardised units squared; components this narrow resolve single values
    defensive_weights: np.ndarray  # (n_defensive,)


def fit_anchor(
    X: np.ndarray,
    choice: MixtureChoice,
    random_state: np.random.RandomState,
    *,
    least_defensive_weight: float = MIN_DEFENSIVE_WEIGHT,
    observed: np.ndarray | None = None,
    row_weights: np.ndarray | None = None,
) -> Anchor:
    """Fit the ensemble that cross-validation chose to standardised rows (N, D).

    `observed` are the same rows with NaN in missing cells, or None where no cell is missing.
    `row_weights` (N,) say how often each row counts, or None counts each row once.
    """
    ensemble = fit_ensemble(X, choice, random_state, observed, row_weights)
    # a larger ridge smooths on purpose: held-out rows preferred it to narrower covariances
    scales = column_scales(X[:MAX_SELECTION_ROWS])
    ridge = max(part.candidate.ridge for part in choice.parts) * scales.ridge_units.min()
    share = max(least_defensive_weight, choice.defensive_weight)
    return Anchor(ensemble, min(_MAX_FLOOR, ridge), share * np.array(choice.defensive_shares))


def reference_of(X: np.ndarray, anchor: Anchor, latent: LatentMap) -> MixtureReference:
    """Convert an ensemble fitted to standardised rows (N, D) to a reference with given latents."""
    members = anchor.ensemble.members
    weights = np.concatenate(
        [share * m.weights for share, m in zip(anchor.ensemble.weights, members, strict=True)]
    )
    matrices, matrix_of = zip(*(member.covariance_matrices() for member in members), strict=True)
    covariances = np.concatenate(matrices)
    first = np.cumsum([0, *map(len, matrices)])[:-1]
    covariance_of = np.concatenate([f + of for f, of in zip(first, matrix_of, strict=True)])
    means = np.concatenate([member.means for member in members])
    floor, defensive_weights = anchor.floor, torch.from_numpy(anchor.defensive_weights)
    del anchor, members, matrices  # covariances of many columns take most of the memory
    warn_of_unbounded_density(X, weights, covariances, covariance_of, floor)
    return MixtureReference(
        torch.from_numpy(weights),
        torch.from_numpy(means),
        torch.from_numpy(covariances),
        covariance_of=torch.from_numpy(covariance_of),
        defensive_weight=defensive_weights,
        **_maps(X, latent),
    )


def _maps(X: np.ndarray, latent: LatentMap) -> dict[str, torch.Tensor]:
    """Return the arguments of a reference besides its mixture."""
    return {
        "latent_map": torch.from_numpy(latent.matrix),
        "latent_variance": torch.from_numpy(latent.variance),
        "location": torch.from_numpy(latent.mean),
        "defensive_covariance": torch.from_numpy(defensive_covariance(X)),
        "defensive_scales": torch.from_numpy(TAIL_SCALES),
    }


def fit_reference(
    X: np.ndarray,
    n_components: int,
    kind: str | GaussianMixture | MixtureReference,
    random_state: np.random.RandomState,
    *,
    choice: MixtureChoice | None = None,
    least_defensive_weight: float = MIN_DEFENSIVE_WEIGHT,
    observed: np.ndarray | None = None,
    row_weights: np.ndarray | None = None,
) -> MixtureReference:
    """Fit the reference to standardised rows.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    n_components : int
        Latents; 0 gives the marginal of the features ("gaussian": with their full covariance).
    kind : {"mixture", "gaussian"}, GaussianMixture or MixtureReference
        "mixture": ensembles of Gaussian mixtures with Student-like tails. "gaussian": the Gaussian
        of probabilistic PCA, with such tails beyond thirty standard deviations. A mixture
        estimator: a fitted clone, with tails. A reference in standardised units is copied.
    random_state : numpy.random.RandomState
        Source of the mixtures' starts.
    choice : MixtureChoice or None, default=None
        Mixtures of "mixture"; None chooses by cross-validation.
    least_defensive_weight : float, default=0.01
        Lower limit of the defensive component's weight, for "mixture".
    observed : ndarray of shape (n_samples, n_features) or None, default=None
        The rows with NaN in missing cells: "mixture" climbs the likelihood of the observed cells.
        Other kinds are fitted to the completed rows X.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.

    Returns
    -------
    reference : MixtureReference
        Float64, on the CPU.
    """
    known: dict[str, Any] = {
        "least_defensive_weight": least_defensive_weight,
        "observed": observed,
        "row_weights": row_weights,
    }
    width = kind.n_latents if isinstance(kind, MixtureReference) else X.shape[1]
    if n_components == 0 and width > 0:
        return fit_reference(X, width, kind, random_state, choice=choice, **known).without_latents()
    if isinstance(kind, MixtureReference):
        if (kind.n_features, kind.n_latents) != (X.shape[1], n_components):
            raise ValueError(
                f"reference must have n_features={X.shape[1]} and n_latents={n_components}, got "
                f"n_features={kind.n_features} and n_latents={kind.n_latents}."
            )
        return copy.deepcopy(kind).cpu().double()
    latent = probabilistic_pca(X, n_components, row_weights)
    if isinstance(kind, str) and kind == "gaussian":
        return MixtureReference(
            torch.ones(1),
            torch.from_numpy(latent.mean)[None],
            torch.from_numpy(latent.covariance)[None],
            defensive_weight=torch.from_numpy(_GAUSSIAN_TAIL_WEIGHT * TAIL_SHARES),
            **_maps(X, latent),
        )
    if isinstance(kind, GaussianMixture):
        if row_weights is not None:
            raise ValueError(
                "sample_weight needs reference='mixture', 'gaussian' or a MixtureStack: "
                "GaussianMixture takes no weights of rows."
            )
        return reference_of(X, _anchor_of(kind, X), latent)
    if choice is None:
        choice = choose_mixture(X, random_state, observed=observed, row_weights=row_weights)
    return reference_of(X, fit_anchor(X, choice, random_state, **known), latent)


def _anchor_of(template: GaussianMixture, X: np.ndarray) -> Anchor:
    """Fit a clone of a mixture of scikit-learn to standardised rows (N, D)."""
    with plain_arrays_on_one_thread():
        fitted = clone(template).fit(X)
    ensemble = MixtureEnsemble([from_scikit_learn(fitted)], np.ones(1))
    return Anchor(ensemble, template.reg_covar, DEFENSIVE_WEIGHT * TAIL_SHARES)


def with_defensive_weight(reference: MixtureReference, weight: float) -> MixtureReference:
    """Return a copy whose defensive components have another total weight, with equal shares."""
    logs, n_main = reference.log_weights, len(reference.log_weights) - reference.n_defensive
    main, wide = (
        torch.log_softmax(part, 0) for part in logs.split([n_main, reference.n_defensive])
    )
    return reference.reweighted(torch.cat([main + np.log1p(-weight), wide + np.log(weight)]))
