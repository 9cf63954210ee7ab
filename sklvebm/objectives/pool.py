"""The joint negative pool: a ladder of replicas of `(x, z)`, moved sweep by sweep."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.inference.missed_components import (
    component_masses,
    defended,
    log_ratio,
    missed_share,
    rare_components,
    tilted_reference,
)
from sklvebm.mcmc.adaptation import adapt_step_size
from sklvebm.mcmc.langevin import Kernel, start
from sklvebm.mcmc.state import (
    Chains,
    IndependentNoise,
    ParticleState,
    Target,
    Value,
    deferred,
    hold_frames,
    of_chains,
    take_chains,
)
from sklvebm.mcmc.tempering import respaced_ladder, swap_replicas
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import PathEnergy
from sklvebm.models.targets import joint_target
from sklvebm.objectives.parts import in_parts, noises_of_parts, parts_of_work
from sklvebm.threads import side_by_side

RESPACE_EVERY = 10  # updates or sweeps
_DEFENSIVE_SHARE = 0.25  # of the independence proposals
# expected number of chains in up-weighted components, below which these are not proposed
_FEWEST_CHAINS = 0.5
# of a pool that is moved at a time: particles, and numbers of one quantity of theirs
_BLOCK_PARTICLES, _BLOCK_NUMBERS = 2**14, 2**21


class Sweep(NamedTuple):
    """Outcome of one move of the whole pool."""

    pool: Tensor  # (T, C, D + L)
    step_size: Tensor  # (T,), adapted
    acceptance: Tensor  # (T,)
    # (T - 1,), NaN for pairs that were not tried; or of those that were tried alone
    swap_acceptance: Tensor
    source: Tensor | None  # (T * C,), place that swaps moved each particle from; None: no swaps
    parity: int  # the first rung of the pairs that were tried, 0 or 1
    correction: Tensor | None = None  # (T, C) at the particles, nats; None: not computed
    rows: Tensor | None = None  # (T * C, D + L), the particles as rows (x, z); None: not computed
    first_place: int = 0  # in `source`, of the first particle of the pool
    # (n_pairs,), where `swap_acceptance` is that of pairs, of each in their mean; zero for a pair
    # that is none, which comes last and has an acceptance of one
    pair_shares: Tensor | None = None

    def tried(self) -> Tensor:
        """Return the acceptance of the pairs of neighbours that were tried, (n_pairs,)."""
        if self.pair_shares is None:
            return self.swap_acceptance[self.parity :: 2]
        return self.swap_acceptance[: (len(self.pool) - self.parity) // 2]

    def origin(self) -> Tensor:
        """Return the rung that the swaps moved each particle from, (T, C), int16."""
        t, c = self.pool.shape[:2]
        if self.source is None:
            return torch.zeros(t, c, dtype=torch.int16, device=self.pool.device)
        return (
            (self.source - self.first_place)
            .div(c, rounding_mode="floor")
            .to(torch.int16)
            .reshape(t, c)
        )


def sweep_pool(
    energy: PathEnergy,
    state: ParticleState,
    kernel: Kernel,
    n_steps: int,
    noise: IndependentNoise,
    *,
    overwrite: bool = False,
) -> Sweep:
    """Redraw the reference rung, swap neighbours and move every rung by Langevin steps.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    state : ParticleState
        The pool; not modified unless `overwrite`.
    kernel : Kernel
        How particles move.
    n_steps : int
        Steps of every particle, at least one.
    noise : IndependentNoise
        Source of all noise.
    overwrite : bool, default=False
        Whether the moved particles of a large pool may take the place of the old ones in memory.

    Returns
    -------
    sweep : Sweep
        The moved pool and statistics of the sweep.

    Notes
    -----
    Chain c of one rung is exchanged with chain c of others only. A large pool, or that of a large
    network, is therefore swept in blocks of chains, in parallel and with bounded memory. Each block
    has its own noise and adapts the step sizes by its own acceptance; their mean is kept.
    """
    n_blocks = n_blocks_of(energy, state.pool)
    if n_blocks == 1:
        return _sweep_block(energy, state, kernel, n_steps, noise)
    pool = state.pool if overwrite else torch.empty_like(state.pool)

    def sweep(old: Tensor, new: Tensor, noise: IndependentNoise) -> Sweep:
        part = _sweep_block(energy, state._replace(pool=old), kernel, n_steps, noise)
        new.copy_(part.pool)
        return part._replace(pool=new)

    # of nearly equal size, so that their means can be averaged
    old, new = (whole.tensor_split(n_blocks, 1) for whole in (state.pool, pool))
    parts = side_by_side(sweep, old, new, noises_of_parts(noise, n_blocks))
    changes = [part.step_size - state.pool_step_size for part in parts]
    return Sweep(
        pool,
        state.pool_step_size + torch.stack(changes).mean(0),  # no rounding where nothing adapts
        torch.stack([part.acceptance for part in parts]).mean(0),
        torch.stack([part.swap_acceptance for part in parts]).mean(0),
        # of a place, only its rung matters
        torch.cat([part.origin() for part in parts], 1).flatten().int().mul_(state.pool.shape[1]),
        parts[0].parity,
        _joined([part.correction for part in parts]),
    )


def _joined(corrections: list[Tensor | None]) -> Tensor | None:
    """Return the corrections of all blocks of chains, (T, C); None if one was not computed."""
    known = [correction for correction in corrections if correction is not None]
    return torch.cat(known, 1) if len(known) == len(corrections) else None


def n_blocks_of(energy: PathEnergy, pool: Tensor) -> int:
    """Return the number of blocks of chains in sweeps of a pool (T, C, P)."""
    n_rungs, n_chains, _ = pool.shape
    # a sweep computes the components' probabilities once, and the network several times
    weighing = energy.reference.multiply_adds // 2
    n_parts = parts_of_work(energy, n_rungs * n_chains, pool.device, weighing)
    return max(min(n_parts, n_chains), _blocks_for_memory(energy, pool))


def _blocks_for_memory(energy: PathEnergy, pool: Tensor) -> int:
    """Return the number of blocks of chains (T, C, P) that keeps memory bounded."""
    n_rungs, n_chains, width = pool.shape
    # the components' probabilities for all particles can be larger than the particles
    widest = max(width, len(energy.reference.log_weights))
    n_particles = min(_BLOCK_PARTICLES, _BLOCK_NUMBERS // widest)
    return math.ceil(n_chains / max(1, n_particles // n_rungs))


def _sweep_block(
    energy: PathEnergy,
    state: ParticleState,
    kernel: Kernel,
    n_steps: int,
    noise: IndependentNoise,
) -> Sweep:
    """Sweep chains that are moved together; see `sweep_pool`."""
    t, c = state.pool.shape[:2]
    target = deferred(joint_target(energy, select_correction_and_grad(energy)))
    if t > 1:
        pool = with_fresh_rung(energy, state.pool, noise)
        chains = start(pool.flatten(0, 1), target)
        index, exchange = exchanged(chains.value.correction.reshape(t, c), state, noise)
        chains = take_chains(chains, index)
    else:
        chains, exchange = start(state.pool.flatten(0, 1), target), no_exchange(state)
    beta = of_chains(state.betas, c)
    rungs = Rungs(chains, state.pool_step_size, torch.ones_like(state.pool_step_size))
    # drawing components is expensive
    rungs = move_rungs(rungs, hold_frames(target), kernel, n_steps, beta=beta, noise=noise)
    return swept(rungs, exchange, state)


def with_fresh_rung(energy: PathEnergy, pool: Tensor, noise: IndependentNoise) -> Tensor:
    """Return a ladder (T, C, D + L) whose first rung is drawn anew from the reference."""
    fresh = energy.reference.sample(pool.shape[1], noise.generator).to(pool.dtype)
    return torch.cat([fresh.unsqueeze(0), pool[1:]])


class Exchange(NamedTuple):
    """What swaps of neighbouring rungs did."""

    acceptance: Tensor  # (T - 1,), NaN for pairs that were not tried
    source: Tensor | None  # (T * C,), place that each particle comes from; None: no swaps


def exchanged(
    correction: Tensor, state: ParticleState, noise: IndependentNoise
) -> tuple[Tensor, Exchange]:
    """Return the particle that each place (T * C,) receives, and statistics; see `swap_replicas`.

    Parameters
    ----------
    correction : Tensor of shape (T, C)
        Correction at every particle, nats.
    state : ParticleState
        Its ladder is used, and its number of updates says which pairs are tried.
    noise : IndependentNoise
        Source of the decisions.
    """
    parity = state.n_updates % 2
    index, acceptance = swap_replicas(correction, state.betas, parity=parity, noise=noise)
    return index, Exchange(acceptance, index)


def no_exchange(state: ParticleState) -> Exchange:
    """Return the same for a ladder of one rung."""
    return Exchange(state.pool.new_empty(0), None)


class Rungs(NamedTuple):
    """Chains of all rungs, and what is measured and adapted of each."""

    chains: Chains  # (T * C, D + L)
    step_size: Tensor  # (T,)
    acceptance: Tensor  # (T,), mean of the last step


def move_rungs(
    rungs: Rungs,
    target: Target,
    kernel: Kernel,
    n_steps: int,
    *,
    beta: Tensor,
    noise: IndependentNoise,
) -> Rungs:
    """Move all rungs by Langevin steps at inverse temperatures beta (T * C,).

    The acceptance of a kernel that accepts everything stays as it is.
    """
    chains, step_size, acceptance = rungs
    n_chains = len(beta) // len(step_size)
    sizes = of_chains(step_size, n_chains)
    for number in range(n_steps):
        if number and kernel.target_acceptance is not None:
            sizes = of_chains(step_size, n_chains)
        chains, info = kernel.step(chains, target, beta=beta, step_size=sizes, noise=noise)
        if kernel.target_acceptance is not None:
            acceptance = info.acceptance.reshape(-1, n_chains).mean(1)
            step_size = adapt_step_size(kernel, step_size, acceptance)
    return Rungs(chains, step_size, acceptance)


def swept(rungs: Rungs, exchange: Exchange, state: ParticleState) -> Sweep:
    """Return the outcome of a sweep of the pool of `state`."""
    value = rungs.chains.value
    known = value.correction if isinstance(value, Value) else None
    return Sweep(
        rungs.chains.position.reshape(state.pool.shape),
        rungs.step_size,
        rungs.acceptance,
        exchange.acceptance,
        exchange.source,
        state.n_updates % 2,
        None if known is None else known.reshape(state.pool.shape[:2]),
    )


@torch.no_grad()
def with_independence_proposals(
    energy: PathEnergy,
    pool: Tensor,
    betas: Tensor,
    log_partition: Tensor,
    noise: IndependentNoise,
    *,
    rare: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Return the pool after independence proposals, which reach regions that chains seldom visit.

    Proposals are draws of the reference in which up-weighted components that annealing misses have
    their weight in the model. A quarter of them come from the defensive component. Metropolis
    decides, so that every rung keeps its stationary distribution. Up-weighted components are
    proposed if at least half a chain would be in them. Without these and without a defensive
    component, nothing is proposed. Given `rare`, the host does not wait for the device.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    pool : Tensor of shape (T, C, D + L)
        Joint particles.
    betas : Tensor of shape (T,)
        Inverse temperatures.
    log_partition : Tensor of shape ()
        log Z of the model, nats, as far as the pool knows.
    noise : IndependentNoise
        Source of draws and decisions.
    rare : Tensor of shape (M,) or None, default=None
        Components that are too rare for the chains; None looks for them.
    overwrite : bool, default=False
        Whether proposals to a large pool may take the place of particles in memory.
    """
    t, c = pool.shape[:2]
    reference = energy.reference
    rare = rare_components(reference, c) if rare is None else rare
    missed = component_masses(energy, rare, noise.generator)
    tilted = tilted_reference(reference, missed, log_partition)
    is_worth_it = c * missed_share(reference, tilted) >= _FEWEST_CHAINS
    log_weights = torch.where(is_worth_it, tilted.log_weights, reference.log_weights)
    tilted = defended(reference.reweighted(log_weights), _DEFENSIVE_SHARE)
    old = pool.reshape(t * c, -1)
    new = tilted.sample(t * c, noise.generator).to(pool)
    beta = betas.repeat_interleave(c)
    is_large = len(new) > _BLOCK_PARTICLES
    if not is_large:
        of_both = _log_density(energy, tilted, torch.cat([new, old]), beta.repeat(2))
        gain = of_both[: len(new)] - of_both[len(new) :]
    else:  # activations of all particles would be many times the pool
        density = partial(_log_density, energy, tilted)
        gain = in_parts(energy, density, new, beta).sub_(in_parts(energy, density, old, beta))
    accepted = noise.uniform(gain) < gain.clamp_(max=0.0).exp_()
    if reference.n_defensive == 0:
        accepted &= is_worth_it
    where = old if is_large and overwrite else new
    return torch.where(accepted.unsqueeze(1), new, old, out=where).reshape(t, c, -1)


def _log_density(
    energy: PathEnergy, tilted: MixtureReference, position: Tensor, beta: Tensor
) -> Tensor:
    """Return log p - log q of particles, q the independence proposal, nats, given their betas."""
    rows = energy.reference.rows(position)
    correction = energy.correction(*energy.reference.parts(rows)).double()
    return log_ratio(energy.reference, tilted, position) - beta.double() * correction


@torch.no_grad()
def equilibrate(
    energy: PathEnergy,
    state: ParticleState,
    kernel: Kernel,
    n_steps: int,
    generator: torch.Generator,
    *,
    n_sweeps: int,
    n_snapshots: int,
) -> tuple[ParticleState, Tensor]:
    """Equilibrate the pool at fixed parameters.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    state : ParticleState
        The pool to start from.
    kernel : Kernel
        How particles move.
    n_steps : int
        Steps per sweep.
    generator : torch.Generator
        Source of all noise.
    n_sweeps : int
        Sweeps; ladder, step sizes and spread adapt during the first half.
    n_snapshots : int
        How often the model's rung is recorded, evenly over the second half.

    Returns
    -------
    state : ParticleState
        After the last sweep.
    draws : Tensor of shape (n_snapshots * n_chains, D + L)
        Positions at b = 1.
    """
    noise = IndependentNoise(generator)
    half = n_sweeps // 2
    gap = max(1, (n_sweeps - half) // n_snapshots)
    n_temperatures = len(state.betas)
    snapshots = []
    for number in range(n_sweeps):
        sweep = sweep_pool(energy, state, kernel, n_steps, noise)
        state = state._replace(pool=sweep.pool, n_updates=state.n_updates + 1)
        if number < half:
            variance = pool_corrections(energy, sweep.pool).double().var(1)
            spread = torch.lerp(state.spread, variance, 1.0 if number == 0 else 0.2)
            state = state._replace(pool_step_size=sweep.step_size, spread=spread)
            if n_temperatures > 2 and number % RESPACE_EVERY == RESPACE_EVERY - 1:
                betas = respaced_ladder(state.betas, spread, n_temperatures)
                state = state._replace(betas=betas)
        elif (n_sweeps - 1 - number) % gap == 0:
            snapshots.append(sweep.pool[-1])
    return state, torch.cat(snapshots[-n_snapshots:])


def pool_corrections(energy: PathEnergy, pool: Tensor) -> Tensor:
    """Return the correction at every particle of a pool (T, C, D + L); (T, C), nats."""
    t, c = pool.shape[:2]

    def correction(position: Tensor) -> Tensor:
        return energy.correction(*energy.reference.split(position))

    return in_parts(energy, correction, pool.reshape(t * c, -1)).reshape(t, c)


class DiagnosticChains(NamedTuple):
    """Traces of a pool at fixed parameters and step sizes."""

    traces: Tensor  # (2, C, n_sweeps): correction and base energy of the model's rung, nats
    acceptance: Tensor  # (T,), mean
    swap_acceptance: Tensor  # (T - 1,), mean over the sweeps that tried the pair
    n_round_trips: int  # particles that reached the reference after having been at the model
    state: ParticleState  # at the end


@torch.no_grad()
def run_diagnostic_chains(
    energy: PathEnergy,
    state: ParticleState,
    kernel: Kernel,
    n_steps: int,
    noise: IndependentNoise,
    *,
    n_sweeps: int,
) -> DiagnosticChains:
    """Sweep a pool `n_sweeps` times without adaptation and record it; see `sweep_pool`."""
    t, c = state.pool.shape[:2]
    traces, acceptances, swaps = [], [], []
    # the end of the ladder that the particle at each place visited last: 0 reference, 1 model
    origin = torch.zeros(t, c, dtype=torch.long, device=state.pool.device)
    n_round_trips = 0
    for _ in range(n_sweeps):
        origin[0] = 0
        sweep = sweep_pool(energy, state, kernel, n_steps, noise)
        state = state._replace(pool=sweep.pool, n_updates=state.n_updates + 1)
        origin = origin.gather(0, sweep.origin().long())
        if t > 1:
            n_round_trips += int(origin[0].sum())
        origin[-1] = 1
        top = sweep.pool[-1]
        # the function with a gradient would need memory for residuals from every component
        log_components = energy.reference.log_components(top[:, : energy.n_features])
        base = -torch.logsumexp(log_components, 1).to(top.dtype)
        traces.append(torch.stack([pool_corrections(energy, sweep.pool[-1:])[0], base]))
        acceptances.append(sweep.acceptance)
        swaps.append(sweep.swap_acceptance)
    return DiagnosticChains(
        traces=torch.stack(traces, 2),
        acceptance=torch.stack(acceptances).mean(0),
        swap_acceptance=torch.stack(swaps).nanmean(0),
        n_round_trips=n_round_trips,
        state=state,
    )
