"""Updates of parameters in tensors that stay where they are, as a recording needs them."""

import math
from collections.abc import Hashable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sklvebm.adam import Adam
from sklvebm.mcmc.state import Batch
from sklvebm.optimisation import Storable
from sklvebm.recordings import Recordings

AVERAGE_OVER = 50  # updates: memory of the running average of the parameters
WARM_UP = 20  # updates until the learning rate is reached
CLIP_NORM = 10.0


class RecordableObjective(Protocol):
    """An objective whose update always makes the same operations on tensors of the same shapes."""

    loss_name: str

    def works_in_place(self, energy: Any, state: Any, device: torch.device) -> bool:
        """Return whether updates can be recorded."""

    def completed(self, energy: Any, state: Any) -> Any:
        """Return the state with tensors for all that updates leave; some may be missing at first.

        Updates must not depend on the numbers of tensors that are added.
        """

    def before_update(
        self, energy: Any, index: Tensor, state: Any, generator: torch.Generator
    ) -> Any:
        """Return the state with what is done now and then, or cannot be recorded.

        `index` (B,) are places of the rows of the update.
        """

    def update(
        self, energy: Any, batch: Batch, state: Any, generator: torch.Generator
    ) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Return the loss, the state after the update and metrics.

        Numbers of the host, such as counts, are still those of before.
        """

    def after_update(self, state: Any) -> Any:
        """Return the state with what is adapted now and then, and one update more."""

    def kind_of_update(self, state: Any) -> Hashable:
        """Return the numbers of the host that the operations of an update depend on."""


def average_share(n_updates: int) -> float:
    """Return the share of the last iterate in the running average of the parameters."""
    return 1.0 / min(1.0 + 0.5 * n_updates, AVERAGE_OVER)


def move_average(average: nn.Module, energy: nn.Module, share: float) -> None:
    """Move the running average towards the last iterate by a share of the distance, in place."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(energy.parameters()), share)


def warm_rate(learning_rate: float, n_updates: int) -> float:
    """Return the learning rate of the update after `n_updates`; it rises over the first ones."""
    return learning_rate * min(1.0, (n_updates + 1) / WARM_UP)


class UpdatesInPlace:
    """Updates of a model and its particles, whose tensors keep their places.

    Operations of an update depend on what is done every few updates, on the size of the batch, the
    learning rate and the weight of the average; all of them are constant for long. An update of
    each such kind can be recorded.

    Parameters
    ----------
    energy, average : torch.nn.Module
        The model and the running average of its parameters; changed in place.
    optimizer : Adam
        Of the model's parameters.
    objective : RecordableObjective
        What to descend.
    x : Tensor of shape (N, D)
        Rows.
    state : object
        Of the objective: named tuples and dictionaries of tensors, which are copied, and of
        modules, `Storable` objects and numbers.
    generator : torch.Generator
        Source of all randomness.
    """

    def __init__(
        self,
        energy: nn.Module,
        average: nn.Module,
        optimizer: Adam,
        *,
        objective: RecordableObjective,
        x: Tensor,
        state: Any,
        generator: torch.Generator,
    ) -> None:
        self.energy, self.average, self.optimizer = energy, average, optimizer
        self.objective, self.x, self.generator = objective, x, generator
        self.state = _with_own_tensors(objective.completed(energy, state))
        self.n_updates = 0
        self.names: tuple[str, ...] = ()
        self._indices: dict[int, Tensor] = {}
        self._index = torch.empty(0, dtype=torch.long, device=x.device)
        self._totals: list[Tensor] = []  # of loss and metrics over a pass, 0-d
        self._one = torch.ones((), dtype=x.dtype, device=x.device)
        self._recordings = Recordings(self._update, generator)

    def pass_over(
        self, batches: Iterable[Tensor], state: Any, n_updates: int, learning_rate: float
    ) -> tuple[Any, dict[str, Tensor]]:
        """Make an update for each batch of places of rows; return the state and mean metrics.

        The state that is returned is changed by the next pass.
        """
        self.n_updates, first = n_updates, n_updates
        self._adopt(self.objective.completed(self.energy, state))
        if self._totals:
            torch._foreach_zero_(self._totals)
        for index in batches:
            self.optimizer.learning_rate = warm_rate(learning_rate, self.n_updates)
            self._adopt(
                self.objective.before_update(self.energy, index, self.state, self.generator)
            )
            if len(index) not in self._indices:
                self._indices[len(index)] = torch.empty_like(index)
            self._index = self._indices[len(index)].copy_(index)
            self._recordings(self.kind())
            self.n_updates += 1
            self._adopt(self.objective.after_update(self.state))
        n = self.n_updates - first
        if not self._totals or n == 0:
            return self.state, {}
        means = torch._foreach_div(self._totals, float(n))
        return self.state, dict(zip(self.names, means, strict=True))

    def kind(self) -> Hashable:
        """Return all that the operations of the next update depend on."""
        share = average_share(self.n_updates + 1)
        own = len(self._index), self.optimizer.learning_rate, share
        return (*own, self.objective.kind_of_update(self.state))

    def _update(self) -> None:
        """Make one update with the rows of `_index`; everything is where it was afterwards."""
        batch = Batch(self.x[self._index], self._index)
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss, state, metrics = self.objective.update(
                self.energy, batch, self.state, self.generator
            )
            loss.backward(self._one.to(loss.dtype))
        self.optimizer.step(CLIP_NORM)
        move_average(self.average, self.energy, average_share(self.n_updates + 1))
        self._adopt(state)
        values = [loss.detach(), *metrics.values()]
        if not self._totals:
            self.names = (self.objective.loss_name, *metrics)
            self._totals = [torch.zeros_like(value) for value in values]
        torch._foreach_add_(self._totals, values)

    def _adopt(self, state: Any) -> None:
        """Copy what is new in a state to where the old one is."""
        pairs: list[tuple[Tensor, Tensor]] = []
        self.state = _in_place_of(self.state, state, pairs)
        if pairs:
            with torch.no_grad():
                torch._foreach_copy_([own for own, _ in pairs], [new for _, new in pairs])


def _with_own_tensors(state: Any) -> Any:
    """Return a state with copies of its tensors, but with the same modules and objects."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: _with_own_tensors(part) for name, part in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*map(_with_own_tensors, state))
    return state


def _in_place_of(own: Any, new: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    """Return a new state with the tensors, modules and objects of an own one.

    Tensors that differ are added to `pairs`, and must be copied from the second to the first.
    """
    if own is new:
        return own
    if isinstance(new, Tensor):
        pairs.append((own, new))
        return own
    if isinstance(new, nn.Module):
        pairs += zip(own.parameters(), new.parameters(), strict=True)
        return own
    if isinstance(new, Storable):
        own.load(new.state())
        return own
    if isinstance(new, dict):
        return {name: _in_place_of(own[name], part, pairs) for name, part in new.items()}
    if isinstance(new, tuple) and hasattr(new, "_fields"):
        parts = zip(own, new, strict=True)
        return type(new)(*(_in_place_of(*each, pairs) for each in parts))
    return new


def n_batches(n_rows: int, batch_size: int) -> int:
    """Return the number of batches of a pass."""
    return max(1, math.ceil(n_rows / batch_size))


def updates_in_place(
    objective: Any,
    energy: nn.Module,
    average: nn.Module,
    optimizer: Adam,
    *,
    x: Tensor,
    state: Any,
    generator: torch.Generator,
) -> UpdatesInPlace | None:
    """Return what makes updates that can be recorded; arguments are those of `UpdatesInPlace`.

    None on the CPU, which gains nothing, and for objectives whose updates differ.
    """
    recordable = getattr(objective, "works_in_place", None)
    if x.device.type == "cpu" or recordable is None or not recordable(energy, state, x.device):
        return None
    how = {"objective": objective, "x": x, "state": state, "generator": generator}
    return UpdatesInPlace(energy, average, optimizer, **how)
