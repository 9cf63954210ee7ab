"""The model's side of a likelihood gradient: a tempered pool, its weights, its log Z.

It is the same for all objectives, which differ in what they do with rows.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.communication import ALONE
from sklvebm.inference.missed_components import rare_components
from sklvebm.mcmc.langevin import KERNELS, identity_readout, start
from sklvebm.mcmc.state import IndependentNoise, ParticleState, stack_rows
from sklvebm.mcmc.tempering import respaced_ladder
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import BridgedEnergy, PathEnergy
from sklvebm.models.targets import joint_target
from sklvebm.objectives.parts import in_parts
from sklvebm.objectives.pool import (
    RESPACE_EVERY,
    Sweep,
    equilibrate,
    pool_corrections,
    sweep_pool,
    with_independence_proposals,
)
from sklvebm.smc.annealing import Ladder, anneal, annealing_schedule
from sklvebm.smc.free_energy import mbar, multistate_weights

METRICS = "swap_rate", "least_swap_rate", "pool_acceptance"  # of a sweep
_OFFER_EVERY = 16  # updates
_FIRST_UPDATES = 20  # in which the spread follows more quickly
_BURN_IN_SWEEPS = 200  # of a pool that starts away from its energy
_DRAWN_AT_A_TIME = 2**14  # particles of a first pool
_NUMBERS_AT_A_TIME = 2**21  # coordinates of rows with all their nodes, of a bound
_FARTHEST = 1e3  # times the farthest likely draw of the reference: a particle has run away
_LEAST_SWAP_RATE = 0.005  # below it the ladder is broken: rungs do not overlap
_ITERATIONS = 3  # of the multistate weights in an update, which continue those of the last one
# of the multistate weights: digits on one Gaussian need 35 for a change of 1e-7 nats, moons 7
_MONITOR_ITERATIONS = 40
_MONITOR_STEPS = 32  # annealing steps of the monitored log Z when there is no ladder


class Weighing(NamedTuple):
    """Weights of the particles of a pool for the model at b = 1."""

    weights: Tensor  # (T * C,), float64, summing to one
    log_partitions: Tensor  # (T,) float64, nats
    spread: Tensor  # (T,), nats squared


class TemperedPool:
    """A ladder of persistent particles between the reference and the model.

    Parameters
    ----------
    dynamics : str
        Langevin kernel, a key of `KERNELS`.
    n_chains : int
        Particles per temperature.
    n_temperatures : int
        Rungs of the ladder; 1 is the plain persistent pool.
    n_langevin_steps : int
        Steps per sweep.
    step_size : float or None
        Langevin step, squared whitened units per nat; where it starts, if the kernel adapts it.
        None is the kernel's own.
    """

    def __init__(
        self,
        *,
        dynamics: str,
        n_chains: int,
        n_temperatures: int,
        n_langevin_steps: int,
        step_size: float | None,
    ) -> None:
        self.kernel = KERNELS[dynamics]
        self.n_chains, self.n_temperatures = n_chains, n_temperatures
        self.n_langevin_steps = n_langevin_steps
        self.step_size = self.kernel.default_step_size if step_size is None else step_size
        self._rare: tuple[Tensor, Tensor] | None = None  # weights, and components that are rare
        self.ranks = ALONE  # that have chains of the same pool, each `n_chains`
        self._draws: Tensor | None = None  # (M, D + L), of the reference, for the monitored log Z

    def init(
        self, energy: PathEnergy, generator: torch.Generator, latents: Any = None
    ) -> ParticleState:
        """Draw all particles exactly from the reference, where an untrained model is stationary."""
        reference = energy.reference
        like = reference.location
        t, c = self.n_temperatures, self.n_chains
        pool = like.new_empty(t * c, energy.n_features + energy.n_latents)
        for part in pool.split(_DRAWN_AT_A_TIME):
            part.copy_(reference.sample(len(part), generator))
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        betas = torch.linspace(0.0, 1.0, t, **options) if t > 1 else torch.ones(1, **options)
        zeros = torch.zeros(t, dtype=torch.float64, device=like.device)
        return ParticleState(
            latents=latents,
            pool=pool.reshape(t, c, -1),
            pool_step_size=like.new_full((t,), self.step_size),
            latent_step_size=like.new_full((), self.step_size),
            log_partitions=zeros,
            spread=zeros.clone(),
            betas=betas,
            n_updates=0,
        )

    def measure_with(self, draws: Tensor) -> None:
        """Let draws (M, D + L) of the reference join the ladder's samples in `log_partition`.

        Where the model is near the reference, their number decides, and log Z has the noise of
        thousands of samples instead of hundreds. Importance sampling by the draws alone is a lower
        limit of the estimate.
        """
        self._draws = draws

    # One update --------------------------------------------------------------------------------

    def move(self, energy: PathEnergy, state: ParticleState, noise: IndependentNoise) -> Sweep:
        """Move the whole pool once, a large one in its place; see `pool.sweep_pool`."""
        return self.sweep(energy, self.proposed(energy, state, noise), noise)

    def sweep(self, energy: PathEnergy, state: ParticleState, noise: IndependentNoise) -> Sweep:
        """Move the whole pool once without independence proposals."""
        return sweep_pool(energy, state, self.kernel, self.n_langevin_steps, noise, overwrite=True)

    def proposed(
        self, energy: PathEnergy, state: ParticleState, noise: IndependentNoise
    ) -> ParticleState:
        """Return the state whose chains have received independence proposals, every 16 updates.

        Without them, nothing would raise the energy again in up-weighted components that no chain
        visits. A pool of one rung receives none.
        """
        if self.is_time_to_propose(state):
            pool = with_independence_proposals(
                energy,
                state.pool,
                state.betas,
                state.log_partitions[-1],
                noise,
                rare=self._rare_components(energy.reference),
                overwrite=True,
            )
            state = state._replace(pool=pool)
        return state

    def is_time_to_propose(self, state: ParticleState) -> bool:
        """Return whether chains receive independence proposals before they move."""
        return self.n_temperatures > 1 and state.n_updates % _OFFER_EVERY == 0

    def _rare_components(self, reference: MixtureReference) -> Tensor:
        """Return the components that are too rare for the chains, found once for each reference."""
        if self._rare is None or self._rare[0] is not reference.log_weights:
            self._rare = reference.log_weights, rare_components(reference, self.n_chains)
        return self._rare[1]

    def read_out(self, sweep: Sweep, noise: IndependentNoise) -> Tensor:
        """Return the particles that the pool's chains stand for, as the kernel defines them."""
        if self.kernel.readout is identity_readout:
            return sweep.pool
        t, c, width = sweep.pool.shape
        flat = sweep.pool.reshape(t * c, width)
        sizes = sweep.step_size.repeat_interleave(c)
        return self.kernel.readout(flat, sizes, noise).reshape(t, c, width)

    def weigh(self, correction: Tensor, state: ParticleState) -> Weighing:
        """Return multistate weights of particles whose corrections are (T, C), in nats."""
        t, c = correction.shape
        if t == 1:
            weights = torch.full_like(correction[0], 1.0 / c).detach()
            return Weighing(weights, state.log_partitions, state.spread)
        detached = self._of_all_ranks(correction.detach().double())
        weights, log_partitions = multistate_weights(
            detached, state.betas, state.log_partitions, _ITERATIONS
        )
        share = 0.05 if state.n_updates > _FIRST_UPDATES else 0.3
        spread = torch.lerp(state.spread, detached.var(1), share)
        return Weighing(self._of_this_rank(weights), log_partitions, spread)

    def _of_all_ranks(self, of_chains: Tensor) -> Tensor:
        """Return numbers (T, C) of the chains of all ranks, (T, n_ranks * C)."""
        if self.ranks.size == 1:
            return of_chains
        return self.ranks.gather(of_chains).movedim(0, 1).flatten(1)

    def _of_this_rank(self, weights: Tensor) -> Tensor:
        """Return the weights (T * C,) of this rank's chains, of which ranks take the mean.

        Weights of all chains sum to one; those of each rank are multiplied by their number.
        """
        size = self.ranks.size
        if size == 1:
            return weights
        own = weights.reshape(len(weights) // (size * self.n_chains), size, -1)[:, self.ranks.rank]
        return own.reshape(-1) * size

    def swept(self, state: ParticleState, sweep: Sweep, weighing: Weighing) -> ParticleState:
        """Return the state with what a sweep changes at every update."""
        return state._replace(
            pool=sweep.pool,
            pool_step_size=sweep.step_size,
            log_partitions=weighing.log_partitions,
            spread=weighing.spread,
        )

    def respaced(self, state: ParticleState) -> ParticleState:
        """Return the state after one update more; every tenth respaces the ladder."""
        n_updates, betas = state.n_updates + 1, state.betas
        if self.n_temperatures > 2 and n_updates % RESPACE_EVERY == 0:
            betas = respaced_ladder(betas, state.spread, self.n_temperatures)
        return state._replace(betas=betas, n_updates=n_updates)

    def kind_of_update(self, state: ParticleState) -> tuple[int, bool]:
        """Return the numbers of the host that a sweep and the weights depend on."""
        if self.n_temperatures == 1:
            return 0, False
        return state.n_updates % 2, state.n_updates > _FIRST_UPDATES

    def metrics(self, sweep: Sweep) -> dict[str, Tensor]:
        """Return swap rates, one if there is no pair to swap, and the acceptance; 0-d."""
        swaps = sweep.tried()
        acceptance = sweep.acceptance.mean()
        if len(swaps) == 0:
            one = torch.ones_like(acceptance)
            return dict(zip(METRICS, (one, one, acceptance), strict=True))
        shares, every = sweep.pair_shares, sweep.swap_acceptance
        rate = swaps.mean() if shares is None else shares @ every
        least = swaps.min() if shares is None else every.min()
        return dict(zip(METRICS, (rate, least, acceptance), strict=True))

    def measures(self, energy: PathEnergy, state: ParticleState) -> dict[str, Tensor]:
        """Return the largest coordinates, 0-d: of the pool, and of draws of the reference."""
        limit = energy.reference.farthest_draw()
        return {"farthest": _farthest(state.pool), "farthest of the reference": limit}

    def problem(self, state: ParticleState, metrics: dict[str, float]) -> str | None:
        """Return why the pool does not represent the model any more; None if it does.

        Parameters
        ----------
        state : ParticleState
            Particles after an epoch.
        metrics : dict of str to float
            Means over the epoch, and `measures`.

        Returns
        -------
        problem : str or None
            Particles that are not finite or far out, or a ladder that lets nothing through.
        """
        farthest = metrics["farthest"]
        if not math.isfinite(farthest):
            return "particles are not finite"
        if farthest > _FARTHEST * metrics["farthest of the reference"]:
            return f"a particle is {farthest:.2g} standardised units from the centre"
        if metrics["least_swap_rate"] < _LEAST_SWAP_RATE:
            return f"the ladder's swap rate fell to {metrics['least_swap_rate']:.2g}"
        return None

    # At fixed parameters -----------------------------------------------------------------------

    def equilibrate(
        self,
        energy: PathEnergy,
        state: ParticleState,
        n_sweeps: int,
        n_snapshots: int,
        generator: torch.Generator,
    ) -> tuple[ParticleState, Tensor]:
        """Move the pool at fixed parameters; see `pool.equilibrate`."""
        how = (self.kernel, self.n_langevin_steps, generator)
        return equilibrate(energy, state, *how, n_sweeps=n_sweeps, n_snapshots=n_snapshots)

    def settled(
        self, energy: PathEnergy, state: ParticleState, generator: torch.Generator
    ) -> ParticleState:
        """Return the first pool of training, equilibrated where the energy is not its reference."""
        if state.n_updates == 0 and isinstance(energy, BridgedEnergy):
            state, _ = self.equilibrate(energy, state, _BURN_IN_SWEEPS, 1, generator)
        return state

    def ladder(self, state: ParticleState) -> Ladder:
        """Return what the annealing schedule needs of the pool."""
        return Ladder(state.betas, state.pool_step_size, state.spread)

    def log_partition(
        self,
        energy: PathEnergy,
        state: ParticleState,
        target: PathEnergy,
        generator: torch.Generator,
    ) -> Tensor:
        """Return log Z of `target` from the ladder's particles, in nats, 0-d.

        With a single rung there is no ladder, and a short annealing from the reference is used.

        Parameters
        ----------
        energy : AnchoredEnergy or BridgedEnergy
            The model whose path the pool follows.
        state : ParticleState
            The pool.
        target : AnchoredEnergy or BridgedEnergy
            A model close to `energy` on the same reference, such as its running average.
        generator : torch.Generator
            Source of noise, used only where there is no ladder.
        """
        t, c = self.n_temperatures, self.n_chains
        if t == 1:
            betas, step_sizes = annealing_schedule(self.ladder(state), _MONITOR_STEPS)
            path = joint_target(target, select_correction_and_grad(target))
            chains = start(target.reference.sample(c, generator), path)
            log_weights, _ = anneal(
                chains, path, betas, step_sizes=step_sizes, noise=IndependentNoise(generator)
            )
            log_weights = self._of_all_ranks(log_weights[None])[0]
            return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
        correction = self._of_all_ranks(pool_corrections(energy, state.pool))
        wanted = self._of_all_ranks(pool_corrections(target, state.pool)).reshape(-1)
        base = of_draws = None
        if self._draws is not None:
            base = pool_corrections(energy, self._draws[None])[0]
            of_draws = pool_corrections(target, self._draws[None])[0]
            wanted = torch.cat([wanted, of_draws])
        _, log_mixture = mbar(
            correction,
            state.betas,
            state.log_partitions,
            max_iter=_MONITOR_ITERATIONS,
            tol=None,
            base=base,
        )
        log_z = torch.logsumexp(-wanted.double() - log_mixture, 0)
        if of_draws is None:
            return log_z
        # a well of the energy that one kind of samples misses, the other kind may have found
        by_draws = torch.logsumexp(-of_draws.double(), 0) - math.log(len(of_draws))
        return torch.maximum(log_z, by_draws)


def _farthest(numbers: Tensor) -> Tensor:
    """Return the largest absolute value, 0-d, or NaN, without a copy of all numbers."""
    return torch.stack(torch.aminmax(numbers)).abs().max()


def log_ratio_to_reference(
    energy: PathEnergy, x: Tensor, nodes: Tensor, n_copies: int = 1
) -> Tensor:
    """Return minus the bound of F minus `log r`, (N,), nats; see `free_energy_bound`.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    x : Tensor of shape (N * n_copies, D)
        Completions of each row by the reference, row by row.
    nodes : Tensor of shape (n_nodes, L)
        Whitened latents, the same for every row.
    n_copies : int, default=1
        Completions, whose ratios are averaged.
    """
    ratios = -free_energy_bound(energy, x, nodes) - energy.reference.log_marginal(x).double()
    return torch.logsumexp(ratios.reshape(-1, n_copies), 1) - math.log(n_copies)


def free_energy_bound(energy: PathEnergy, x: Tensor, nodes: Tensor) -> Tensor:
    """Return an importance-sampled upper bound on F(x) in expectation, (N,), nats.

    Exact for an energy without latents, which has one node of no width.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    x : Tensor of shape (N, D)
        Rows.
    nodes : Tensor of shape (n_nodes, L)
        Whitened latents, the same for every row.
    """
    n_nodes = len(nodes)
    n_rows = max(1, _NUMBERS_AT_A_TIME // (n_nodes * (energy.n_features + energy.n_latents)))
    if len(x) > n_rows:
        return torch.cat([free_energy_bound(energy, part, nodes) for part in x.split(n_rows)])
    rows = stack_rows(x, n_nodes)
    z = energy.reference.to_latents(rows, nodes.repeat(len(x), 1))
    correction = in_parts(energy, energy.correction, rows, z).reshape(len(x), n_nodes).double()
    log_mean = torch.logsumexp(-correction, 1) - math.log(n_nodes)
    return -energy.reference.log_marginal(x).double() - log_mean
