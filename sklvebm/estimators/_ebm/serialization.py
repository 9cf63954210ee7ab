"""Fitted state as NumPy arrays and plain types, to be stored anywhere and read anywhere.

Modules become a description and their arrays; a user's own energy stays the module it is, on the
CPU. Posterior particles of the training rows are left out: they are as large as the data.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from sklvebm.estimators._common.checksum import with_checksum, without_checksum
from sklvebm.estimators._common.serialization import (
    arrays_of,
    choice_from_plain,
    parameters_on_host,
    plain_choice,
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
from sklvebm.models.networks import network_from_plain, plain_network, tensor_of
from sklvebm.models.reach import Reach
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.smc.annealing import Ladder
from sklvebm.smc.log_partition import LogPartition
from sklvebm.training import Optimisation, start_optimisation


def latent_map_from_plain(arrays: dict[str, np.ndarray] | None) -> LatentMap | None:
    """Rebuild a latent map from its arrays."""
    if arrays is None:
        return None
    kind = KernelLatentMap if "landmarks" in arrays else PerceptronLatentMap
    chart = kind.__new__(kind)
    nn.Module.__init__(chart)
    for name, value in arrays.items():
        chart.register_buffer(name, tensor_of(value))
    return chart


def plain_energy(energy: PathEnergy) -> dict[str, Any]:
    """Describe the trained part of an energy; the reference is kept apart."""
    network = energy.network
    if isinstance(energy, BridgedEnergy):
        return {"kind": "user", "network": copy.deepcopy(network).cpu()}
    reach = energy.reach and arrays_of(energy.reach)
    return {"bound": energy.bound, "reach": reach, **plain_network(network)}


def energy_from_plain(plain: dict[str, Any], reference: MixtureReference) -> PathEnergy:
    """Rebuild what `plain_energy` described, on the given reference."""
    if plain["kind"] == "user":
        return BridgedEnergy(reference, plain["network"])
    network = network_from_plain(plain, reference.n_features, reference.n_latents)
    reach = plain["reach"] and reach_from_plain(plain["reach"])
    return AnchoredEnergy(reference, network, plain["bound"], reach)


def reach_from_plain(arrays: dict[str, np.ndarray]) -> Reach:
    """Rebuild how far a correction reaches from its arrays, in their dtype."""
    centre, whitening = (tensor_of(arrays[k]) for k in ("centre", "whitening"))
    return Reach(centre, whitening).to(centre.dtype)


def plain_optimisation(optimisation: Optimisation) -> dict[str, Any]:
    """Describe parameters, running average and Adam moments."""
    state = optimisation.optimizer.state_dict()["state"]
    moments = {
        str(index): {name: value.cpu().numpy() for name, value in entry.items()}
        for index, entry in state.items()
    }
    return {
        "energy": plain_energy(optimisation.energy),
        "average": plain_energy(optimisation.average),
        "moments": moments,
        "learning_rate": optimisation.optimizer.param_groups[0]["lr"],
        "alpha": optimisation.optimizer.param_groups[0]["weight_decay"],
        "n_updates": optimisation.n_updates,
    }


def optimisation_from_plain(plain: dict[str, Any], reference: MixtureReference) -> Optimisation:
    """Rebuild what `plain_optimisation` described, on the given reference."""
    energy = energy_from_plain(plain["energy"], reference)
    optimisation = start_optimisation(
        energy, learning_rate=plain["learning_rate"], alpha=plain["alpha"]
    )
    state = optimisation.optimizer.state_dict()
    state["state"] = {
        int(index): {name: tensor_of(value) for name, value in entry.items()}
        for index, entry in plain["moments"].items()
    }
    optimisation.optimizer.load_state_dict(state)
    average = energy_from_plain(plain["average"], optimisation.energy.reference)
    return optimisation._replace(average=average, n_updates=plain["n_updates"])


def plain_particles(state: ParticleState) -> dict[str, Any]:
    """Describe the pool and the adapted scalars; the latents are left out."""
    fields = {name: value for name, value in state._asdict().items() if name != "latents"}
    return {
        name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in fields.items()
    }


def particles_from_plain(plain: dict[str, Any]) -> ParticleState:
    """Rebuild what `plain_particles` described; the posteriors start anew."""
    fields = {
        name: tensor_of(value) if isinstance(value, np.ndarray) else value
        for name, value in plain.items()
    }
    return ParticleState(latents=None, **fields)


def to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Replace the modules and tensors in an estimator's attributes by arrays and plain types."""
    plain = parameters_on_host(state)
    if "_model" not in state:
        return plain
    model: Model = plain.pop("_model")
    training: Training = plain.pop("_training")
    for name in _DERIVED:
        plain.pop(name)
    plain["diagnostics_"] = plain["diagnostics_"]._asdict()
    plain["_plain"] = {
        "reference": plain_reference(model.energy.reference),
        # another one, where training was not accepted
        "trained_on": plain_reference(training.reference),
        "choice": plain_choice(training.choice),
        "chart": training.chart and arrays_of(training.chart),
        "energy": plain_energy(model.energy),
        "standardisation": model.standardisation._asdict(),
        "log_partition": model.log_partition._asdict(),
        "ladder": {name: value.numpy() for name, value in model.ladder._asdict().items()},
        "n_annealing_steps": model.n_annealing_steps,
        "latent_step_size": model.latent_step_size,
        "seed": model.seed,
        "optimisation": plain_optimisation(training.optimisation),
        "particles": plain_particles(training.state),
    }
    return with_checksum(plain)


def from_plain(plain: dict[str, Any]) -> dict[str, Any]:
    """Undo `to_plain`."""
    state = without_checksum(plain)
    if "_plain" not in state:
        return state
    parts = state.pop("_plain")
    state["diagnostics_"] = Diagnostics(**state["diagnostics_"])
    reference = reference_from_plain(parts["reference"])
    model = Model(
        energy=energy_from_plain(parts["energy"], reference).requires_grad_(False),
        standardisation=Standardisation(**parts["standardisation"]),
        log_partition=LogPartition(**parts["log_partition"]),
        ladder=Ladder(**{k: tensor_of(v) for k, v in parts["ladder"].items()}),
        n_annealing_steps=parts["n_annealing_steps"],
        latent_step_size=parts["latent_step_size"],
        seed=parts["seed"],
        chart=latent_map_from_plain(parts["chart"]),
    )
    particles = particles_from_plain(parts["particles"])
    trained_on = reference_from_plain(parts["trained_on"])
    state["_model"] = model
    state["_training"] = Training(
        optimisation_from_plain(
            parts["optimisation"], copy.deepcopy(trained_on).to(particles.pool.dtype)
        ),
        particles,
        trained_on,
        choice_from_plain(parts["choice"]),
        model.chart,
    )
    state.update(derived_attributes(model))
    return state


def derived_attributes(model: Model) -> dict[str, Any]:
    """Return the public attributes of an estimator that are parts of its model."""
    energy = model.energy
    if energy.n_latents == 0:
        energy = FeatureEnergy(energy)
    elif model.chart is not None:
        energy = MappedEnergy(energy, model.chart)
    return {
        "energy_": energy,
        "reference_": model.energy.reference,
        "mean_": model.standardisation.mean,
        "scale_": model.standardisation.scale,
        "log_partition_": model.log_partition,
    }


_DERIVED = ("energy_", "reference_", "mean_", "scale_", "log_partition_")
