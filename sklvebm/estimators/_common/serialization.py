"""Fitted state as NumPy arrays and plain types, independent of devices, with a checksum.

The checksum detects damaged numbers, with which a model would give wrong results.
"""

import copy
import hashlib
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from sklvebm.exceptions import DamagedStateError
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.search import Candidate
from sklvebm.mixtures.stacking import MixtureChoice, MixturePart
from sklvebm.models.networks import tensor_of
from sklvebm.optimisation import Optimisation, start_optimisation

_CHECKSUM_KEY = "_checksum"


def arrays_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Return parameters and buffers as NumPy arrays."""
    return {name: value.cpu().numpy() for name, value in module.state_dict().items()}


def plain_reference(reference: MixtureReference) -> dict[str, Any]:
    """Describe a reference by its arrays."""
    kinds = {"is_diagonal": reference.is_diagonal, "n_defensive": reference.n_defensive}
    return {**kinds, "arrays": arrays_of(reference)}


def reference_from_plain(plain: dict[str, Any]) -> MixtureReference:
    """Undo `plain_reference`."""
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
    """Describe a choice of mixtures."""
    if choice is None:
        return None
    parts = [[list(p.candidate), p.n_members, p.weight] for p in choice.parts]
    wide = {
        "defensive_weight": choice.defensive_weight,
        "defensive_shares": list(choice.defensive_shares),
    }
    return {"parts": parts, **wide}


def choice_from_plain(plain: dict[str, Any] | None) -> MixtureChoice | None:
    """Undo `plain_choice`."""
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


def plain_optimisation(
    optimisation: Optimisation, plain: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
    """Describe parameters, running average and Adam's moments; `plain` describes a model."""
    optimizer = optimisation.optimizer
    moments = {
        name: [moment.cpu().numpy() for moment in getattr(optimizer, name)]
        for name in ("first", "second")
    }
    return {
        "energy": plain(optimisation.energy),
        "average": plain(optimisation.average),
        "moments": {**moments, "n_steps": optimizer.n_steps},
        "learning_rate": optimizer.learning_rate,
        "alpha": optimizer.weight_decay,
        "n_updates": optimisation.n_updates,
    }


def optimisation_from_plain(
    parts: dict[str, Any], from_plain: Callable[[dict[str, Any]], Any]
) -> Optimisation:
    """Undo `plain_optimisation`; `from_plain` rebuilds a model."""
    optimisation = start_optimisation(
        from_plain(parts["energy"]), learning_rate=parts["learning_rate"], alpha=parts["alpha"]
    )
    moments = {
        name: [tensor_of(moment) for moment in parts["moments"][name]]
        for name in ("first", "second")
    }
    rest = {"n_steps": parts["moments"]["n_steps"], "learning_rate": parts["learning_rate"]}
    optimisation.optimizer.load({**moments, **rest})
    average = from_plain(parts["average"])
    return optimisation._replace(average=average, n_updates=parts["n_updates"])


def with_checksum(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of arrays and plain types with the checksum of all of them."""
    return {**state, _CHECKSUM_KEY: _digest(state)}


def without_checksum(state: dict[str, Any]) -> dict[str, Any]:
    """Undo `with_checksum`.

    Raises
    ------
    DamagedStateError
        If the checksum does not match.
    """
    state = dict(state)
    stored = state.pop(_CHECKSUM_KEY, None)
    if stored is not None and stored != _digest(state):
        raise DamagedStateError(
            "The stored model is damaged: its checksum does not match. Store it again from the "
            "model, or copy the file anew."
        )
    return state


def _digest(state: dict[str, Any]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    _feed(hasher, state)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    """Add a value to a hash, independent of the type of its containers and scalars.

    Storage may convert tuples to lists and NumPy's scalars to Python's. Objects of other kinds,
    such as a user's own energy, are left out.
    """
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            hasher.update(f"{key}:".encode())
            _feed(hasher, value[key])
    elif isinstance(value, list | tuple):
        hasher.update(f"[{len(value)}".encode())
        for part in value:
            _feed(hasher, part)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        hasher.update(f"{value.dtype.str}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, str):
        hasher.update(value.encode())
    elif isinstance(value, numbers.Real):
        hasher.update(float(value).hex().encode())
