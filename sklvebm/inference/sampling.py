"""Draws of a trained energy: of its joint density, and of the posterior of each row."""

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.inference.missed_components import missed_components, tilted_draws
from sklvebm.inference.posterior import (
    LATENT_STAGES,
    ROW_PARTICLES,
    is_reference,
    polish,
    weighted_particles,
)
from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import IndependentNoise, stack_rows
from sklvebm.models.energies import PathEnergy
from sklvebm.models.targets import joint_target, latent_target
from sklvebm.smc.annealing import Ladder, anneal, annealing_schedule
from sklvebm.smc.resampling import resample_chains

# Walkers of a joint annealing run (at least the number of draws), and their coordinates in all.
# Resampling n of W weighted walkers gives few duplicates when n is much smaller than W.
_MAX_WALKERS, _MIN_WALKERS, _MAX_WALKER_NUMBERS = 4096, 256, 2**18


def posterior_draws(
    energy: PathEnergy,
    x: Tensor,
    n_draws: int,
    *,
    step_size: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw whitened latents e from the posterior of each row x (N, D); shape (N, n_draws, L)."""
    n_particles = max(ROW_PARTICLES, 2 * n_draws)
    correction_and_grad = select_correction_and_grad(energy)
    noise = IndependentNoise(generator)
    base = noise.normal(x.new_empty(len(x), n_particles, energy.n_latents))
    particles = weighted_particles(
        lambda rows: latent_target(energy, stack_rows(x[rows], n_particles), correction_and_grad),
        base,
        step_size=step_size,
        make_noise=lambda stage: noise,
        stages=LATENT_STAGES,
    )
    weights = torch.softmax(particles.log_weights, 1)
    index = torch.multinomial(weights, n_draws, replacement=True, generator=generator)
    e = particles.position[torch.arange(len(x), device=x.device)[:, None], index]
    stacked = stack_rows(x, n_draws)
    target = latent_target(energy, stacked, correction_and_grad)
    chains = start(e.reshape(-1, energy.n_latents), target)
    chains = polish(chains, target, x.new_tensor(step_size), noise)
    return chains.position.reshape(len(x), n_draws, -1)


def joint_draws(
    energy: PathEnergy,
    n: int,
    ladder: Ladder,
    *,
    n_steps: int,
    log_partition: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw `(x, e)` from the model by annealing exact draws of the reference.

    More walkers start in missed components that the model up-weights; importance weights correct
    for it.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        Trained model.
    n : int
        Number of draws.
    ladder : Ladder
        Determines the annealing schedule.
    n_steps : int
        Annealing steps.
    log_partition : float
        log Z of the model, nats; used only for missed components.
    generator : torch.Generator
        Source of all randomness.

    Returns
    -------
    x : Tensor of shape (n, D)
        Standardised features.
    e : Tensor of shape (n, L)
        Whitened latents.
    """
    noise = IndependentNoise(generator)
    reference = energy.reference
    if is_reference(energy):
        position = reference.sample(n, generator)
        y, e = position.tensor_split([reference.n_features], 1)
        return reference.to_features(y), e
    target = joint_target(energy, select_correction_and_grad(energy))
    betas, step_sizes = annealing_schedule(ladder, n_steps)
    fitting = _MAX_WALKER_NUMBERS // (energy.n_features + energy.n_latents)
    n_walkers = max(n, _MIN_WALKERS, min(fitting, _MAX_WALKERS))
    missed = missed_components(energy, n_walkers, generator)
    begin, log_weights = tilted_draws(reference, missed, log_partition, n_walkers, generator)
    log_weights, chains = anneal(
        start(begin, target),
        target,
        betas,
        step_sizes=step_sizes,
        noise=noise,
        resample_below=0.5,
        log_weights=log_weights,
    )
    chains = resample_chains(chains, log_weights, noise, n)
    chains = polish(chains, target, step_sizes[-1], noise)
    y, e = chains.position[:, : reference.n_features], chains.position[:, reference.n_features :]
    return reference.to_features(y), e
