"""Fitted state of `PotentialFlowEBM` as NumPy arrays and plain types."""

from typing import Any, cast

from sklvebm.estimators._common.serialization import (
    choice_from_plain,
    optimisation_from_plain,
    plain_choice,
    plain_optimisation,
    plain_reference,
    reference_from_plain,
)
from sklvebm.estimators._flow.fitted_model import FlowModel
from sklvebm.estimators._flow.training import FlowTraining
from sklvebm.flows.diagnostics import FlowDiagnostics
from sklvebm.flows.interpolant import InterpolantMarginals, interpolant_marginals
from sklvebm.flows.potentials import AnchoredPotential, PotentialNetwork
from sklvebm.models.networks import network_from_plain, plain_network, tensor_of
from sklvebm.preprocessing.scaling import standardisation_from_plain
from sklvebm.smc.log_partition import LogPartition


def derived_attributes(model: FlowModel) -> dict[str, Any]:
    """Return the public attributes of an estimator that are parts of its model."""
    return {
        "potential_": model.potential,
        "reference_": model.reference,
        "log_partition_": model.log_partition,
    }


def plain_potential(potential: AnchoredPotential) -> dict[str, Any]:
    """Describe the correction of a potential, without the reference."""
    network = potential.network
    plain = None if network is None else plain_network(network)
    return {"bound": potential.bound, "network": plain}


def potential_from_plain(plain: dict[str, Any], mixture: InterpolantMarginals) -> AnchoredPotential:
    """Undo `plain_potential`, with the given mixture."""
    parts = plain["network"]
    if parts is None:
        return AnchoredPotential(mixture, None, plain["bound"])
    network = network_from_plain(parts, mixture.n_features, 1)
    return AnchoredPotential(mixture, cast(PotentialNetwork, network), plain["bound"])


def to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Replace the modules and tensors in an estimator's attributes by arrays and plain types."""
    plain = dict(state)
    model: FlowModel = plain.pop("_model")
    training: FlowTraining = plain.pop("_training")
    for name in derived_attributes(model):
        plain.pop(name)
    plain["diagnostics_"] = plain["diagnostics_"]._asdict()
    plain["_plain"] = {
        "reference": plain_reference(model.reference),
        # another reference if training was not accepted
        "trained_on": plain_reference(training.reference),
        "choice": plain_choice(training.choice),
        "potential": plain_potential(model.potential),
        "standardisation": model.standardisation.plain(),
        "n_steps": model.n_steps,
        "n_sampling_steps": model.n_sampling_steps,
        "directions": model.directions.numpy(),
        "energy_time": model.energy_time,
        "log_partition": model.log_partition._asdict(),
        "optimisation": plain_optimisation(training.optimisation, plain_potential),
    }
    return plain


def from_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Undo `to_plain`."""
    parts = state.pop("_plain")
    state["diagnostics_"] = FlowDiagnostics(**state["diagnostics_"])
    reference = reference_from_plain(parts["reference"])
    trained_on = reference_from_plain(parts["trained_on"])
    potential = potential_from_plain(parts["potential"], interpolant_marginals(reference))
    model = FlowModel(
        potential=potential.requires_grad_(False),
        reference=reference,
        standardisation=standardisation_from_plain(parts["standardisation"]),
        n_steps=parts["n_steps"],
        n_sampling_steps=parts["n_sampling_steps"],
        directions=tensor_of(parts["directions"]),
        energy_time=parts["energy_time"],
        log_partition=LogPartition(**parts["log_partition"]),
    )
    mixture = interpolant_marginals(trained_on)
    optimisation = optimisation_from_plain(
        parts["optimisation"], lambda plain: potential_from_plain(plain, mixture)
    )
    training = FlowTraining(optimisation, trained_on, choice_from_plain(parts["choice"]))
    return {**state, "_model": model, "_training": training, **derived_attributes(model)}
