r"""Integrals of `exp(-E)`: annealed importance sampling, Bennett and multistate ratio estimates.

`log Z` of the model and the free energy `F(x)` of a row are one routine, `anneal`, on two paths.
Everything is relative to the base of the path, whose log normaliser is zero.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from scipy.special import expit, ndtri
from scipy.stats import qmc
from torch import Tensor

from sklvebm.dynamics.langevin import crank_nicolson_step, start
from sklvebm.dynamics.tempering import interpolate, respaced_ladder, thermodynamic_length
from sklvebm.particles import Chains, Noise, Target, hold_frames, take_chains

_ENOUGH = 0.25  # share of effective walkers that a trusted estimate has
_FRAMES_LAST = 4  # annealing steps
_N_GROUPS = 16  # independent replicates that standard errors come from
_FEW_EFFECTIVE = 0.05  # share of effective walkers below which the bracket allows for a missed tail
_SIGMAS = 3.0  # standard errors that the bracket allows for
_MOST_WEIGHED = 2**14  # samples that multistate weights are worked out for at a time


class LogPartition(NamedTuple):
    """Bracket and estimate of log Z; all but the last in nats.

    Attributes
    ----------
    value : float
        Bennett estimate from annealing in both directions. To it and to `upper` estimators with a
        pool add what rare components hold (`rare_components.with_rare`).
    lower : float
        The smaller of annealing from the reference to the model, whose expectation is at most
        log Z, and `value` minus three standard errors.
    upper : float
        The larger of annealing from the model to the reference, whose expectation is at least
        log Z when the particles it starts from follow the model, and `value` plus three standard
        errors.
    standard_error : float
        Standard error of `value`: the larger of its asymptotic one and that of a jackknife over
        independent groups of walkers.
    effective_sample_size : float
        Effective number of walkers from the reference to the model. (Towards the reference a
        single walker in a region that the model hardly visits can carry all weight; that region
        does not matter, and `value` is not sensitive to it.)
    """

    value: float
    lower: float
    upper: float
    standard_error: float
    effective_sample_size: float


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

    .. math:: \log w = \sum_k (b_{k-1} - b_k)\, f(u_{k-1})             (docs/theory.md, eq. 9)

    with one Metropolis-adjusted step at every new inverse temperature. Components of a mixture base
    are redrawn at every fourth: each step leaves the joint law of positions and components alone.

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
        Log importance weights that the positions start with, float64; None are zeros.

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
    for k in range(1, len(betas)):
        if k % _FRAMES_LAST == 1:
            held = hold_frames(target)
        log_weights = log_weights - (betas[k] - betas[k - 1]).double() * chains.value.correction
        if resample_below > 0.0 and effective_sample_size(log_weights) < resample_below * len(
            log_weights
        ):
            done += float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))
            index = systematic_resample(log_weights, noise)
            chains = take_chains(chains, index)
            log_weights = torch.zeros_like(log_weights)
            held = hold_frames(target)  # frames belong to places, which have new particles
        chains, _ = crank_nicolson_step(
            chains,
            held,
            beta=betas[k].expand(len(log_weights)),
            step_size=step_sizes[k].expand(len(log_weights)),
            noise=noise,
        )
    return log_weights + done, chains


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Return `(sum w)^2 / sum w^2` along the last axis of log weights, shape (..., n)."""
    total = torch.logsumexp(log_weights, -1)
    return torch.exp(2.0 * total - torch.logsumexp(2.0 * log_weights, -1))


def systematic_resample(log_weights: Tensor, noise: Noise, n: int | None = None) -> Tensor:
    """Draw `n` indices (default: as many as weights) with one uniform number; shape (n,)."""
    n = len(log_weights) if n is None else n
    cumulative = torch.cumsum(torch.softmax(log_weights, 0), 0)
    offset = noise.uniform(log_weights[:1])
    at = (torch.arange(n, dtype=cumulative.dtype, device=cumulative.device) + offset) / n
    return torch.searchsorted(cumulative, at).clamp(max=len(log_weights) - 1)


def log_mean_exp(log_weights: Tensor) -> float:
    """Return the logarithm of the mean weight, in nats."""
    return float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))


def mbar(
    correction: Tensor,
    betas: Tensor,
    guess: Tensor,
    *,
    max_iter: int = 200,
    tol: float = 1e-7,
) -> tuple[Tensor, Tensor]:
    r"""Estimate log normalisers of all rungs of a ladder from samples of all rungs.

    Solves the self-consistent equations of the multistate Bennett acceptance ratio,
    `Z_s = sum_i exp(-b_s f_i) / sum_t C exp(-b_t f_i) / Z_t`  (docs/theory.md, eq. 7).

    Parameters
    ----------
    correction : Tensor of shape (T, C)
        Correction f of C samples at each of T inverse temperatures, in nats.
    betas : Tensor of shape (T,)
        Inverse temperatures, ascending from 0.
    guess : Tensor of shape (T,), float64
        Log normalisers to start from, in nats.
    max_iter : int, default=200
        Fixed-point iterations at most.
    tol : float, default=1e-7
        Largest change, in nats, at which the iteration stops.

    Returns
    -------
    log_partitions : Tensor of shape (T,), float64
        Log normalisers relative to the first rung, in nats.
    log_mixture : Tensor of shape (T * C,), float64
        Logarithm of the pooled density of the samples relative to the base:
        `logsumexp(-g - log_mixture)` estimates the log normaliser of any correction g.
    """
    f = correction.detach().double().reshape(-1)
    betas = betas.double()
    log_n = math.log(correction.shape[1])
    # potentials (T, samples) are more than the samples themselves: many are gone through in parts
    parts = f.split(_MOST_WEIGHED)
    log_mixture = torch.empty_like(f)
    pooled = log_mixture.split(_MOST_WEIGHED)
    kept = [-betas[:, None] * f] if len(parts) == 1 else None

    def potentials() -> Iterable[Tensor]:
        return kept or (-betas[:, None] * part for part in parts)

    def pool(log_z: Tensor) -> None:
        for out, p in zip(pooled, potentials(), strict=True):
            torch.add(torch.logsumexp(p - log_z[:, None], 0), log_n, out=out)

    log_z = guess.double()
    pool(log_z)
    for _ in range(max_iter):
        implied = [torch.logsumexp(p - m, 1) for p, m in zip(potentials(), pooled, strict=True)]
        new = functools.reduce(torch.logaddexp, implied)
        new = new - new[0]
        change = float((new - log_z).abs().max())
        log_z = new
        pool(log_z)
        if change < tol:
            break
    return log_z, log_mixture


def bennett(forward: Tensor, reverse: Tensor) -> tuple[float, float]:
    """Combine log weights of annealing in both directions into one log normaliser.

    Parameters
    ----------
    forward : Tensor of shape (n_forward,)
        Log weights from the base to the target; their mean weight estimates Z.
    reverse : Tensor of shape (n_reverse,)
        Log weights from the target to the base; their mean weight estimates 1 / Z.

    Returns
    -------
    value : float
        log Z, in nats.
    standard_error : float
        Asymptotic standard error for independent weights, in nats.
    """
    forward, reverse = forward.double().cpu().numpy(), reverse.double().cpu().numpy()
    shift = math.log(len(forward) / len(reverse))

    def imbalance(log_z: float) -> float:
        return float(expit(-shift + forward - log_z).sum() - expit(shift + reverse + log_z).sum())

    low = min(forward.min(), (-reverse).min()) - 50.0
    high = max(forward.max(), (-reverse).max()) + 50.0
    value = brentq(imbalance, low, high, xtol=1e-10)
    ahead, back = expit(-shift + forward - value), expit(shift + reverse + value)
    variance = (ahead.var() / ahead.mean() ** 2) / len(ahead) + (
        back.var() / back.mean() ** 2
    ) / len(back)
    return float(value), float(math.sqrt(variance))


def latent_nodes(n_nodes: int, n_latents: int, seed: int) -> Tensor:
    """Return quasi-random standard normal nodes in antithetic pairs, (n_nodes, L), float64.

    Parameters
    ----------
    n_nodes : int
        A power of two, at least 2.
    n_latents : int
        Width L.
    seed : int
        Seed of the scrambling, which makes every node an exact draw.

    Notes
    -----
    Node k and node k + n_nodes / 2 are mirror images, so linear functions are integrated exactly.
    Without latents there is nothing to integrate over, and one node of no width.
    """
    if n_latents == 0:
        return torch.zeros(1, 0, dtype=torch.float64)
    uniform = qmc.Sobol(n_latents, scramble=True, rng=seed).random(n_nodes // 2)
    half = torch.from_numpy(ndtri(uniform.clip(1e-12, 1.0 - 1e-12)))
    return torch.cat([half, -half])


class Ladder(NamedTuple):
    """A tempered pool's inverse temperatures with what was measured on each."""

    betas: Tensor  # (T,)
    step_size: Tensor  # (T,), squared position units per nat
    spread: Tensor  # (T,), variance of the correction, nats^2


def annealing_schedule(ladder: Ladder, n_steps: int) -> tuple[Tensor, Tensor]:
    """Return inverse temperatures at equal thermodynamic length and step sizes for them.

    Parameters
    ----------
    ladder : Ladder
        Measured on the tempered pool; a single rung at b = 1 counts as constant.
    n_steps : int
        Number of annealing steps.

    Returns
    -------
    betas, step_sizes : Tensor of shape (n_steps + 1,)
        From the base (b = 0) to the model (b = 1).
    """
    if len(ladder.betas) == 1:
        options = {"dtype": ladder.betas.dtype, "device": ladder.betas.device}
        uniform = torch.linspace(0.0, 1.0, n_steps + 1, **options)
        return uniform, ladder.step_size.expand(n_steps + 1)
    betas = respaced_ladder(ladder.betas, ladder.spread, n_steps + 1)
    log_step = interpolate(betas, ladder.betas, torch.log(ladder.step_size))
    return betas, torch.exp(log_step)


class Normalisation(NamedTuple):
    """A bracket of log Z with what it took."""

    estimate: LogPartition
    forward: float  # nats: annealing from the reference to the model
    forward_error: float  # nats: its standard error, over independent groups of walkers
    reverse: float  # nats: annealing from the model to the reference
    reverse_error: float  # nats
    n_walkers: int  # in each direction
    n_steps: int  # annealing steps of the last run


def jackknife(
    statistic: Callable[..., float], *log_weights: Tensor, n_groups: int = _N_GROUPS
) -> float:
    """Return the standard error of a statistic of log weights, by leaving out groups of walkers.

    Parameters
    ----------
    statistic : callable
        Maps as many tensors of log weights (n,) as are given to a number.
    *log_weights : Tensor of shape (n,)
        Walkers; group g holds walkers g, g + n_groups, ..., the same in all tensors.
    n_groups : int, default=16
        Independent groups.

    Returns
    -------
    standard_error : float
        In the statistic's unit.
    """
    groups = [torch.arange(len(w), device=w.device) % n_groups for w in log_weights]
    values = torch.tensor(
        [
            statistic(*(w[own != group] for w, own in zip(log_weights, groups, strict=True)))
            for group in range(n_groups)
        ],
        dtype=torch.float64,
    )
    return math.sqrt((n_groups - 1) * float(values.var(correction=0)))


def estimate_log_partition(
    target: Target,
    draw_base: Callable[[], Tensor],
    model_draws: Tensor,
    ladder: Ladder,
    *,
    noise: Noise,
    tolerance: float,
    max_steps: int,
) -> Normalisation:
    """Bracket log Z by annealing in both directions, with as many steps as it takes.

    Parameters
    ----------
    target : Target
        Path from the reference to the model on joint positions.
    draw_base : callable
        Returns fresh exact draws of the reference, (n_walkers, P).
    model_draws : Tensor of shape (n_walkers, P)
        Equilibrated particles of the model.
    ladder : Ladder
        Shapes the schedule.
    noise : IndependentNoise
        Source of the moves.
    tolerance : float
        Width of the bracket, in nats, at which the effort stops growing, once a quarter of the
        walkers is effective.
    max_steps : int
        Annealing steps at most.

    Returns
    -------
    normalisation : Normalisation
        A run with as many steps as were found to be needed.

    Notes
    -----
    The run that is found precise enough is not the one that is reported: a run can look precise
    because it missed rare walkers, and its estimate is then off as well. A fresh one is made.
    If the budget ends with less than a quarter of the walkers effective, the lower estimate is
    made once more with resampling on the way, and the better one counts.
    """
    length = thermodynamic_length(ladder.betas, ladder.spread) if len(ladder.betas) > 1 else 4.0
    n_steps = min(max_steps, 8 + int(4.0 * length**2))

    def run() -> Normalisation:
        betas, step_sizes = annealing_schedule(ladder, n_steps)
        forward, _ = anneal(
            start(draw_base(), target), target, betas, step_sizes=step_sizes, noise=noise
        )
        reverse, _ = anneal(
            start(model_draws, target),
            target,
            betas.flip(0),
            step_sizes=step_sizes.flip(0),
            noise=noise,
        )
        return _bracket(forward, reverse, n_steps)

    before = None
    while True:
        result = run()
        effective = result.estimate.effective_sample_size >= _ENOUGH * result.n_walkers
        if effective and result.estimate.upper - result.estimate.lower <= tolerance:
            return run()
        if n_steps >= max_steps:
            result = _unfinished(result, before)
            return result if effective else _resampled(result, target, draw_base, ladder, noise)
        before, n_steps = result, min(max_steps, 2 * n_steps)


def _resampled(
    result: Normalisation,
    target: Target,
    draw_base: Callable[[], Tensor],
    ladder: Ladder,
    noise: Noise,
) -> Normalisation:
    """Raise the lower estimate of a result by annealing with resampling, if that is better."""
    betas, step_sizes = annealing_schedule(ladder, result.n_steps)
    log_weights, _ = anneal(
        start(draw_base(), target),
        target,
        betas,
        step_sizes=step_sizes,
        noise=noise,
        resample_below=_ENOUGH,
    )
    better = max(result.forward, log_mean_exp(log_weights))
    lower = max(result.estimate.lower, min(better, result.estimate.value - _margin(result)))
    return result._replace(forward=better, estimate=result.estimate._replace(lower=lower))


def _are_few(log_weights: Tensor) -> bool:
    """Tell whether hardly any walkers are effective."""
    return bool(effective_sample_size(log_weights) < _FEW_EFFECTIVE * len(log_weights))


def _unfinished(result: Normalisation, before: Normalisation | None) -> Normalisation:
    """Widen the bracket by what half as many steps changed, where hardly any walkers are effective.

    The error of annealing is about inverse to the number of steps: what the last doubling changed
    is what is still missing. Twice that much is allowed for, to either side.
    """
    few = result.estimate.effective_sample_size < _FEW_EFFECTIVE * result.n_walkers
    if before is None or not few:
        return result
    estimate = result.estimate
    rise, fall = result.forward - before.forward, before.reverse - result.reverse
    lower = estimate.lower - 2.0 * max(0.0, fall)
    upper = estimate.upper + 2.0 * max(0.0, rise)
    return result._replace(estimate=estimate._replace(lower=lower, upper=upper))


def _second_order(log_weights: Tensor) -> float:
    """Return the log mean weight as if log weights were normal: mean plus half the variance.

    Right to second order in the spread however few walkers are effective, where the log of the mean
    weight is too low by what the missed tail holds.
    """
    return float(log_weights.mean() + 0.5 * log_weights.var())


def _margin(result: Normalisation) -> float:
    return _SIGMAS * result.estimate.standard_error


def _bracket(forward: Tensor, reverse: Tensor, n_steps: int) -> Normalisation:
    """Combine log weights (n,) of both directions."""
    value, error = bennett(forward, reverse)
    error = max(error, jackknife(lambda a, b: bennett(a, b)[0], forward, reverse))
    below, above = log_mean_exp(forward), -log_mean_exp(reverse)
    # where walkers have not reached their target, the estimate from below may be the higher one
    lower, upper = min(below, above, value - _SIGMAS * error), max(below, above)
    upper = max(upper, value + _SIGMAS * error)
    if _are_few(forward) or _are_few(reverse):
        # a handful of walkers decides: their mean is far from the mean of all that might have come
        lower = min(lower, -_second_order(reverse))
        upper = max(upper, _second_order(forward))
    estimate = LogPartition(
        value=value,
        lower=lower,
        upper=upper,
        standard_error=error,
        effective_sample_size=float(effective_sample_size(forward)),
    )
    return Normalisation(
        estimate=estimate,
        forward=below,
        forward_error=jackknife(log_mean_exp, forward),
        reverse=above,
        reverse_error=jackknife(log_mean_exp, reverse),
        n_walkers=len(forward),
        n_steps=n_steps,
    )
