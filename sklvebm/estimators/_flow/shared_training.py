"""Training of potential flows on several processes, each with a part of the rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from sklvebm.checkpointing import Checkpoint
from sklvebm.communication import Communicator
from sklvebm.estimators._common.keeper_of_ranks import KeeperOfRanks
from sklvebm.estimators._common.rows_of_ranks import (
    RowsOfRank,
    TrainingRows,
    batch_size_of_rank,
    scattered_rows,
)
from sklvebm.estimators._common.transactional_fit import least_improvement
from sklvebm.estimators._flow.config import FlowConfig
from sklvebm.optimisation import Optimisation
from sklvebm.runtime import numerical_session, seeded_generator
from sklvebm.training import TrainingResult, train
from sklvebm.training_course import Progress


def optimisation_on(optimisation: Optimisation, device: torch.device) -> Optimisation:
    """Move potentials and Adam's moments to a device, in place."""
    for potential in (optimisation.energy, optimisation.average):
        potential.to(device)
        potential.mixture = potential.mixture.to(device)
    optimisation.optimizer.to(device)
    return optimisation


def can_share_training(config: FlowConfig) -> bool:
    """Return whether ranks can train together; otherwise rank 0 trains alone."""
    return config.loss != "vapo"  # its loss is no mean over rows


class _Order(NamedTuple):
    """What all ranks start from; tensors on the CPU."""

    config: FlowConfig  # with the rows of a batch of one rank
    optimisation: Optimisation
    keeps: bool = False  # whether rank 0 has a checkpoint

    def follow(self, ranks: Communicator, device: torch.device) -> None:
        """Take part in `train_on_ranks` of rank 0, on a device of this rank."""
        own = ranks.scatter(())
        with numerical_session(torch.get_num_threads()):
            self.run(ranks, own, device, lambda progress: False)

    def run(
        self,
        ranks: Communicator,
        own: RowsOfRank,
        device: torch.device,
        callback: Callable[[Progress], bool],
        checkpoint: Checkpoint | None = None,
    ) -> TrainingResult:
        """Train with the rows of one rank."""
        config, rows = self.config, own.rows.on(device)
        objective = config.objective()
        objective.share(own.row_share)
        return train(
            optimisation_on(self.optimisation, device),
            objective,
            rows.fitted,
            rows.monitored,
            None,
            learning_rate=config.learning_rate_init,
            batch_size=config.batch_size,
            max_iter=config.max_iter,
            tol=least_improvement(config.tol),
            n_iter_no_change=config.n_iter_no_change,
            generator=seeded_generator(own.seed, device),
            callback=callback,
            row_weights=rows.fitted_weights,
            monitor_weights=rows.monitored_weights,
            keeper=KeeperOfRanks(ranks, checkpoint, 0) if self.keeps else None,
            ranks=ranks,
        )


def train_on_ranks(
    ranks: Communicator,
    config: FlowConfig,
    optimisation: Optimisation,
    rows: TrainingRows,
    *,
    seed: int,
    callback: Callable[[Progress], bool],
    checkpoint: Checkpoint | None = None,
) -> TrainingResult:
    """Train with the rows of all ranks; called by rank 0.

    Parameters
    ----------
    ranks : Communicator
        More than one.
    config : FlowConfig
        Parameters of the training as a whole.
    optimisation : Optimisation
        On the CPU; modified.
    rows : TrainingRows
        All rows.
    seed : int
        Source of the seeds of all ranks.
    callback : callable
        As for `train`.
    checkpoint : Checkpoint or None, default=None
        Receives the states of all ranks.
    """
    batch_size = batch_size_of_rank(config.batch_size, len(rows.fitted), ranks.size)
    unused: dict[str, Any] = {"memory": None, "reference": "mixture"}
    config = replace(config, batch_size=batch_size, device="cpu", **unused)
    order = _Order(config, optimisation, checkpoint is not None)
    ranks.broadcast(order)
    own = scattered_rows(ranks, rows, torch.Generator().manual_seed(seed))
    return order.run(ranks, own, rows.fitted.device, callback, checkpoint)
