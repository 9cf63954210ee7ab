"""Model, running average and optimiser, and the numbers of a state of training."""

import copy
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sklvebm.adam import Adam


class Optimisation(NamedTuple):
    """Model, running average and optimiser: the state of training besides particles."""

    # modules, of the kind that the objective takes
    energy: Any  # last iterate
    average: Any  # its running average: the model that is evaluated and kept
    optimizer: Adam
    n_updates: int


def start_optimisation(energy: nn.Module, *, learning_rate: float, alpha: float) -> Optimisation:
    """Return an Adam optimisation of a copy of `energy`.

    Parameters
    ----------
    energy : torch.nn.Module
        The model at its initial parameters; not modified.
    learning_rate : float
        Adam's step.
    alpha : float
        Decoupled weight decay per unit of learning rate.
    """
    energy = copy.deepcopy(energy)
    optimizer = Adam(
        energy.parameters(), learning_rate=learning_rate, weight_decay=alpha, betas=(0.9, 0.99)
    )
    return Optimisation(energy, copy.deepcopy(energy), optimizer, 0)


# Snapshots hold numbers only: copies of modules take longer than an epoch of few rows


class Snapshot(NamedTuple):
    """What an `Optimisation` held."""

    energy: list[Tensor]
    average: list[Tensor]
    optimizer: dict[str, Any]
    n_updates: int


def snapshot(optimisation: Optimisation) -> Snapshot:
    """Return copies of all numbers of an optimisation."""
    energy, average, optimizer, n_updates = optimisation
    return Snapshot(copied(energy), copied(average), optimizer.state(), n_updates)


def restored(optimisation: Optimisation, earlier: Snapshot) -> Optimisation:
    """Put the optimisation back in place."""
    write(optimisation.energy, earlier.energy)
    write(optimisation.average, earlier.average)
    optimisation.optimizer.load(earlier.optimizer)
    return optimisation._replace(n_updates=earlier.n_updates)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def copied(module: nn.Module) -> list[Tensor]:
    """Return copies of parameters and buffers."""
    return [tensor.detach().clone() for tensor in _tensors(module)]


def write(module: nn.Module, values: list[Tensor]) -> None:
    """Put parameters and buffers in place that `copied` returned."""
    with torch.no_grad():
        for tensor, value in zip(_tensors(module), values, strict=True):
            if not torch.equal(tensor, value):  # models share the reference's tensors
                tensor.copy_(value)


# The numbers of any state of training, for files


@runtime_checkable
class Storable(Protocol):
    """An object whose tensors can be taken out and put back in place, as those of `Adam`."""

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values."""

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""


def numbers_of(value: Any) -> Any:
    """Return a state with modules and objects replaced by their numbers.

    Parameters
    ----------
    value : object
        Named tuples, tuples, lists and dictionaries of tensors, plain values, modules and
        `Storable` objects.
    """
    if isinstance(value, nn.Module):
        return [tensor.detach() for tensor in _tensors(value)]
    if isinstance(value, Storable):
        return value.state()
    if isinstance(value, dict):
        return {name: numbers_of(part) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(numbers_of, value))
    if isinstance(value, list | tuple):
        return type(value)(map(numbers_of, value))
    return value


def adopted(like: Any, numbers: Any, device: torch.device) -> Any:
    """Undo `numbers_of`: modules and objects of a state are changed in place, the rest is new.

    Parameters
    ----------
    like : object
        A state with the same modules and objects, or None where there are none.
    numbers : object
        What `numbers_of` returned, tensors on the CPU.
    device : torch.device
        Where tensors go.
    """
    if isinstance(like, nn.Module):
        write(like, adopted(None, numbers, device))
        return like
    if isinstance(like, Storable):
        like.load(adopted(None, numbers, device))
        return like
    if isinstance(numbers, Tensor):
        return numbers.to(device)
    if isinstance(numbers, dict):
        parts = like if isinstance(like, dict) else {}
        return {name: adopted(parts.get(name), n, device) for name, n in numbers.items()}
    if isinstance(numbers, list | tuple):
        fits = isinstance(like, list | tuple) and len(like) == len(numbers)
        pairs = zip(like if fits else [None] * len(numbers), numbers, strict=True)
        new = [adopted(*pair, device) for pair in pairs]
        return type(numbers)(*new) if hasattr(numbers, "_fields") else type(numbers)(new)
    return numbers
