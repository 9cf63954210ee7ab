"""Draws and normaliser of the prior: a standard normal, or an energy relative to one."""

import torch
from torch import Tensor

from sklvebm.baselines._decoder import LatentModel
from sklvebm.baselines._inference import langevin, prior_target
from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.smc.annealing import Ladder, anneal, annealing_schedule, single_rung
from sklvebm.smc.log_partition import LogPartition, estimate_log_partition
from sklvebm.smc.resampling import log_mean_exp, resample_chains

STEP_SIZE = 0.5  # Crank-Nicolson, squared units per nat
# the bracket of log Z: walkers, wanted width in nats, most annealing steps, Langevin steps before
# reverse annealing
_N_WALKERS, _MAX_BRACKET_WIDTH, _MAX_STEPS = 2048, 0.02, 256
_EQUILIBRATION_STEPS = 100
_QUICK_WALKERS, _QUICK_STEPS = 1024, 16  # of the estimate of log Z in training
# draws: least number of walkers, annealing steps, Langevin steps after resampling
_MIN_WALKERS, _SAMPLE_STEPS, _POLISH_STEPS = 256, 64, 10


def _ladder(model: LatentModel) -> Ladder:
    """Return a ladder of one temperature, which gives equal annealing steps."""
    return single_rung(next(model.parameters()).new_tensor(STEP_SIZE))


def normal_draws(model: LatentModel, n: int, generator: torch.Generator) -> Tensor:
    """Return draws of N(0, I), (n, L), in the dtype of the model."""
    like = next(model.parameters())
    shape = (n, model.n_latents)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def prior_draws(model: LatentModel, n: int, generator: torch.Generator) -> Tensor:
    """Draw latents from the prior, (n, L): exactly, or by annealing from N(0, I)."""
    if model.prior is None:
        return normal_draws(model, n, generator)
    target, noise = prior_target(model), IndependentNoise(generator)
    betas, step_sizes = annealing_schedule(_ladder(model), _SAMPLE_STEPS)
    base = normal_draws(model, max(n, _MIN_WALKERS), generator)
    log_weights, chains = anneal(
        start(base, target),
        target,
        betas,
        step_sizes=step_sizes,
        noise=noise,
        resample_below=0.5,
    )
    chains = resample_chains(chains, log_weights, noise, n)
    # the Langevin steps separate copies
    draws, _ = langevin(chains, target, STEP_SIZE, _POLISH_STEPS, noise)
    return draws


def prior_log_partition(model: LatentModel, generator: torch.Generator) -> LogPartition:
    """Bracket log Z of the energy prior by annealing in both directions.

    Parameters
    ----------
    model : LatentModel
        With an energy prior.
    generator : torch.Generator
        Source of all randomness.

    Returns
    -------
    log_partition : LogPartition
        Scores use `upper`, so that they are lower bounds.
    """
    target, noise = prior_target(model), IndependentNoise(generator)
    draws = prior_draws(model, _N_WALKERS, generator)
    draws, _ = langevin(start(draws, target), target, STEP_SIZE, _EQUILIBRATION_STEPS, noise)
    return estimate_log_partition(
        target,
        lambda: normal_draws(model, _N_WALKERS, generator),
        draws,
        _ladder(model),
        noise=noise,
        tolerance=_MAX_BRACKET_WIDTH,
        max_steps=_MAX_STEPS,
    ).estimate


def quick_log_partition(model: LatentModel, generator: torch.Generator) -> float:
    """Return a cheap estimate of log Z, nats, for the monitored bound."""
    target, noise = prior_target(model), IndependentNoise(generator)
    betas, step_sizes = annealing_schedule(_ladder(model), _QUICK_STEPS)
    base = normal_draws(model, _QUICK_WALKERS, generator)
    log_weights, _ = anneal(start(base, target), target, betas, step_sizes=step_sizes, noise=noise)
    return log_mean_exp(log_weights)
