"""Diagnostics of a fitted potential flow: measurements, tolerances and a report."""

from typing import NamedTuple

from sklvebm.mixtures.reference_check import impossible_reference
from sklvebm.notebook import report_as_html
from sklvebm.smc.log_partition import TRUSTED_WIDTH

# nats, root mean square over rows, of the change of scores with twice the integrator's steps
DENSITY_TOLERANCE = 1e-3
_MAX_ROUND_TRIP_ERROR = 1e-2  # standardised units, median over rows
_TRACE_TOLERANCE = 0.1  # nats, of the standard error of the mean score
# largest difference of the log-densities of flow and energy, nats, up to this number of features,
# and the addition for each further feature
_MAX_DISAGREEMENT, _N_BASE_FEATURES, _MAX_DISAGREEMENT_PER_FEATURE = 0.05, 3, 0.03


class FlowDiagnostics(NamedTuple):
    """Measurements on monitored rows after training; plain numbers.

    Attributes
    ----------
    n_steps : int
        Steps of the fourth-order integrator, chosen by doubling.
    density_error : float
        Root mean square change of the log-density with twice the steps, nats.
    position_error : float
        The same of the latents, median over rows, standardised units.
    round_trip_error : float
        Median distance between rows and their images under `transform` and `inverse_transform`,
        standardised units.
    worst_round_trip_error : float
        The largest of these distances. Numerical errors grow where the flow separates neighbours.
    n_sampling_steps : int
        Steps of Heun's method, chosen by doubling until half of the draws move by at most 0.01.
    trace_error : float
        Standard error of a row's log-density due to the estimated Laplacian, root mean square over
        rows, nats; 0 if the trace is exact.
    mean_trace_error : float
        The same for the mean over rows, which share the directions.
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
        Walkers in each direction and annealing steps of log Z; 0 if the model is its reference.
    n_features : int
        Number of features, on which tolerances depend.
    excess_density, distinct_draws : float
        Numerical accuracy of the reference; as in `Diagnostics`.
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
        """Return the problems of `score`, each with the parameter to change."""
        found = impossible_reference(self.excess_density, self.distinct_draws)
        if self.density_error > DENSITY_TOLERANCE or self.round_trip_error > _MAX_ROUND_TRIP_ERROR:
            found.append(
                f"with {self.n_steps} steps the flow's log-density is off by "
                f"{self.density_error:.2g} nats (tolerance {DENSITY_TOLERANCE:g}), a round trip by "
                f"{self.round_trip_error:.2g} (tolerance {_MAX_ROUND_TRIP_ERROR:g}): increase "
                "n_steps, or alpha or consistency for a smoother potential"
            )
        if self.mean_trace_error > _TRACE_TOLERANCE:
            found.append(
                f"the estimated trace has an error of {self.mean_trace_error:.2g} nats: increase "
                "n_probes"
            )
        return found

    def problems(self) -> list[str]:
        """Return the problems of the score and of the explicit energy."""
        found = self.score_problems()
        if self.bracket_width > TRUSTED_WIDTH.at(self.n_features):
            found.append(
                f"the bracket of the energy's log Z is {self.bracket_width:.2g} nats wide: "
                "increase alpha or consistency"
            )
        beyond = max(0, self.n_features - _N_BASE_FEATURES)
        allowed = _MAX_DISAGREEMENT + _MAX_DISAGREEMENT_PER_FEATURE * beyond
        if abs(self.flow_minus_energy) > allowed:
            found.append(
                f"the explicit energy's log-density differs from the flow's by "
                f"{-self.flow_minus_energy:.2g} nats (tolerance {allowed:.2g}): increase "
                "consistency, or use the flow's log-density only"
            )
        return found

    @property
    def verdict(self) -> str:
        """One line: "sound", or the first problem."""
        found = self.problems()
        return f"check: {found[0]}" if found else "sound"

    def report(self) -> str:
        """Return the measurements as readable text."""
        of_energy = (
            f"bracket {self.bracket_width:.3f} nats wide, {self.walker_sample_size:.0f} of "
            f"{self.n_walkers} walkers effective, {self.n_annealing_steps} annealing steps"
        )
        if self.n_walkers == 0:
            of_energy = "0, exactly: the model is its reference"
        lines = [
            f"verdict             {self.verdict}",
            f"integrator          {self.n_steps} steps: density off by {self.density_error:.1e} "
            f"nats, latents by {self.position_error:.1e}, round trip by "
            f"{self.round_trip_error:.1e}, at worst {self.worst_round_trip_error:.1e}",
            f"trace               error {self.trace_error:.1e} nats a row, "
            f"{self.mean_trace_error:.1e} in the mean",
            f"flow minus energy   {self.flow_minus_energy:.3f} nats, spread "
            f"{self.flow_energy_spread:.3f}, at time {self.energy_time:g}",
            f"log Z of energy     {of_energy}",
        ]
        return "\n".join(lines + [f"problem             {problem}" for problem in self.problems()])

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{self.report()}"

    def _repr_html_(self) -> str:
        return report_as_html(type(self).__name__, self.report())
