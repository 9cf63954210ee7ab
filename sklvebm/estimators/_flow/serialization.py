"""Fitted state of `PotentialFlowEBM` as NumPy arrays and plain types."""

from typing import Any

from sklvebm.estimators._common.checksum import with_checksum, without_checksum
from sklvebm.estimators._common.serialization import (
    choice_from_plain,
    parameters_on_host,
    plain_choice,
    plain_reference,
    reference_from_plain,
)
from sklvebm.estimators._flow.fitted_model import FlowModel
from sklvebm.estimators._flow.normalization import FlowDiagnostics
from sklvebm.estimators._flow.training import FlowTraining
from sklvebm.flows.interpolant import InterpolantMarginals, interpolant_marginals
from sklvebm.flows.potentials import AnchoredPotential
from sklvebm.models.networks import network_from_plain, plain_network, tensor_of
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.smc.log_partition import LogPartition
from sklvebm.training import Optimisation, start_optimisation

_DERIVED = ("potential_", "reference_", "mean_", "scale_", "log_partition_")


def derived_attributes(model: FlowModel) -> dict[str, Any]:
    """Return the public attributes of an estimator that are parts of its model."""
    return {
        "potential_": model.potential,
        "reference_": model.reference,
        "mean_": model.standardisation.mean,
        "scale_": model.standardisation.scale,
        "log_partition_": model.log_partition,
    }


def plain_potential(potential: AnchoredPotential) -> dict[str, Any]:
    """Describe the correction of a potential; the reference is kept apart."""
    network = potential.network
    plain = None if network is None else plain_network(network)
    return {"bound": potential.bound, "network": plain}


def potential_from_plain(plain: dict[str, Any], mixture: InterpolantMarginals) -> AnchoredPotential:
    """Rebuild what `plain_potential` described, on the given mixture."""
    parts = plain["network"]
    if parts is None:
        return AnchoredPotential(mixture, None, plain["bound"])
    network = network_from_plain(parts, mixture.n_features, 1)
    return AnchoredPotential(mixture, network, plain["bound"])


def plain_optimisation(optimisation: Optimisation) -> dict[str, Any]:
    """Describe parameters, running average and Adam moments."""
    group = optimisation.optimizer.param_groups[0]
    state = optimisation.optimizer.state_dict()["state"]
    return {
        "potential": plain_potential(optimisation.energy),
        "average": plain_potential(optimisation.average),
        "moments": {
            str(index): {name: value.cpu().numpy() for name, value in entry.items()}
            for index, entry in state.items()
        },
        "learning_rate": group["lr"],
        "alpha": group["weight_decay"],
        "n_updates": optimisation.n_updates,
    }


def optimisation_from_plain(plain: dict[str, Any], mixture: InterpolantMarginals) -> Optimisation:
    """Rebuild what `plain_optimisation` described, on the given mixture."""
    optimisation = start_optimisation(
        potential_from_plain(plain["potential"], mixture),
        learning_rate=plain["learning_rate"],
        alpha=plain["alpha"],
    )
    state = optimisation.optimizer.state_dict()
    state["state"] = {
        int(index): {name: tensor_of(value) for name, value in entry.items()}
        for index, entry in plain["moments"].items()
    }
    optimisation.optimizer.load_state_dict(state)
    average = potential_from_plain(plain["average"], mixture)
    return optimisation._replace(average=average, n_updates=plain["n_updates"])


def to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Replace the modules and tensors in an estimator's attributes by arrays and plain types."""
    plain = parameters_on_host(state)
    if "_model" not in state:
        return plain
    model: FlowModel = plain.pop("_model")
    training: FlowTraining = plain.pop("_training")
    for name in _DERIVED:
        plain.pop(name)
    plain["diagnostics_"] = plain["diagnostics_"]._asdict()
    plain["_plain"] = {
        "reference": plain_reference(model.reference),
        # another one, where training was not accepted
        "trained_on": plain_reference(training.reference),
        "choice": plain_choice(training.choice),
        "potential": plain_potential(model.potential),
        "standardisation": model.standardisation._asdict(),
        "n_steps": model.n_steps,
        "n_sampling_steps": model.n_sampling_steps,
        "directions": model.directions.numpy(),
        "energy_time": model.energy_time,
        "log_partition": model.log_partition._asdict(),
        "optimisation": plain_optimisation(training.optimisation),
    }
    return with_checksum(plain)


def from_plain(plain: dict[str, Any]) -> dict[str, Any]:
    """Undo `to_plain`."""
    state = without_checksum(plain)
    if "_plain" not in state:
        return state
    parts = state.pop("_plain")
    state["diagnostics_"] = FlowDiagnostics(**state["diagnostics_"])
    reference = reference_from_plain(parts["reference"])
    trained_on = reference_from_plain(parts["trained_on"])
    potential = potential_from_plain(parts["potential"], interpolant_marginals(reference))
    model = FlowModel(
        potential=potential.requires_grad_(False),
        reference=reference,
        standardisation=Standardisation(**parts["standardisation"]),
        n_steps=parts["n_steps"],
        n_sampling_steps=parts["n_sampling_steps"],
        directions=tensor_of(parts["directions"]),
        energy_time=parts["energy_time"],
        log_partition=LogPartition(**parts["log_partition"]),
    )
    state["_model"] = model
    state["_training"] = FlowTraining(
        optimisation_from_plain(parts["optimisation"], interpolant_marginals(trained_on)),
        trained_on,
        choice_from_plain(parts["choice"]),
    )
    state.update(derived_attributes(model))
    return state
