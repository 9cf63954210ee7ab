r"""Estimates of log Z from draws that had no part in the claim, and what they leave of it.

Annealing from the reference and back shares one blindness: a well in the reference's tails is where
no walker starts and no chain comes by. Here draws come from a *defended* reference, of which half
is the defensive component around the rows, and their importance weights,

.. math:: \log w = \log r(u) - \log r'(u) - f(u), \qquad E_{r'}[w] = Z,

say whether there is more than the claim. Heavy-tailed weights are recognised by the shape k of a
generalised Pareto distribution fitted to the largest [1]_: beyond 0.7 the mean of the weights says
nothing where it is low, and still something where it is high, since a mean weight is above
`exp(a) Z` with probability `exp(-a)` at most.

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

_DEFENSIVE_SHARE = 0.5
_N_DRAWS = 2**16  # importance draws, which are evaluated once
_CHUNK_DRAWS = 2**13
_N_WALKERS = 1024  # annealed from the defended reference
_MAX_STANDARD_ERRORS, _MAX_STANDARD_ERRORS_ABOVE = (
    3.0,
    2.0,
)  # of errors; a mean weight is skewed to be too low
_MARKOV_MARGIN = math.log(100.0)  # nats: a mean weight is so much above Z once in a hundred times
MAX_RELIABLE_SHAPE = 0.7  # of the weights' tail: beyond it a low mean says nothing


class IndependentEstimate(NamedTuple):
    """One estimate of log Z; all but the shape in nats."""

    value: float
    standard_error: float
    shape: float  # of the tail of the weights


class IndependentCheck(NamedTuple):
    """Estimates of log Z that the claim is compared with."""

    importance: IndependentEstimate  # draws of the defended reference, weighted once
    annealed: IndependentEstimate  # the same, annealed to the model
    reverse: IndependentEstimate  # draws of the model, weighted back to the reference


def pareto_shape(log_weights: np.ndarray) -> float:
    """Return the shape k of a generalised Pareto distribution of the largest weights.

    Parameters
    ----------
    log_weights : ndarray of shape (n,)
        In nats.

    Returns
    -------
    shape : float
        Weights have finite variance below one half, a finite mean below one. `-inf` where the
        weights do not vary; `inf` where there are too few of them.

    Notes
    -----
    The profile-Bayes estimate of [2]_ on the largest `min(n / 5, 3 sqrt(n))` weights, drawn
    towards one half by a prior worth ten of them, as in [1]_ of the module's docstring.
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
        Shapes the annealing schedule.
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
    parts = [_weighted(energy, wider, _CHUNK_DRAWS, noise)[1] for _ in range(n_parts)]
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


def _weighted(
    energy: PathEnergy, wider: MixtureReference, n: int, noise: IndependentNoise
) -> tuple[Tensor, Tensor]:
    """Return draws (n, D + L) with their log weights (n,) under the model, nats."""
    positions, log_weights = _weighted_starts(energy.reference, wider, n, noise)
    correction = energy.correction(*energy.reference.split(positions)).double()
    return positions, log_weights - correction


def _estimate(log_weights: Tensor) -> IndependentEstimate:
    # draws are in the order of components: groups take every sixteenth, a share of each
    return IndependentEstimate(
        log_mean_exp(log_weights),
        jackknife(log_mean_exp, log_weights),
        pareto_shape(log_weights.cpu().numpy()),
    )


def widened(claimed: LogPartition, check: IndependentCheck, tolerance: float) -> LogPartition:
    """Return the claim with a bracket that contradicting estimates are within, nats.

    Parameters
    ----------
    claimed : LogPartition
        From annealing in both directions.
    check : IndependentCheck
        What other draws say.
    tolerance : float
        Disagreement that is no contradiction, nats.
    """
    lower, upper = claimed.lower, claimed.upper
    for estimate in check:
        margin = _MAX_STANDARD_ERRORS * math.hypot(estimate.standard_error, claimed.standard_error)
        off = estimate.value - claimed.value
        is_reliable = estimate.shape < MAX_RELIABLE_SHAPE and math.isfinite(estimate.value)
        # mean weights from the reference are hardly ever too high, whatever their tail
        from_below = estimate is not check.reverse
        above = min(margin * _MAX_STANDARD_ERRORS_ABOVE / _MAX_STANDARD_ERRORS, _MARKOV_MARGIN)
        is_high = from_below and off > tolerance + above
        if is_high or (is_reliable and abs(off) > margin + tolerance):
            beyond = _MAX_STANDARD_ERRORS * estimate.standard_error
            lower = min(lower, estimate.value - beyond)
            upper = max(upper, estimate.value + beyond)
    return claimed._replace(lower=lower, upper=upper)
