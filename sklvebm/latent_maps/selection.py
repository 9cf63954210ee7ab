"""Fits and selects nonlinear maps to latents.

Few linear latents cannot separate rows along a curve. Isomap measures distances along the curve; a
regression on Gaussian bumps extends it to all rows. Noise can connect distant parts of the curve in
its neighbour graph. Isomap is therefore also fitted to denoised rows, moved to the mean of their
mixture components. An autoencoder can also follow closed surfaces, which Isomap cannot embed. It
can overfit noise and is accepted only if neighbouring rows remain neighbours in its latents.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from sklearn.manifold import Isomap, trustworthiness
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from sklvebm.latent_maps.autoencoder import N_TRIAL_STEPS, fit_bottleneck
from sklvebm.latent_maps.maps import KernelLatentMap, LatentMap
from sklvebm.mixtures.reference import MixtureReference

LATENT_MAPS = ("auto", "linear", "manifold")
_MIN_ROWS, _MAX_ROWS, _MAX_ROWS_EXACT = 100, 1000, 10_000  # of Isomap, and of the autoencoder
_HELD_OUT_SHARE = 0.25  # of the rows
_N_NEIGHBOURS = 10  # of Isomap's graph, and in the comparison
# the regression on bumps: centres, rows averaged for each, width over the median distance to the
# fifteenth neighbour, ridge, and least residual variance (latents have variance 1)
_N_LANDMARKS, _N_ROWS_PER_LANDMARK = 128, 3
_RELATIVE_WIDTH, _RIDGE, _MIN_LATENT_VARIANCE = 2.0, 0.1, 1e-3
# Largest accepted reconstruction error of held-out rows: of Isomap, over the linear map's; and of
# the autoencoder, over the best other one. The latter is about 0.5 on closed surfaces.
_MAX_ERROR_RATIO, _MAX_BOTTLENECK_ERROR_RATIO = 0.9, 0.7
# The autoencoder takes half of the fit of a small table. It is tried only if rows rebuilt from
# neighbours among the rows have at most this share of the best other error. It is
# selected on Kepler orbits, with two latents (0.20) and with three (between both limits), and never
# on iris, wine, breast cancer and digits (0.48 to 0.54). Few rows have the stricter limit.
_MAX_FLOOR_RATIO, _MAX_FLOOR_RATIO_OF_FEW, _FEW_ROWS = 0.6, 0.45, 500
# A fit of a sixth of the time comes first. Its error may be this multiple of the accepted one.
# Measured: 0.9 to 1.12 on Kepler orbits, 0.3 on a cylinder, 1.36 to 1.42 on breast cancer and
# digits with eight latents, 1.20 to 1.25 on digits with two.
_MAX_TRIAL_RATIO = 1.2
_MAX_CONTINUITY_LOSS = 0.005  # of the autoencoder; about one standard error on 250 rows


def fit_latent_map(
    X: np.ndarray, reference: MixtureReference, kind: str, random_state: np.random.RandomState
) -> LatentMap | None:
    """Fit a latent map to standardised rows, where `kind` allows one.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows; at most 1,000 random ones are used, 10,000 for a selected autoencoder.
    reference : MixtureReference
        Fitted to them, float64, on the CPU; its linear map is the alternative.
    kind : {"auto", "linear", "manifold"}
        "manifold" always fits a latent map. "auto" fits one if held-out rows are rebuilt from their
        neighbours in its latents with at most 0.9 times the squared error of the linear map. With
        two latents or more, both prefer an autoencoder to Isomap if it has at most 0.7 times the
        best other error, and if neighbouring held-out rows remain neighbours.
    random_state : numpy.random.RandomState
        Source of the rows and landmarks.

    Returns
    -------
    latent_map : LatentMap or None
        Float64, on the CPU; None for the linear map.

    Raises
    ------
    ValueError
        If "manifold" has fewer than five rows, or fewer than two for each latent.
    """
    n_latents, n_features = reference.n_latents, X.shape[1]
    # with as many latents as features, the linear map preserves all information
    is_linear = n_latents >= n_features or len(X) < _MIN_ROWS
    if kind == "linear" or (kind == "auto" and is_linear):
        return None
    least = max(5, 2 * n_latents)
    if len(X) < least:
        raise ValueError(
            f"latent_map='manifold' needs at least {least} rows that are not held out for "
            f"{n_latents} latents, got {len(X)}."
        )
    X = X[random_state.permutation(len(X))]
    X, spare = X[:_MAX_ROWS], X[_MAX_ROWS:]
    seed = random_state.randint(np.iinfo(np.int32).max)
    n_held_out = max(1, int(_HELD_OUT_SHARE * len(X)))
    fitted, held_out = X[n_held_out:], X[:n_held_out]
    compare = _Comparison(fitted, held_out)
    fits = (_fit_rows, _fit_denoised_rows)
    errors = {fit: compare.error(fit(fitted, reference, seed).mean) for fit in fits}
    best = min(errors, key=errors.__getitem__)
    error, linear_error = errors[best], compare.error(reference.latent_mean)
    # with a single latent, an autoencoder follows a space-filling curve
    if n_latents > 1 and len(X) >= _MIN_ROWS:
        other_error = min(error, linear_error)
        # neighbours among the rows themselves rebuild them about as well as any latents can
        few = len(X) < _FEW_ROWS
        floor_ratio = _MAX_FLOOR_RATIO_OF_FEW if few else _MAX_FLOOR_RATIO
        if compare.error(lambda rows: rows) <= floor_ratio * other_error:
            most = _MAX_BOTTLENECK_ERROR_RATIO * other_error
            encoder = _bottleneck(np.concatenate([fitted, spare]), reference, seed, compare, most)
            if encoder is not None:
                return encoder
    if kind == "auto" and error > _MAX_ERROR_RATIO * linear_error:
        return None
    return best(X, reference, seed)


class _Comparison(NamedTuple):
    """Compares maps from rows to latents on held-out rows."""

    fitted: np.ndarray  # (n_fitted, n_features)
    held_out: np.ndarray  # (n_held_out, n_features)

    def _latents(self, latent_mean: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Return latents of fitted and held-out rows, each column of variance one."""
        fitted, held_out = (latent_mean(torch.from_numpy(X)).numpy() for X in self)
        scale = fitted.std(0)
        scale[scale == 0.0] = 1.0
        return fitted / scale, held_out / scale

    def error(self, latent_mean: Callable[[Tensor], Tensor]) -> float:
        """Return the mean squared error of held-out rows rebuilt from neighbours in latents."""
        fitted, held_out = self._latents(latent_mean)
        neighbours = KNeighborsRegressor(min(_N_NEIGHBOURS, len(fitted)))
        rebuilt = neighbours.fit(fitted, self.fitted).predict(held_out)
        return float(np.square(rebuilt - self.held_out).mean())

    def continuity(self, latent_mean: Callable[[Tensor], Tensor]) -> float:
        """Return the continuity on held-out rows: one if neighbours remain so in the latents."""
        _, held_out = self._latents(latent_mean)
        # the trustworthiness of rows as an embedding of their latents
        return float(trustworthiness(held_out, self.held_out, n_neighbors=_N_NEIGHBOURS))


def _bottleneck(
    X: np.ndarray, reference: MixtureReference, seed: int, compare: _Comparison, most: float
) -> LatentMap | None:
    """Return an autoencoder's map, or None if its error or its continuity is not acceptable."""
    start = reference.latent_map.numpy()
    least = compare.continuity(reference.latent_mean) - _MAX_CONTINUITY_LOSS

    def passes(latent_map: LatentMap) -> bool:
        return (
            compare.error(latent_map.mean) <= most and compare.continuity(latent_map.mean) >= least
        )

    # short and coarse fits to some rows reject it cheaply, as for most data sets
    some = X[: len(compare.fitted)]
    trial = fit_bottleneck(some, start, seed, n_steps=N_TRIAL_STEPS)
    if compare.error(trial.mean) > _MAX_TRIAL_RATIO * most:
        return None
    if not passes(fit_bottleneck(some, start, seed)):
        return None
    latent_map = fit_bottleneck(X[:_MAX_ROWS_EXACT], start, seed, exact=True)
    return latent_map if passes(latent_map) else None


def _fit_rows(X: np.ndarray, reference: MixtureReference, seed: int) -> LatentMap:
    """Embed rows by Isomap and fit a map to the embedding."""
    return _isomap(X, X, reference.n_latents, seed)


def _fit_denoised_rows(X: np.ndarray, reference: MixtureReference, seed: int) -> LatentMap:
    """Embed denoised rows by Isomap and fit a map from the original rows to the embedding."""
    moved = reference.local_mean(torch.from_numpy(X)).numpy()
    return _isomap(X, moved, reference.n_latents, seed)


def _isomap(X: np.ndarray, rows: np.ndarray, n_latents: int, seed: int) -> KernelLatentMap:
    """Return a map from X to the embedding of `rows`, the same ones or denoised."""
    random_state = np.random.RandomState(seed)
    # denoised rows of one component may coincide
    rows = rows + 1e-6 * random_state.standard_normal(rows.shape)
    # the default solver, ARPACK, starts from NumPy's global generator
    isomap = Isomap(
        n_neighbors=min(_N_NEIGHBOURS, len(X) - 1), n_components=n_latents, eigen_solver="dense"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of separate clusters, which Isomap connects
        latents = isomap.fit_transform(rows)
    scale = latents.std(0)
    scale[scale == 0.0] = 1.0
    latents = (latents - latents.mean(0)) / scale
    return _regression(X, latents, random_state)


def _regression(
    X: np.ndarray, latents: np.ndarray, random_state: np.random.RandomState
) -> KernelLatentMap:
    """Fit the smooth map from rows to latents by ridge regression on bumps and slopes."""
    chosen = X[random_state.permutation(len(X))[:_N_LANDMARKS]]
    distances = pairwise_distances(chosen, X)
    # means of neighbours, so that a fitted model contains no training rows
    landmarks = X[np.argsort(distances, axis=1)[:, :_N_ROWS_PER_LANDMARK]].mean(1)
    nearness = np.sort(distances, axis=1)[:, min(15, len(X) - 1)]
    width = _RELATIVE_WIDTH * max(np.median(nearness), 1e-3)
    gram = np.exp(-0.5 * np.square(pairwise_distances(landmarks) / width))
    bumps = np.exp(-0.5 * np.square(pairwise_distances(X, landmarks) / width))
    design = np.column_stack([np.ones(len(X)), X, bumps])
    first_bump = 1 + X.shape[1]
    penalty = np.zeros((design.shape[1], design.shape[1]))
    penalty[range(1, first_bump), range(1, first_bump)] = _RIDGE
    penalty[first_bump:, first_bump:] = _RIDGE * gram
    penalty += 1e-8 * len(X) * np.eye(len(penalty))
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ latents)
    # the signs of Isomap's latents are arbitrary
    slopes = weights[1:first_bump]
    signs = np.sign(slopes[np.abs(slopes).argmax(0), np.arange(slopes.shape[1])])
    weights = weights * np.where(signs == 0.0, 1.0, signs)
    residual = np.square(latents * np.where(signs == 0.0, 1.0, signs) - design @ weights).mean(0)
    return KernelLatentMap(
        torch.from_numpy(landmarks),
        float(width),
        offset=torch.from_numpy(weights[0]),
        linear=torch.from_numpy(weights[1:first_bump].T.copy()),
        coefficients=torch.from_numpy(weights[first_bump:]),
        variance=torch.from_numpy(residual.clip(_MIN_LATENT_VARIANCE, 1.0)),
    )
