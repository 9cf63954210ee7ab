"""Scores, latents and draws of a fitted potential, on arrays in the units of the data."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.by_rows import answer_rows
from sklvebm.flows.explicit_energy import PotentialSlice, polish
from sklvebm.flows.ode import graded_times, heun_step, times_for_tails
from sklvebm.flows.potentials import AnchoredPotential, finest_scale, flow_density, transport
from sklvebm.inference.products import Expert
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.preprocessing.scaling import (
    MAX_SQUARABLE,
    Standardisation,
    finite,
    zero_where_squares_overflow,
)
from sklvebm.runtime import numerical_session, seeded_generator
from sklvebm.smc.log_partition import LogPartition

_TAIL_DEVIATIONS = 3.5  # norm above sqrt(D) from which rows and noise are in the tails
_MIN_TAIL_SCALE = 10.0  # standard deviation of a component that needs further time steps
_CHUNK_NUMBERS = 2**20  # entries of the largest intermediate: 8 MB in float64


class FlowModel(NamedTuple):
    """Parameters for scoring, transforming and sampling; float64, on the CPU."""

    potential: AnchoredPotential
    reference: MixtureReference  # the potential corrects that of its marginal
    standardisation: Standardisation
    n_steps: int  # of the fourth-order integrator: likelihoods and transforms
    n_sampling_steps: int  # of Heun's method
    directions: Tensor  # (1, K, D), of the Laplacian
    energy_time: float  # of the explicit energy
    log_partition: LogPartition  # of the explicit energy


def expert_of(model: FlowModel) -> Expert:
    """Return the explicit energy at its time as a factor of compositions."""
    time, potential = model.energy_time, model.potential

    def correction(x: Tensor, z: Tensor) -> Tensor:
        return -time * potential.correction(x, torch.full_like(x[:, 0], time)).to(x)

    return Expert(
        reference=PotentialSlice(potential, time).reference,
        correction=correction,
        mean=torch.from_numpy(np.array(model.standardisation.mean)),
        # the interpolant at time t scales rows by t
        scale=torch.from_numpy(np.array(model.standardisation.scale)) / time,
        log_partition=model.log_partition.value,
        bounded=True,
    )


def numbers_per_row(potential: AnchoredPotential, n_directions: int) -> int:
    """Return the size of the largest intermediate for one row."""
    n_features = potential.n_features
    width = len(potential.mixture.means)
    if potential.mixture.axes is not None:
        width = max(width, n_features**2)
    if potential.network is not None:
        n_tangents = 1 if potential.trace_is_free else n_directions
        widest = max(*potential.network.hidden_layer_sizes, len(potential.network.output))
        width = max(width, n_tangents * widest)
    return width


def _answer_rows(
    model: FlowModel,
    rows: np.ndarray,
    device: torch.device,
    answer: Callable[[AnchoredPotential, Tensor], Tensor],
    n_directions: int = 1,
) -> np.ndarray:
    """Apply `answer(potential, rows)` to rows, see `answer_rows`."""
    size = max(1, _CHUNK_NUMBERS // numbers_per_row(model.potential, n_directions))
    parts = [slice(first, first + size) for first in range(0, len(rows), size)]
    potential = model.potential if device.type == "cpu" else on_device(model.potential, device)
    return answer_rows(potential, rows, device, lambda own, x, _: answer(own, x), parts)


def on_device(potential: AnchoredPotential, device: torch.device) -> AnchoredPotential:
    """Return a copy of a potential on a device."""
    moved = copy.deepcopy(potential).to(device)
    moved.mixture = moved.mixture.to(device)
    return moved


def flow_log_density(
    model: FlowModel, X: np.ndarray, device: torch.device, stop: float = 1.0
) -> np.ndarray:
    """Return the flow's log-density of rows X, (n_samples,), nats in the units of X.

    For `stop` below 1, that of rows with noise of scale `(1 - stop) / stop`, standardised units.
    """
    directions = model.directions.to(device)

    def answer(potential: AnchoredPotential, x: Tensor) -> Tensor:
        if potential.network is None:  # exact, without integration
            return potential.log_reference(stop * x, stop)
        return flow_density(potential, stop * x, model.n_steps, directions, stop=stop).log_density

    return _in_units(model, X, device, answer, time=stop, n_directions=directions.shape[1])


def energy_log_density(model: FlowModel, X: np.ndarray, device: torch.device) -> np.ndarray:
    """Return minus the explicit energy, normalised, at its time, as `flow_log_density` does."""
    time, log_z = model.energy_time, model.log_partition.value

    def answer(potential: AnchoredPotential, x: Tensor) -> Tensor:
        return -potential.energy(time * x, time) - log_z

    return _in_units(model, X, device, answer, time=time)


def _in_units(
    model: FlowModel,
    X: np.ndarray,
    device: torch.device,
    answer: Callable[[AnchoredPotential, Tensor], Tensor],
    *,
    time: float,
    n_directions: int = 1,
) -> np.ndarray:
    """Apply `answer` to standardised rows and return log-densities in the units of X."""
    standardisation = model.standardisation
    rows = standardisation.apply(X)
    values = _answer_rows(model, rows, device, answer, n_directions)
    values = zero_where_squares_overflow(values, rows)
    # the interpolant at time t scales rows by t
    return values + X.shape[1] * np.log(time) + standardisation.log_jacobian


def to_noise(model: FlowModel, X: np.ndarray, device: torch.device) -> np.ndarray:
    """Carry rows X back to time 0, (n_samples, n_features)."""
    return _carried(model, model.standardisation.apply(X), device, backwards=True)


def from_noise(model: FlowModel, Z: np.ndarray, device: torch.device) -> np.ndarray:
    """Carry noise Z to data, (n_samples, n_features), in the units of the data."""
    return finite(model.standardisation.invert(_carried(model, Z, device)))


def _carried(
    model: FlowModel, rows: np.ndarray, device: torch.device, *, backwards: bool = False
) -> np.ndarray:
    """Carry rows (N, D) along the flow, also those whose squares overflow.

    Rows in the tails use the time steps for defensive components. At even larger distances the flow
    is linear, and rows are rescaled.
    """
    rows = np.asarray(rows, dtype=np.float64)
    size = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / MAX_SQUARABLE, 1.0)
    rows = rows / size
    times = _times(model, model.n_steps)
    widest = math.sqrt(float(model.potential.mixture.variances.max()))
    radius = math.sqrt(rows.shape[1]) + _TAIL_DEVIATIONS
    is_far = (np.linalg.norm(rows, axis=1) > radius) & (widest > _MIN_TAIL_SCALE)
    there = np.empty_like(rows)
    for chosen, path in ((~is_far, times), (is_far, times_for_tails(times, widest))):
        if chosen.any():
            path = path[::-1] if backwards else path
            there[chosen] = _answer_rows(
                model, rows[chosen], device, partial(transport, times=path)
            )
    return finite(there * size)


def flow_samples(
    model: FlowModel, n_samples: int, n_langevin_steps: int, seed: int, device: torch.device
) -> np.ndarray:
    """Return draws, (n_samples, n_features), in the units of the data.

    Heun's method carries noise to data. With Langevin steps, it carries noise to the time of the
    energy, where Metropolis-adjusted steps under the energy follow, and then to data. If the model
    is its reference, draws are exact.
    """
    generator = torch.Generator().manual_seed(seed)
    if model.potential.network is None:
        with numerical_session(1):
            draws = model.reference.sample(n_samples, generator)
            x = model.reference.split(draws)[0].numpy()
        return model.standardisation.invert(x)
    n_features = model.potential.n_features
    noise = torch.randn((n_samples, n_features), generator=generator, dtype=torch.float64)
    middle = model.energy_time if n_langevin_steps > 0 else 1.0
    scale = finest_scale(model.potential.mixture)
    there = graded_times(model.n_sampling_steps, scale, middle)
    x = _answer_rows(
        model, noise.numpy(), device, lambda potential, z: transport(potential, z, there, heun_step)
    )
    if n_langevin_steps == 0:
        return model.standardisation.invert(x)
    with numerical_session(1):
        slice_ = PotentialSlice(on_device(model.potential, device), middle)
        moves = seeded_generator(seed + 1, device)
        x = polish(slice_, torch.from_numpy(x).to(device), n_langevin_steps, moves).cpu().numpy()
    if middle < 1.0:
        rest = [t for t in _times(model, model.n_sampling_steps) if t > middle]
        x = _answer_rows(
            model,
            x,
            device,
            lambda potential, z: transport(potential, z, [middle, *rest], heun_step),
        )
    return model.standardisation.invert(x)


def _times(model: FlowModel, n_steps: int) -> list[float]:
    return graded_times(n_steps, finest_scale(model.potential.mixture))
