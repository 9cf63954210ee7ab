"""Checkpoints of what several processes train: rank 0 has the file, ranks the particles.

A file that n ranks wrote is continued by any number of them, also by one. With the same number,
each rank gets back what it had. With another number, particles are divided anew: rows and chains
keep theirs, and random numbers are new.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sklvebm.checkpointing import TRAINING, Checkpoint
from sklvebm.communication import Communicator
from sklvebm.mcmc.state import ParticleState
from sklvebm.optimisation import adopted

_OF_A_RANK = "state", "objective", "generator"  # what ranks have of their own
_OTHERS = "others"  # under which the file has that of ranks 1, 2, ...


class KeeperOfRanks:
    """Keeps the state of all ranks between two epochs; all ranks call the same methods.

    Parameters
    ----------
    ranks : Communicator
        The processes that train together, or a single one.
    checkpoint : Checkpoint or None
        On rank 0; None on others.
    n_chains : int
        Chains of the pools of all ranks together; 0 without pools.
    stage : str, default=TRAINING
        What is trained.
    """

    def __init__(
        self,
        ranks: Communicator,
        checkpoint: Checkpoint | None,
        n_chains: int,
        stage: str = TRAINING,
    ) -> None:
        self.ranks, self.checkpoint, self.n_chains = ranks, checkpoint, n_chains
        self.stage = stage

    def kept(self) -> dict[str, Any] | None:
        """Return the state of an interrupted run for this rank; None if there is none."""
        parts: Sequence[Any] = ()
        if self.checkpoint is not None:
            training, n_ranks = self.checkpoint.kept(self.stage), self.ranks.size
            parts = [None] * n_ranks
            if training is not None:
                parts = parts_of(training, n_ranks, self.n_chains)
        found: dict[str, Any] | None = self.ranks.scatter(parts)
        return found

    def keep(self, numbers: Callable[[], dict[str, Any]], *, at_once: bool) -> None:
        """Keep the states of all ranks, if it is time on rank 0 or `at_once`."""
        checkpoint = self.checkpoint
        is_due = self.ranks.broadcast(checkpoint is not None and checkpoint.is_due(at_once))
        if not is_due:
            return
        own = adopted(None, numbers(), torch.device("cpu"))
        sent = own if self.ranks.rank == 0 else {name: own[name] for name in _OF_A_RANK}
        every = self.ranks.collect(sent)
        if checkpoint is not None:
            of_all = {**every[0], _OTHERS: every[1:]}
            checkpoint.keep(self.stage, lambda: of_all, at_once=True)


def parts_of(training: dict[str, Any], n_ranks: int, n_chains: int) -> list[dict[str, Any]]:
    """Return what each of `n_ranks` ranks continues from, given the contents of a file."""
    others = training.get(_OTHERS, [])
    common = {name: value for name, value in training.items() if name != _OTHERS}
    every = [common, *({**common, **other} for other in others)]
    if len(every) == n_ranks:
        return every
    states = _divided([part["state"] for part in every], n_ranks, n_chains)
    return [{**common, "state": state, "generator": None} for state in states]


def _divided(states: list[Any], n_ranks: int, n_chains: int) -> list[Any]:
    """Return the states of other ranks from those of some, by the rules of a shared fit."""
    first = states[0]
    if isinstance(first, ParticleState):
        pool = torch.cat([state.pool for state in states], 1)[:, :n_chains]
        rows = [_rows_of(part, n_ranks) for part in _leaves([s.latents for s in states])]
        of_ranks = []
        n_own = -(-n_chains // n_ranks)
        for rank in range(n_ranks):
            places = torch.arange(rank * n_own, (rank + 1) * n_own) % n_chains
            latents = _with_leaves(first.latents, [part[rank] for part in rows])
            of_ranks.append(first._replace(pool=pool[:, places], latents=latents))
        return of_ranks
    if hasattr(first, "particles"):  # the start of a proximal step is that of the next update
        particles = _divided([state.particles for state in states], n_ranks, n_chains)
        return [first._replace(particles=part, centre=None) for part in particles]
    return [first] * n_ranks


def _leaves(states: list[Any]) -> list[list[Tensor]]:
    """Return the tensors of posteriors of rows (n_rows, ...), in lists over ranks."""
    if states[0] is None:
        return []
    if isinstance(states[0], dict):
        states = [tuple(state.values()) for state in states]
    return [list(of_ranks) for of_ranks in zip(*states, strict=True)]


def _with_leaves(like: Any, leaves: list[Tensor]) -> Any:
    """Return posteriors of rows as `like` with other tensors."""
    if like is None:
        return None
    if isinstance(like, dict):
        return dict(zip(like, leaves, strict=True))
    return type(like)(*leaves)


def _rows_of(parts: list[Tensor], n_ranks: int) -> list[Tensor]:
    """Divide rows anew of which rank r of n had every n-th from the r-th on."""
    every = parts[0].new_empty((sum(map(len, parts)), *parts[0].shape[1:]))
    for rank, part in enumerate(parts):
        every[rank :: len(parts)] = part
    return [every[rank::n_ranks].clone() for rank in range(n_ranks)]
