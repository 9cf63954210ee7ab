"""Posterior particles and free energies of rows, deterministic functions of each row.

All rows use the same random numbers (`SharedNoise`). The first estimate is importance sampling from
the exact conditional of the reference. Rows with a small effective sample size are annealed, with
more steps if needed.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.mcmc.langevin import crank_nicolson_step, start
from sklvebm.mcmc.state import Chains, Noise, SharedNoise, Target, stack_rows
from sklvebm.models.energies import AnchoredEnergy, PathEnergy
from sklvebm.models.targets import latent_target
from sklvebm.smc.annealing import anneal
from sklvebm.smc.quasi_random import latent_nodes
from sklvebm.smc.resampling import effective_sample_size

ROW_PARTICLES = 64  # particles per row of deterministic results
# annealing steps of each stage, and the share of effective particles below which a row enters it
LATENT_STAGES = ((16, 0.9), (64, 0.9), (256, 0.7))
# Up to this number of latents, more quasi-random nodes are more accurate than annealed particles. A
# row with fewer effective nodes than the first share gets more nodes. While fewer than the second
# share of these are effective, they are adapted to the posterior a few times, which bounds the cost
# of a row; if that does not help, the row is annealed.
_MAX_QUADRATURE_LATENTS = 3
_MIN_EFFECTIVE_SHARE, _N_REFINED_NODES, _MIN_REFINED_SHARE = 0.8, 1024, 0.05
_MAX_ADAPTATIONS = 3
_VARIANCE_INFLATION = 2.0  # variance of adapted nodes over the estimated posterior variance
_POLISH_STEPS = 5  # kernel steps after resampling, which separate copies
_REVERSE_STEPS = 64  # annealing steps of upper estimates


class WeightedParticles(NamedTuple):
    """Particles of each row with importance weights."""

    position: Tensor  # (N, K, P)
    log_weights: Tensor  # (N, K), nats; their log sum estimates the log normaliser ratio

    def mean(self) -> Tensor:
        """Return the weighted mean position, (N, P)."""
        weights = torch.softmax(self.log_weights, 1).to(self.position.dtype)
        return torch.einsum("nk,nkp->np", weights, self.position)

    def log_total_weight(self) -> Tensor:
        """Return the log of the total weight of each row, (N,), nats."""
        return torch.logsumexp(self.log_weights, 1)


def weighted_particles(
    make_target: Callable[[Tensor], Target],
    base_draws: Tensor,
    *,
    step_size: float,
    make_noise: Callable[[int], Noise],
    stages: tuple[tuple[int, float], ...],
) -> WeightedParticles:
    """Carry particles of every row from its base to its target, with annealing where needed.

    Parameters
    ----------
    make_target : callable
        Maps row indices (n,) to the target of their particles, stacked row by row.
    base_draws : Tensor of shape (N, K, P)
        Exact draws of each row's base.
    step_size : float
        Crank-Nicolson step at the target, squared whitened units per nat; 2 at the base.
    make_noise : callable
        Maps the number of a stage to its noise.
    stages : tuple of (int, float)
        Annealing steps of each stage, and the share of effective particles below which a row
        enters it.

    Returns
    -------
    particles : WeightedParticles
        Rows with a sufficient effective sample size keep their base draws.
    """
    n_rows, n_particles, width = base_draws.shape
    rows = torch.arange(n_rows, device=base_draws.device)
    target = make_target(rows)
    chains = start(base_draws.reshape(-1, width), target)
    position = base_draws.clone()
    log_weights = -chains.value.correction.reshape(n_rows, n_particles).double()
    for stage, (n_steps, enough) in enumerate(stages):
        # only rows of the previous stage, so that a row's result depends on this row alone
        rows = rows[effective_sample_size(log_weights[rows]) < enough * n_particles]
        if len(rows) == 0:
            break
        options: dict[str, Any] = {"dtype": base_draws.dtype, "device": base_draws.device}
        betas = torch.linspace(0.0, 1.0, n_steps + 1, **options)
        step_sizes = 2.0 * (step_size / 2.0) ** betas
        target = make_target(rows)
        annealed, chains = anneal(
            start(base_draws[rows].reshape(-1, width), target),
            target,
            betas,
            step_sizes=step_sizes,
            noise=make_noise(stage),
        )
        position[rows] = chains.position.reshape(len(rows), n_particles, width)
        log_weights[rows] = annealed.reshape(len(rows), n_particles)
    return WeightedParticles(position, log_weights - math.log(n_particles))


def is_reference(energy: PathEnergy) -> bool:
    """Return whether an energy is its reference, for which all results are exact."""
    return isinstance(energy, AnchoredEnergy) and energy.is_zero


def shared_noise(seed: int, n_particles: int) -> Callable[[int], Noise]:
    """Return a function from the annealing stage to noise that all rows share."""

    def make(stage: int) -> Noise:
        return SharedNoise(torch.Generator().manual_seed(seed + 1 + stage), n_particles)

    return make


def posterior_particles(
    energy: PathEnergy, x: Tensor, *, step_size: float, seed: int
) -> WeightedParticles:
    """Return whitened posterior particles e of rows x (N, D), from the same nodes for every row.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        Trained model in the dtype of x.
    x : Tensor of shape (N, D)
        Standardised rows.
    step_size : float
        Crank-Nicolson step of the latents.
    seed : int
        Seed of nodes and noise.

    Returns
    -------
    particles : WeightedParticles
        The free energy is `-log r(x) - log_total_weight` (docs/theory/normalisation.md, eq. 10).
        Rows with fewer particles than others are padded with weights of zero.
    """

    def from_nodes(x: Tensor, n_nodes: int, stages: Any) -> WeightedParticles:
        nodes = latent_nodes(n_nodes, energy.n_latents, seed).to(x)
        return weighted_particles(
            lambda rows: latent_target(energy, stack_rows(x[rows], n_nodes), correction_and_grad),
            nodes.expand(len(x), *nodes.shape),
            step_size=step_size,
            make_noise=shared_noise(seed, n_nodes),
            stages=stages,
        )

    if energy.n_latents == 0:  # nothing to integrate over
        log_weights = -energy.correction(x, x[:, :0]).double().unsqueeze(1)
        return WeightedParticles(x.new_zeros(len(x), 1, 0), log_weights)
    correction_and_grad = select_correction_and_grad(energy)
    if energy.n_latents > _MAX_QUADRATURE_LATENTS:
        return from_nodes(x, ROW_PARTICLES, LATENT_STAGES)
    particles = from_nodes(x, ROW_PARTICLES, ())
    poor = _poor_rows(particles.log_weights, _MIN_EFFECTIVE_SHARE * ROW_PARTICLES)
    if len(poor) == 0:
        return particles
    # as many positions at a time as before the refinement
    groups = poor.split(max(1, len(x) * ROW_PARTICLES // _N_REFINED_NODES))

    def refine(x: Tensor) -> WeightedParticles:
        refined = adapted_particles(energy, x, from_nodes(x, _N_REFINED_NODES, ()), seed)
        rows = _poor_rows(refined.log_weights, _MIN_REFINED_SHARE * _N_REFINED_NODES)
        if len(rows) == 0:
            return refined
        return _replaced(refined, rows, from_nodes(x[rows], ROW_PARTICLES, LATENT_STAGES))

    refined = [refine(x[group]) for group in groups]
    fill = _N_REFINED_NODES - ROW_PARTICLES
    particles = WeightedParticles(
        torch.nn.functional.pad(particles.position, (0, 0, 0, fill)),
        torch.nn.functional.pad(particles.log_weights, (0, fill), value=-math.inf),
    )
    joined = WeightedParticles(*(torch.cat(part) for part in zip(*refined, strict=True)))
    return _replaced(particles, poor, joined)


def _poor_rows(log_weights: Tensor, enough: float) -> Tensor:
    """Return the indices of rows with fewer than `enough` effective particles."""
    return torch.nonzero(effective_sample_size(log_weights) < enough).squeeze(1)


def _replaced(
    particles: WeightedParticles, rows: Tensor, others: WeightedParticles
) -> WeightedParticles:
    """Return particles with those of some rows replaced, padded with weights of zero."""
    fill = particles.log_weights.shape[1] - others.log_weights.shape[1]
    position, log_weights = particles.position.clone(), particles.log_weights.clone()
    position[rows] = torch.nn.functional.pad(others.position, (0, 0, 0, fill))
    log_weights[rows] = torch.nn.functional.pad(others.log_weights, (0, fill), value=-math.inf)
    return WeightedParticles(position, log_weights)


def adapted_particles(
    energy: PathEnergy, x: Tensor, particles: WeightedParticles, seed: int
) -> WeightedParticles:
    """Adapt the nodes of rows x (N, D) to their posteriors while few are effective.

    Half of a row's nodes follow a normal distribution with the mean and twice the covariance of its
    weighted nodes; half remain those of N(0, I). Weights of this mixture are unbiased: the former
    nodes only determine the proposal. There are at most three adaptations.
    """
    n_nodes, n_latents = particles.position.shape[1:]
    for number in range(_MAX_ADAPTATIONS):
        rows = _poor_rows(particles.log_weights, _MIN_REFINED_SHARE * n_nodes)
        if len(rows) == 0:
            break
        known = WeightedParticles(*(part[rows] for part in particles))
        nodes = latent_nodes(n_nodes, n_latents, seed + 1 + number).to(x)
        e, log_ratio = _moved_nodes(known, nodes)
        stacked = stack_rows(x[rows], n_nodes)
        z = energy.reference.to_latents(stacked, e.flatten(0, 1))
        correction = energy.correction(stacked, z).reshape(len(rows), n_nodes).double()
        log_weights = log_ratio - correction - math.log(n_nodes)
        particles = _replaced(particles, rows, WeightedParticles(e, log_weights))
    return particles


def _moved_nodes(known: WeightedParticles, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes (N, K, L) of the mixture that `adapted_particles` draws from.

    The second result, (N, K) in nats, is the log of their density under N(0, I) over that of the
    mixture.
    """
    n_nodes, n_latents = nodes.shape
    mean = known.mean()
    weights = torch.softmax(known.log_weights, 1).to(nodes)
    away = known.position - mean[:, None]
    covariance = torch.einsum("nk,nkp,nkq->npq", weights, away, away)
    # with a single effective node, the posterior may be as wide as the gaps between nodes
    gap = 4.0 * n_nodes ** (-2.0 / n_latents)
    identity = torch.eye(n_latents, dtype=nodes.dtype, device=nodes.device)
    root = torch.linalg.cholesky(_VARIANCE_INFLATION * covariance + gap * identity)
    # node k and its mirror image are n_nodes / 2 apart, so that even nodes move in pairs
    moves = torch.arange(n_nodes, device=nodes.device) % 2 == 0
    moved = mean[:, None] + nodes @ root.transpose(1, 2)
    e = torch.where(moves[:, None], moved, nodes.expand_as(moved))
    white = torch.linalg.solve_triangular(root, (e - mean[:, None]).transpose(1, 2), upper=False)
    log_det = torch.log(torch.diagonal(root, dim1=1, dim2=2)).sum(1, keepdim=True)
    ratio = 0.5 * e.square().sum(2) - 0.5 * white.square().sum(1) - log_det
    return e, math.log(2.0) - torch.nn.functional.softplus(ratio).double()


def evidence_from_above(energy: PathEnergy, x: Tensor, *, step_size: float, seed: int) -> Tensor:
    """Return an upper estimate of the log evidence of rows x (N, D) relative to `log r(x)`.

    The posterior particles of each row are resampled, moved, and annealed back to the reference
    posterior. If the particles follow the posterior, the expectation of minus the log mean weight
    is not below the log evidence.

    Parameters
    ----------
    energy, x, step_size, seed
        As `posterior_particles`.

    Returns
    -------
    upper : Tensor of shape (N,)
        Nats; the lower estimate is `posterior_particles(...).log_total_weight()`.
    """
    particles = posterior_particles(energy, x, step_size=step_size, seed=seed)
    if energy.n_latents == 0 or is_reference(energy):
        return particles.log_total_weight()
    target = latent_target(energy, stack_rows(x, ROW_PARTICLES), select_correction_and_grad(energy))
    return annealed_back(target, particles, step_size=step_size, seed=seed)


def annealed_back(
    target: Target, particles: WeightedParticles, *, step_size: float, seed: int
) -> Tensor:
    """Return the upper estimate of `log_total_weight` by annealing particles back, (N,), nats.

    Parameters
    ----------
    target : Target
        The path of 64 particles a row, stacked row by row.
    particles : WeightedParticles
        Particles of the rows at the end of the path.
    step_size : float
        Crank-Nicolson step at the target, squared white units per nat; 2 at the base.
    seed : int
        Seed of the noise.
    """
    like, n_rows = particles.position, len(particles.position)
    noise = SharedNoise(torch.Generator().manual_seed(seed + 100), ROW_PARTICLES)
    # systematic resampling of each row, with the same offset for all rows
    cumulative = torch.cumsum(torch.softmax(particles.log_weights, 1), 1)
    offset = torch.rand((), generator=torch.Generator().manual_seed(seed + 101)).item()
    at = (torch.arange(ROW_PARTICLES, dtype=cumulative.dtype) + offset) / ROW_PARTICLES
    at = at.to(cumulative.device).expand(n_rows, -1).contiguous()
    index = torch.searchsorted(cumulative, at).clamp(max=cumulative.shape[1] - 1)
    start_at = torch.take_along_dim(particles.position, index.unsqueeze(2), 1)
    chains = start(start_at.flatten(0, 1), target)
    chains = polish(chains, target, like.new_tensor(step_size), noise)
    betas = torch.linspace(1.0, 0.0, _REVERSE_STEPS + 1, dtype=like.dtype, device=like.device)
    step_sizes = 2.0 * (step_size / 2.0) ** betas
    log_weights, _ = anneal(chains, target, betas, step_sizes=step_sizes, noise=noise)
    log_weights = log_weights.reshape(n_rows, ROW_PARTICLES)
    return math.log(ROW_PARTICLES) - torch.logsumexp(log_weights, 1)


def polish(chains: Chains, target: Target, step_size: Tensor, noise: Noise) -> Chains:
    """Move chains at the model's temperature, which separates copies made by resampling."""
    n = len(chains.position)
    beta = torch.ones_like(chains.value.correction)
    for _ in range(_POLISH_STEPS):
        chains, _ = crank_nicolson_step(
            chains, target, beta=beta, step_size=step_size.expand(n), noise=noise
        )
    return chains
