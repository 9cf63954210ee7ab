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
from sklvebm.estimators._common.missing_cells import Question, exact_answer
from sklvebm.flows.explicit_energy import PotentialSlice, polish
from sklvebm.flows.ode import graded_times, heun_step, times_for_tails
from sklvebm.flows.potentials import AnchoredPotential, finest_scale, flow_density, transport
from sklvebm.inference.missing_cells import ReferenceCells, with_effective_share
from sklvebm.inference.posterior import ROW_PARTICLES
from sklvebm.inference.products import Expert, affine_units
from sklvebm.mixtures.missing_cells import (
    by_completeness,
    reference_log_marginal,
)
from sklvebm.mixtures.missing_cells import numbers_per_row as missing_numbers
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.preprocessing.scaling import (
    MAX_SQUARABLE,
    Standardisation,
    finite,
    zero_where_squares_overflow,
)
from sklvebm.row_blocks import Sliceable, has_missing
from sklvebm.runtime import numerical_session, seeded_generator
from sklvebm.smc.log_partition import LogPartition
from sklvebm.smc.quasi_random import latent_nodes

_TAIL_DEVIATIONS = 3.5  # norm above sqrt(D) from which rows and noise are in the tails
_MIN_TAIL_SCALE = 10.0  # standard deviation of a component that needs further time steps
_CHUNK_NUMBERS = 2**20  # entries of the largest intermediate: 8 MB in float64
_COMPLETION_SEED = 0  # of the deterministic completions of rows with missing cells


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

    units = affine_units(model.standardisation)
    return Expert(
        reference=PotentialSlice(potential, time).reference,
        correction=correction,
        mean=units["mean"],
        scale=units["scale"] / time,  # the interpolant at time t scales rows by t
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
    rows: Sliceable,
    device: torch.device,
    answer: Callable[[AnchoredPotential, Tensor], Tensor],
    n_directions: int = 1,
) -> np.ndarray:
    """Apply `answer(potential, rows)` to rows, see `answer_rows`."""
    parts, potential = _parts(model, rows, n_directions), _potential_on(model, device)
    return answer_rows(potential, rows, device, lambda own, x, _: answer(own, x), parts)


def _potential_on(model: FlowModel, device: torch.device) -> AnchoredPotential:
    return model.potential if device.type == "cpu" else on_device(model.potential, device)


def _parts(model: FlowModel, rows: Sliceable, n_directions: int) -> list[slice]:
    """Return the chunks in which rows (N, D) are answered."""
    numbers = numbers_per_row(model.potential, n_directions)
    if has_missing(rows):
        numbers = ROW_PARTICLES * numbers + missing_numbers(model.reference)
    size = max(1, _CHUNK_NUMBERS // numbers)
    return [slice(first, first + size) for first in range(0, len(rows), size)]


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

    def of_complete(potential: AnchoredPotential, x: Tensor) -> Tensor:
        if potential.network is None:  # exact, without integration
            return potential.log_reference(stop * x, stop)
        return flow_density(potential, stop * x, model.n_steps, directions, stop=stop).log_density

    def of_others(potential: AnchoredPotential, x: Tensor) -> Tensor:
        reference = copy.deepcopy(model.reference).to(x.device)
        own = reference_log_marginal(reference, x)
        if potential.network is None:
            return own
        return own + torch.logsumexp(_completions(model, potential, x, _nodes(model, x))[1], 1)

    def answer(potential: AnchoredPotential, x: Tensor) -> Tensor:
        return by_completeness(x, partial(of_complete, potential), partial(of_others, potential))

    return _in_units(model, X, device, answer, time=stop, n_directions=directions.shape[1])


def _nodes(model: FlowModel, x: Tensor, n_particles: int = ROW_PARTICLES) -> Tensor:
    """Return the normal numbers of the completions of every row, (1, n_particles, 1 + D)."""
    return latent_nodes(n_particles, 1 + x.shape[1], _COMPLETION_SEED).to(x)[None]


def _completions(
    model: FlowModel, potential: AnchoredPotential, x: Tensor, nodes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return completed rows (N, K, D) of x (N, D), and their log weights (N, K), nats.

    Draws of the reference's conditional distribution are weighted by the flow's density over the
    reference's. The log of their total weight estimates the log of the ratio of both densities of
    the observed cells, from below in expectation.
    """
    reference = copy.deepcopy(model.reference).to(x.device).without_latents()
    cells = ReferenceCells(reference, x, nodes.shape[1])
    rows = cells.complete(cells.draws(nodes))
    if potential.network is None:  # every draw is one of the model
        return rows, torch.full_like(rows[:, :, 0], -math.log(nodes.shape[1]))
    flat = rows.flatten(0, 1)
    directions = model.directions.to(x.device)
    density = flow_density(potential, flat, model.n_steps, directions).log_density
    ratio = (density - reference.log_marginal(flat)).reshape(rows.shape[:2])
    return rows, ratio - math.log(nodes.shape[1])


def flow_cells(
    model: FlowModel, rows: np.ndarray, device: torch.device, question: Question
) -> np.ndarray:
    """Answer a question about standardised rows with missing cells; see `MissingCellsMixin`."""
    if model.potential.network is None:
        return exact_answer(model.reference, rows, device, question)

    def answer(potential: AnchoredPotential, x: Tensor, number: int) -> Tensor:
        if question.weighted is not None:
            nodes = _nodes(model, x, question.n_particles)
            completed, log_weights = _completions(model, potential, x, nodes)
            return with_effective_share(question.weighted(completed, log_weights), log_weights)
        generator = seeded_generator(question.seed + number, device)
        n_particles = max(ROW_PARTICLES, 2 * question.n_draws)
        shape = (len(x), n_particles, 1 + x.shape[1])
        nodes = torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
        completed, log_weights = _completions(model, potential, x, nodes)
        weights = torch.softmax(log_weights, 1)
        index = torch.multinomial(weights, question.n_draws, True, generator=generator)
        return with_effective_share(
            torch.take_along_dim(completed, index.unsqueeze(2), 1), log_weights
        )

    parts = _parts(model, rows, model.directions.shape[1])
    return answer_rows(_potential_on(model, device), rows, device, answer, parts)


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
    rows = standardisation.view(X)
    values = _answer_rows(model, rows, device, answer, n_directions)
    values = zero_where_squares_overflow(values, rows)
    n_observed = (~np.isnan(X)).sum(1) if has_missing(X) else np.array(X.shape[1])
    # the interpolant at time t scales rows by t
    values = values + n_observed * np.log(time) + standardisation.log_jacobian_of(X)
    # the density of no cell is one
    return np.where(n_observed > 0, values, 0.0)


def to_noise(model: FlowModel, X: np.ndarray, device: torch.device) -> np.ndarray:
    """Carry rows X back to time 0, (n_samples, n_features).

    Rows with missing cells get the mean over weighted completions.
    """
    rows = model.standardisation.apply(X)
    places = np.isnan(rows).any(axis=1)
    noise = np.empty_like(rows)
    noise[~places] = _carried(model, rows[~places], device, backwards=True)
    if not places.any():
        return noise

    def answer(potential: AnchoredPotential, x: Tensor) -> Tensor:
        completed, log_weights = _completions(model, potential, x, _nodes(model, x))
        return torch.cat([completed, torch.softmax(log_weights, 1).unsqueeze(2)], 2)

    found = _answer_rows(model, rows[places], device, answer, model.directions.shape[1])
    completed, shares = found[:, :, :-1], found[:, :, -1]
    carried = _carried(model, completed.reshape(-1, rows.shape[1]), device, backwards=True)
    noise[places] = np.einsum("nk,nkd->nd", shares, carried.reshape(completed.shape))
    return noise


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
