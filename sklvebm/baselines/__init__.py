"""Competing estimators of latent-variable densities, with the interface of `ParticleLVEBM`.

All of them decode latents by a perceptron with Gaussian noise and report importance-weighted lower
bounds in nats. They differ in the approximation of the posterior of a row. See
`docs/user_guide/baselines.md`.
"""

from sklvebm.baselines.hard_em import HardEM
from sklvebm.baselines.latent_ebm import LatentEBM
from sklvebm.baselines.non_amortized_vi import NonAmortizedVI
from sklvebm.baselines.particle_gradient_descent import ParticleGradientDescent
from sklvebm.baselines.vae import VAE

__all__ = ["VAE", "HardEM", "LatentEBM", "NonAmortizedVI", "ParticleGradientDescent"]
