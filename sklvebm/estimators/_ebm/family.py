"""The steps of `fit_in_epochs` for energies trained with a pool of particles."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from sklvebm.estimators._common.config import TrainingConfig
from sklvebm.estimators._common.fit import Family
from sklvebm.estimators._common.parameters import Rule
from sklvebm.estimators._common.session import FitSession, Outcome
from sklvebm.estimators._ebm.drift import follow_drift
from sklvebm.estimators._ebm.serialization import derived_attributes
from sklvebm.estimators._ebm.training import (
    Training,
    anchored_on,
    on_device,
    start,
    train_particles,
)
from sklvebm.inference.drift import warn_of_drift
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.networks import shape_of


def pool_family(
    rules: dict[str, Rule],
    configure: Callable[[dict[str, Any], int, int], TrainingConfig],
    *,
    monitored: str,
    value: str,
    resolved: tuple[str, ...],
) -> Family:
    """Return the family of one estimator, with its own parameters and names."""
    return Family(
        rules=rules,
        configure=configure,
        start=start,
        resume=resume,
        train=train_particles,
        shape=shape,
        attributes=attributes,
        monitored=monitored,
        value=value,
        resolved=resolved,
        # a classifier learns nothing of cells that the reference has drawn
        with_missing={"init": "reference"},
    )


def resume(estimator: BaseEstimator, session: FitSession) -> Training:
    """Return the training of the earlier fit, on its reference, for the rows of a session.

    Warns
    -----
    UserWarning
        If rows lie outside of the reference; with `partial_fit` it gets components there.
    """
    training, data = estimator._training, session.data
    if not session.keep_best:
        # another chunk: the particles belong to other rows
        training = training._replace(state=training.state._replace(latents=None))
    training = on_device(training, session.config.torch_device)
    training = anchored_on(training, estimator.reference_)
    if session.keep_best:
        consequence = ", which stays: the energy cannot learn them"
        warn_of_drift(data.completed, training.reference, consequence)
        return training
    source = np.random.RandomState([estimator._split_seed, estimator.n_iter_, 1])
    return follow_drift(data.completed, training, source)


def shape(training: Training) -> dict[str, Any]:
    """Return the parameters that shape the model, with their values at its creation."""
    energy, pool = training.optimisation.energy, training.state.pool
    own = {
        "n_components": energy.n_latents,
        "n_temperatures": pool.shape[0],
        "n_chains": pool.shape[1],
        "dtype": str(pool.dtype).removeprefix("torch."),
    }
    # for an anchored network, `energy` must stay None
    if isinstance(energy, AnchoredEnergy):
        own = {**own, "energy": None, **shape_of(energy.network)}
    return own


def attributes(outcome: Outcome) -> dict[str, Any]:
    """Return the fitted attributes of this family."""
    own = {
        **derived_attributes(outcome.model),
        "diagnostics_": outcome.diagnostics,
        "improved_": outcome.improved,
    }
    if outcome.model.energy.n_latents > 0:
        own["latent_map_"] = "linear" if outcome.training.latent_map is None else "manifold"
    return own
