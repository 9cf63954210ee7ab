"""Conditional means of features given latents."""

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.inference.posterior import ROW_PARTICLES, shared_noise, weighted_particles
from sklvebm.latent_maps.maps import LatentMap
from sklvebm.mcmc.state import SharedNoise, Target, stack_rows
from sklvebm.mixtures.components import FeatureConditional
from sklvebm.models.energies import PathEnergy
from sklvebm.models.targets import feature_target, linearised, mapped_feature_target

# As `LATENT_STAGES`, with smaller shares: Monte Carlo errors of a conditional mean are small
# relative to the conditional standard deviation.
_FEATURE_STAGES = ((16, 0.5), (64, 0.3))


def conditional_features(
    energy: PathEnergy,
    z: Tensor,
    *,
    step_size: float,
    seed: int,
    latent_map: LatentMap | None = None,
) -> Tensor:
    """Return `E[x | z]` of latents z (N, L), standardised, (N, D); deterministic given the seed.

    Latents are those of `latent_map`, or the energy's own.

    Notes
    -----
    Rows that need no annealing use the exact reference mean as a control variate. Annealing
    amplifies rounding errors, which can depend on the number of rows. Annealed rows may therefore
    differ between calls by a fraction of their Monte Carlo error.
    """
    reference = energy.reference
    gauge = None if latent_map is None else linearised(latent_map, reference)
    conditional = reference.feature_conditional(z, gauge)
    correction_and_grad = select_correction_and_grad(energy)

    def make_target(rows: Tensor) -> Target:
        own = FeatureConditional(
            conditional.log_weights[rows], conditional.means[rows], *conditional[2:]
        )
        if latent_map is None:
            return feature_target(energy, z[rows], ROW_PARTICLES, own, correction_and_grad)
        return mapped_feature_target(energy, z[rows], ROW_PARTICLES, own, latent_map)

    row = stack_rows(torch.arange(len(z), device=z.device), ROW_PARTICLES)
    noise = SharedNoise(torch.Generator().manual_seed(seed), ROW_PARTICLES)
    base = conditional.sample(row, noise).reshape(len(z), ROW_PARTICLES, -1)
    particles = weighted_particles(
        make_target,
        base,
        step_size=step_size,
        make_noise=shared_noise(seed, ROW_PARTICLES),
        stages=_FEATURE_STAGES,
    )
    mean = particles.mean()
    untouched = (particles.position == base).all(2).all(1, keepdim=True)
    mean = torch.where(untouched, mean - base.mean(1) + conditional.mean(), mean)
    return reference.to_features(mean)
