"""Components of the reference that walkers started by weight would miss, and what they hold.

A component with a weight of 1e-4 is where one walker in ten thousand starts. If the correction has
lifted it by ten nats, it holds a good part of the model, and neither annealing nor a pool sees it.
Where such a component is so narrow that the correction hardly varies on it, a few exact draws of it
tell its mass.

Two uses of it: walkers start as before, and what was missed is added to log Z (`with_missed_mass`);
or the path starts from a reference with heavier missed components (`tilted_reference`, `Rebased`),
and nothing is missed.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.mcmc.state import Target
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import Corrected
from sklvebm.models.targets import autograd_correction_and_grad, joint_target
from sklvebm.smc.log_partition import LogPartition
from sklvebm.smc.resampling import effective_sample_size
from sklvebm.threads import side_by_side

_N_DRAWS = 64  # of each component
_MIN_EFFECTIVE_DRAWS = 8  # effective draws of a component whose mass counts as known
_MAX_RARE_WALKERS = 0.5  # expected walkers of a component that counts as rare
_MAX_MISSED_SHARE = 0.5  # share of the walkers that missed components are given
_N_PARALLEL_CHUNKS = 4  # chunks of draws that are held at a time


class MissedComponents(NamedTuple):
    """The missed components whose mass is known."""

    # (R,), their places among the reference's; hides `tuple.index`
    index: Tensor  # type: ignore[assignment]
    log_weights: Tensor  # (R,), nats, of the reference
    log_means: Tensor  # (R,), nats: log of the mean of exp(-correction) over each


def with_missed_mass(estimate: LogPartition, missed: MissedComponents) -> LogPartition:
    """Return log Z, nats, with what up-weighted components hold added to `value` and `upper`.

    Walkers that start elsewhere stand for a component they miss, as if it were like the others;
    what it holds beyond that is added. Where some walkers had met it after all, both are too high,
    and scores too low.
    """
    up_weighted = missed.log_means > estimate.value
    if not bool(up_weighted.any()):
        return estimate
    beyond = torch.log1p(-torch.exp(estimate.value - missed.log_means[up_weighted]))
    log_excess = (missed.log_weights + missed.log_means)[up_weighted] + beyond
    excess = float(torch.logsumexp(log_excess, 0))
    return estimate._replace(
        value=float(np.logaddexp(estimate.value, excess)),
        upper=float(np.logaddexp(estimate.upper, excess)),
    )


@torch.no_grad()
def missed_components(
    energy: Corrected, n_walkers: int, generator: torch.Generator, *, chunk: int = 2**13
) -> MissedComponents:
    """Return the components that fewer than half a walker starts from, where a few draws suffice.

    Parameters
    ----------
    energy : AnchoredEnergy, BridgedEnergy, Composition or PotentialSlice
        The model: anything with a mixture as `reference` and a `correction` of x and z.
    n_walkers : int
        Walkers that start by weight.
    generator : torch.Generator
        Source of the draws, on the energy's device.
    chunk : int, default=8192
        Draws evaluated at a time; at least those of one component are.

    Returns
    -------
    missed : MissedComponents
        Mass estimated by 64 exact draws of each, of which eight or more are effective. Components
        on which the correction varies more are wide, and shared by neighbours that are seen.
    """
    reference = energy.reference
    index = torch.nonzero(torch.exp(reference.log_weights) * n_walkers < _MAX_RARE_WALKERS)[:, 0]
    if not len(index):
        nothing = torch.zeros(0, dtype=torch.float64, device=index.device)
        return MissedComponents(index, nothing, nothing)

    def correction(positions: Tensor) -> Tensor:
        x, z = reference.split(positions.to(reference.location))
        return energy.correction(x, z).double().reshape(-1, _N_DRAWS)

    corrections = []
    parts = index.split(max(1, chunk // _N_DRAWS))
    for first in range(0, len(parts), _N_PARALLEL_CHUNKS):
        positions = [
            reference.draws_of(part.repeat_interleave(_N_DRAWS), generator)
            for part in parts[first : first + _N_PARALLEL_CHUNKS]
        ]
        corrections += side_by_side(correction, positions)
    log_weights = -torch.cat(corrections)
    known = effective_sample_size(log_weights) >= _MIN_EFFECTIVE_DRAWS
    log_means = torch.logsumexp(log_weights, 1) - math.log(_N_DRAWS)
    return MissedComponents(
        index[known], reference.log_weights[index[known]].double(), log_means[known]
    )


def tilted_reference(
    reference: MixtureReference, missed: MissedComponents, log_partition: float
) -> MixtureReference:
    """Return the reference with missed components as likely as the model has them.

    Only those count that the correction up-weights.

    Parameters
    ----------
    reference : MixtureReference
        What walkers start from: that in which components are rare, or one tilted before.
    missed : MissedComponents
        The missed components.
    log_partition : float
        log Z of the model, nats: what masses are shares of. Where too low, shares are too high, but
        half at most together.
    """
    weights = torch.exp(reference.log_weights.double())
    shares = torch.exp(missed.log_weights + missed.log_means - log_partition)
    up_weighted = shares > weights[missed.index]
    index, shares = missed.index[up_weighted], shares[up_weighted].to(weights)
    shares = shares * min(1.0, _MAX_MISSED_SHARE / max(float(shares.sum()), 1e-300))
    tilted = weights.clone()
    tilted[index] = 0.0
    if not float(tilted.sum()) > 0.0:  # all are rare: no others to take weight from
        return reference
    tilted *= (1.0 - shares.sum()) / tilted.sum()
    tilted[index] = shares
    return reference.reweighted(torch.log(tilted))


def defended(reference: MixtureReference, share: float) -> MixtureReference:
    """Return the reference with at least a share of its weight in the first defensive component.

    Draws of it come where those of the reference are rare, which is where wells of a correction
    would go unseen. A reference without defensive components stays as it is.
    """
    if reference.n_defensive == 0:
        return reference
    weights = torch.exp(reference.log_weights.double())
    place = len(weights) - reference.n_defensive
    raised = weights.clone()
    raised[place] = torch.clamp(weights[place], min=share)
    others = (1.0 - raised[place]) / (1.0 - weights[place]).clamp(min=1e-300)
    raised[:place] *= others
    raised[place + 1 :] *= others
    return reference.reweighted(torch.log(raised))


def is_outside(reference: MixtureReference, x: Tensor, share: float) -> Tensor:
    """Tell which rows x (N, D) only the tails of a reference reach, (N,).

    Those that the other components explain worse than the defensive ones would, had these the
    given share of the density.
    """
    log_components = reference.log_components(reference.from_features(x))
    if reference.n_defensive == 0:
        return torch.zeros_like(log_components[:, 0], dtype=torch.bool)
    first = log_components.shape[1] - reference.n_defensive
    main, wide = log_components.tensor_split([first], 1)
    own = torch.logsumexp(reference.log_weights[first:].double(), 0)
    ratio = torch.logsumexp(wide, 1) - own - torch.logsumexp(main, 1)
    return ratio > -math.log(share)


def missed_share(reference: MixtureReference, tilted: MixtureReference) -> float:
    """Return what `tilted` has in components that start less than half as often in `reference`."""
    missed = tilted.log_weights > reference.log_weights + math.log(2.0)
    return float(torch.exp(tilted.log_weights[missed]).sum())


def tilted_draws(
    reference: MixtureReference,
    missed: MissedComponents,
    log_partition: float,
    n: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw from the reference with missed components as likely as the model has them.

    Parameters
    ----------
    reference, missed, log_partition
        As in `tilted_reference`.
    n : int
        Number of draws.
    generator : torch.Generator
        Source of all randomness.

    Returns
    -------
    positions : Tensor of shape (n, D + L)
        Draws in the reference's coordinates.
    log_weights : Tensor of shape (n,), float64
        Their weights under the reference, nats; zero if no component was up-weighted.
    """
    tilted = tilted_reference(reference, missed, log_partition)
    positions = tilted.sample(n, generator)
    return positions, log_ratio(reference, tilted, positions)


def log_ratio(reference: MixtureReference, tilted: MixtureReference, positions: Tensor) -> Tensor:
    """Return `log r - log r'` at positions (B, D + L) of both, (B,), float64, nats."""
    y = positions[:, : reference.n_features]
    logs = [torch.logsumexp(part.log_components(y), 1) for part in (reference, tilted)]
    return logs[0] - logs[1]


class Rebased:
    """An energy on its reference with other weights: the same density, another path to it.

    log Z stays what it is relative to a normalised reference, whichever that is.

    Parameters
    ----------
    energy : AnchoredEnergy, BridgedEnergy, Composition or PotentialSlice
        Its correction must be differentiable in x and z.
    reference : MixtureReference
        The energy's own, `reweighted`.
    """

    def __init__(self, energy: Corrected, reference: MixtureReference) -> None:
        self.energy, self.reference = energy, reference
        self.n_features, self.n_latents = energy.n_features, energy.n_latents

    def correction(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the energy above the new reference's, (B,), nats."""
        change = self.reference.log_marginal(x) - self.energy.reference.log_marginal(x)
        return self.energy.correction(x, z) + change

    def target(self) -> Target:
        """Return the path from the new reference to the density."""
        return joint_target(self, autograd_correction_and_grad(self))
