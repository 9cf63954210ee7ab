"""Training by particles on several processes, each with a share of the rows and of the pool."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from sklvebm.communication import Communicator
from sklvebm.estimators._common.transactional_fit import least_improvement
from sklvebm.estimators._ebm.config import LikelihoodConfig, PoolConfig
from sklvebm.mcmc.state import ParticleState
from sklvebm.optimisation import Optimisation
from sklvebm.runtime import numerical_session, seeded_generator
from sklvebm.threads import team
from sklvebm.training import TrainingResult, train
from sklvebm.training_course import Progress

_CPU = torch.device("cpu")
_FEWEST_ROWS = 2  # of a rank, in a batch and in all


class TrainingRows(NamedTuple):
    """Standardised rows of a training, with their weights, or None where all are equal."""

    fitted: Tensor  # (N, D)
    monitored: Tensor  # (N_monitor, D)
    fitted_weights: Tensor | None = None  # (N,)
    monitored_weights: Tensor | None = None  # (N_monitor,)

    def on(self, device: torch.device) -> "TrainingRows":
        """Return the rows on a device."""
        weights = self.fitted_weights, self.monitored_weights
        moved = [None if part is None else part.to(device) for part in weights]
        return TrainingRows(self.fitted.to(device), self.monitored.to(device), *moved)

    def share(self, rank: int, n_ranks: int) -> "TrainingRows":
        """Return the share of a rank; numbers of fitted rows differ by one at most."""
        fitted = monitored = slice(rank, None, n_ranks)  # rows may be sorted: shares are alike
        if len(self.monitored) < n_ranks:
            monitored = slice(None)  # each rank has all of them
        weights = (self.fitted_weights, fitted), (self.monitored_weights, monitored)
        own = [None if part is None else part[places].clone() for part, places in weights]
        return TrainingRows(self.fitted[fitted].clone(), self.monitored[monitored].clone(), *own)

    @property
    def total_weight(self) -> float:
        """Sum of the weights of the fitted rows."""
        weights = self.fitted_weights
        return float(len(self.fitted) if weights is None else weights.sum())


class _Order(NamedTuple):
    """What all ranks start from; tensors on the CPU."""

    config: LikelihoodConfig  # with numbers of chains and rows of a batch for one rank
    optimisation: Optimisation
    state: ParticleState  # without particles


class _Share(NamedTuple):
    """What one rank trains with; tensors on the CPU."""

    rows: TrainingRows
    row_share: float  # weight of the rank's rows, one where ranks have equal weights
    pool: Tensor  # (T, C, D + L)
    seed: int


def can_share(config: PoolConfig, n_rows: int, n_ranks: int) -> TypeGuard[LikelihoodConfig]:
    """Return whether ranks can train on complete rows together; otherwise rank 0 trains alone."""
    # an encoder would be another network to average; contrastive pools follow the rows of a rank
    return (
        isinstance(config, LikelihoodConfig)
        and config.posterior != "amortized"
        and config.negatives == "persistent"
        and n_rows >= _FEWEST_ROWS * n_ranks
    )


def train_on_ranks(
    ranks: Communicator,
    config: LikelihoodConfig,
    start: tuple[Optimisation, ParticleState],
    rows: TrainingRows,
    *,
    generator: torch.Generator,
    callback: Callable[[Progress], bool],
) -> TrainingResult:
    """Train with the particles of all ranks, which are in `follow_training`; called by rank 0.

    Parameters
    ----------
    ranks : Communicator
        More than one.
    config : LikelihoodConfig
        Parameters of the training as a whole.
    start : tuple
        Optimisation, which may be modified, and state.
    rows : TrainingRows
        All rows.
    generator : torch.Generator
        Source of the seeds of all ranks.
    callback : callable
        As for `train`.

    Returns
    -------
    result : TrainingResult
        The state has the pool of all ranks, and no posterior particles.
    """
    optimisation, state = start
    n_chains = state.pool.shape[1]
    own_config = _config_of_a_rank(config, n_chains, len(rows.fitted), ranks.size)
    shares = _shares(ranks.size, rows, state.pool, generator)
    ranks.broadcast(_Order(own_config, _on_cpu(optimisation), _adapted(state)))
    share = ranks.scatter(shares)
    order = _Order(own_config, optimisation, _adapted(state))
    result = _train_share(ranks, order, share, rows.fitted.device, callback)
    pool = torch.cat(ranks.collect(result.state.pool.cpu()), 1)[:, :n_chains]
    particles = result.state._replace(pool=pool.to(state.pool.device), latents=None)
    return result._replace(state=particles)


def follow_training(order: _Order, ranks: Communicator, device: torch.device) -> None:
    """Take part in `train_on_ranks` of rank 0, on a device of this rank."""
    share = ranks.scatter(())
    with team(torch.get_num_threads()), numerical_session(1):
        result = _train_share(ranks, order, share, device, lambda progress: False)
        ranks.collect(result.state.pool.cpu())


def _train_share(
    ranks: Communicator,
    order: _Order,
    share: _Share,
    device: torch.device,
    callback: Callable[[Progress], bool],
) -> TrainingResult:
    """Train with the share of one rank."""
    config, optimisation = order.config, order.optimisation
    for model in (optimisation.energy, optimisation.average):
        model.to(device)
    optimisation.optimizer.to(device)
    rows, generator = share.rows.on(device), seeded_generator(share.seed, device)
    objective = config.objective()
    objective.share(ranks, share.row_share)
    state = _moved(order.state._replace(pool=share.pool), device)
    return train(
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
        ranks=ranks,
    )


def _config_of_a_rank(
    config: LikelihoodConfig, n_chains: int, n_rows: int, n_ranks: int
) -> LikelihoodConfig:
    """Return the parameters of the training of one rank, without what it does not need."""
    batch_size = max(_FEWEST_ROWS, -(-min(config.batch_size, n_rows) // n_ranks))
    unused: dict[str, Any] = {"energy": None, "memory": None, "reference": "mixture"}
    n_chains = -(-n_chains // n_ranks)
    return replace(config, n_chains=n_chains, batch_size=batch_size, device="cpu", **unused)


def _shares(
    n_ranks: int, rows: TrainingRows, pool: Tensor, generator: torch.Generator
) -> list[_Share]:
    """Return the shares of all ranks; numbers of rows differ by one at most."""
    of_ranks = [rows.on(_CPU).share(rank, n_ranks) for rank in range(n_ranks)]
    totals = [part.total_weight for part in of_ranks]
    # equal numbers of chains: the first ones twice where they cannot be divided
    n_chains = -(-pool.shape[1] // n_ranks)
    places = torch.arange(n_ranks * n_chains) % pool.shape[1]
    pools = [part.clone() for part in pool.cpu()[:, places].split(n_chains, 1)]
    device = generator.device
    seeds = torch.randint(2**62, (n_ranks,), generator=generator, device=device).tolist()
    row_shares = [total * n_ranks / sum(totals) for total in totals]
    return [_Share(*parts) for parts in zip(of_ranks, row_shares, pools, seeds, strict=True)]


def _adapted(state: ParticleState) -> ParticleState:
    """Return what is adapted to the particles of a state, without them; on the CPU."""
    return _moved(state._replace(latents=None, pool=state.pool.new_empty(0)), _CPU)


def _moved(state: ParticleState, device: torch.device) -> ParticleState:
    """Return a state without posterior particles on a device."""
    parts: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in state._asdict().items()
    }
    return ParticleState(**parts)


def _on_cpu(optimisation: Optimisation) -> Optimisation:
    """Return a copy of an optimisation on the CPU."""
    twin = copy.deepcopy(optimisation)
    for model in (twin.energy, twin.average):
        model.to(_CPU)
    twin.optimizer.to(_CPU)
    return twin
