"""Fitted parts that all families share, as NumPy arrays and plain types."""

import copy
from typing import Any

import numpy as np
from torch import nn

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.search import Candidate
from sklvebm.mixtures.stacking import MixtureChoice, MixturePart
from sklvebm.models.networks import tensor_of


def arrays_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Return parameters and buffers as NumPy arrays."""
    return {name: value.cpu().numpy() for name, value in module.state_dict().items()}


def plain_reference(reference: MixtureReference) -> dict[str, Any]:
    """Describe a reference by its arrays."""
    kinds = {"is_diagonal": reference.is_diagonal, "n_defensive": reference.n_defensive}
    return {**kinds, "arrays": arrays_of(reference)}


def reference_from_plain(plain: dict[str, Any]) -> MixtureReference:
    """Rebuild what `plain_reference` described."""
    reference = MixtureReference.__new__(MixtureReference)
    nn.Module.__init__(reference)
    reference.is_diagonal, reference.n_defensive = (
        bool(plain["is_diagonal"]),
        int(plain["n_defensive"]),
    )
    for name, value in plain["arrays"].items():
        reference.register_buffer(name, tensor_of(value))
    return reference


def plain_choice(choice: MixtureChoice | None) -> dict[str, Any] | None:
    """Describe which mixtures cross-validation chose."""
    if choice is None:
        return None
    parts = [[list(p.candidate), p.n_members, p.weight] for p in choice.parts]
    wide = {
        "defensive_weight": choice.defensive_weight,
        "defensive_shares": list(choice.defensive_shares),
    }
    return {"parts": parts, **wide}


def choice_from_plain(plain: dict[str, Any] | None) -> MixtureChoice | None:
    """Rebuild what `plain_choice` described."""
    if plain is None:
        return None
    parts = [MixturePart(Candidate(*kind), n, weight) for kind, n, weight in plain["parts"]]
    return MixtureChoice(tuple(parts), plain["defensive_weight"], tuple(plain["defensive_shares"]))


def parameters_on_host(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an estimator's attributes, with modules among its parameters on the CPU."""
    is_given = {
        name for name, value in state.items() if isinstance(value, nn.Module) and name[-1] != "_"
    }
    return {
        name: copy.deepcopy(value).cpu() if name in is_given else value
        for name, value in state.items()
    }
