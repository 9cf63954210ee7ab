"""Fitted state of energies as NumPy arrays and plain types, independent of devices.

Modules become a description and their arrays; a user's energy stays a module, on the CPU. Posterior
particles of the training rows are left out, because they are as large as the data.
"""

import copy
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from sklvebm.estimators._common.serialization import (
    arrays_of,
    choice_from_plain,
    optimisation_from_plain,
    plain_choice,
    plain_optimisation,
    plain_reference,
    reference_from_plain,
)
from sklvebm.estimators._ebm.diagnostics import Diagnostics
from sklvebm.estimators._ebm.fitted_model import Model
from sklvebm.estimators._ebm.training import Training
from sklvebm.latent_maps.maps import KernelLatentMap, LatentMap, PerceptronLatentMap
from sklvebm.mcmc.state import ParticleState
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import (
    AnchoredEnergy,
    BridgedEnergy,
    FeatureEnergy,
    MappedEnergy,
    PathEnergy,
)
from sklvebm.models.networks import Network, network_from_plain, plain_network, tensor_of
from sklvebm.models.reach import Reach
from sklvebm.preprocessing.scaling import standardisation_from_plain
from sklvebm.smc.annealing import Ladder
from sklvebm.smc.log_partition import LogPartition


def latent_map_from_plain(arrays: dict[str, np.ndarray] | None) -> LatentMap | None:
    """Rebuild a latent map from its arrays."""
    if arrays is None:
        return None
    kind = KernelLatentMap if "landmarks" in arrays else PerceptronLatentMap
    latent_map = kind.__new__(kind)
    nn.Module.__init__(latent_map)
    for name, value in arrays.items():
        latent_map.register_buffer(name, tensor_of(value))
    return latent_map


def plain_energy(energy: PathEnergy) -> dict[str, Any]:
    """Describe the trained part of an energy, without the reference."""
    network = energy.network
    if isinstance(energy, BridgedEnergy):
        return {"kind": "user", "network": copy.deepcopy(network).cpu()}
    reach = energy.reach and arrays_of(energy.reach)
    return {"bound": energy.bound, "reach": reach, **plain_network(cast(Network, network))}


def energy_from_plain(plain: dict[str, Any], reference: MixtureReference) -> PathEnergy:
    """Undo `plain_energy`, with the given reference."""
    if plain["kind"] == "user":
        return BridgedEnergy(reference, plain["network"])
    network = network_from_plain(plain, reference.n_features, reference.n_latents)
    reach = plain["reach"] and reach_from_plain(plain["reach"])
    return AnchoredEnergy(reference, network, plain["bound"], reach)


def reach_from_plain(arrays: dict[str, np.ndarray]) -> Reach:
    """Rebuild the reach of a correction from its arrays, in their dtype."""
    centre, whitening = (tensor_of(arrays[k]) for k in ("centre", "whitening"))
    return Reach(centre, whitening).to(centre.dtype)


def plain_particles(state: ParticleState) -> dict[str, Any]:
    """Describe the pool and the adapted scalars, without posterior particles."""
    fields = {name: value for name, value in state._asdict().items() if name != "latents"}
    return {
        name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in fields.items()
    }


def particles_from_plain(plain: dict[str, Any]) -> ParticleState:
    """Undo `plain_particles`; posterior particles start anew."""
    fields: dict[str, Any] = {
        name: tensor_of(value) if isinstance(value, np.ndarray) else value
        for name, value in plain.items()
    }
    return ParticleState(latents=None, **fields)


def to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Replace the modules and tensors in an estimator's attributes by arrays and plain types."""
    plain = dict(state)
    model: Model = plain.pop("_model")
    training: Training = plain.pop("_training")
    for name in derived_attributes(model):
        plain.pop(name)
    plain["diagnostics_"] = plain["diagnostics_"]._asdict()
    plain["_plain"] = {
        "reference": plain_reference(model.energy.reference),
        # another reference if training was not accepted
        "trained_on": plain_reference(training.reference),
        "choice": plain_choice(training.choice),
        "latent_map": training.latent_map and arrays_of(training.latent_map),
        "energy": plain_energy(model.energy),
        "standardisation": model.standardisation.plain(),
        "log_partition": model.log_partition._asdict(),
        "ladder": {name: value.numpy() for name, value in model.ladder._asdict().items()},
        "n_annealing_steps": model.n_annealing_steps,
        "latent_step_size": model.latent_step_size,
        "seed": model.seed,
        "optimisation": plain_optimisation(training.optimisation, plain_energy),
        "particles": plain_particles(training.state),
    }
    return plain


def from_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Undo `to_plain`."""
    parts = state.pop("_plain")
    state["diagnostics_"] = Diagnostics(**state["diagnostics_"])
    reference = reference_from_plain(parts["reference"])
    model = Model(
        energy=energy_from_plain(parts["energy"], reference).requires_grad_(False),
        standardisation=standardisation_from_plain(parts["standardisation"]),
        log_partition=LogPartition(**parts["log_partition"]),
        ladder=Ladder(**{k: tensor_of(v) for k, v in parts["ladder"].items()}),
        n_annealing_steps=parts["n_annealing_steps"],
        latent_step_size=parts["latent_step_size"],
        seed=parts["seed"],
        latent_map=latent_map_from_plain(parts["latent_map"]),
    )
    particles = particles_from_plain(parts["particles"])
    trained_on = reference_from_plain(parts["trained_on"])
    own = copy.deepcopy(trained_on).to(particles.pool.dtype)
    optimisation = optimisation_from_plain(
        parts["optimisation"], lambda plain: energy_from_plain(plain, own)
    )
    choice = choice_from_plain(parts["choice"])
    training = Training(optimisation, particles, trained_on, choice, model.latent_map)
    return {**state, "_model": model, "_training": training, **derived_attributes(model)}


def derived_attributes(model: Model) -> dict[str, Any]:
    """Return the public attributes of an estimator that are parts of its model."""
    energy: Any = model.energy
    if energy.n_latents == 0:
        energy = FeatureEnergy(energy)
    elif model.latent_map is not None:
        energy = MappedEnergy(energy, model.latent_map)
    return {
        "energy_": energy,
        "reference_": model.energy.reference,
        "log_partition_": model.log_partition,
    }
