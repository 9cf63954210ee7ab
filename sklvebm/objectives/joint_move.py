"""Posterior particles and pool moved together: one evaluation of the energy for both.

A posterior particle is a joint particle whose row is fixed. A kernel with a step size of zero in
the coordinates of the row moves it by its conditional distribution, in the same operations that
move the pool. Results are those of moving both apart, with other random numbers.
"""

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad, select_walk
from sklvebm.mcmc.adaptation import adapt_step_size
from sklvebm.mcmc.langevin import start, ula_step
from sklvebm.mcmc.state import (
    Batch,
    Chains,
    DeferredValue,
    IndependentNoise,
    ParticleState,
    Target,
    Value,
    deferred,
    hold_frames,
    of_chains,
    stack_rows,
    take_chains,
)
from sklvebm.models.energies import PathEnergy
from sklvebm.models.targets import Walk, Walkers, joint_target, stacked_target
from sklvebm.objectives.parts import parts_of_work
from sklvebm.objectives.pool import (
    Exchange,
    Rungs,
    Sweep,
    exchanged,
    move_rungs,
    n_blocks_of,
    no_exchange,
    swept,
    with_fresh_rung,
)
from sklvebm.objectives.posteriors import ParticlePosterior, PosteriorMove
from sklvebm.objectives.tempered_pool import TemperedPool


def can_move_together(
    energy: PathEnergy, n_posterior: int, state: ParticleState, device: torch.device
) -> bool:
    """Return whether neither side is moved in parts, which have step sizes of their own."""
    n_parts = parts_of_work(energy, n_posterior, device)
    return n_parts == 1 and n_blocks_of(energy, state.pool) == 1


@torch.no_grad()
def move_together(
    energy: PathEnergy,
    batch: Batch,
    state: ParticleState,
    noise: IndependentNoise,
    *,
    tempered: TemperedPool,
    posterior: ParticlePosterior,
) -> tuple[PosteriorMove, Sweep]:
    """Move the particles of the batch's rows and sweep the pool.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    batch : Batch
        Rows of this update.
    state : ParticleState
        Before the update; the particles of the batch's rows are written in place.
    noise : IndependentNoise
        Source of all noise.
    tempered : TemperedPool
        The pool's settings.
    posterior : ParticlePosterior
        The settings of the posterior particles, which take no more steps than the pool.

    Returns
    -------
    moved : PosteriorMove
        Posterior particles.
    sweep : Sweep
        The pool; see `sweep_pool`.
    """
    kernel, (t, c, width) = tempered.kernel, state.pool.shape
    offset = energy.reference.offset_of(stack_rows(batch.x, posterior.n_particles))
    n, d = len(offset), energy.n_features
    e = state.latents.values[batch.index].reshape(n, -1)
    if t == 1 and kernel.step is ula_step:
        of_both = posterior.n_steps, tempered.n_langevin_steps
        walk = select_walk(energy, of_both[1] * (n + c) * width)
        if walk is not None:
            walkers = Walkers(_stacked(e, state.pool), offset, _sizes(state), of_both)
            return _walked(walk, walkers, batch, state, noise)
    correction_and_grad = select_correction_and_grad(energy)
    joint = hold_frames(deferred(joint_target(energy, correction_and_grad)))
    target = deferred(stacked_target(energy, offset, joint, correction_and_grad, n_joint=t * c))
    if posterior.proposes_independently:
        chains, exchange = _exchanged(energy, e, state, target, noise)
    else:
        chains, exchange = start(_stacked(e, state.pool), target), no_exchange(state)
    beta = _beta_of_all(state.betas, n, c)
    sizes = _sizes(state)
    acceptance = torch.ones_like(sizes)
    step_size = _sizes_of_coordinates(sizes, (n, d), state.pool.shape)
    for number in range(posterior.n_steps):
        if number and kernel.target_acceptance is not None:
            step_size = _sizes_of_coordinates(sizes, (n, d), state.pool.shape)
        chains, info = kernel.step(chains, target, beta=beta, step_size=step_size, noise=noise)
        if kernel.target_acceptance is not None:
            probability = info.acceptance
            of_rungs = probability[n:].reshape(t, c).mean(1)
            acceptance = torch.cat([probability[:n].mean().reshape(1), of_rungs])
            sizes = adapt_step_size(kernel, sizes, acceptance)
    e = chains.position[:n, d:]
    state.latents.values[batch.index] = e.reshape(len(batch.x), posterior.n_particles, -1)
    particles = kernel.readout(chains.position[:n], step_size[:n], noise)
    rows = energy.reference.rows(particles).add_(offset)
    moved = PosteriorMove(state.latents, sizes[0], rows, acceptance[0])
    rungs = Rungs(_behind(chains, n, joint), sizes[1:], acceptance[1:])
    n_steps = tempered.n_langevin_steps - posterior.n_steps
    rungs = move_rungs(rungs, joint, kernel, n_steps, beta=beta[n:], noise=noise)
    return moved, swept(rungs, exchange, state)


def _walked(
    walk: Walk, walkers: Walkers, batch: Batch, state: ParticleState, noise: IndependentNoise
) -> tuple[PosteriorMove, Sweep]:
    """Return the outcome of `move_together` where all steps are one walk."""
    start_at, offset, sizes, (_, n_steps) = walkers
    n, n_latents = len(offset), state.latents.values.shape[2]
    position, rows = walk(walkers, noise.normal(start_at.expand(n_steps, -1, -1)))
    e = position[:n, position.shape[1] - n_latents :]
    state.latents.values[batch.index] = e.reshape(len(batch.x), -1, n_latents)
    acceptance, exchange = torch.ones_like(sizes), no_exchange(state)
    moved = PosteriorMove(state.latents, sizes[0], rows[:n], acceptance[0])
    return moved, Sweep(
        position[n:].view(state.pool.shape),
        sizes[1:],
        acceptance[1:],
        exchange.acceptance,
        exchange.source,
        state.n_updates % 2,
        rows=rows[n:],
    )


def _stacked(e: Tensor, pool: Tensor) -> Tensor:
    """Return posterior particles e (n, L) as (0, e), and the pool (T, C, D + L) behind them."""
    position = e.new_zeros(len(e) + pool.shape[0] * pool.shape[1], pool.shape[2])
    position[: len(e), pool.shape[2] - e.shape[1] :] = e
    position[len(e) :] = pool.flatten(0, 1)
    return position


def _sizes(state: ParticleState) -> Tensor:
    """Return the step sizes (1 + T,) of posterior particles, then of every rung."""
    return torch.cat([state.latent_step_size.reshape(1), state.pool_step_size])


def _exchanged(
    energy: PathEnergy,
    e: Tensor,
    state: ParticleState,
    target: Target,
    noise: IndependentNoise,
) -> tuple[Chains, Exchange]:
    """Propose reference draws to posterior particles e (n, L), and swap neighbours in the ladder.

    The energy is evaluated once, at both and at what is proposed.
    """
    n, (t, c, width) = len(e), state.pool.shape
    position = e.new_zeros(2 * n + t * c, width)
    latents = position[: 2 * n, energy.n_features :]
    latents[:n] = e
    latents[n:] = noise.normal(e)
    position[2 * n :] = with_fresh_rung(energy, state.pool, noise).flatten(0, 1)
    chains = start(position, target)
    correction = chains.value.correction
    ratio = torch.sub(correction[:n], correction[n : 2 * n]).exp_()
    # a posterior particle goes on from the proposal, n places behind it, if that is accepted
    index = torch.arange(n + t * c, device=e.device)
    index[:n].add_(n * (noise.uniform(ratio) < ratio))
    swaps, exchange = exchanged(correction[2 * n :].reshape(t, c), state, noise)
    torch.add(swaps, 2 * n, out=index[n:])
    return take_chains(chains, index), exchange


def _beta_of_all(betas: Tensor, n: int, n_chains: int) -> Tensor:
    """Return inverse temperatures of n posterior particles, which are one, and of the pool."""
    if len(betas) == 1:
        return betas.expand(n + n_chains)
    return torch.cat([betas.new_ones(n), of_chains(betas, n_chains)])


def _sizes_of_coordinates(
    sizes: Tensor, of_rows: tuple[int, int], of_pool: tuple[int, ...]
) -> Tensor:
    """Return step sizes (n + T * C, D + L): zero for the fixed rows of posterior particles."""
    (n, d), (_, c, width) = of_rows, of_pool
    posterior = torch.cat([sizes.new_zeros(d), sizes[0].expand(width - d)])
    pool = of_chains(sizes[1:], c).unsqueeze(1)
    return torch.cat([posterior.expand(n, width), pool.expand(-1, width)])


def _behind(chains: Chains, n: int, target: Target) -> Chains:
    """Return the chains without the first n; values that were not computed stay so."""
    position, value = chains.position[n:], chains.value
    if isinstance(value, DeferredValue):
        return start(position, target)
    return Chains(position, Value(value.correction[n:], value.grad[n:]))
