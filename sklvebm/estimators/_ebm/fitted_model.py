"""Scores, latents and draws of a fitted model, on arrays in the units of the data."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.by_rows import answer_rows
from sklvebm.inference.conditional import conditional_features
from sklvebm.inference.posterior import ROW_PARTICLES, evidence_from_above, posterior_particles
from sklvebm.inference.products import Expert
from sklvebm.inference.sampling import joint_draws, posterior_draws
from sklvebm.latent_maps.maps import LatentMap
from sklvebm.mcmc.state import stack_rows
from sklvebm.messages import naming_memory
from sklvebm.models.energies import BridgedEnergy, PathEnergy, multiply_adds
from sklvebm.preprocessing.scaling import (
    MAX_SQUARABLE,
    Standardisation,
    finite,
    zero_where_squares_overflow,
)
from sklvebm.runtime import chunks, numerical_session, seeded_generator
from sklvebm.smc.annealing import Ladder
from sklvebm.smc.log_partition import LogPartition
from sklvebm.threads import threads_for

_MAX_JOINT_WALKERS = 4096  # draws of one annealing run
_N_LIVE_COPIES = 8  # positions, gradients, activations and intermediates in memory at a time


class Model(NamedTuple):
    """Parameters for scoring, transforming and sampling; float64, on the CPU."""

    energy: PathEnergy
    standardisation: Standardisation
    log_partition: LogPartition
    ladder: Ladder
    n_annealing_steps: int
    latent_step_size: float
    seed: int  # of deterministic results
    latent_map: LatentMap | None = None  # coordinates of latents; None is the reference's map

    def latents(self, x: Tensor, e: Tensor) -> Tensor:
        """Map whitened latents e (B, L) at rows x (B, D) to z (B, L)."""
        gauge = self.energy.reference if self.latent_map is None else self.latent_map
        # copies, because the rows may be on another device
        return gauge.to_latents(x.cpu().double(), e.cpu().double())


def expert_of(model: Model) -> Expert:
    """Return the model as a factor of compositions; a latent map does not change it."""
    return Expert(
        reference=model.energy.reference,
        correction=model.energy.correction,
        mean=torch.from_numpy(np.array(model.standardisation.mean)),
        scale=torch.from_numpy(np.array(model.standardisation.scale)),
        log_partition=model.log_partition.value,
        bounded=not isinstance(model.energy, BridgedEnergy),
    )


def numbers_per_particle(energy: PathEnergy) -> int:
    """Return the approximate numbers in memory per particle for an energy and its gradient."""
    # a user's energy may have scalar parameters
    widths = (parameter.shape[0] for parameter in energy.parameters() if parameter.dim() > 0)
    widest = max(widths, default=1)
    width = energy.n_features + energy.n_latents
    return _N_LIVE_COPIES * (width + widest) + 2 * len(energy.reference.log_weights)


def _answer_rows(
    model: Model,
    rows: np.ndarray,
    device: torch.device,
    answer: Callable[[PathEnergy, Tensor, int], Tensor],
    particles_per_row: int = ROW_PARTICLES,
) -> np.ndarray:
    """Apply `answer(energy, rows, number of the chunk)` to rows, see `answer_rows`."""
    parts = chunks(len(rows), particles_per_row, numbers_per_particle(model.energy))
    energy = model.energy if device.type == "cpu" else copy.deepcopy(model.energy).to(device)
    return answer_rows(energy, rows, device, answer, parts)


def log_density(
    model: Model, X: np.ndarray, device: torch.device, *, from_above: bool = False
) -> np.ndarray:
    """Return a bound on `log p(x)` of rows X, (n_samples,), nats in the units of X.

    From below, the free energy is annealed from the reference, with the upper estimate of log Z.
    From above, it is annealed back from the posterior, with the lower estimate.
    """

    def answer(energy: PathEnergy, x: Tensor, _: int) -> Tensor:
        options: dict[str, Any] = {"step_size": model.latent_step_size, "seed": model.seed}
        if from_above:
            evidence = evidence_from_above(energy, x, **options)
        else:
            evidence = posterior_particles(energy, x, **options).log_total_weight()
        return energy.reference.log_marginal(x) + evidence

    units = model.standardisation
    rows = units.apply(X)
    out = zero_where_squares_overflow(_answer_rows(model, rows, device, answer), rows)
    log_z = model.log_partition.lower if from_above else model.log_partition.upper
    return out - log_z + units.log_jacobian


def latent_means(model: Model, X: np.ndarray, device: torch.device) -> np.ndarray:
    """Return posterior means of z given rows X, (n_samples, n_components)."""

    def answer(energy: PathEnergy, x: Tensor, _: int) -> Tensor:
        particles = posterior_particles(
            energy, x, step_size=model.latent_step_size, seed=model.seed
        )
        return model.latents(x, particles.mean())

    return _answer_rows(model, model.standardisation.apply(X), device, answer)


def latent_draws(
    model: Model, X: np.ndarray, n_draws: int, seed: int, device: torch.device
) -> np.ndarray:
    """Return posterior draws of z given rows X, (n_samples, n_draws, n_components)."""

    def answer(energy: PathEnergy, x: Tensor, number: int) -> Tensor:
        generator = seeded_generator(seed + number, device)
        e = posterior_draws(
            energy, x, n_draws, step_size=model.latent_step_size, generator=generator
        )
        z = model.latents(stack_rows(x, n_draws), e.flatten(0, 1))
        return z.reshape(len(x), n_draws, -1)

    rows = model.standardisation.apply(X)
    return _answer_rows(model, rows, device, answer, max(ROW_PARTICLES, 2 * n_draws))


def features(model: Model, Z: np.ndarray, device: torch.device) -> np.ndarray:
    """Return `E[x | z]` for latents Z in the units of X, (n_samples, n_features)."""
    step_size = float(model.ladder.step_size[-1])

    def answer(energy: PathEnergy, z: Tensor, _: int) -> Tensor:
        latent_map = model.latent_map and copy.deepcopy(model.latent_map).to(device)
        return conditional_features(
            energy, z, step_size=step_size, seed=model.seed, latent_map=latent_map
        )

    # the mean is linear at large distances: latents whose squares overflow are rescaled
    size = np.maximum(np.abs(Z).max(axis=1, keepdims=True).astype(np.float64) / MAX_SQUARABLE, 1.0)
    standardised = _answer_rows(model, Z / size, device, answer) * size
    return finite(model.standardisation.invert(standardised))


def samples(
    model: Model, n_samples: int, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return draws `(X, Z)` of the model, X in the units of the data."""
    X = np.empty((n_samples, model.energy.n_features))
    Z = np.empty((n_samples, model.energy.n_latents))
    n_threads = threads_for(min(n_samples, _MAX_JOINT_WALKERS), multiply_adds(model.energy))
    with numerical_session(n_threads), naming_memory("decrease n_samples"):
        # single precision: its rounding is far below the Monte Carlo error of draws
        energy = copy.deepcopy(model.energy).to(device=device, dtype=torch.float32)
        ladder = Ladder(*(part.to(device=device, dtype=torch.float32) for part in model.ladder))
        generator = seeded_generator(seed, device)
        for first in range(0, n_samples, _MAX_JOINT_WALKERS):
            part = slice(first, min(first + _MAX_JOINT_WALKERS, n_samples))
            x, e = joint_draws(
                energy,
                part.stop - part.start,
                ladder,
                n_steps=model.n_annealing_steps,
                log_partition=model.log_partition.value,
                generator=generator,
            )
            X[part], Z[part] = x.cpu().numpy(), model.latents(x, e).numpy()
    return model.standardisation.invert(X), Z
