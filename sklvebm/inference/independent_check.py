r"""Independent estimates of log Z, and the bracket of log Z widened by contradicting ones.

Annealing in both directions can miss a well in the tails of the reference r, where no walker starts
and no chain arrives. Here draws u come from a *defended* reference r', with half of its weight in
the defensive component around the rows. With the correction f, their importance weights

.. math:: \log w = \log r(u) - \log r'(u) - f(u), \qquad E_{r'}[w] = Z,

estimate Z, including such wells. Heavy-tailed weights are detected by the shape k of a generalised
Pareto distribution fitted to the largest ones [1]_. Beyond 0.7, a low mean weight is no evidence.
A high one still is: by Markov's inequality, the mean weight exceeds `exp(a) Z` with probability
`exp(-a)` at most.

References
----------
.. [1] A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto smoothed importance sampling",
   Journal of Machine Learning Research 25, 2024.
.. [2] J. Zhang, M. Stephens, "A new and efficient estimation method for the generalized Pareto
   distribution", Technometrics 51, 2009.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.inference.missed_components import defended, log_ratio
from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import IndependentNoise, Target
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import PathEnergy
from sklvebm.smc.annealing import Ladder, anneal, annealing_schedule
from sklvebm.smc.free_energy import jackknife
from sklvebm.smc.log_partition import LogPartition
from sklvebm.smc.resampling import log_mean_exp

_DEFENSIVE_SHARE = 0.5  # of the defended reference
_N_DRAWS, _CHUNK_DRAWS = 2**16, 2**13  # importance draws, and those evaluated at once
_EVALUATED_AT_A_TIME = 2**20  # numbers of these
_N_WALKERS = 1024  # annealed from the defended reference
# Standard errors of a difference that is a contradiction, in general and above the claim. The
# latter is smaller: the distribution of a mean weight is skewed towards values that are too low.
_MAX_STANDARD_ERRORS, _MAX_STANDARD_ERRORS_ABOVE = 3.0, 2.0
_MARKOV_MARGIN = math.log(100.0)  # nats; the log mean weight exceeds log Z + this in 1 % at most
MAX_RELIABLE_SHAPE = 0.7  # of the weights' tail, for which a low mean weight is evidence


class IndependentEstimate(NamedTuple):
    """One estimate of log Z; all but the shape in nats."""

    value: float
    standard_error: float
    shape: float  # of the tail of the weights


class IndependentCheck(NamedTuple):
    """Estimates of log Z for comparison with that of annealing."""

    importance: IndependentEstimate  # importance sampling from the defended reference
    annealed: IndependentEstimate  # annealing from the defended reference
    reverse: IndependentEstimate  # importance sampling of the reference from draws of the model


def pareto_shape(log_weights: np.ndarray) -> float:
    """Estimate the shape k of a generalised Pareto distribution of the largest weights.

    Parameters
    ----------
    log_weights : ndarray of shape (n,)
        In nats.

    Returns
    -------
    shape : float
        Weights have a finite variance for k < 1/2, and a finite mean for k < 1. `-inf` if the
        weights do not vary; `inf` if there are too few of them.

    Notes
    -----
    The profile-Bayes estimate of [2]_ on the largest `min(n / 5, 3 sqrt(n))` weights, shrunk
    towards one half by a prior worth ten weights, as in [1]_ of the module's docstring.
    """
    n_tail = int(min(0.2 * len(log_weights), 3.0 * math.sqrt(len(log_weights))))
    if n_tail < 5:
        return math.inf
    ordered = np.sort(np.asarray(log_weights, dtype=np.float64))
    if not np.isfinite(ordered[-1]):
        return math.inf
    # relative to the largest: exponentials of differences stay finite
    tail = np.exp(ordered[-n_tail:] - ordered[-1])
    excess = tail - np.exp(ordered[-n_tail - 1] - ordered[-1])
    if excess[-1] <= 1e-12:
        return -math.inf
    excess = excess[excess > 0.0]
    n = len(excess)
    if n < 5:
        return math.inf
    n_grid = 30 + int(math.sqrt(n))
    quartile = excess[int(n / 4.0 + 0.5) - 1]
    grid = 1.0 / excess[-1] + (1.0 - np.sqrt(n_grid / (np.arange(n_grid) + 0.5))) / (3.0 * quartile)
    shapes = np.log1p(-grid[:, None] * excess).mean(1)
    profile = n * (np.log(-grid / shapes) - shapes - 1.0)
    weights = np.exp(profile - np.logaddexp.reduce(profile))
    scale = float((grid * weights).sum())
    shape = float(np.log1p(-scale * excess).mean())
    return (n * shape + 10.0 * 0.5) / (n + 10.0)


@torch.no_grad()
def check_independently(
    energy: PathEnergy,
    target: Target,
    ladder: Ladder,
    model_draws: Tensor,
    *,
    n_steps: int,
    noise: IndependentNoise,
) -> IndependentCheck:
    """Estimate log Z from draws of a defended reference, and from draws of the model.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    target : Target
        Path from its reference to it.
    ladder : Ladder
        Determines the annealing schedule.
    model_draws : Tensor of shape (n, D + L)
        Equilibrated particles of the model.
    n_steps : int
        Annealing steps.
    noise : IndependentNoise
        Source of draws and moves.
    """
    reference = energy.reference
    wider = defended(reference, _DEFENSIVE_SHARE)
    n_parts = _N_DRAWS // _CHUNK_DRAWS
    parts = [_importance_weights(energy, wider, _CHUNK_DRAWS, noise) for _ in range(n_parts)]
    positions, log_weights = _weighted_starts(reference, wider, _N_WALKERS, noise)
    betas, step_sizes = annealing_schedule(ladder, n_steps)
    annealed, _ = anneal(
        start(positions, target),
        target,
        betas,
        step_sizes=step_sizes,
        noise=noise,
        log_weights=log_weights,
    )
    back = energy.correction(*reference.split(model_draws)).double()
    reverse = _estimate(back)
    return IndependentCheck(
        _estimate(torch.cat(parts)), _estimate(annealed), reverse._replace(value=-reverse.value)
    )


def _weighted_starts(
    reference: MixtureReference, wider: MixtureReference, n: int, noise: IndependentNoise
) -> tuple[Tensor, Tensor]:
    """Return draws (n, D + L) of the wider reference with their log weights (n,), nats."""
    positions = wider.sample(n, noise.generator, stratified=True)
    return positions, log_ratio(reference, wider, positions)


def _importance_weights(
    energy: PathEnergy, wider: MixtureReference, n: int, noise: IndependentNoise
) -> Tensor:
    """Return log weights (n,), nats, of draws of the wider reference under the model."""
    reference = energy.reference
    positions = wider.sample(n, noise.generator, stratified=True)
    parts = []
    for some in positions.split(max(1, _EVALUATED_AT_A_TIME // positions.shape[1])):
        correction = energy.correction(*reference.split(some)).double()
        parts.append(log_ratio(reference, wider, some) - correction)
    return torch.cat(parts)


def _estimate(log_weights: Tensor) -> IndependentEstimate:
    # stratified draws are ordered by component; every jackknife group takes some of each
    return IndependentEstimate(
        log_mean_exp(log_weights),
        jackknife(log_mean_exp, log_weights),
        pareto_shape(log_weights.cpu().numpy()),
    )


def widened(claimed: LogPartition, check: IndependentCheck, tolerance: float) -> LogPartition:
    """Widen the bracket of log Z, nats, so that it contains contradicting estimates.

    Parameters
    ----------
    claimed : LogPartition
        Estimate by annealing in both directions.
    check : IndependentCheck
        Independent estimates.
    tolerance : float
        Largest difference, in nats, that never is a contradiction.
    """
    lower, upper = claimed.lower, claimed.upper
    for estimate in check:
        margin = _MAX_STANDARD_ERRORS * math.hypot(estimate.standard_error, claimed.standard_error)
        off = estimate.value - claimed.value
        is_reliable = estimate.shape < MAX_RELIABLE_SHAPE and math.isfinite(estimate.value)
        # mean weights from the reference are rarely too high, even with heavy tails
        from_below = estimate is not check.reverse
        above = min(margin * _MAX_STANDARD_ERRORS_ABOVE / _MAX_STANDARD_ERRORS, _MARKOV_MARGIN)
        is_high = from_below and off > tolerance + above
        if is_high or (is_reliable and abs(off) > margin + tolerance):
            beyond = _MAX_STANDARD_ERRORS * estimate.standard_error
            lower = min(lower, estimate.value - beyond)
            upper = max(upper, estimate.value + beyond)
    return claimed._replace(lower=lower, upper=upper)
