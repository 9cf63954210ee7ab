"""Components of the reference in which no walker starts, and their mass in the model.

In a component with weight 1e-4, one walker in ten thousand starts. If the correction lowers the
energy there by ten nats, it contains a large part of the model, and neither annealing nor a pool
finds it. If the component is so narrow that the correction hardly varies on it, a few exact draws
estimate its mass.

The mass can be added to the estimate of log Z (`with_missed_mass`). Or the path can start from a
reference that gives missed components their mass in the model (`tilted_reference`, `Rebased`).
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
_MIN_EFFECTIVE_DRAWS = 8  # of a component whose estimated mass is used
_MAX_RARE_WALKERS = 0.5  # expected number of walkers below which a component is rare
_MAX_MISSED_SHARE = 0.5  # of the walkers, that start in missed components
_N_PARALLEL_CHUNKS = 4  # chunks of draws in memory at a time
_WHITENED_AT_A_TIME = 2**20  # numbers of rows of which densities are compared


class MissedComponents(NamedTuple):
    """The missed components with a reliable estimate of their mass."""

    # (R,), indices of the reference's components; hides `tuple.index`
    index: Tensor  # type: ignore[assignment]
    log_weights: Tensor  # (R,), nats, of the reference
    log_means: Tensor  # (R,), nats, log of the mean of exp(-correction) over each component


def with_missed_mass(estimate: LogPartition, missed: MissedComponents) -> LogPartition:
    """Add the mass of missed, up-weighted components to `value` and `upper` of log Z, nats.

    The estimate implies that a missed component has the average mean of `exp(-correction)`; the
    excess over this is added. If some walkers did reach the component, the result is too high, and
    scores are too low.
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


def rare_components(reference: MixtureReference, n_walkers: int) -> Tensor:
    """Return the components that fewer than half a walker starts from, by weight, (M,)."""
    return torch.nonzero(torch.exp(reference.log_weights) * n_walkers < _MAX_RARE_WALKERS)[:, 0]


@torch.no_grad()
def component_masses(
    energy: Corrected, index: Tensor, generator: torch.Generator, *, chunk: int = 2**13
) -> MissedComponents:
    """Estimate the mean of `exp(-correction)` over each component of an index (M,).

    Host and device are not synchronised. Other parameters are those of `missed_components`.

    Returns
    -------
    missed : MissedComponents
        Estimates from 64 exact draws of each component; minus infinity if fewer than eight draws
        are effective. Such components are wide, and overlap with others that walkers visit.
    """
    reference = energy.reference
    if not len(index):
        nothing = torch.zeros(0, dtype=torch.float64, device=index.device)
        return MissedComponents(index, nothing, nothing)

    def correction(positions: Tensor) -> Tensor:
        rows = reference.rows(positions.to(reference.location))
        return energy.correction(*reference.parts(rows)).double().reshape(-1, _N_DRAWS)

    corrections = []
    parts = index.split(max(1, chunk // _N_DRAWS))
    for first in range(0, len(parts), _N_PARALLEL_CHUNKS):
        positions = [
            reference.draws_of(part.repeat_interleave(_N_DRAWS), generator)
            for part in parts[first : first + _N_PARALLEL_CHUNKS]
        ]
        corrections += side_by_side(correction, positions)
    log_weights = -torch.cat(corrections)
    log_means = torch.logsumexp(log_weights, 1) - math.log(_N_DRAWS)
    known = effective_sample_size(log_weights) >= _MIN_EFFECTIVE_DRAWS
    log_means = torch.where(known, log_means, -math.inf)
    return MissedComponents(index, reference.log_weights[index].double(), log_means)


def missed_components(
    energy: Corrected, n_walkers: int, generator: torch.Generator, *, chunk: int = 2**13
) -> MissedComponents:
    """Return the rare components with a reliable estimate of their mass; see `component_masses`.

    Parameters
    ----------
    energy : AnchoredEnergy, BridgedEnergy, Composition or PotentialSlice
        The model.
    n_walkers : int
        Walkers that start from draws of the reference.
    generator : torch.Generator
        Source of the draws, on the energy's device.
    chunk : int, default=8192
        Draws evaluated at a time, at least those of one component.
    """
    index = rare_components(energy.reference, n_walkers)
    found = component_masses(energy, index, generator, chunk=chunk)
    known = found.log_means > -math.inf
    return MissedComponents(*(part[known] for part in found))


def tilted_reference(
    reference: MixtureReference, missed: MissedComponents, log_partition: float | Tensor
) -> MixtureReference:
    """Return the reference with the weights of missed components raised to those in the model.

    Only components that the correction up-weights change.

    Parameters
    ----------
    reference : MixtureReference
        Reference in which the components are rare, or one tilted before.
    missed : MissedComponents
        The missed components.
    log_partition : float or 0-d Tensor
        log Z of the model, nats. If it is too low, the raised weights are too high; their sum is
        at most one half.
    """
    weights = torch.exp(reference.log_weights.double())
    before = weights[missed.index]
    shares = torch.exp(missed.log_weights + missed.log_means - log_partition)
    up_weighted = shares > before
    shares = torch.where(up_weighted, shares, 0.0)
    shares = shares * (_MAX_MISSED_SHARE / shares.sum().clamp(min=1e-300)).clamp(max=1.0)
    others = weights.index_put((missed.index,), torch.where(up_weighted, 0.0, before))
    tilted = others * ((1.0 - shares.sum()) / others.sum().clamp(min=1e-300))
    tilted = tilted.index_add(0, missed.index, shares)
    # if all components are rare, there are no others to take weight from
    tilted = torch.where(others.sum() > 0.0, tilted, weights)
    return reference.reweighted(torch.log(tilted))


def defended(reference: MixtureReference, share: float) -> MixtureReference:
    """Return the reference with at least the given share in the first defensive component.

    Its draws reach wells of a correction in the tails of the reference. A reference without
    defensive components is returned unchanged.
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
    """Return which rows x (N, D) are out of distribution, (N,) of bool.

    Under a mixture in which the defensive components have the given share, these rows are likelier
    under the defensive components than under the others.
    """
    log_components = reference.log_components(reference.from_features(x))
    if reference.n_defensive == 0:
        return torch.zeros_like(log_components[:, 0], dtype=torch.bool)
    first = log_components.shape[1] - reference.n_defensive
    main, wide = log_components.tensor_split([first], 1)
    own = torch.logsumexp(reference.log_weights[first:].double(), 0)
    ratio = torch.logsumexp(wide, 1) - own - torch.logsumexp(main, 1)
    return ratio > -math.log(share)


def missed_share(reference: MixtureReference, tilted: MixtureReference) -> Tensor:
    """Return the weight in `tilted` of components whose weight more than doubled."""
    missed = tilted.log_weights > reference.log_weights + math.log(2.0)
    return torch.where(missed, torch.exp(tilted.log_weights), 0.0).sum()


def tilted_draws(
    reference: MixtureReference,
    missed: MissedComponents,
    log_partition: float,
    n: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw from the tilted reference, with importance weights for the reference.

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
    # what a row is whitened to, in double precision
    n_at_once = max(1, _WHITENED_AT_A_TIME // (reference.n_features * len(reference.factors)))
    ratios = []
    for some in y.split(n_at_once):
        logs = [torch.logsumexp(part.log_components(some), 1) for part in (reference, tilted)]
        ratios.append(logs[0] - logs[1])
    return torch.cat(ratios)


class Rebased:
    """An energy anchored on its reference with other weights: same density, other path.

    log Z does not change, because both references are normalised.

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
