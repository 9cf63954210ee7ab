"""Training on several processes, each with a share of the rows and of the particles.

Rank 0 makes all decisions, and calls `ratio_on_ranks` and `train_on_ranks`. The other ranks receive
an order, whose method `follow` takes part in the same computation.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklvebm.checkpointing import RATIO, Checkpoint
from sklvebm.communication import Communicator
from sklvebm.estimators._common.keeper_of_ranks import KeeperOfRanks
from sklvebm.estimators._common.rows_of_ranks import (
    RowsOfRank,
    TrainingRows,
    batch_size_of_rank,
    optimisation_on_cpu,
    scattered_rows,
)
from sklvebm.estimators._common.transactional_fit import least_improvement
from sklvebm.estimators._ebm.config import LikelihoodConfig, PoolConfig
from sklvebm.mcmc.state import ParticleState
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.objectives.density_ratio import (
    RatioStart,
    RatioWeights,
    Share,
    log_mean_ratios,
    monitoring_draws,
    start_from_ratio,
)
from sklvebm.objectives.ratio_course import RatioEpoch, RatioRecipe
from sklvebm.optimisation import Optimisation
from sklvebm.runtime import numerical_session, seeded_generator
from sklvebm.threads import team
from sklvebm.training import TrainingResult, train
from sklvebm.training_course import Progress

_CPU = torch.device("cpu")


def can_share_training(config: PoolConfig) -> bool:
    """Return whether ranks can train particles together; otherwise rank 0 trains alone."""
    if not isinstance(config, LikelihoodConfig):
        return True
    # an encoder would be another network to average; contrastive pools follow the rows of a rank
    return config.posterior != "amortized" and config.negatives == "persistent"


# The density ratio ---------------------------------------------------------------------------


class _RatioOrder(NamedTuple):
    """What all ranks start from; tensors on the CPU."""

    energy: AnchoredEnergy
    recipe: RatioRecipe  # with the rows of a batch of one rank
    keeps: bool = False  # whether rank 0 has a checkpoint

    def follow(self, ranks: Communicator, device: torch.device) -> None:
        """Take part in `ratio_on_ranks` of rank 0, on a device of this rank."""
        own = ranks.scatter(())
        with team(torch.get_num_threads()), numerical_session(1):
            self.run(ranks, own, device, lambda epoch: None)

    def run(
        self,
        ranks: Communicator,
        own: RowsOfRank,
        device: torch.device,
        callback: Callable[[RatioEpoch], None],
        checkpoint: Checkpoint | None = None,
    ) -> RatioStart:
        """Classify the rows of one rank."""
        rows = own.rows.on(device)
        keeper = KeeperOfRanks(ranks, checkpoint, 0, RATIO) if self.keeps else None
        return start_from_ratio(
            self.energy.to(device),
            rows.fitted,
            rows.monitored,
            self.recipe,
            generator=seeded_generator(own.seed, device),
            callback=callback,
            weights=RatioWeights(rows.fitted_weights, rows.monitored_weights),
            share=Share(ranks, own.row_share),
            keeper=keeper,
        )


def ratio_on_ranks(
    ranks: Communicator,
    energy: AnchoredEnergy,
    rows: TrainingRows,
    recipe: RatioRecipe,
    *,
    generator: torch.Generator,
    callback: Callable[[RatioEpoch], None],
    checkpoint: Checkpoint | None = None,
) -> RatioStart:
    """Train a density ratio on all ranks; arguments and result as in `start_from_ratio`.

    A checkpoint receives the states of all ranks.
    """
    recipe = recipe._replace(batch_size=-(-recipe.batch_size // ranks.size))
    order = _RatioOrder(copy.deepcopy(energy).to(_CPU), recipe, checkpoint is not None)
    ranks.broadcast(order)
    own = scattered_rows(ranks, rows, generator)
    start = order.run(ranks, own, rows.fitted.device, callback, checkpoint)
    gains = log_mean_ratios(start.energy, rows.monitored).cpu() - start.log_partition
    return start._replace(gains=gains)


# Particles -----------------------------------------------------------------------------------


class _TrainingOrder(NamedTuple):
    """What all ranks start from; tensors on the CPU."""

    config: PoolConfig  # with the chains and the rows of a batch of one rank
    optimisation: Optimisation
    adapted: ParticleState  # what is adapted to particles, without them
    n_chains: int = 0  # of all ranks together
    keeps: bool = False  # whether rank 0 has a checkpoint
    refines: bool = False  # whether the energy is that of a density ratio

    def follow(self, ranks: Communicator, device: torch.device) -> None:
        """Take part in `train_on_ranks` of rank 0, on a device of this rank."""
        own, pool = ranks.scatter(()), ranks.scatter(())
        with team(torch.get_num_threads()), numerical_session(1):
            _, particles = self.run(ranks, own, pool.to(device), lambda progress: False)
            ranks.collect(particles.pool.cpu())

    def run(
        self,
        ranks: Communicator,
        own: RowsOfRank,
        pool: Tensor,
        callback: Callable[[Progress], bool],
        checkpoint: Checkpoint | None = None,
    ) -> tuple[TrainingResult, ParticleState]:
        """Train with the rows of one rank and its part of the pool, on the device of that."""
        config, optimisation, device = self.config, self.optimisation, pool.device
        for model in (optimisation.energy, optimisation.average):
            model.to(device)
        optimisation.optimizer.to(device)
        rows, generator = own.rows.on(device), seeded_generator(own.seed, device)
        objective: Any = config.objective()
        objective.share(ranks, own.row_share)
        if self.refines:  # the same draws on all ranks
            objective.tempered.measure_with(monitoring_draws(optimisation.energy.reference))
        state = _moved(self.adapted, device)._replace(pool=pool)
        keeper = KeeperOfRanks(ranks, checkpoint, self.n_chains) if self.keeps else None
        result = train(
            optimisation,
            objective,
            rows.fitted,
            rows.monitored,
            objective.ready(optimisation.energy, state, len(rows.fitted), generator),
            learning_rate=config.learning_rate_init,
            batch_size=config.batch_size,
            max_iter=config.max_iter,
            tol=least_improvement(config.tol),
            n_iter_no_change=config.n_iter_no_change,
            generator=generator,
            callback=callback,
            row_weights=rows.fitted_weights,
            monitor_weights=rows.monitored_weights,
            keeper=keeper,
            ranks=ranks,
            refines=self.refines,
        )
        return result, objective.particles(result.state)


def train_on_ranks(
    ranks: Communicator,
    config: PoolConfig,
    start: tuple[Optimisation, ParticleState],
    rows: TrainingRows,
    *,
    generator: torch.Generator,
    callback: Callable[[Progress], bool],
    checkpoint: Checkpoint | None = None,
    refines: bool = False,
) -> tuple[TrainingResult, ParticleState]:
    """Train with the particles of all ranks; called by rank 0.

    Parameters
    ----------
    ranks : Communicator
        More than one.
    config : PoolConfig
        Parameters of the training as a whole.
    start : tuple
        Optimisation, which may be modified, and state.
    rows : TrainingRows
        All rows.
    generator : torch.Generator
        Source of the seeds of all ranks.
    callback : callable
        As for `train`.
    checkpoint : Checkpoint or None, default=None
        Receives the states of all ranks.
    refines : bool, default=False
        Whether the energy is that of a density ratio.

    Returns
    -------
    result : TrainingResult
        That of rank 0.
    particles : ParticleState
        The pool of all ranks, without posterior particles.
    """
    optimisation, state = start
    n_chains, device = state.pool.shape[1], state.pool.device
    config = _config_of_a_rank(config, n_chains, len(rows.fitted), ranks.size)
    adapted = _moved(state._replace(latents=None, pool=state.pool.new_empty(0)), _CPU)
    how: dict[str, Any] = {
        "n_chains": n_chains,
        "keeps": checkpoint is not None,
        "refines": refines,
    }
    ranks.broadcast(_TrainingOrder(config, optimisation_on_cpu(optimisation), adapted, **how))
    own = scattered_rows(ranks, rows, generator)
    pool = ranks.scatter(_parts_of_pool(state.pool.cpu(), config.n_chains, ranks.size))
    order = _TrainingOrder(config, optimisation, adapted, **how)
    result, particles = order.run(ranks, own, pool.to(device), callback, checkpoint)
    pool = torch.cat(ranks.collect(particles.pool.cpu()), 1)[:, :n_chains]
    return result, particles._replace(pool=pool.to(device), latents=None)


def _config_of_a_rank(config: PoolConfig, n_chains: int, n_rows: int, n_ranks: int) -> PoolConfig:
    """Return the parameters of the training of one rank, without what it does not need."""
    batch_size = batch_size_of_rank(config.batch_size, n_rows, n_ranks)
    unused: dict[str, Any] = {"energy": None, "memory": None, "reference": "mixture"}
    n_chains = -(-n_chains // n_ranks)
    return replace(config, n_chains=n_chains, batch_size=batch_size, device="cpu", **unused)


def _parts_of_pool(pool: Tensor, n_chains: int, n_ranks: int) -> list[Tensor]:
    """Return `n_chains` chains of a pool (T, C, D + L) for each rank.

    Where chains cannot be divided by ranks, the first ones are given twice; moves separate them.
    """
    places = torch.arange(n_ranks * n_chains) % pool.shape[1]
    return [part.clone() for part in pool[:, places].split(n_chains, 1)]


def _moved(state: ParticleState, device: torch.device) -> ParticleState:
    """Return a state without posterior particles on a device."""
    parts: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in state._asdict().items()
    }
    return ParticleState(**parts)
