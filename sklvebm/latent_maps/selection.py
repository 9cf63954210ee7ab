"""Fits nonlinear coordinates of the latents, and decides whether they are worth their bends.

Where rows lie along a curve, a few linear latents cannot tell them apart. Isomap, continued to all
rows by bumps, measures distance along the rows; noise lets it jump from one turn to the next, which
is why it is also tried on rows that were moved to where the reference expects their neighbourhood.
A bottleneck that rows are rebuilt from follows surfaces that close in themselves, which Isomap has
to tear; given the chance it also winds through noise, so it has to keep near rows near each other.
Held-out rows choose.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.manifold import Isomap, trustworthiness
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from sklvebm.latent_maps.autoencoder import fit_bottleneck
from sklvebm.latent_maps.maps import KernelLatentMap, LatentMap
from sklvebm.mixtures.reference import MixtureReference

LATENT_MAPS = ("auto", "linear", "manifold")
_MOST_ROWS, _FEWEST_ROWS = 1000, 100
_MOST_ROWS_EXACT = 10_000
_N_NEIGHBOURS = 10
_N_LANDMARKS = 128
_N_AVERAGED = 3  # rows for each landmark
_WIDTH = 2.0  # distances to the fifteenth neighbour
_RIDGE = 0.1
_LEAST_VARIANCE = 1e-3  # of the latents' variance 1
_HELD_OUT = 0.25
# what is left of the linear map's error, for a latent map to be worth its bends
_WORTHWHILE = 0.9
# what is left of the best other error, for a bottleneck to be worth its freedom: on surfaces 0.5
_CLEARLY_WORTHWHILE = 0.7
_LOST_CONTINUITY = 0.005  # of 1; about a standard error on 250 rows


def fit_latent_map(
    X: np.ndarray, reference: MixtureReference, kind: str, random_state: np.random.RandomState
) -> LatentMap | None:
    """Fit a latent map to standardised rows, if one is wanted.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows; at most 1,000 random ones are used, 10,000 for a bottleneck that is
        taken.
    reference : MixtureReference
        Fitted to them, float64, on the CPU; its linear map is the alternative.
    kind : {"auto", "linear", "manifold"}
        "manifold" always fits a latent map; "auto" only where held-out rows are rebuilt from their
        neighbours in its latents with at most 0.9 times the squared error of the linear map. Either
        prefers a bottleneck to Isomap where that leaves 0.7 times the error of all others, held-out
        rows that are near each other stay so, and there are several latents.
    random_state : numpy.random.RandomState
        Source of the rows and landmarks.

    Returns
    -------
    latent_map : LatentMap or None
        Float64, on the CPU; None for the linear map.

    Raises
    ------
    ValueError
        If "manifold" is asked of fewer than five rows, or than two for each latent.
    """
    n_latents, n_features = reference.n_latents, X.shape[1]
    # with as many latents as features, the linear map loses nothing
    hopeless = n_latents >= n_features or len(X) < _FEWEST_ROWS
    if kind == "linear" or (kind == "auto" and hopeless):
        return None
    least = max(5, 2 * n_latents)
    if len(X) < least:
        raise ValueError(
            f"latent_map='manifold' needs at least {least} rows that are not held out for "
            f"{n_latents} latents, got {len(X)}."
        )
    X = X[random_state.permutation(len(X))]
    X, spare = X[:_MOST_ROWS], X[_MOST_ROWS:]
    seed = random_state.randint(np.iinfo(np.int32).max)
    n_held_out = max(1, int(_HELD_OUT * len(X)))
    fitted, held_out = X[n_held_out:], X[:n_held_out]
    compare = _Comparison(fitted, held_out)
    ways = (_along_rows, _along_moved_rows)
    errors = {way: compare.error(way(fitted, reference, seed).mean) for way in ways}
    best = min(errors, key=errors.__getitem__)
    bent, unbent = errors[best], compare.error(reference.latent_mean)
    # one latent that may go anywhere fills the plane with loops
    if n_latents > 1 and len(X) >= _FEWEST_ROWS:
        most = _CLEARLY_WORTHWHILE * min(bent, unbent)
        free = _bottleneck(np.concatenate([fitted, spare]), reference, seed, compare, most)
        if free is not None:
            return free
    if kind == "auto" and bent > _WORTHWHILE * unbent:
        return None
    return best(X, reference, seed)


class _Comparison:
    """Judges maps from rows to latents by rows that they were not fitted to."""

    def __init__(self, fitted: np.ndarray, held_out: np.ndarray) -> None:
        self.fitted, self.held_out = fitted, held_out

    def _latents(self, gauge: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Return latents of fitted and held-out rows, each column of variance one."""
        known, asked = (gauge(torch.from_numpy(X)).numpy() for X in (self.fitted, self.held_out))
        scale = known.std(0)
        scale[scale == 0.0] = 1.0
        return known / scale, asked / scale

    def error(self, gauge: Callable[[Tensor], Tensor]) -> float:
        """Return the mean squared error of held-out rows rebuilt from neighbours in latents."""
        known, asked = self._latents(gauge)
        neighbours = KNeighborsRegressor(min(_N_NEIGHBOURS, len(known)))
        rebuilt = neighbours.fit(known, self.fitted).predict(asked)
        return float(np.square(rebuilt - self.held_out).mean())

    def continuity(self, gauge: Callable[[Tensor], Tensor]) -> float:
        """Return how many neighbours among held-out rows are neighbours in latents; one is all."""
        _, asked = self._latents(gauge)
        # scikit-learn asks whether neighbours in its second argument are so in the first
        return float(trustworthiness(asked, self.held_out, n_neighbors=_N_NEIGHBOURS))


def _bottleneck(
    X: np.ndarray, reference: MixtureReference, seed: int, compare: _Comparison, most: float
) -> LatentMap | None:
    """Return a map to what rows are rebuilt from, None if it errs too much or parts near rows."""
    start = reference.latent_map.numpy()
    least = compare.continuity(reference.latent_mean) - _LOST_CONTINUITY

    def passes(latent_map: LatentMap) -> bool:
        return (
            compare.error(latent_map.mean) <= most and compare.continuity(latent_map.mean) >= least
        )

    # most rows want none, which a coarse map of some of them tells sooner
    if not passes(fit_bottleneck(X[: len(compare.fitted)], start, seed)):
        return None
    latent_map = fit_bottleneck(X[:_MOST_ROWS_EXACT], start, seed, exact=True)
    return latent_map if passes(latent_map) else None


def _along_rows(X: np.ndarray, reference: MixtureReference, seed: int) -> LatentMap:
    """Embed rows by Isomap and fit a map to them."""
    return _isomap(X, X, reference.n_latents, seed)


def _along_moved_rows(X: np.ndarray, reference: MixtureReference, seed: int) -> LatentMap:
    """Embed rows, moved towards their neighbourhood, by Isomap and fit a map to them."""
    moved = reference.local_mean(torch.from_numpy(X)).numpy()
    return _isomap(X, moved, reference.n_latents, seed)


def _isomap(X: np.ndarray, rows: np.ndarray, n_latents: int, seed: int) -> KernelLatentMap:
    """Return a map from X to the embedding of rows, which X may have been moved to."""
    random_state = np.random.RandomState(seed)
    # neighbourhoods of one component may share a point, which has no directions
    rows = rows + 1e-6 * random_state.standard_normal(rows.shape)
    # ARPACK would start from NumPy's global generator
    isomap = Isomap(
        n_neighbors=min(_N_NEIGHBOURS, len(X) - 1), n_components=n_latents, eigen_solver="dense"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clusters apart from each other are joined
        latents = isomap.fit_transform(rows)
    scale = latents.std(0)
    scale[scale == 0.0] = 1.0
    latents = (latents - latents.mean(0)) / scale
    return _regression(X, latents, random_state)


def _regression(
    X: np.ndarray, latents: np.ndarray, random_state: np.random.RandomState
) -> KernelLatentMap:
    """Fit the smooth map from rows to latents, least squares with a ridge on bumps and slopes."""
    chosen = X[random_state.permutation(len(X))[:_N_LANDMARKS]]
    distances = pairwise_distances(chosen, X)
    # means of neighbours: a fitted model holds no rows
    landmarks = X[np.argsort(distances, axis=1)[:, :_N_AVERAGED]].mean(1)
    nearness = np.sort(distances, axis=1)[:, min(15, len(X) - 1)]
    width = _WIDTH * max(np.median(nearness), 1e-3)
    gram = np.exp(-0.5 * np.square(pairwise_distances(landmarks) / width))
    bumps = np.exp(-0.5 * np.square(pairwise_distances(X, landmarks) / width))
    design = np.column_stack([np.ones(len(X)), X, bumps])
    first_bump = 1 + X.shape[1]
    penalty = np.zeros((design.shape[1], design.shape[1]))
    penalty[range(1, first_bump), range(1, first_bump)] = _RIDGE
    penalty[first_bump:, first_bump:] = _RIDGE * gram
    penalty += 1e-8 * len(X) * np.eye(len(penalty))
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ latents)
    # Isomap leaves the signs open
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
        variance=torch.from_numpy(residual.clip(_LEAST_VARIANCE, 1.0)),
    )
