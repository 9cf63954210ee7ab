"""A bracket of log Z: annealing in both directions, doubled until the two agree."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import Noise, Target
from sklvebm.mcmc.tempering import thermodynamic_length
from sklvebm.notebook import report_as_html
from sklvebm.smc.annealing import Ladder, anneal, annealing_schedule
from sklvebm.smc.free_energy import bennett, jackknife
from sklvebm.smc.resampling import effective_sample_size, log_mean_exp

_TRUSTED_SHARE = 0.25  # least share of effective walkers of a trusted estimate
_FEW_EFFECTIVE = 0.05  # share of effective walkers below which the bracket allows for a missed tail
_SIGMAS = 3.0  # standard errors from the estimate to the ends of the bracket, at least


class LogPartition(NamedTuple):
    """Bracket and estimate of log Z; all but the last in nats.

    Attributes
    ----------
    value : float
        Bennett estimate from annealing in both directions. Estimators with a pool add the mass of
        missed components to it and to `upper` (`missed_components.with_missed_mass`).
    lower : float
        The smaller of annealing from the reference to the model, whose expectation is at most
        log Z, and `value` minus three standard errors.
    upper : float
        The larger of annealing from the model to the reference, whose expectation is at least
        log Z when the particles it starts from follow the model, and `value` plus three standard
        errors.
    standard_error : float
        Standard error of `value`: the larger of its asymptotic one and that of a jackknife over
        independent groups of walkers.
    effective_sample_size : float
        Effective number of walkers from the reference to the model. In the other direction, one
        walker in a region that the model hardly visits can carry all weight, without an effect on
        `value`.

    See Also
    --------
    ComposedEnergy.log_partition : Brackets the normaliser of a composition.
    ParticleLVEBM : Has one as `log_partition_`.

    Examples
    --------
    >>> from sklvebm import LogPartition
    >>> bracket = LogPartition(0.1, 0.0, 0.3, 0.05, 200.0)
    >>> round(bracket.upper - bracket.lower, 3)
    0.3
    """

    value: float
    lower: float
    upper: float
    standard_error: float
    effective_sample_size: float

    def report(self) -> str:
        """Return the bracket as readable text.

        Returns
        -------
        text : str
            Lines of a label, padded to 20 columns, and a text; nats.
        """
        if math.isinf(self.effective_sample_size):
            return f"log Z               {self.value:.3f} nats, exactly"
        return (
            f"log Z               {self.value:.3f} +- {self.standard_error:.3f} nats\n"
            f"bracket             {self.lower:.3f} to {self.upper:.3f} nats, "
            f"{self.upper - self.lower:.3f} wide\n"
            f"walkers             {self.effective_sample_size:.0f} effective"
        )

    def __str__(self) -> str:
        return self.report()

    def _repr_html_(self) -> str:
        return report_as_html("LogPartition", self.report())


class BracketWidth(NamedTuple):
    """A width of the bracket of log Z, nats, as a function of the number of features."""

    two_features: float
    each_further: float

    def at(self, n_features: int) -> float:
        """Return the width for a number of features, nats."""
        return self.two_features + self.each_further * max(0, n_features - 2)


WANTED_WIDTH = BracketWidth(0.02, 0.005)  # ends the doubling of annealing steps
TRUSTED_WIDTH = BracketWidth(0.05, 0.0075)  # `fit` warns of a wider bracket


class Normalisation(NamedTuple):
    """A bracket of log Z, the estimates of both directions, and their cost."""

    estimate: LogPartition
    forward: float  # nats: annealing from the reference to the model
    forward_error: float  # nats: its standard error, over independent groups of walkers
    reverse: float  # nats: annealing from the model to the reference
    reverse_error: float  # nats
    n_walkers: int  # in each direction
    n_steps: int  # annealing steps of the last run


def estimate_log_partition(
    target: Target,
    draw_base: Callable[[], Tensor],
    model_draws: Tensor,
    ladder: Ladder,
    *,
    noise: Noise,
    tolerance: float,
    max_steps: int,
) -> Normalisation:
    """Bracket log Z by annealing in both directions, with steps doubled until it is narrow.

    Parameters
    ----------
    target : Target
        Path from the reference to the model on joint positions.
    draw_base : callable
        Returns fresh exact draws of the reference, (n_walkers, P).
    model_draws : Tensor of shape (n_walkers, P)
        Equilibrated particles of the model.
    ladder : Ladder
        Determines the annealing schedule.
    noise : IndependentNoise
        Source of the moves.
    tolerance : float
        Width of the bracket, in nats, that ends the doubling if a quarter of the walkers is
        effective.
    max_steps : int
        Annealing steps at most.

    Returns
    -------
    normalisation : Normalisation
        A fresh run with the number of steps found.

    Notes
    -----
    The run that ends the doubling is not returned, because the selection biases it: a run can look
    precise because it missed rare walkers. If fewer than a quarter of the walkers are effective at
    `max_steps`, annealing with resampling gives another lower estimate; the higher one is returned.
    """
    length = thermodynamic_length(ladder.betas, ladder.spread) if len(ladder.betas) > 1 else 4.0
    n_steps = min(max_steps, 8 + int(4.0 * length**2))

    def run() -> Normalisation:
        betas, step_sizes = annealing_schedule(ladder, n_steps)
        forward, _ = anneal(
            start(draw_base(), target), target, betas, step_sizes=step_sizes, noise=noise
        )
        reverse, _ = anneal(
            start(model_draws, target),
            target,
            betas.flip(0),
            step_sizes=step_sizes.flip(0),
            noise=noise,
        )
        return _bracket(forward, reverse, n_steps)

    before = None
    while True:
        result = run()
        effective = result.estimate.effective_sample_size >= _TRUSTED_SHARE * result.n_walkers
        if effective and result.estimate.upper - result.estimate.lower <= tolerance:
            return run()
        if n_steps >= max_steps:
            result = _unfinished(result, before)
            return result if effective else _resampled(result, target, draw_base, ladder, noise)
        before, n_steps = result, min(max_steps, 2 * n_steps)


def _resampled(
    result: Normalisation,
    target: Target,
    draw_base: Callable[[], Tensor],
    ladder: Ladder,
    noise: Noise,
) -> Normalisation:
    """Raise the lower estimate of a result to that of annealing with resampling, if higher."""
    betas, step_sizes = annealing_schedule(ladder, result.n_steps)
    log_weights, _ = anneal(
        start(draw_base(), target),
        target,
        betas,
        step_sizes=step_sizes,
        noise=noise,
        resample_below=_TRUSTED_SHARE,
    )
    better = max(result.forward, log_mean_exp(log_weights))
    least = result.estimate.value - _SIGMAS * result.estimate.standard_error
    lower = max(result.estimate.lower, min(better, least))
    return result._replace(forward=better, estimate=result.estimate._replace(lower=lower))


def _are_few(log_weights: Tensor) -> bool:
    """Return whether few walkers are effective."""
    return bool(effective_sample_size(log_weights) < _FEW_EFFECTIVE * len(log_weights))


def _unfinished(result: Normalisation, before: Normalisation | None) -> Normalisation:
    """Widen the bracket by twice the change in the last doubling, if few walkers are effective.

    The error of annealing is about inversely proportional to the number of steps. The error left is
    therefore about as large as the last change.
    """
    few = result.estimate.effective_sample_size < _FEW_EFFECTIVE * result.n_walkers
    if before is None or not few:
        return result
    estimate = result.estimate
    rise, fall = result.forward - before.forward, before.reverse - result.reverse
    lower = estimate.lower - 2.0 * max(0.0, fall)
    upper = estimate.upper + 2.0 * max(0.0, rise)
    return result._replace(estimate=estimate._replace(lower=lower, upper=upper))


def _second_order(log_weights: Tensor) -> float:
    """Return the log mean weight for normal log weights: their mean plus half their variance.

    Exact to second order in the spread. The log of the mean weight is too low if few walkers are
    effective, because the upper tail of the weights is missed.
    """
    return float(log_weights.mean() + 0.5 * log_weights.var())


def _bracket(forward: Tensor, reverse: Tensor, n_steps: int) -> Normalisation:
    """Combine log weights (n,) of both directions."""
    value, error = bennett(forward, reverse)
    error = max(error, jackknife(lambda a, b: bennett(a, b)[0], forward, reverse))
    below, above = log_mean_exp(forward), -log_mean_exp(reverse)
    # if walkers have not reached their target, `below` may be the higher one
    lower, upper = min(below, above, value - _SIGMAS * error), max(below, above)
    upper = max(upper, value + _SIGMAS * error)
    if _are_few(forward) or _are_few(reverse):
        # the mean weight depends on a few walkers, and misses the tail of the weights
        lower = min(lower, -_second_order(reverse))
        upper = max(upper, _second_order(forward))
    estimate = LogPartition(
        value=value,
        lower=lower,
        upper=upper,
        standard_error=error,
        effective_sample_size=float(effective_sample_size(forward)),
    )
    return Normalisation(
        estimate=estimate,
        forward=below,
        forward_error=jackknife(log_mean_exp, forward),
        reverse=above,
        reverse_error=jackknife(log_mean_exp, reverse),
        n_walkers=len(forward),
        n_steps=n_steps,
    )
