"""Posterior particles and pool moved together in white coordinates, for Crank-Nicolson steps.

The same as `joint_move`, with fewer operations: components are drawn once an update, and until the
next draw chains stay in the coordinates in which the base is a standard normal. A posterior
particle has D coordinates there that nothing depends on. They take part in all operations, move
like a free particle and are left behind.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad, select_white_step
from sklvebm.mcmc.adaptation import adapt_step_size
from sklvebm.mcmc.langevin import Kernel, WhiteChains, crank_nicolson_step, white_step
from sklvebm.mcmc.state import (
    Batch,
    IndependentNoise,
    ParticleState,
    StepInfo,
    averages_of,
    stack_rows,
)
from sklvebm.mixtures.row_frames import (
    OF_A_ROW,
    RowFrames,
    draw_joint,
    numbers_of_frames,
    row_frames,
)
from sklvebm.models.energies import PathEnergy
from sklvebm.models.targets import CorrectionAndGrad, WhiteMove, WhiteStep
from sklvebm.objectives.pool import Sweep
from sklvebm.objectives.posteriors import ParticlePosterior, PosteriorMove
from sklvebm.objectives.tempered_pool import TemperedPool

_MOST_NUMBERS = 2**18  # of all frames; with more, gathering matrices takes longer than it saves
_MOST_NUMBERS_ON_A_GPU = 2**24
_N_PLANS = 64  # kept; two for every size of batch


def can_move_in_frames(
    energy: PathEnergy, kernel: Kernel, state: ParticleState, n_posterior: int
) -> bool:
    """Return whether `move_in_frames` serves a kernel, a ladder and n posterior particles."""
    t, c = state.pool.shape[:2]
    most = _MOST_NUMBERS if state.pool.device.type == "cpu" else _MOST_NUMBERS_ON_A_GPU
    return (
        kernel.step is crank_nicolson_step
        and t > 1
        and numbers_of_frames(energy.reference, n_posterior + t * c) <= most
    )


class Plan(NamedTuple):
    """Which particles compete for a place, for n posterior particles and a ladder behind them.

    The energy is evaluated at 2 n + T C particles: posterior particles, what is proposed to them,
    and the ladder. Every pair decides whether two of them change places; a proposal that is not
    accepted is left behind. All updates have as many pairs, so that they make the same operations:
    where a ladder has one pair of neighbours less, the last pair is a particle and itself.
    """

    pairs: Tensor  # (2, n + p C), the particles of each pair
    falls: Tensor  # (n + p C, T), times betas: that of the first minus that of the second
    places: Tensor  # (n + T C,), the particle of each place if its pair does not change
    decision: Tensor  # (n + T C,), the pair that decides about a place
    shift: Tensor  # (n + T C,), from the particle of a place to that of its pair's other place
    tempering: Tensor  # (n + T C, T), times betas: minus that of each place's particle
    group: Tensor  # (n + T C,), 0 for posterior particles, 1 + t for rung t
    rung: Tensor  # (T C,), t for rung t
    pair_shares: Tensor  # (p,), of the pairs of neighbours in a mean over pairs
    of_rows: Tensor  # (n,), what posterior particles have in place of a component
    averages: Tensor  # (1 + T, n + T C), the matrix of means over groups


@functools.lru_cache(maxsize=_N_PLANS)
def plan_of(
    shape: tuple[int, int, int], parity: int, dtype: torch.dtype, device: torch.device
) -> Plan:
    """Return the plan of n posterior particles, T rungs and C chains: shape (n, T, C)."""
    n, t, c = shape
    like = torch.empty(0, dtype=dtype, device=device)
    places = torch.arange(n, 2 * n + t * c, device=device)
    places[:n] -= n
    of_rows, of_ladder = places[:n], places[n:].view(t, c)
    n_pairs, n_real = t // 2, (t - parity) // 2
    last = parity + 2 * n_real
    low, high = of_ladder[parity:last:2], of_ladder[parity + 1 : last : 2]
    alone = of_ladder[: n_pairs - n_real].reshape(-1)
    first, second = (torch.cat([of_rows, side.reshape(-1), alone]) for side in (low, high))
    second[:n] += n
    falls = like.new_zeros(n + n_pairs * c, t)
    falls[:n, -1], falls[:n, 0] = 1.0, -1.0  # proposals are draws of the first rung
    of_pairs = falls[n:].view(n_pairs, c, t)
    for number in range(n_real):
        of_pairs[number, :, parity + 2 * number] = 1.0
        of_pairs[number, :, parity + 2 * number + 1] = -1.0
    decision, shift = torch.zeros_like(places), torch.zeros_like(places)
    decision[:n], shift[:n] = of_rows, n
    numbers = n + torch.arange(n_real * c, device=device).view(n_real, c)
    for start, sign in ((parity, 1), (parity + 1, -1)):
        decision[n:].view(t, c)[start:last:2] = numbers
        shift[n:].view(t, c)[start:last:2] = sign * c
    pair_shares = like.new_zeros(n_pairs)
    # a ladder without neighbours to try has an acceptance of one
    pair_shares[: max(n_real, 1)] = 1.0 / max(n_real, 1)
    rung = torch.arange(t, device=device).repeat_interleave(c)
    tempering = like.new_zeros(n + t * c, t)
    tempering[:n, -1] = -1.0  # posterior particles follow the model
    tempering[n:].scatter_(1, rung.unsqueeze(1), -1.0)
    group = torch.cat([torch.zeros_like(of_rows), 1 + rung])
    return Plan(
        torch.stack([first, second]),
        falls,
        *(places, decision, shift, tempering, group, rung),
        pair_shares,
        torch.full_like(of_rows, OF_A_ROW),
        averages_of(n, t, c, like),
    )


def _chosen(
    plan: Plan, correction: Tensor, betas: Tensor, noise: IndependentNoise
) -> tuple[Tensor, Tensor]:
    """Return the particle that each place receives, (n + T C,), and probabilities of pairs."""
    first, second = correction[plan.pairs]
    # the bases of both particles cancel: of proposals because they are exact draws of it
    ratio = (first - second).mul_(plan.falls @ betas).exp_()
    accepted = noise.uniform(ratio) < ratio
    return torch.addcmul(plan.places, plan.shift, accepted[plan.decision]), ratio


class _Walk(NamedTuple):
    """What steps of chains in frames that are kept depend on."""

    kernel: Kernel
    correction_and_grad: CorrectionAndGrad
    frames: RowFrames
    minus_betas: Tensor  # (B, 1), inverse temperature of each chain, with a minus sign
    group: Tensor  # (B,), place of each chain's step size
    rung: Tensor  # (T * C,), the same among those of the pool
    averages: Tensor  # (n_groups, B)
    step: WhiteStep | None  # a kernel that makes a step; None makes it operation by operation

    def behind(self, n: int) -> "_Walk":
        """Return the same for the pool alone, without the first n chains and their group."""
        return self._replace(
            frames=self.frames.behind(n),
            minus_betas=self.minus_betas[n:],
            group=self.rung,
            averages=self.averages[1:, n:],
        )

    def steps(
        self, chains: WhiteChains, sizes: Tensor, noise: IndependentNoise, n_steps: int
    ) -> tuple[WhiteChains, Tensor, Tensor]:
        """Return chains after one step or more, adapted step sizes, and the last acceptances."""
        for _ in range(n_steps):
            chains, info = self.moved(chains, sizes, noise)
            acceptance = self.averages @ info.acceptance
            sizes = adapt_step_size(self.kernel, sizes, acceptance)
        return chains, sizes, acceptance

    def moved(
        self, chains: WhiteChains, sizes: Tensor, noise: IndependentNoise
    ) -> tuple[WhiteChains, StepInfo]:
        """Return chains after one step, and its acceptance."""
        if self.step is None:
            return white_step(
                chains,
                self.numbers_at,
                minus_beta=self.minus_betas,
                step_size=sizes[self.group].unsqueeze(1),
                noise=noise,
            )
        normal, uniform = noise.normal(chains.coordinates), noise.uniform(chains.correction)
        frames = self.frames.centres, self.frames.maps, self.minus_betas
        move = WhiteMove(chains.numbers, *frames, sizes, self.group, normal, uniform)
        numbers, ratio = self.step(move)
        return WhiteChains(numbers, chains.width), StepInfo(ratio, ratio)

    def numbers_at(self, s: Tensor) -> Tensor:
        """Return coordinates, gradients, corrections and rows of chains at s (B, D + L)."""
        rows = self.frames.rows(s)
        correction, grad = self.correction_and_grad(rows)
        return torch.cat([s, self.frames.pull(grad), correction.unsqueeze(1), rows], 1)


@torch.no_grad()
def move_in_frames(
    energy: PathEnergy,
    batch: Batch,
    state: ParticleState,
    noise: IndependentNoise,
    *,
    tempered: TemperedPool,
    posterior: ParticlePosterior,
) -> tuple[PosteriorMove, Sweep]:
    """Move the particles of the batch's rows and sweep the pool; see `joint_move.move_together`."""
    (t, c, width), parity = state.pool.shape, state.n_updates % 2
    offset = energy.reference.offset_of(stack_rows(batch.x, posterior.n_particles))
    n, d = len(offset), energy.n_features
    plan = plan_of((n, t, c), parity, state.pool.dtype, state.pool.device)
    correction_and_grad = select_correction_and_grad(energy)
    position = _candidates(energy, batch, state, noise)
    rows = energy.reference.rows(position)
    rows[: 2 * n].unflatten(0, (2, n)).add_(offset)
    correction, grad = correction_and_grad(rows)
    index, probability = _chosen(plan, correction, state.betas, noise)
    numbers = torch.cat([position, grad, correction.unsqueeze(1), rows], 1)[index]
    component = energy.reference.draw_components(numbers[n:, :d], noise)
    frames = row_frames(energy.reference, torch.cat([plan.of_rows, component]), offset)
    white = frames.whiten(numbers[:, :width]), frames.pull(numbers[:, width : 2 * width])
    chains = WhiteChains(torch.cat([*white, numbers[:, 2 * width :]], 1), width)
    sizes = torch.cat([state.latent_step_size.reshape(1), state.pool_step_size])
    minus_betas = (plan.tempering @ state.betas).unsqueeze(1)
    of_chains = frames, minus_betas, plan.group, plan.rung, plan.averages
    walk = _Walk(tempered.kernel, correction_and_grad, *of_chains, select_white_step(energy))
    chains, sizes, acceptance = walk.steps(chains, sizes, noise, posterior.n_steps)
    e = chains.coordinates[:n, d:].reshape(len(batch.x), posterior.n_particles, -1)
    state.latents.values[batch.index] = e
    moved = PosteriorMove(state.latents, sizes[0], chains.further[:n], acceptance[0])
    walk, chains = walk.behind(n), chains.behind(n)
    sizes, acceptance = sizes[1:], acceptance[1:]
    n_steps = tempered.n_langevin_steps - posterior.n_steps
    if n_steps:
        chains, sizes, acceptance = walk.steps(chains, sizes, noise, n_steps)
    of_swaps = probability[n:].clamp(max=1.0).nan_to_num_(nan=0.0).view(-1, c)
    return moved, Sweep(
        walk.frames.colour(chains.coordinates).view(t, c, width),
        sizes,
        acceptance,
        of_swaps.mean(1),
        index[n:],
        parity,
        chains.correction.view(t, c),
        chains.further,
        2 * n,
        plan.pair_shares,
    )


def _candidates(
    energy: PathEnergy, batch: Batch, state: ParticleState, noise: IndependentNoise
) -> Tensor:
    """Return posterior particles, proposals to them and the ladder, (2 n + T C, D + L).

    Proposals are draws of the reference posterior. The first rung is drawn anew. Where posterior
    particles have no coordinates there is zero.
    """
    t, c, width = state.pool.shape
    e = state.latents.values[batch.index].reshape(-1, energy.n_latents)
    n, d = len(e), energy.n_features
    position = e.new_zeros(2 * n + t * c, width)
    torch.cat([e, noise.normal(e)], out=position[: 2 * n, d:])
    draw_joint(energy.reference, position[2 * n : 2 * n + c], noise.generator)
    position[2 * n + c :] = state.pool[1:].flatten(0, 1)
    return position
