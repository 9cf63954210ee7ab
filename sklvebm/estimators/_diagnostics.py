"""Can the numbers of a fitted model be trusted? Measurements, a verdict and a readable report."""

from typing import NamedTuple

import torch

from sklvebm.convergence import chain_sample_size, nested_rhat, split_rhat
from sklvebm.log_partition import Normalisation
from sklvebm.objectives.pool import Observation

MAX_RHAT = 1.05
_MIN_WALKERS = 20.0
_MIN_SWAP = 0.05
_MIN_POSTERIOR = 0.5  # share of effective particles of the median row


class Diagnostics(NamedTuple):
    """What was measured when the model was normalised; plain numbers.

    Attributes
    ----------
    acceptance : list of float
        Mean Metropolis acceptance at each temperature, from reference to model.
    swap_rates : list of float
        Mean acceptance of swaps between each pair of neighbouring temperatures.
    round_trips : int
        Replicas that went from the model to the reference while the pools were watched.
    rhat : float
        Nested R-hat of correction and base energy at the model's temperature, the larger one, over
        a pool started at data rows and one started at the reference; near one if both agree.
    split_rhat : float
        Split R-hat of the same chains one by one; above one also where the agreeing pools consist
        of chains too short to have seen everything.
    pool_sample_size : float
        Effective number of independent draws among the `n_pool_draws` watched.
    n_pool_draws : int
        Draws watched.
    log_z_lower, log_z_lower_error : float
        Annealing from the reference: estimate and standard error over replicates, nats.
    log_z_upper, log_z_upper_error : float
        Annealing from the model, nats.
    rare_mass : float
        Nats that components of the reference too rare for the walkers add to log Z.
    bracket_width : float
        `log_partition_.upper - log_partition_.lower`, nats.
    tolerance : float
        Width up to which the bracket is trusted, nats.
    walker_sample_size : float
        Effective number of the `n_walkers` walkers of forward annealing.
    n_walkers, n_annealing_steps : int
        Effort of the normaliser.
    posterior_sample_size : float
        Median over training rows of the effective number of posterior particles.
    n_posterior_particles : int
        Posterior particles per row; 0 without latents.
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
    rare_mass: float
    bracket_width: float
    tolerance: float
    walker_sample_size: float
    n_walkers: int
    n_annealing_steps: int
    posterior_sample_size: float
    n_posterior_particles: int

    def problems(self) -> list[str]:
        """Return what is wrong, each with the parameter to change; empty if nothing is."""
        found = []
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
                f"{self.posterior_sample_size:.0f} of {self.n_posterior_particles} posterior "
                "particles of the median row are effective: decrease n_components or increase alpha"
            )
        return found

    @property
    def verdict(self) -> str:
        """One line: sound, or what is wrong first."""
        found = self.problems()
        return f"check: {found[0]}" if found else "sound"

    def report(self) -> str:
        """Return the measurements as text that a person can read."""

        def row(values: list[float]) -> str:
            return " ".join(f"{value:.2f}" for value in values) or "-"

        lines = [
            f"verdict             {self.verdict}",
            f"log Z, from below   {self.log_z_lower:.3f} +- {self.log_z_lower_error:.3f} nats",
            f"log Z, from above   {self.log_z_upper:.3f} +- {self.log_z_upper_error:.3f} nats",
            f"bracket             {self.bracket_width:.3f} nats wide, tolerance "
            f"{self.tolerance:.3f}; {self.rare_mass:.3f} for rare components",
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


def disagreement(observations: list[Observation]) -> float:
    """Return the nested R-hat of pools with different starts, the larger of both scalars."""
    starts = (observation.traces for observation in observations)
    return max(nested_rhat(torch.stack(groups)) for groups in zip(*starts, strict=True))


def diagnose(
    normalisation: Normalisation,
    rare_mass: float,
    observations: list[Observation],
    tolerance: float,
    posterior_sample_size: float,
    n_posterior_particles: int,
) -> Diagnostics:
    """Summarise a normalisation and watched pools.

    Parameters
    ----------
    normalisation : Normalisation
        Bracket of log Z.
    rare_mass : float
        Nats of it that come from rare components.
    observations : list of Observation
        One for each start; the same number of sweeps each.
    tolerance : float
        Width up to which the bracket is trusted, nats.
    posterior_sample_size : float
        Median effective number of posterior particles.
    n_posterior_particles : int
        Posterior particles per row.
    """
    traces = torch.cat([o.traces for o in observations], 1)  # (2, chains, sweeps)
    acceptance = torch.stack([o.acceptance for o in observations]).mean(0)
    swaps = torch.stack([o.swap_acceptance for o in observations]).mean(0)
    estimate = normalisation.estimate
    return Diagnostics(
        acceptance=acceptance.tolist(),
        swap_rates=swaps.tolist(),
        round_trips=sum(o.n_round_trips for o in observations),
        rhat=disagreement(observations),
        split_rhat=max(split_rhat(trace) for trace in traces),
        pool_sample_size=min(chain_sample_size(trace) for trace in traces),
        n_pool_draws=traces.shape[1] * traces.shape[2],
        log_z_lower=normalisation.forward,
        log_z_lower_error=normalisation.forward_error,
        log_z_upper=normalisation.reverse,
        log_z_upper_error=normalisation.reverse_error,
        rare_mass=rare_mass,
        bracket_width=estimate.upper - estimate.lower,
        tolerance=tolerance,
        walker_sample_size=estimate.effective_sample_size,
        n_walkers=normalisation.n_walkers,
        n_annealing_steps=normalisation.n_steps,
        posterior_sample_size=posterior_sample_size,
        n_posterior_particles=n_posterior_particles,
    )
