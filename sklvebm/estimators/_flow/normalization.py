"""Checks of a trained potential flow: integrator steps, log Z of the energy, their agreement."""

import math
from typing import Any

import torch
from torch import Tensor

from sklvebm.estimators._common.session import FitSession
from sklvebm.estimators._flow.fitted_model import FlowModel
from sklvebm.flows.diagnostics import DENSITY_TOLERANCE, FlowDiagnostics
from sklvebm.flows.explicit_energy import EXACT, PotentialSlice, normalise_slice
from sklvebm.flows.ode import graded_times, heun_step
from sklvebm.flows.potentials import (
    AnchoredPotential,
    finest_scale,
    flow_density,
    trace_directions,
    transport,
)
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_check import check_reference
from sklvebm.smc.log_partition import WANTED_WIDTH

_STEP_COUNTS = (8, 16, 32, 64, 128, 256)  # candidates for the integrator's steps
# Standardised units, median over rows: where the flow separates neighbours, single rows would need
# many times the steps of the others.
_POSITION_TOLERANCE, _SAMPLING_TOLERANCE = 1e-4, 1e-2
_MAX_ROWS = 100  # monitored rows of the checks, and draws
_N_WALKERS = 512  # of annealing, in each direction
_N_SETS = 8  # sets of directions for the error of the trace


def check_model(
    session: FitSession,
    potential: AnchoredPotential,
    reference: MixtureReference,
    directions: Tensor,
    seed: int,
) -> tuple[FlowModel, FlowDiagnostics]:
    """Choose integrator steps, normalise the energy and compare it with the flow.

    Parameters
    ----------
    session : FitSession
        Has the monitored rows, the units, and `n_steps` and `energy_time` of the config.
    potential : AnchoredPotential
        Float64, on the CPU; without a network if the reference is the model.
    reference : MixtureReference
        Its reference.
    directions : Tensor of shape (1, K, D)
        Directions of the Laplacian.
    seed : int
        Seed of walkers and probes.
    """
    rows = torch.from_numpy(session.data.monitored[:_MAX_ROWS])
    generator = torch.Generator().manual_seed(seed)
    n_steps, errors = _chosen_steps(potential, rows, directions, session.config.n_steps)
    model = FlowModel(
        potential=potential,
        reference=reference,
        standardisation=session.data.standardisation,
        n_steps=n_steps,
        n_sampling_steps=_sampling_steps(potential, generator),
        directions=directions,
        energy_time=session.config.energy_time,
        log_partition=EXACT,
    )
    measured: dict[str, Any] = {**errors, **check_reference(reference, rows, seed)}
    measured.update(flow_minus_energy=0.0, flow_energy_spread=0.0, bracket_width=0.0)
    measured.update(trace_error=0.0, mean_trace_error=0.0)
    measured.update(walker_sample_size=math.inf, n_walkers=0, n_annealing_steps=0)
    if potential.network is not None:
        model, of_energy = _with_normalised_energy(model, generator)
        measured.update(of_energy)
        measured.update(_agreement(model, rows, generator), **_trace_errors(model, rows, generator))
    return model, FlowDiagnostics(
        n_steps=n_steps,
        n_sampling_steps=model.n_sampling_steps,
        energy_time=model.energy_time,
        n_features=potential.n_features,
        **measured,
    )


def _with_normalised_energy(
    model: FlowModel, generator: torch.Generator
) -> tuple[FlowModel, dict[str, float]]:
    """Return a model with log Z of its explicit energy, and fields of `FlowDiagnostics`."""
    energy = PotentialSlice(model.potential, model.energy_time)
    width = WANTED_WIDTH.at(model.potential.n_features)
    normalisation = normalise_slice(energy, _N_WALKERS, model.n_steps, generator, width)
    estimate = normalisation.estimate
    return model._replace(log_partition=estimate), {
        "bracket_width": estimate.upper - estimate.lower,
        "walker_sample_size": estimate.effective_sample_size,
        "n_walkers": normalisation.n_walkers,
        "n_annealing_steps": normalisation.n_steps,
    }


def _chosen_steps(
    potential: AnchoredPotential, rows: Tensor, directions: Tensor, n_steps: int | str
) -> tuple[int, dict[str, float]]:
    """Return steps and their errors; "auto" doubles them until the tolerance is met."""
    candidates = _STEP_COUNTS if isinstance(n_steps, str) else (n_steps, 2 * n_steps)
    scale = finest_scale(potential.mixture)
    density = flow_density(potential, rows, candidates[0], directions)
    for coarse, fine in zip(candidates[:-1], candidates[1:], strict=True):
        finer = flow_density(potential, rows, fine, directions)
        off = _root_mean_square(finer.log_density - density.log_density)
        moved = _median_distance(finer.noise, density.noise)
        if fine == candidates[-1] or (off <= DENSITY_TOLERANCE and moved <= _POSITION_TOLERANCE):
            there = transport(potential, density.noise, graded_times(coarse, scale))
            return coarse, {
                "density_error": off,
                "position_error": moved,
                "round_trip_error": _median_distance(there, rows),
                "worst_round_trip_error": float((there - rows).norm(dim=1).max()),
            }
        density = finer
    raise AssertionError("unreachable")


def _sampling_steps(potential: AnchoredPotential, generator: torch.Generator) -> int:
    """Return the steps of Heun's method, doubled until the change of draws is within tolerance."""
    noise = torch.randn((_MAX_ROWS, potential.n_features), generator=generator, dtype=torch.float64)
    scale = finest_scale(potential.mixture)
    coarse = transport(potential, noise, graded_times(_STEP_COUNTS[0], scale), heun_step)
    for n_steps in _STEP_COUNTS[1:]:
        fine = transport(potential, noise, graded_times(n_steps, scale), heun_step)
        if _median_distance(fine, coarse) <= _SAMPLING_TOLERANCE:
            return n_steps
        coarse = fine
    return _STEP_COUNTS[-1]


def _agreement(model: FlowModel, rows: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Compare flow and energy on rows with noise, at the energy's time."""
    time = model.energy_time
    noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    x = time * rows + (1.0 - time) * noise
    flow = flow_density(model.potential, x, model.n_steps, model.directions, stop=time).log_density
    difference = flow + model.potential.energy(x, time) + model.log_partition.value
    spread = float(difference.std()) if len(rows) > 1 else 0.0
    return {"flow_minus_energy": float(difference.mean()), "flow_energy_spread": spread}


def _trace_errors(model: FlowModel, rows: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Return standard errors of the Laplacian's estimate from independent sets of directions."""
    n_probes, n_features = model.directions.shape[1:]
    if n_probes == n_features:
        return {"trace_error": 0.0, "mean_trace_error": 0.0}
    sets = trace_directions(n_features, n_probes, generator, _N_SETS)
    gains = flow_density(model.potential, rows, model.n_steps, sets).gains
    return {
        "trace_error": float(gains.var(1).mean().sqrt()),
        "mean_trace_error": float(gains.mean(0).std()),
    }


def _median_distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm(dim=1).median())


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
