"""Rows of a continued fit that lie outside of the reference: found, named, and given components."""

import copy
import math
import warnings

import numpy as np
import torch

from sklvebm.energies import AnchoredEnergy
from sklvebm.estimators._boundary import Standardisation
from sklvebm.estimators._fitting import Training, reach_of_rows
from sklvebm.estimators._mixture_selection import choose_mixture, fit_ensemble
from sklvebm.rare_components import is_outside
from sklvebm.reference import MixtureReference
from sklvebm.training import Optimisation

_TAIL_SHARE = 0.01  # of the defensive component, in telling which rows are outside
_FEWEST = 3  # rows outside, more than which may be a region of their own
_DRAWS, _SIGMAS = 4096, 4.0  # of the reference; standard deviations of how many may be outside
_NAMED = 5  # rows in a warning
_MOST_ADDED = 0.5  # of the density, in one step


def rows_outside(X: np.ndarray, chart: Standardisation, reference: MixtureReference) -> np.ndarray:
    """Return the places of rows of X that lie outside of a reference, if they are too many.

    None where there are no more of them than draws of the reference would have there.
    """
    rows = torch.from_numpy(chart.apply(X))
    outside = np.flatnonzero(is_outside(reference, rows, _TAIL_SHARE).numpy())
    y = reference.sample(_DRAWS, torch.Generator().manual_seed(0))[:, : reference.n_features]
    own = is_outside(reference, reference.to_features(y), _TAIL_SHARE)
    expected = float(own.double().mean()) * len(rows)
    few = len(outside) <= max(_FEWEST, expected + _SIGMAS * math.sqrt(expected))
    return outside[:0] if few else outside


def warn_of_drift(
    X: np.ndarray, chart: Standardisation, reference: MixtureReference, consequence: str
) -> np.ndarray:
    """Return `rows_outside`, and warn of them.

    Warns
    -----
    UserWarning
        If there are some: how many, which, and what becomes of them.
    """
    outside = rows_outside(X, chart, reference)
    if len(outside):
        named = ", ".join(map(str, outside[:_NAMED])) + (", ..." if len(outside) > _NAMED else "")
        warnings.warn(
            f"{len(outside)} of {len(X)} rows ({named}) lie outside of the reference that the "
            f"first rows were given{consequence}. If the rows keep drifting, fit anew to rows of "
            "all kinds.",
            UserWarning,
            stacklevel=4,
        )
    return outside


def follow_drift(
    X: np.ndarray, chart: Standardisation, training: Training, source: np.random.RandomState
) -> Training:
    """Return a training whose reference has components where it had only its tails.

    A reference is fitted to the first rows. Where later ones lie outside of it, the correction is
    zero and no chain comes by: neither can learn them. They get components of their own, with the
    share of the chunk that they are, half at most.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows of the continued fit, in the units of the data.
    chart : Standardisation
        Units of the model, which stay.
    training : Training
        What is continued; its energies are given the new reference in place.
    source : numpy.random.RandomState
        Of the new components' starts.

    Warns
    -----
    UserWarning
        If rows are outside.
    """
    reference = training.reference
    outside = warn_of_drift(X, chart, reference, ": it gets components there")
    if not len(outside):
        return training
    rows = chart.apply(X)
    share = min(len(outside) / len(rows), _MOST_ADDED)
    extended = _extended(reference, rows[outside], share, source)
    energy, average, optimizer, n_updates = training.optimisation
    seed = int(source.randint(2**30))
    for model in (energy, average):
        like = model.reference.location
        model.reference = copy.deepcopy(extended).to(like)
        if isinstance(model, AnchoredEnergy) and model.reach is not None:
            model.reach = reach_of_rows(rows, extended, seed).to(like)
    optimisation = Optimisation(energy, average, optimizer, n_updates)
    # what cross-validation chose of the first rows is not what these rows have
    return training._replace(optimisation=optimisation, reference=extended, choice=None)


def _extended(
    reference: MixtureReference, rows: np.ndarray, share: float, source: np.random.RandomState
) -> MixtureReference:
    """Return the reference with components fitted to standardised rows, of a share in all."""
    ensemble = fit_ensemble(rows, choose_mixture(rows, source), source)
    weights, means, covariances = [], [], []
    for weight, member in zip(ensemble.weights, ensemble.members, strict=True):
        matrices, of = member.covariance_matrices()
        weights.append(weight * member.weights)
        means.append(member.means)
        covariances.append(matrices[of])
    parts = (torch.from_numpy(np.concatenate(part)) for part in (weights, means, covariances))
    return reference.with_components(*parts, share)
