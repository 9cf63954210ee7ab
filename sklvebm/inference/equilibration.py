"""Equilibrated chains of a density, started from its reference."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sklvebm.inference.missed_components import (
    MissedComponents,
    Rebased,
    missed_share,
    tilted_reference,
)
from sklvebm.mcmc.adaptation import adapt_step_size
from sklvebm.mcmc.langevin import KERNELS, crank_nicolson_step, start
from sklvebm.mcmc.state import Chains, IndependentNoise, Target
from sklvebm.models.energies import Corrected
from sklvebm.smc.annealing import anneal, annealing_schedule, single_rung
from sklvebm.smc.log_partition import Normalisation, estimate_log_partition
from sklvebm.smc.resampling import effective_sample_size, log_mean_exp, resample_chains

_KERNEL = KERNELS["crank-nicolson"]
_FIRST_STEPS, _MAX_STEPS = 64, 512  # annealing steps
MIN_WALKERS = 256  # of annealing, also for fewer draws
_MIN_EFFECTIVE_SHARE = 0.25  # of the walkers; fewer effective walkers double the annealing steps
_N_MOVES = 50  # Metropolis moves that separate and equilibrate resampled walkers
# reweightings for missed components; the log Z that the first one uses misses their mass
_MAX_TILTS = 3
_MIN_MISSED_WALKERS = 0.5  # expected walkers in missed components that require a reweighting


class Annealed(Corrected, Protocol):
    """A density with a path from its reference to itself."""

    def target(self) -> Target:
        """Return the path."""


class Equilibrated(NamedTuple):
    """Chains of a density, and the path on which they were annealed."""

    energy: Annealed  # the one given, or `Rebased` where missed components were up-weighted
    chains: Chains  # in the coordinates of both
    step_size: Tensor  # 0-d, of their last moves


def equilibrated(
    energy: Annealed, n: int, missed: MissedComponents, generator: torch.Generator
) -> Equilibrated:
    """Return n chains that follow an energy.

    Exact draws of the reference are annealed, resampled and moved. Annealing steps are doubled
    until a quarter of the walkers is effective, up to 512. If missed components, with more than
    twice their weight in the reference, would hold half a walker or more, annealing starts again
    from a reference that gives them their weight in the model.

    Parameters
    ----------
    energy : Composition or PotentialSlice
        Its correction must be differentiable.
    n : int
        Number of chains; at least 256 walkers are annealed.
    missed : MissedComponents
        Missed components of the energy's reference.
    generator : torch.Generator
        Source of all noise.
    """
    path: Annealed = energy
    n_walkers = max(n, MIN_WALKERS)
    n_steps, n_tilts = _FIRST_STEPS, 0
    while True:
        log_weights, chains = _annealed(path, n_walkers, n_steps, generator)
        tilted = tilted_reference(path.reference, missed, log_mean_exp(log_weights))
        n_missed = n_walkers * missed_share(path.reference, tilted)
        if n_missed >= _MIN_MISSED_WALKERS and n_tilts < _MAX_TILTS:
            path, n_tilts = Rebased(energy, tilted), n_tilts + 1
            continue
        share = float(effective_sample_size(log_weights - log_weights.max())) / n_walkers
        if share >= _MIN_EFFECTIVE_SHARE or n_steps >= _MAX_STEPS:
            break
        n_steps *= 2
    chains = resample_chains(chains, log_weights, IndependentNoise(generator), n)
    return Equilibrated(path, *moved(path, chains, _N_MOVES, generator))


def _annealed(
    path: Annealed, n_walkers: int, n_steps: int, generator: torch.Generator
) -> tuple[Tensor, Chains]:
    """Return log weights (n_walkers,), nats, and chains after annealing with resampling."""
    target = path.target()
    step_size = path.reference.means.new_tensor(_KERNEL.default_step_size)
    betas, step_sizes = annealing_schedule(single_rung(step_size), n_steps)
    begin = start(path.reference.sample(n_walkers, generator), target)
    noise = IndependentNoise(generator)
    return anneal(begin, target, betas, step_sizes=step_sizes, noise=noise, resample_below=0.5)


def moved(
    path: Annealed, chains: Chains, n_moves: int, generator: torch.Generator
) -> tuple[Chains, Tensor]:
    """Return chains after moves for which the density is stationary, and their step size, 0-d.

    The step size is adapted over the first half of the moves.
    """
    target, noise = path.target(), IndependentNoise(generator)
    step_size = path.reference.means.new_tensor(_KERNEL.default_step_size)
    beta = torch.ones_like(chains.value.correction)
    for number in range(n_moves):
        chains, info = crank_nicolson_step(
            chains, target, beta=beta, step_size=step_size.expand(len(beta)), noise=noise
        )
        if 2 * number < n_moves:
            step_size = adapt_step_size(_KERNEL, step_size, info.acceptance.mean())
    return chains, step_size


def bracketed(found: Equilibrated, tolerance: float, generator: torch.Generator) -> Normalisation:
    """Bracket log Z, nats, by annealing between the reference and the chains; both ways.

    The reference has as many walkers as there are chains. Parameters are those of
    `estimate_log_partition`.
    """
    n_walkers = len(found.chains.position)
    return estimate_log_partition(
        found.energy.target(),
        lambda: found.energy.reference.sample(n_walkers, generator, stratified=True),
        found.chains.position,
        single_rung(found.step_size),
        noise=IndependentNoise(generator),
        tolerance=tolerance,
        max_steps=_MAX_STEPS,
    )
