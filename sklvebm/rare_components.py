"""Components of the reference that walkers started by weight would miss, and what they hold.

A component with a weight of 1e-4 is where one walker in ten thousand starts. If the correction has
lifted it by ten nats, it holds a good part of the model, and neither annealing nor a pool sees it.
Where such a component is so narrow that the correction hardly varies on it, a few exact draws of it
tell its mass.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.energies import PathEnergy
from sklvebm.log_partition import LogPartition, effective_sample_size
from sklvebm.reference import MixtureReference

_DRAWS = 64  # of each component
_ENOUGH = 8  # effective draws of a component whose mass counts as known
_FEW_STARTS = 0.5  # expected walkers of a component that counts as rare
_CHUNK = 2**13  # draws evaluated at a time
_MOST_STARTS = 0.5  # share of the walkers that rare components are given


class RareComponents(NamedTuple):
    """The rare components whose mass is known."""

    index: Tensor  # (R,), their places among the reference's
    log_weights: Tensor  # (R,), nats, of the reference
    log_means: Tensor  # (R,), nats: log of the mean of exp(-correction) over each


def with_rare(estimate: LogPartition, rare: RareComponents) -> LogPartition:
    """Return log Z, nats, with what lifted components hold added to `value` and `upper`.

    Walkers that start elsewhere stand for a component they miss, as if it were like the others;
    what it holds beyond that is added. Where some walkers had met it after all, both are too high,
    and scores too low.
    """
    lifted = rare.log_means > estimate.value
    if not bool(lifted.any()):
        return estimate
    beyond = torch.log1p(-torch.exp(estimate.value - rare.log_means[lifted]))
    log_excess = (rare.log_weights + rare.log_means)[lifted] + beyond
    excess = float(torch.logsumexp(log_excess, 0))
    return estimate._replace(
        value=float(np.logaddexp(estimate.value, excess)),
        upper=float(np.logaddexp(estimate.upper, excess)),
    )


@torch.no_grad()
def rare_components(
    energy: PathEnergy, n_walkers: int, generator: torch.Generator
) -> RareComponents:
    """Return the components that fewer than half a walker starts from, where a few draws suffice.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    n_walkers : int
        Walkers that start by weight.
    generator : torch.Generator
        Source of the draws, on the energy's device.

    Returns
    -------
    rare : RareComponents
        Mass estimated by 64 exact draws of each, of which eight or more are effective. Components
        on which the correction varies more are wide, and shared by neighbours that are seen.
    """
    reference = energy.reference
    index = torch.nonzero(torch.exp(reference.log_weights) * n_walkers < _FEW_STARTS)[:, 0]
    corrections = []
    for part in index.split(max(1, _CHUNK // _DRAWS)):
        positions = reference.draws_of(part.repeat_interleave(_DRAWS), generator)
        x, z = reference.split(positions.to(reference.location))
        corrections.append(energy.correction(x, z).double().reshape(len(part), _DRAWS))
    if not corrections:
        nothing = torch.zeros(0, dtype=torch.float64)
        return RareComponents(index, nothing, nothing)
    log_weights = -torch.cat(corrections)
    known = effective_sample_size(log_weights) >= _ENOUGH
    log_means = torch.logsumexp(log_weights, 1) - math.log(_DRAWS)
    return RareComponents(
        index[known], reference.log_weights[index[known]].double(), log_means[known]
    )


def tilted_draws(
    reference: MixtureReference,
    rare: RareComponents,
    log_partition: float,
    n: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw from the reference with rare components as likely as the model has them.

    Parameters
    ----------
    reference : MixtureReference
        What walkers start from.
    rare : RareComponents
        Its rare components.
    log_partition : float
        log Z of the model, nats: what masses are shares of.
    n : int
        Number of draws.
    generator : torch.Generator
        Source of all randomness.

    Returns
    -------
    positions : Tensor of shape (n, D + L)
        Draws in the reference's coordinates.
    log_weights : Tensor of shape (n,), float64
        Their weights under the reference, nats; zero if no component was lifted.
    """
    weights = torch.exp(reference.log_weights.double())
    lifted = rare.log_means > log_partition
    index = rare.index[lifted]
    shares = torch.exp((rare.log_weights + rare.log_means)[lifted] - log_partition)
    shares = shares * min(1.0, _MOST_STARTS / max(float(shares.sum()), 1e-300))
    tilted = weights.clone()
    tilted[index] = 0.0
    tilted *= (1.0 - shares.sum()) / tilted.sum()
    tilted[index] = shares.to(weights)
    component = torch.multinomial(tilted, n, replacement=True, generator=generator)
    positions = reference.draws_of(component, generator)
    joint = reference.log_components(positions[:, : reference.n_features]).double()
    change = torch.log(tilted) - reference.log_weights.double()
    log_weights = torch.logsumexp(joint, 1) - torch.logsumexp(joint + change, 1)
    return positions, log_weights
