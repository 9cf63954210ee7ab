"""The last act of fitting a potential: steps, normaliser of the energy, and whether both agree."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.estimators._flow.fitted_model import FlowModel
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
from sklvebm.mixtures.reference_check import check_reference, impossible_reference
from sklvebm.preprocessing.scaling import Standardisation

_STEPS = (8, 16, 32, 64, 128, 256)
# log-densities in nats, root mean square over rows; positions in standardised units, median: where
# the flow pulls neighbours apart, single rows need many times the steps of the others
_TOLERANCE, _POSITION_TOLERANCE = 1e-3, 1e-4
_ROUND_TRIP = 1e-2  # standardised units: beyond it, fit warns
_SAMPLING_TOLERANCE = 1e-2  # standardised units
_MAX_ROWS = 100
_WALKERS = 512
# widths of the bracket of log Z, for two features and for each further one, in nats
_WANTED = (0.02, 0.005)
_TRUSTED = (0.05, 0.0075)
_AGREEMENT, _AGREEMENT_PER_FEATURE = 0.05, 0.03  # nats, up to three features and for each further
_NAMED_FEATURES = 3
_TRACE_TOLERANCE = 0.1  # nats
_N_SETS = 8  # of directions, for the error of the trace


class FlowDiagnostics(NamedTuple):
    """What was measured on monitored rows after training; plain numbers.

    Attributes
    ----------
    n_steps : int
        Steps of the fourth-order integrator, chosen by doubling.
    density_error : float
        Root mean square change of the log-density with twice the steps, nats.
    position_error : float
        The same of the latents, median over rows, standardised units.
    round_trip_error : float
        Median distance of a row from where it started, after going to the latents and back,
        standardised units.
    worst_round_trip_error : float
        The largest of these distances: where the flow pulls neighbours apart, rounding and
        integrator errors grow.
    n_sampling_steps : int
        Steps of Heun's method, chosen by doubling until half of the draws move by at most 0.01.
    trace_error : float
        Standard error of a row's log-density from the estimate of the Laplacian, root mean square
        over rows, nats; 0 if the trace is exact.
    mean_trace_error : float
        The same of the mean over rows, which share the directions.
    energy_time : float
        Time of the explicit energy.
    flow_minus_energy : float
        Mean log-density of the rows by the flow minus that by the normalised energy, at that time.
    flow_energy_spread : float
        Standard deviation of the same difference over rows, nats.
    bracket_width : float
        `log_partition_.upper - log_partition_.lower`, nats.
    walker_sample_size : float
        Effective number of the `n_walkers` walkers of forward annealing.
    n_walkers, n_annealing_steps : int
        Effort of the normaliser; 0 where the model is its reference.
    n_features : int
        Width of the rows, which sets what is trusted.
    excess_density, distinct_draws : float
        Whether the reference is what its components say; as in `Diagnostics`.
    """

    n_steps: int
    density_error: float
    position_error: float
    round_trip_error: float
    worst_round_trip_error: float
    n_sampling_steps: int
    trace_error: float
    mean_trace_error: float
    energy_time: float
    flow_minus_energy: float
    flow_energy_spread: float
    bracket_width: float
    walker_sample_size: float
    n_walkers: int
    n_annealing_steps: int
    n_features: int
    excess_density: float = 0.0
    distinct_draws: float = 1.0

    def score_problems(self) -> list[str]:
        """Return what is wrong with `score`, each with the parameter to change; empty if none."""
        found = impossible_reference(self.excess_density, self.distinct_draws)
        if self.density_error > _TOLERANCE or self.round_trip_error > _ROUND_TRIP:
            found.append(
                f"with {self.n_steps} steps the flow's log-density is off by "
                f"{self.density_error:.2g} nats (tolerance {_TOLERANCE:g}), a round trip by "
                f"{self.round_trip_error:.2g} (tolerance {_ROUND_TRIP:g}): increase n_steps, or "
                "alpha or consistency for a smoother potential"
            )
        if self.mean_trace_error > _TRACE_TOLERANCE:
            found.append(
                f"the estimated trace leaves {self.mean_trace_error:.2g} nats open: increase "
                "n_probes"
            )
        return found

    def problems(self) -> list[str]:
        """Return what is wrong, with the score or with the explicit energy; empty if nothing is."""
        found = self.score_problems()
        further = max(0, self.n_features - 2)
        if self.bracket_width > _TRUSTED[0] + _TRUSTED[1] * further:
            found.append(
                f"the bracket of the energy's log Z is {self.bracket_width:.2g} nats wide: "
                "increase alpha or consistency"
            )
        beyond = max(0, self.n_features - _NAMED_FEATURES)
        allowed = _AGREEMENT + _AGREEMENT_PER_FEATURE * beyond
        if abs(self.flow_minus_energy) > allowed:
            found.append(
                f"the explicit energy's log-density differs from the flow's by "
                f"{-self.flow_minus_energy:.2g} nats (tolerance {allowed:.2g}): increase "
                "consistency, or trust the flow alone"
            )
        return found

    @property
    def verdict(self) -> str:
        """One line: sound, or what is wrong first."""
        found = self.problems()
        return f"check: {found[0]}" if found else "sound"

    def report(self) -> str:
        """Return the measurements as text that a person can read."""
        lines = [
            f"verdict             {self.verdict}",
            f"integrator          {self.n_steps} steps: density off by {self.density_error:.1e} "
            f"nats, latents by {self.position_error:.1e}, round trip by "
            f"{self.round_trip_error:.1e}, at worst {self.worst_round_trip_error:.1e}",
            f"trace               error {self.trace_error:.1e} nats a row, "
            f"{self.mean_trace_error:.1e} in the mean",
            f"flow minus energy   {self.flow_minus_energy:.3f} nats, spread "
            f"{self.flow_energy_spread:.3f}, at time {self.energy_time:g}",
            f"log Z of energy     bracket {self.bracket_width:.3f} nats wide, "
            f"{self.walker_sample_size:.0f} of {self.n_walkers} walkers effective, "
            f"{self.n_annealing_steps} annealing steps",
        ]
        return "\n".join(lines + [f"problem             {problem}" for problem in self.problems()])


def check_model(
    potential: AnchoredPotential,
    reference: MixtureReference,
    standardisation: Standardisation,
    rows: Tensor,
    directions: Tensor,
    settings: SimpleNamespace,
    seed: int,
) -> tuple[FlowModel, FlowDiagnostics]:
    """Choose integrator steps, normalise the energy and compare it with the flow.

    Parameters
    ----------
    potential : AnchoredPotential
        Float64, on the CPU; without a network where the reference is the model.
    reference : MixtureReference
        What it is anchored on.
    standardisation : Standardisation
        Units of the model.
    rows : Tensor of shape (N, D)
        Monitored rows, standardised.
    directions : Tensor of shape (1, K, D)
        Of the Laplacian.
    settings : SimpleNamespace
        Constructor parameters; `n_steps` and `energy_time` are used.
    seed : int
        Seed of walkers and probes.
    """
    rows, time = rows[:_MAX_ROWS].double(), settings.energy_time
    generator = torch.Generator().manual_seed(seed)
    n_steps, errors = _chosen_steps(potential, rows, directions, settings.n_steps)
    model = FlowModel(
        potential=potential,
        reference=reference,
        standardisation=standardisation,
        n_steps=n_steps,
        n_sampling_steps=_sampling_steps(potential, generator),
        directions=directions,
        energy_time=time,
        log_partition=EXACT,
    )
    measured = {"flow_minus_energy": 0.0, "flow_energy_spread": 0.0, "bracket_width": 0.0}
    measured.update(trace_error=0.0, mean_trace_error=0.0)
    measured.update(walker_sample_size=math.inf, n_walkers=0, n_annealing_steps=0)
    if potential.network is not None:
        further = max(0, potential.n_features - 2)
        normalisation = normalise_slice(
            PotentialSlice(potential, time),
            _WALKERS,
            n_steps,
            generator,
            _WANTED[0] + _WANTED[1] * further,
        )
        model = model._replace(log_partition=normalisation.estimate)
        measured.update(_agreement(model, rows, generator), **_trace_errors(model, rows, generator))
        estimate = normalisation.estimate
        measured.update(
            bracket_width=estimate.upper - estimate.lower,
            walker_sample_size=estimate.effective_sample_size,
            n_walkers=normalisation.n_walkers,
            n_annealing_steps=normalisation.n_steps,
        )
    return model, FlowDiagnostics(
        n_steps=n_steps,
        **errors,
        n_sampling_steps=model.n_sampling_steps,
        energy_time=time,
        n_features=potential.n_features,
        **check_reference(reference, rows, seed),
        **measured,
    )


def _chosen_steps(
    potential: AnchoredPotential, rows: Tensor, directions: Tensor, n_steps: int | str
) -> tuple[int, dict[str, float]]:
    """Return steps and their errors; "auto" doubles them until the tolerance is met."""
    candidates = _STEPS if isinstance(n_steps, str) else (n_steps, 2 * n_steps)
    scale = finest_scale(potential.mixture)
    density = flow_density(potential, rows, candidates[0], directions)
    for coarse, fine in zip(candidates[:-1], candidates[1:], strict=True):
        finer = flow_density(potential, rows, fine, directions)
        off = _root_mean_square(finer.log_density - density.log_density)
        moved = _median_distance(finer.noise, density.noise)
        if fine == candidates[-1] or (off <= _TOLERANCE and moved <= _POSITION_TOLERANCE):
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
    """Return steps of Heun's method whose doubling hardly moves draws."""
    noise = torch.randn((_MAX_ROWS, potential.n_features), generator=generator, dtype=torch.float64)
    scale = finest_scale(potential.mixture)
    coarse = transport(potential, noise, graded_times(_STEPS[0], scale), heun_step)
    for n_steps in _STEPS[1:]:
        fine = transport(potential, noise, graded_times(n_steps, scale), heun_step)
        if _median_distance(fine, coarse) <= _SAMPLING_TOLERANCE:
            return n_steps
        coarse = fine
    return _STEPS[-1]


def _agreement(model: FlowModel, rows: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Compare flow and energy on rows of the law at the energy's time."""
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
