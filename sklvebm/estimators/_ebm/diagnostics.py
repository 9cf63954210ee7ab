"""Diagnostics of a fitted energy: measurements, tolerances and a report."""

import math
from typing import Any, NamedTuple

import torch

from sklvebm.deprecation import RenamedAttribute
from sklvebm.mcmc.diagnostics import chain_sample_size, nested_rhat, split_rhat
from sklvebm.mixtures.reference_check import impossible_reference
from sklvebm.notebook import report_as_html
from sklvebm.objectives.pool import DiagnosticChains
from sklvebm.smc.log_partition import Normalisation

MAX_RHAT = 1.05  # nested, between pools with different starts
_MIN_WALKERS = 20.0  # effective walkers of forward annealing
_MIN_SWAP = 0.05  # acceptance of swaps between neighbouring temperatures
_MIN_POSTERIOR = 0.25  # share of effective posterior particles, exceeded in nine of ten rows


class Diagnostics(NamedTuple):
    """Measurements from the normalisation of a model; plain numbers.

    Attributes
    ----------
    acceptance : list of float
        Mean Metropolis acceptance at each temperature, from reference to model.
    swap_rates : list of float
        Mean acceptance of swaps between each pair of neighbouring temperatures.
    round_trips : int
        Replicas of the diagnostic chains that went from the model to the reference.
    rhat : float
        Nested R-hat of two diagnostic pools, one started at data rows and one at the reference:
        the larger value for correction and base energy at the model's temperature. Near one if
        both pools agree.
    split_rhat : float
        Split R-hat of the same chains, one by one. It also exceeds one if both pools agree but
        their chains are too short to mix.
    pool_sample_size : float
        Effective number of independent draws among the `n_pool_draws` of the diagnostic chains.
    n_pool_draws : int
        Draws of the diagnostic chains.
    log_z_lower, log_z_lower_error : float
        Annealing from the reference: estimate and standard error over replicates, nats.
    log_z_upper, log_z_upper_error : float
        Annealing from the model, nats.
    missed_mass : float
        Addition to log Z for components of the reference that are too rare for walkers, nats.
    log_z_importance, importance_shape : float
        Importance estimate of log Z, nats, from draws of the reference with half of its weight in
        the defensive component; and the shape of the weights' tail. Below 0.7, the estimate is
        reliable.
    log_z_defended : float
        Estimate by annealing such draws to the model, nats.
    log_z_from_model, from_model_shape : float
        Importance estimate from draws of the model, nats, and the shape of its weights' tail.
    excess_density : float
        Largest log-density of a row under the reference above an upper bound, the sum of the
        components' peaks; nats. Positive values are rounding errors.
    distinct_draws : float
        Share of draws of the reference that differ from all others.
    bracket_width : float
        `log_partition_.upper - log_partition_.lower`, nats.
    tolerance : float
        Largest width of a reliable bracket, nats; at least a tenth of the energy's gain over its
        reference on held-out rows.
    walker_sample_size : float
        Effective number of the `n_walkers` walkers of forward annealing.
    n_walkers, n_annealing_steps : int
        Effort of the normaliser.
    posterior_sample_size : float
        Effective number of posterior particles, exceeded in nine of ten training rows.
    n_posterior_particles : int
        Posterior particles per row; 0 without latents.
    is_anchored : bool
        Whether the energy is a reference with a bounded correction of finite reach. In an energy of
        the user, distant and narrow wells that no walker finds cannot be excluded.
    """

    acceptance: list[float]
    swap_rates: list[float]
    round_trips: int
    rhat: float
    split_rhat: float
    pool_sample_size: float
    n_pool_draws: int
    log_z_lower: float
    log_z_lower_error: float
    log_z_upper: float
    log_z_upper_error: float
    missed_mass: float
    log_z_importance: float
    importance_shape: float
    log_z_defended: float
    log_z_from_model: float
    from_model_shape: float
    excess_density: float
    distinct_draws: float
    bracket_width: float
    tolerance: float
    walker_sample_size: float
    n_walkers: int
    n_annealing_steps: int
    posterior_sample_size: float
    n_posterior_particles: int
    is_anchored: bool = True

    # a descriptor and no field, which mypy does not allow in a named tuple
    rare_mass = RenamedAttribute("rare_mass", "missed_mass", "0.3")  # type: ignore[misc]

    def problems(self) -> list[str]:
        """Return the problems, each with the parameter to change."""
        found = []
        found += impossible_reference(self.excess_density, self.distinct_draws)
        if self.bracket_width > self.tolerance:
            found.append(
                f"the bracket of log Z is {self.bracket_width:.2g} nats wide (tolerance "
                f"{self.tolerance:.2g}, {self.walker_sample_size:.0f} of {self.n_walkers} walkers "
                "effective): increase n_chains or n_temperatures, or alpha for a smoother energy"
            )
        elif self.walker_sample_size < _MIN_WALKERS:
            found.append(
                f"only {self.walker_sample_size:.0f} of {self.n_walkers} walkers are effective: "
                "increase n_chains or n_temperatures, or alpha for a smoother energy"
            )
        if self.rhat > MAX_RHAT:
            found.append(
                f"pools started from data and from the reference disagree (R-hat {self.rhat:.2f}): "
                "increase n_temperatures or n_langevin_steps, or alpha"
            )
        if self.swap_rates and min(self.swap_rates) < _MIN_SWAP:
            found.append(
                f"a pair of temperatures swaps in {min(self.swap_rates):.1%} of tries: "
                "increase n_temperatures"
            )
        if self.posterior_sample_size < _MIN_POSTERIOR * self.n_posterior_particles:
            found.append(
                f"one row in ten has fewer than {self.posterior_sample_size:.0f} of "
                f"{self.n_posterior_particles} posterior particles effective: decrease "
                "n_components or increase alpha"
            )
        return found

    @property
    def verdict(self) -> str:
        """One line: the first problem, "sound", or "nothing contradicts log Z" (user energies)."""
        found = self.problems()
        if found:
            return f"check: {found[0]}"
        return "sound" if self.is_anchored else "nothing contradicts log Z"

    def report(self) -> str:
        """Return the measurements as readable text."""

        def row(values: list[float]) -> str:
            return " ".join(f"{value:.2f}" for value in values) or "-"

        if self.n_walkers == 0:
            return self._report_of_reference()
        lines = [
            f"verdict             {self.verdict}",
            f"log Z, from below   {self.log_z_lower:.3f} +- {self.log_z_lower_error:.3f} nats",
            f"log Z, from above   {self.log_z_upper:.3f} +- {self.log_z_upper_error:.3f} nats",
            f"bracket             {self.bracket_width:.3f} nats wide, tolerance "
            f"{self.tolerance:.3f}; {self.missed_mass:.3f} for missed components",
            f"independently       {self.log_z_importance:.3f} nats by importance weights (tail "
            f"{self.importance_shape:.2f}), {self.log_z_defended:.3f} annealed, "
            f"{self.log_z_from_model:.3f} from the model (tail {self.from_model_shape:.2f})",
            f"walkers             {self.walker_sample_size:.0f} of {self.n_walkers} effective, "
            f"{self.n_annealing_steps} annealing steps",
            f"acceptance          {row(self.acceptance)}",
            f"swap rates          {row(self.swap_rates)}",
            f"round trips         {self.round_trips}",
            f"pool                R-hat {self.rhat:.3f} between starts, "
            f"{self.split_rhat:.3f} between chains, {self.pool_sample_size:.0f} of "
            f"{self.n_pool_draws} draws effective",
        ]
        if self.n_posterior_particles > 0:
            lines.append(
                f"posterior           {self.posterior_sample_size:.0f} of "
                f"{self.n_posterior_particles} particles effective"
            )
        return "\n".join(lines + [f"problem             {problem}" for problem in self.problems()])

    def _report_of_reference(self) -> str:
        """Return the measurements that a reference has."""
        lines = [
            f"verdict             {self.verdict}",
            "log Z               0, exactly: the model is its reference",
            f"reference           rows at most {self.excess_density:.2g} nats above their "
            f"bound, {self.distinct_draws:.1%} of draws differ",
        ]
        return "\n".join(lines + [f"problem             {problem}" for problem in self.problems()])

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{self.report()}"

    def _repr_html_(self) -> str:
        return report_as_html(type(self).__name__, self.report())


def disagreement(diagnostic_chains: list[DiagnosticChains]) -> float:
    """Return the nested R-hat of pools with different starts, the larger one of two scalars."""
    starts = (chains.traces for chains in diagnostic_chains)
    return max(nested_rhat(torch.stack(groups)) for groups in zip(*starts, strict=True))


def diagnose(
    normalisation: Normalisation,
    diagnostic_chains: list[DiagnosticChains],
    **measured: Any,
) -> Diagnostics:
    """Summarise a normalisation and diagnostic chains.

    Parameters
    ----------
    normalisation : Normalisation
        Bracket of log Z.
    diagnostic_chains : list of DiagnosticChains
        One for each start; the same number of sweeps each.
    **measured : float
        All other fields of `Diagnostics`, by their names.
    """
    traces = torch.cat([o.traces for o in diagnostic_chains], 1)  # (2, chains, sweeps)
    acceptance = torch.stack([o.acceptance for o in diagnostic_chains]).mean(0)
    swaps = torch.stack([o.swap_acceptance for o in diagnostic_chains]).mean(0)
    estimate = normalisation.estimate
    return Diagnostics(
        acceptance=acceptance.tolist(),
        swap_rates=swaps.tolist(),
        round_trips=sum(o.n_round_trips for o in diagnostic_chains),
        rhat=disagreement(diagnostic_chains),
        split_rhat=max(split_rhat(trace) for trace in traces),
        pool_sample_size=min(chain_sample_size(trace) for trace in traces),
        n_pool_draws=traces.shape[1] * traces.shape[2],
        log_z_lower=normalisation.forward,
        log_z_lower_error=normalisation.forward_error,
        log_z_upper=normalisation.reverse,
        log_z_upper_error=normalisation.reverse_error,
        bracket_width=estimate.upper - estimate.lower,
        walker_sample_size=estimate.effective_sample_size,
        n_walkers=normalisation.n_walkers,
        n_annealing_steps=normalisation.n_steps,
        **measured,
    )


def diagnose_reference(n_temperatures: int, **measured: Any) -> Diagnostics:
    """Return the diagnostics of a model that is its reference, for which all results are exact.

    Parameters
    ----------
    n_temperatures : int
        Rungs of the ladder, all of which are the same density.
    **measured : float
        The fields that are measured on rows and draws, by their names.
    """
    return Diagnostics(
        acceptance=[1.0] * n_temperatures,
        swap_rates=[1.0] * (n_temperatures - 1),
        round_trips=0,
        rhat=1.0,
        split_rhat=1.0,
        pool_sample_size=0.0,
        n_pool_draws=0,
        log_z_lower=0.0,
        log_z_lower_error=0.0,
        log_z_upper=0.0,
        log_z_upper_error=0.0,
        missed_mass=0.0,
        log_z_importance=0.0,
        importance_shape=-math.inf,
        log_z_defended=0.0,
        log_z_from_model=0.0,
        from_model_shape=-math.inf,
        bracket_width=0.0,
        walker_sample_size=math.inf,
        n_walkers=0,
        n_annealing_steps=0,
        **measured,
    )
