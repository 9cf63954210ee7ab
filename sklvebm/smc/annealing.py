"""Annealed importance sampling along a path of targets."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklvebm.mcmc.langevin import crank_nicolson_move, crank_nicolson_rates
from sklvebm.mcmc.state import Chains, Noise, Target, hold_frames, take_chains
from sklvebm.mcmc.tempering import interpolate, respaced_ladder
from sklvebm.smc.resampling import effective_sample_size, log_mean_exp, systematic_resample

_STEPS_PER_FRAME = 4  # annealing steps between redraws of the base's components


def anneal(
    chains: Chains,
    target: Target,
    betas: Tensor,
    *,
    step_sizes: Tensor,
    noise: Noise,
    resample_below: float = 0.0,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Chains]:
    r"""Carry particles along a path of targets and accumulate their importance weights.

    .. math:: \log w = \sum_k (b_{k-1} - b_k)\, f(u_{k-1})     (docs/theory/normalisation.md, eq. 9)

    with inverse temperatures b and the correction f. A Metropolis-adjusted step follows each change
    of b. The components of a mixture base are redrawn every fourth step; each step leaves the joint
    distribution of positions and components invariant.

    Parameters
    ----------
    chains : Chains
        Positions (B, P) that follow the target at `betas[0]`, and their values.
    target : Target
        The path.
    betas : Tensor of shape (n_steps + 1,)
        Inverse temperatures, ascending (from the base) or descending (towards it).
    step_sizes : Tensor of shape (n_steps + 1,)
        Langevin step size at each of them, squared position units per nat.
    noise : IndependentNoise or SharedNoise
        Source of the moves. Resampling needs `IndependentNoise`.
    resample_below : float, default=0.0
        Resample (systematically) when the effective sample size falls below this share of B.
    log_weights : Tensor of shape (B,) or None, default=None
        Initial log importance weights, float64; None means zeros.

    Returns
    -------
    log_weights : Tensor of shape (B,), float64
        Log importance weights, in nats; `logsumexp - log B` estimates the log ratio of the
        normalisers at the last and the first inverse temperature.
    chains : Chains
        Final positions; with their weights they represent the last target.
    """
    if log_weights is None:
        log_weights = torch.zeros_like(chains.value.correction, dtype=torch.float64)
    done = 0.0
    # of all steps at once, because there is one operation less in every step for each
    rises, rates = betas.diff().double(), crank_nicolson_rates(betas, step_sizes)
    for k in range(1, len(betas)):
        if k % _STEPS_PER_FRAME == 1:
            held = hold_frames(target)
        correction = chains.value.correction
        log_weights = torch.addcmul(log_weights, rises[k - 1], correction, value=-1.0)
        least = resample_below * len(log_weights)
        if resample_below > 0.0 and effective_sample_size(log_weights) < least:
            done += log_mean_exp(log_weights)
            chains = take_chains(chains, systematic_resample(log_weights, noise))
            log_weights = torch.zeros_like(log_weights)
            held = hold_frames(target)  # components are held by index, and indices have changed
        chains, _ = crank_nicolson_move(chains, held, rates.at(k), noise)
    return log_weights + done, chains


class Ladder(NamedTuple):
    """Inverse temperatures of a tempered pool, with quantities measured at each."""

    betas: Tensor  # (T,)
    step_size: Tensor  # (T,), squared position units per nat
    spread: Tensor  # (T,), variance of the correction, nats^2


def single_rung(step_size: Tensor) -> Ladder:
    """Return a ladder of one temperature with the given step size, 0-d."""
    return Ladder(step_size.new_ones(1), step_size.reshape(1), step_size.new_ones(1))


def annealing_schedule(ladder: Ladder, n_steps: int) -> tuple[Tensor, Tensor]:
    """Return inverse temperatures at equal thermodynamic distances, and their step sizes.

    Parameters
    ----------
    ladder : Ladder
        Measured on the tempered pool. A single rung at b = 1 gives a uniform schedule.
    n_steps : int
        Number of annealing steps.

    Returns
    -------
    betas, step_sizes : Tensor of shape (n_steps + 1,)
        From the base (b = 0) to the model (b = 1).
    """
    if len(ladder.betas) == 1:
        options: dict[str, Any] = {"dtype": ladder.betas.dtype, "device": ladder.betas.device}
        uniform = torch.linspace(0.0, 1.0, n_steps + 1, **options)
        return uniform, ladder.step_size.expand(n_steps + 1)
    betas = respaced_ladder(ladder.betas, ladder.spread, n_steps + 1)
    log_step = interpolate(betas, ladder.betas, torch.log(ladder.step_size))
    return betas, torch.exp(log_step)
