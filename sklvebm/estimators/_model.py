"""A fitted model and what it answers: arrays in the units of the data in, arrays out."""

import copy
from typing import NamedTuple

import numpy as np
import torch

from sklvebm.energies import PathEnergy
from sklvebm.estimators._boundary import (
    Standardisation,
    chunks,
    numerical_session,
    seeded_generator,
)
from sklvebm.inference import (
    ROW_PARTICLES,
    conditional_features,
    joint_draws,
    posterior_draws,
    posterior_particles,
)
from sklvebm.log_partition import Ladder, LogPartition
from sklvebm.thread_limits import threads_for

_MAX_JOINT_WALKERS = 4096  # draws of one annealing run


class Model(NamedTuple):
    """Everything that scoring, transforming and sampling need; float64, on the CPU."""

    energy: PathEnergy
    standardisation: Standardisation
    log_partition: LogPartition
    ladder: Ladder
    n_annealing_steps: int
    latent_step_size: float
    seed: int  # of deterministic results


def n_weights(energy: PathEnergy) -> int:
    """Return the number of parameters, about the multiply-adds of one energy."""
    return sum(parameter.numel() for parameter in energy.parameters())


def _session(model: Model, n_rows: int):
    n_positions = min(n_rows * ROW_PARTICLES, 2**15)
    return numerical_session(threads_for(n_positions, n_weights(model.energy)))


def _energy_on(model: Model, device: torch.device) -> PathEnergy:
    """Return the energy on a device; a copy unless it lives there already."""
    return model.energy if device.type == "cpu" else copy.deepcopy(model.energy).to(device)


def log_density(model: Model, X: np.ndarray, device: torch.device) -> np.ndarray:
    """Return a lower bound on `log p(x)` of rows X, (n_samples,), nats in the units of X."""
    out = np.empty(len(X))
    chart = model.standardisation
    with _session(model, len(X)):
        energy = _energy_on(model, device)
        for rows in chunks(len(X), ROW_PARTICLES):
            x = torch.from_numpy(chart.apply(X[rows])).to(device)
            particles = posterior_particles(
                energy, x, step_size=model.latent_step_size, seed=model.seed
            )
            free_energy = -energy.reference.log_marginal(x) - particles.log_mean_weight()
            out[rows] = -free_energy.cpu().numpy()
    # log Z from above, so that the bound keeps its side
    return out - model.log_partition.upper + chart.log_jacobian


def latent_means(model: Model, X: np.ndarray, device: torch.device) -> np.ndarray:
    """Return posterior means of z given rows X, (n_samples, n_components)."""
    out = np.empty((len(X), model.energy.n_latents))
    with _session(model, len(X)):
        energy = _energy_on(model, device)
        for rows in chunks(len(X), ROW_PARTICLES):
            x = torch.from_numpy(model.standardisation.apply(X[rows])).to(device)
            particles = posterior_particles(
                energy, x, step_size=model.latent_step_size, seed=model.seed
            )
            out[rows] = energy.reference.to_latents(x, particles.mean()).cpu().numpy()
    return out


def latent_draws(
    model: Model, X: np.ndarray, n_draws: int, seed: int, device: torch.device
) -> np.ndarray:
    """Return posterior draws of z given rows X, (n_samples, n_draws, n_components)."""
    out = np.empty((len(X), n_draws, model.energy.n_latents))
    with _session(model, len(X)):
        energy, generator = _energy_on(model, device), seeded_generator(seed, device)
        for rows in chunks(len(X), max(ROW_PARTICLES, 2 * n_draws)):
            x = torch.from_numpy(model.standardisation.apply(X[rows])).to(device)
            z = posterior_draws(
                energy, x, n_draws, step_size=model.latent_step_size, generator=generator
            )
            out[rows] = z.cpu().numpy()
    return out


def features(model: Model, Z: np.ndarray, device: torch.device) -> np.ndarray:
    """Return `E[x | z]` for latents Z in the units of X, (n_samples, n_features)."""
    out = np.empty((len(Z), model.energy.n_features))
    with _session(model, len(Z)):
        energy = _energy_on(model, device)
        step_size = float(model.ladder.step_size[-1])
        # each particle of a row holds its mixture components' means as well
        per_row = ROW_PARTICLES * max(1, len(energy.reference.log_weights) // 4)
        for rows in chunks(len(Z), per_row):
            z = torch.from_numpy(np.asarray(Z[rows], dtype=np.float64)).to(device)
            x = conditional_features(energy, z, step_size=step_size, seed=model.seed)
            out[rows] = x.cpu().numpy()
    return model.standardisation.invert(out)


def samples(
    model: Model, n_samples: int, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return draws `(X, Z)` of the model, X in the units of the data."""
    X = np.empty((n_samples, model.energy.n_features))
    Z = np.empty((n_samples, model.energy.n_latents))
    with _session(model, n_samples):
        # single precision: draws carry Monte Carlo error far above its rounding
        energy = copy.deepcopy(model.energy).to(device=device, dtype=torch.float32)
        ladder = Ladder(*(part.to(device=device, dtype=torch.float32) for part in model.ladder))
        generator = seeded_generator(seed, device)
        for first in range(0, n_samples, _MAX_JOINT_WALKERS):
            part = slice(first, min(first + _MAX_JOINT_WALKERS, n_samples))
            x, z = joint_draws(
                energy,
                part.stop - part.start,
                ladder,
                n_steps=model.n_annealing_steps,
                generator=generator,
            )
            X[part], Z[part] = x.cpu().numpy(), z.cpu().numpy()
    return model.standardisation.invert(X), Z
