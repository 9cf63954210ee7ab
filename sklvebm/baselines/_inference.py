"""Posteriors of rows under a fixed generative model: modes, covariances and particles.

Every result is a deterministic function of its row. Starts are shared quasi-random draws of the
prior's normal base, optimisation is row by row, and all rows share the Langevin noise.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.baselines._bounds import GaussianMixtures
from sklvebm.baselines._decoder import LatentModel
from sklvebm.mcmc.langevin import crank_nicolson_step
from sklvebm.mcmc.state import STANDARD_FRAME, Chains, Frame, Noise, Target, Value
from sklvebm.smc.quasi_random import latent_nodes

N_STARTS = 1024  # prior draws, candidates for a row's starts
# relative damping of Levenberg-Marquardt, and its factors after an accepted and a rejected step
_FIRST_DAMPING, _MIN_DAMPING, _MAX_DAMPING = 1e-2, 1e-9, 1e9
_DAMPING_DECREASE, _DAMPING_INCREASE = 0.2, 6.0
_BRIEF_STEPS, _THOROUGH_STEPS = 8, 30  # from each start
_THOROUGH_CLIMBS = 4  # starts of a thorough search
_MIN_START_DISTANCE = 0.5  # between starts, in standard deviations of the prior


def best_prior_draws(
    model: LatentModel, x: Tensor, seed: int, n_draws: int = N_STARTS, n_best: int = 1
) -> Tensor:
    """Return for every row x (N, D) the likeliest of shared draws of N(0, I), (N, n_best, L).

    The second is the likeliest outside of a ball around the first, and so on: neighbouring starts
    lead to the same maximum.
    """
    nodes = latent_nodes(n_draws, model.n_latents, seed).to(x)
    root = torch.sqrt(model.decoder.variance())
    squares = torch.cdist(x / root, model.decoder.mean(nodes) / root).square()
    values = model.log_prior(nodes) - 0.5 * squares
    chosen = []
    for _ in range(n_best):
        best = nodes[values.argmax(1)]
        chosen.append(best)
        values = values.masked_fill(torch.cdist(best, nodes) < _MIN_START_DISTANCE, -math.inf)
    return torch.stack(chosen, 1)


class Quadratic(NamedTuple):
    """Gradient and Gauss-Newton curvature of the log posterior at given latents."""

    gradient: Tensor  # (B, L), of log p(x, z)
    precision: Tensor  # (B, L, L), I + J^T J / variance


def gauss_newton(model: LatentModel, x: Tensor, z: Tensor) -> Quadratic:
    """Expand `log p(x, z)` around z (B, L) for rows x (B, D).

    The curvature of an energy prior is ignored, so that the precision is positive definite.
    """
    mean, jacobian = model.decoder.mean.with_jacobian(z)
    weighted = jacobian / model.decoder.variance()[:, None]
    gradient = torch.einsum("bdl,bd->bl", weighted, x - mean) - z
    if model.prior is not None:
        gradient = gradient - prior_energy_and_grad(model, z)[1]
    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return Quadratic(gradient, torch.einsum("bdl,bdm->blm", weighted, jacobian) + identity)


def prior_energy_and_grad(model: LatentModel, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return U(z) and its gradient at z (B, L), detached."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        energy = model.prior(z)
        (grad,) = torch.autograd.grad(energy.sum(), z)
    return energy.detach(), grad


def maximise_posterior(model: LatentModel, x: Tensor, z: Tensor, n_steps: int) -> Tensor:
    """Climb `log p(x, z)` in z by Levenberg-Marquardt steps, row by row.

    Parameters
    ----------
    model : LatentModel
        The model, fixed.
    x : Tensor of shape (B, D)
        Standardised rows.
    z : Tensor of shape (B, L)
        Start; not modified.
    n_steps : int
        Steps, which never lower a row's value. An affine decoder needs about three.

    Returns
    -------
    z : Tensor of shape (B, L)
        Latents near a (local) maximum.
    """
    value = model.log_joint(x, z)
    damping = torch.full_like(value, _FIRST_DAMPING)
    for _ in range(n_steps):
        gradient, precision = gauss_newton(model, x, z)
        diagonal = torch.diagonal(precision, dim1=1, dim2=2)
        damped = precision + torch.diag_embed(damping.unsqueeze(1) * diagonal)
        # no exception for non-finite matrices: such a proposal is rejected
        proposal = z + torch.linalg.solve_ex(damped, gradient).result
        new = model.log_joint(x, proposal)
        better = new >= value
        z = torch.where(better.unsqueeze(1), proposal, z)
        value = torch.where(better, new, value)
        damping = torch.where(better, _DAMPING_DECREASE * damping, _DAMPING_INCREASE * damping)
        damping = damping.clamp(_MIN_DAMPING, _MAX_DAMPING)
    return z


def most_likely_latents(model: LatentModel, x: Tensor, seed: int, *, thorough: bool) -> Tensor:
    """Return latents near the maximum of `p(x, z)` for rows x (N, D), (N, L).

    A thorough search has several starts and keeps the best result.
    """
    n_climbs, n_steps = (_THOROUGH_CLIMBS, _THOROUGH_STEPS) if thorough else (1, _BRIEF_STEPS)
    start = best_prior_draws(model, x, seed, n_best=n_climbs)
    rows = x.repeat_interleave(n_climbs, dim=0)
    z = maximise_posterior(model, rows, start.flatten(0, 1), n_steps).reshape(start.shape)
    best = model.log_joint(x.unsqueeze(1), z).argmax(1)
    return z[torch.arange(len(x), device=x.device), best]


def laplace(model: LatentModel, x: Tensor, z: Tensor) -> GaussianMixtures:
    """Return Gaussians around latents z (N, M, L) with the Gauss-Newton covariance there."""
    n_rows, n_components, width = z.shape
    rows = x.repeat_interleave(n_components, dim=0)
    # float64: the variances of a posterior can span six orders of magnitude
    precision = gauss_newton(model, rows, z.reshape(-1, width)).precision.double()
    root = torch.linalg.cholesky_ex(precision).L
    identity = torch.eye(width, dtype=root.dtype, device=z.device).expand_as(root)
    # (C C^T)^-1 = C^-T C^-1
    factor = torch.linalg.solve_triangular(root, identity, upper=False).transpose(1, 2)
    return GaussianMixtures(z, factor.to(z).reshape(n_rows, n_components, width, width))


def _normal_base(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies (B,) and gradients (B, L) of N(0, I)."""
    return 0.5 * z.square().sum(1), z


def _standard_frames(z: Tensor, noise: Noise) -> Frame:
    return STANDARD_FRAME


def posterior_target(model: LatentModel, x: Tensor) -> Target:
    """Return the path from N(0, I) to the posterior of each row x (B, D)."""

    def evaluate(z: Tensor) -> Value:
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            correction = -model.decoder.log_likelihood(x, z)
            if model.prior is not None:
                correction = correction + model.prior(z)
            (grad,) = torch.autograd.grad(correction.sum(), z)
        return Value(correction.detach(), grad)

    return Target(evaluate, _normal_base, _standard_frames)


def whitened_target(model: LatentModel, x: Tensor, q: GaussianMixtures) -> Target:
    """Return the path from single Gaussians q of rows x (B, D) to their posteriors.

    Positions e (B, L) represent latents `mean + factor e`. If q is the posterior, the correction is
    constant and every Crank-Nicolson step is exact, for any scale of the posterior.
    """

    def evaluate(e: Tensor) -> Value:
        with torch.enable_grad():
            e = e.detach().requires_grad_(True)
            z = q.mean[:, 0] + torch.einsum("bij,bj->bi", q.factor[:, 0], e)
            correction = -model.log_joint(x, z) - 0.5 * e.square().sum(1)
            (grad,) = torch.autograd.grad(correction.sum(), e)
        return Value(correction.detach(), grad)

    return Target(evaluate, _normal_base, _standard_frames)


def prior_target(model: LatentModel) -> Target:
    """Return the path from N(0, I) to the energy prior."""
    return Target(lambda z: Value(*prior_energy_and_grad(model, z)), _normal_base, _standard_frames)


def langevin(
    chains: Chains, target: Target, step_size: float | Tensor, n_steps: int, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Move positions by Metropolis-adjusted Langevin steps at the end of a path.

    Parameters
    ----------
    chains : Chains
        Positions (B, P) and their values; not modified.
    target : Target
        Path whose base is N(0, I).
    step_size : float or 0-d Tensor
        Crank-Nicolson step, squared units per nat, at most 2.
    n_steps : int
        Number of steps, at least one; one evaluation each.
    noise : IndependentNoise or SharedNoise
        Source of the moves.

    Returns
    -------
    position : Tensor of shape (B, P)
        After the last step.
    acceptance : Tensor, 0-d
        Mean probability of acceptance.
    """
    one = torch.ones_like(chains.value.correction)
    acceptance = torch.zeros_like(one[0])
    for _ in range(n_steps):
        chains, info = crank_nicolson_step(
            chains, target, beta=one, step_size=step_size * one, noise=noise
        )
        acceptance = acceptance + info.acceptance.mean() / n_steps
    return chains.position, acceptance
