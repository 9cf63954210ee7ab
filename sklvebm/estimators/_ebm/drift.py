"""Continued fits: components of the reference for rows that lie outside of it."""

import copy

import numpy as np
import torch

from sklvebm.estimators._ebm.training import Training
from sklvebm.inference.drift import warn_of_drift
from sklvebm.mixtures.choice import choose_mixture
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.stacking import fit_ensemble
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.reach import reach_of_rows
from sklvebm.optimisation import Optimisation

_MAX_ADDED_SHARE = 0.5  # share of the density of new components in one continued fit


def follow_drift(rows: np.ndarray, training: Training, source: np.random.RandomState) -> Training:
    """Return a training whose reference has components for rows outside of it.

    The reference is fitted to the rows of the first fit. Outside of it, the correction is zero and
    no chains arrive, so that training cannot fit later rows there. These rows get components, whose
    share of the density is the rows' share of the chunk, at most one half.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, n_features)
        Standardised rows of the continued fit.
    training : Training
        The training to continue; its energies get the new reference in place.
    source : numpy.random.RandomState
        Source of the new components' starts.

    Warns
    -----
    UserWarning
        If rows are outside.
    """
    reference = training.reference
    outside = warn_of_drift(rows, reference, ": it gets components there")
    if not len(outside):
        return training
    share = min(len(outside) / len(rows), _MAX_ADDED_SHARE)
    extended = _extended(reference, rows[outside], share, source)
    energy, average, optimizer, n_updates = training.optimisation
    seed = int(source.randint(2**30))
    for model in (energy, average):
        like = model.reference.location
        model.reference = copy.deepcopy(extended).to(like)
        if isinstance(model, AnchoredEnergy) and model.reach is not None:
            model.reach = reach_of_rows(rows, extended, seed).to(like)
    optimisation = Optimisation(energy, average, optimizer, n_updates)
    # the choice of mixtures for the first rows does not apply to these rows
    return training._replace(optimisation=optimisation, reference=extended, choice=None)


def _extended(
    reference: MixtureReference, rows: np.ndarray, share: float, source: np.random.RandomState
) -> MixtureReference:
    """Return the reference with components fitted to standardised rows (N, D), of a given share."""
    ensemble = fit_ensemble(rows, choose_mixture(rows, source), source)
    weights, means, covariances = [], [], []
    for weight, member in zip(ensemble.weights, ensemble.members, strict=True):
        matrices, of = member.covariance_matrices()
        weights.append(weight * member.weights)
        means.append(member.means)
        covariances.append(matrices[of])
    w, m, c = (torch.from_numpy(np.concatenate(part)) for part in (weights, means, covariances))
    return reference.with_components(w, m, c, share)
