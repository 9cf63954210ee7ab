"""Scores, latents and draws of a fitted model, on arrays in the units of the data."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.by_rows import answer_rows
from sklvebm.estimators._common.missing_cells import Question, exact_answer
from sklvebm.inference.conditional import conditional_features
from sklvebm.inference.missing_cells import (
    missing_draws,
    missing_particles,
    observed_evidence,
    weighted_mean,
    with_effective_share,
)
from sklvebm.inference.posterior import (
    ROW_PARTICLES,
    evidence_from_above,
    is_reference,
    posterior_particles,
)
from sklvebm.inference.products import Expert, affine_units
from sklvebm.inference.sampling import joint_draws, posterior_draws
from sklvebm.latent_maps.maps import LatentMap
from sklvebm.mcmc.state import stack_rows
from sklvebm.messages import naming_memory
from sklvebm.mixtures.missing_cells import by_completeness, numbers_per_row, reference_log_marginal
from sklvebm.models.energies import BridgedEnergy, PathEnergy, multiply_adds
from sklvebm.preprocessing.scaling import (
    MAX_SQUARABLE,
    Standardisation,
    finite,
    zero_where_squares_overflow,
)
from sklvebm.row_blocks import Sliceable, has_missing
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

    @property
    def joint_step_size(self) -> float:
        """Crank-Nicolson step of features and latents together, squared white units per nat."""
        return float(self.ladder.step_size[-1])

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
        **affine_units(model.standardisation),
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
    rows: Sliceable,
    device: torch.device,
    answer: Callable[[PathEnergy, Tensor, int], Tensor],
    particles_per_row: int = ROW_PARTICLES,
) -> np.ndarray:
    """Apply `answer(energy, rows, number of the chunk)` to rows, see `answer_rows`."""
    numbers = numbers_per_particle(model.energy)
    if has_missing(rows):
        numbers += numbers_per_row(model.energy.reference) // particles_per_row
    parts = chunks(len(rows), particles_per_row, numbers)
    energy = model.energy if device.type == "cpu" else copy.deepcopy(model.energy).to(device)
    return answer_rows(energy, rows, device, answer, parts)


def log_density(
    model: Model, X: np.ndarray, device: torch.device, *, from_above: bool = False
) -> np.ndarray:
    """Return a bound on `log p(x)` of rows X, (n_samples,), nats in the units of X.

    From below, the free energy is annealed from the reference, with the upper estimate of log Z.
    From above, it is annealed back from the posterior, with the lower estimate.
    """
    options: dict[str, Any] = {"step_size": model.latent_step_size, "seed": model.seed}

    def answer(energy: PathEnergy, x: Tensor, _: int) -> Tensor:
        def of_complete(x: Tensor) -> Tensor:
            if is_reference(energy):
                return energy.reference.log_marginal(x)
            if from_above:
                evidence = evidence_from_above(energy, x, **options)
            else:
                evidence = posterior_particles(energy, x, **options).log_total_weight()
            return energy.reference.log_marginal(x) + evidence

        def of_others(x: Tensor) -> Tensor:
            own = reference_log_marginal(energy.reference, x)
            if is_reference(energy):
                return own
            how: dict[str, Any] = {"step_size": model.joint_step_size, "seed": model.seed}
            return own + observed_evidence(energy, x, from_above=from_above, **how)

        return by_completeness(x, of_complete, of_others)

    units = model.standardisation
    rows = units.view(X)
    out = zero_where_squares_overflow(_answer_rows(model, rows, device, answer), rows)
    log_z = model.log_partition.lower if from_above else model.log_partition.upper
    out = out - log_z + units.log_jacobian_of(X)
    # the density of no cell is one
    return np.where(np.isnan(X).all(1), 0.0, out) if has_missing(X) else out


def cells(model: Model, rows: np.ndarray, device: torch.device, question: Question) -> np.ndarray:
    """Answer a question about standardised rows with missing cells; see `MissingCellsMixin`."""
    if is_reference(model.energy):
        return exact_answer(model.energy.reference, rows, device, question)
    n_particles = max(question.n_particles, 2 * question.n_draws)

    def answer(energy: PathEnergy, x: Tensor, number: int) -> Tensor:
        how: dict[str, Any] = {"step_size": model.joint_step_size}
        if question.weighted is None:
            generator = seeded_generator(question.seed + number, device)
            drawn = missing_draws(energy, x, question.n_draws, generator=generator, **how)
            return with_effective_share(drawn[0][:, :, : energy.n_features], drawn[1])
        paths, particles = missing_particles(
            energy, x, seed=model.seed, n_particles=question.n_particles, **how
        )
        log_weights = particles.log_weights
        found = question.weighted(paths.complete(particles.position), log_weights)
        return with_effective_share(found, log_weights)

    return _answer_rows(model, rows, device, answer, n_particles)


def latent_means(model: Model, X: np.ndarray, device: torch.device) -> np.ndarray:
    """Return posterior means of z given rows X, (n_samples, n_components)."""

    def of_complete(energy: PathEnergy, x: Tensor) -> Tensor:
        particles = posterior_particles(
            energy, x, step_size=model.latent_step_size, seed=model.seed
        )
        return model.latents(x, particles.mean())

    def of_others(energy: PathEnergy, x: Tensor) -> Tensor:
        paths, particles = missing_particles(
            energy, x, step_size=model.joint_step_size, seed=model.seed
        )
        n, k = particles.log_weights.shape
        e = particles.position[:, :, energy.n_features :].flatten(0, 1)
        z = model.latents(paths.complete(particles.position).flatten(0, 1), e)
        return weighted_mean(z.reshape(n, k, -1), particles.log_weights.to(z))[:, 0]

    def answer(energy: PathEnergy, x: Tensor, _: int) -> Tensor:
        return by_completeness(x, partial(of_complete, energy), partial(of_others, energy))

    return _answer_rows(model, model.standardisation.view(X), device, answer)


def latent_draws(
    model: Model, X: np.ndarray, n_draws: int, seed: int, device: torch.device
) -> np.ndarray:
    """Return posterior draws of z given rows X, (n_samples, n_draws, n_components)."""

    def answer(energy: PathEnergy, x: Tensor, number: int) -> Tensor:
        generator = seeded_generator(seed + number, device)

        def of_complete(x: Tensor) -> Tensor:
            e = posterior_draws(
                energy, x, n_draws, step_size=model.latent_step_size, generator=generator
            )
            z = model.latents(stack_rows(x, n_draws), e.flatten(0, 1))
            return z.reshape(len(x), n_draws, -1)

        def of_others(x: Tensor) -> Tensor:
            draws, _ = missing_draws(
                energy, x, n_draws, step_size=model.joint_step_size, generator=generator
            )
            full, e = draws.split([energy.n_features, energy.n_latents], 2)
            full = torch.where(torch.isnan(x).unsqueeze(1), full, x.unsqueeze(1))
            return model.latents(full.flatten(0, 1), e.flatten(0, 1)).reshape(len(x), n_draws, -1)

        return by_completeness(x, of_complete, of_others)

    rows = model.standardisation.view(X)
    return _answer_rows(model, rows, device, answer, max(ROW_PARTICLES, 2 * n_draws))


def features(model: Model, Z: np.ndarray, device: torch.device) -> np.ndarray:
    """Return `E[x | z]` for latents Z in the units of X, (n_samples, n_features)."""

    def answer(energy: PathEnergy, z: Tensor, _: int) -> Tensor:
        latent_map = model.latent_map and copy.deepcopy(model.latent_map).to(device)
        how: dict[str, Any] = {"step_size": model.joint_step_size, "seed": model.seed}
        return conditional_features(energy, z, latent_map=latent_map, **how)

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
