"""Missing cells and latents of rows under an energy: one set of weighted particles.

A missing cell is one more latent variable. Particles of a row start as exact draws of the
reference's conditional distribution of missing cells and latents, and are annealed to the model.
All rows use the same random numbers, so that the result of a row depends on this row alone.

Positions (B, D + L) hold the missing cells in standardised units and the whitened latents.
Coordinates of observed cells are standard normal numbers that nothing depends on: rows with
different missing cells then share one array.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.inference.posterior import (
    LATENT_STAGES,
    ROW_PARTICLES,
    WeightedParticles,
    annealed_back,
    polish,
    shared_noise,
    weighted_particles,
)
from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import Frame, IndependentNoise, Noise, Target, Value, stack_rows
from sklvebm.mixtures.components import draw_categorical
from sklvebm.mixtures.missing_cells import Components, blocks, components_of, conditioned
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import PathEnergy
from sklvebm.smc.quasi_random import latent_nodes
from sklvebm.smc.resampling import effective_sample_size

_JITTER = 1e-12  # of the variances; rounding of a small conditional variance


class RowConditionals(NamedTuple):
    """The reference's components given the observed cells of each row, double precision."""

    log_joint: Tensor  # (N, M), log weight plus log density of the observed cells, nats
    centres: Tensor  # (N, M, D), means of the missing cells; zero in observed cells
    pattern: Tensor  # (N,), index of the row's pattern
    # (P, K, D, D), triangular roots of the covariances of the missing cells; one in observed cells
    roots: Tensor
    inverse_roots: Tensor  # (P, K, D, D)


def row_conditionals(x: Tensor, components: Components) -> RowConditionals:
    """Condition a mixture on the observed cells of rows x (N, D), NaN in missing cells."""
    (n, d), m = x.shape, len(components.means)
    log_joint = x.new_empty((n, m), dtype=torch.float64)
    centres = x.new_empty((n, m, d), dtype=torch.float64)
    pattern = torch.empty(n, dtype=torch.long, device=x.device)
    roots: list[Tensor] = []
    variances = torch.diagonal(components.covariances, dim1=1, dim2=2)
    n_patterns = 0
    for block in blocks(x, components):
        given, where = conditioned(block, components), block.index.reshape(-1)
        seen = block.is_observed.double().unsqueeze(1)  # (P, 1, D)
        log_joint[where] = given.log_joint.transpose(1, 2).flatten(0, 1)
        hidden = given.centres * (1.0 - seen).unsqueeze(2)
        centres[where] = hidden.transpose(1, 2).flatten(0, 1)
        number = torch.arange(len(block.index), device=x.device) + n_patterns
        pattern[where] = number.repeat_interleave(block.index.shape[1])
        n_patterns += len(block.index)
        filled = given.covariances + torch.diag_embed(seen + _JITTER * variances)
        roots.append(torch.linalg.cholesky(filled))
    root = torch.cat(roots)
    identity = torch.eye(d, dtype=root.dtype, device=root.device).expand_as(root)
    inverse = torch.linalg.solve_triangular(root, identity, upper=False)
    return RowConditionals(log_joint, centres, pattern, root, inverse)


class ReferenceCells:
    """Missing cells and latents of rows under a reference, given the observed cells.

    Parameters
    ----------
    reference : MixtureReference
        The reference, in double precision.
    x : Tensor of shape (N, D)
        Standardised rows, NaN in missing cells.
    n_copies : int
        Particles of each row.
    """

    def __init__(self, reference: MixtureReference, x: Tensor, n_copies: int) -> None:
        self.reference, self.x, self.n_copies = reference, x, n_copies
        self.is_missing = torch.isnan(x)
        self.components = components_of(reference)
        self.given = row_conditionals(x, self.components)

    @property
    def n_nodes(self) -> int:
        """Normal numbers that make one draw."""
        return 1 + self.reference.n_features + self.reference.n_latents

    def draws(self, nodes: Tensor) -> Tensor:
        """Map normal numbers to draws of the conditional distribution.

        Parameters
        ----------
        nodes : Tensor of shape (N or 1, n_copies, n_nodes)
            The first coordinate selects the component.

        Returns
        -------
        position : Tensor of shape (N, n_copies, D + L)
        """
        n = len(self.x)
        cumulative = torch.softmax(self.given.log_joint, 1).cumsum(1)
        level = torch.special.ndtr(nodes[:, :, 0].double()) * cumulative[:, -1:]
        component = torch.searchsorted(cumulative, level.contiguous())
        component = component.clamp(max=cumulative.shape[1] - 1)
        noise = nodes[:, :, 1:].expand(n, -1, -1).flatten(0, 1)
        rows = stack_rows(torch.arange(n, device=self.x.device), self.n_copies)
        position = self._frame(rows, component.reshape(-1)).colour(noise)
        return position.reshape(n, self.n_copies, -1)

    def complete(self, position: Tensor) -> Tensor:
        """Return rows (N, K, D) with the missing cells of positions (N, K, D + L)."""
        d = self.x.shape[1]
        return torch.where(self.is_missing.unsqueeze(1), position[:, :, :d], self.x.unsqueeze(1))

    def _frame(self, rows: Tensor, component: Tensor) -> Frame:
        """Return frames in which a component (B,) of each row (B,) is standard normal."""
        given, d, like = self.given, self.x.shape[1], self.x
        which, pattern = self.components.covariance_of[component], given.pattern[rows]
        centre = given.centres[rows, component].to(like)
        scale = self.components.scales[component].to(like).unsqueeze(1)
        scale = torch.where(self.is_missing[rows], scale, 1.0)
        root, inverse = (
            part[pattern, which].to(like) for part in (given.roots, given.inverse_roots)
        )

        def on_cells(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            # latents are standard normal already
            return lambda u: torch.cat([function(u[:, :d]), u[:, d:]], 1)

        def product(rows: Tensor, matrices: Tensor) -> Tensor:
            return torch.bmm(rows.unsqueeze(1), matrices).squeeze(1)

        return Frame(
            whiten=on_cells(lambda u: product((u - centre) / scale, inverse.mT)),
            colour=on_cells(lambda s: centre + scale * product(s, root.mT)),
            pull=on_cells(lambda grad: product(scale * grad, root)),
        )


class MissingCells(ReferenceCells):
    """The path from the reference to an energy, of missing cells and latents given observed cells.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model, in double precision.
    x, n_copies
        As for `ReferenceCells`.
    """

    def __init__(self, energy: PathEnergy, x: Tensor, n_copies: int) -> None:
        super().__init__(energy.reference, x, n_copies)
        self._correction_and_grad = select_correction_and_grad(energy)

    def target(self, rows: Tensor, n_copies: int | None = None) -> Target:
        """Return the path for the particles of some rows (n,), stacked row by row."""
        reference, d = self.reference, self.x.shape[1]
        stacked = stack_rows(rows, n_copies or self.n_copies)
        x, hidden = self.x[stacked], self.is_missing[stacked]

        def filled(position: Tensor) -> Tensor:
            return torch.where(hidden, position[:, :d], x)

        def evaluate(position: Tensor) -> Value:
            full, e = filled(position), position[:, d:]
            z = reference.to_latents(full, e)
            correction, grad = self._correction_and_grad(torch.cat([full, z], 1))
            grad_x, grad_z = grad[:, :d], grad[:, d:]
            grad_x = torch.where(hidden, torch.addmm(grad_x, grad_z, reference.latent_map), 0.0)
            return Value(correction, torch.cat([grad_x, grad_z * reference.latent_scale], 1))

        def base(position: Tensor) -> tuple[Tensor, Tensor]:
            y = reference.from_features(filled(position))
            energies, grad = reference.marginal_energy_and_grad(y)
            grad = torch.where(hidden, grad @ reference.inverse_root, position[:, :d])
            free = torch.where(hidden, 0.0, position[:, :d]).square().sum(1)
            e = position[:, d:]
            return energies + 0.5 * (free + e.square().sum(1)), torch.cat([grad, e], 1)

        def frames(position: Tensor, noise: Noise) -> Frame:
            y = reference.from_features(filled(position))
            # the component given all cells: observed cells are fixed
            return self._frame(stacked, draw_categorical(reference.log_components(y), noise))

        return Target(evaluate, base, frames)


def missing_particles(
    energy: PathEnergy,
    x: Tensor,
    *,
    step_size: float,
    seed: int,
    n_particles: int = ROW_PARTICLES,
) -> tuple[MissingCells, WeightedParticles]:
    """Return weighted particles of the missing cells and latents of rows x (N, D).

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model, in double precision.
    x : Tensor of shape (N, D)
        Standardised rows, NaN in missing cells.
    step_size : float
        Crank-Nicolson step, squared white units per nat.
    seed : int
        Seed of nodes and noise.
    n_particles : int, default=64
        Particles of each row, a power of two.

    Returns
    -------
    cells : MissingCells
        The path, which completes rows.
    particles : WeightedParticles
        The log of the density of the observed cells is `log r + log_total_weight - log Z`, with r
        the reference's density of these cells.
    """
    cells = MissingCells(energy, x, n_particles)
    particles = weighted_particles(
        cells.target,
        cells.draws(latent_nodes(n_particles, cells.n_nodes, seed).to(x)[None]),
        step_size=step_size,
        make_noise=shared_noise(seed, n_particles),
        stages=LATENT_STAGES,
    )
    return cells, particles


def observed_evidence(
    energy: PathEnergy, x: Tensor, *, step_size: float, seed: int, from_above: bool = False
) -> Tensor:
    """Return the log evidence of the observed cells relative to the reference's, (N,), nats.

    From above, particles are annealed back; see `posterior.evidence_from_above`.
    """
    cells, particles = missing_particles(energy, x, step_size=step_size, seed=seed)
    if not from_above:
        return particles.log_total_weight()
    target = cells.target(torch.arange(len(x), device=x.device))
    return annealed_back(target, particles, step_size=step_size, seed=seed)


def missing_draws(
    energy: PathEnergy,
    x: Tensor,
    n_draws: int,
    *,
    step_size: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw missing cells and latents of each row x (N, D).

    Weighted particles of the row are resampled, and moved to separate copies. Draws of different
    rows are independent.

    Returns
    -------
    draws : Tensor of shape (N, n_draws, D + L)
        Positions.
    log_weights : Tensor of shape (N, K)
        Of the particles that were resampled, nats.
    """
    n = len(x)
    n_particles = max(ROW_PARTICLES, 2 * n_draws)
    cells, noise = MissingCells(energy, x, n_particles), IndependentNoise(generator)
    particles = weighted_particles(
        cells.target,
        cells.draws(noise.normal(x.new_empty(n, n_particles, cells.n_nodes))),
        step_size=step_size,
        make_noise=lambda stage: noise,
        stages=LATENT_STAGES,
    )
    weights = torch.softmax(particles.log_weights, 1)
    index = torch.multinomial(weights, n_draws, replacement=True, generator=generator)
    rows = torch.arange(n, device=x.device)
    target = cells.target(rows, n_draws)
    chains = start(particles.position[rows[:, None], index].flatten(0, 1), target)
    chains = polish(chains, target, x.new_tensor(step_size), noise)
    return chains.position.reshape(n, n_draws, -1), particles.log_weights


def with_effective_share(answers: Tensor, log_weights: Tensor) -> Tensor:
    """Return answers (N, Q + 1, D): the last one is the share of effective particles (N, K)."""
    share = effective_sample_size(log_weights) / log_weights.shape[1]
    last = share.to(answers)[:, None, None].expand(-1, 1, answers.shape[2])
    return torch.cat([answers, last], 1)


@torch.no_grad()
def moved_cells(
    energy: PathEnergy,
    observed: Tensor,
    position: Tensor,
    step_size: Tensor,
    noise: IndependentNoise,
) -> Tensor:
    """Move missing cells and latents; the energy's conditional distribution is stationary.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    observed : Tensor of shape (N, D)
        Standardised rows, NaN in missing cells.
    position : Tensor of shape (N, D + L)
        The same rows completed, and whitened latents.
    step_size : Tensor, 0-d
        Crank-Nicolson step, squared white units per nat.
    noise : IndependentNoise
        Source of all noise.

    Returns
    -------
    position : Tensor of shape (N, D + L)
        Observed cells are unchanged.
    """
    cells, d = MissingCells(energy, observed, 1), observed.shape[1]
    free = noise.normal(observed)
    own = torch.where(cells.is_missing, position[:, :d], free)
    target = cells.target(torch.arange(len(observed), device=observed.device))
    chains = start(torch.cat([own, position[:, d:]], 1), target)
    chains = polish(chains, target, step_size, noise)
    rows = cells.complete(chains.position[:, None])[:, 0]
    return torch.cat([rows, chains.position[:, d:]], 1)


def weighted_mean(values: Tensor, log_weights: Tensor) -> Tensor:
    """Return the mean (N, 1, D) of weighted values (N, K, D) with log weights (N, K)."""
    return torch.softmax(log_weights, 1).unsqueeze(1) @ values


def weighted_quantiles(values: Tensor, log_weights: Tensor, levels: Tensor) -> Tensor:
    """Return quantiles (N, Q, D) of weighted values (N, K, D) with log weights (N, K).

    The distribution function rises linearly between the middles of neighbouring steps.
    """
    ordered, index = values.sort(1)
    weights = torch.softmax(log_weights, 1).unsqueeze(2).expand_as(values).gather(1, index)
    middles = (weights.cumsum(1) - 0.5 * weights).transpose(1, 2).contiguous()
    ordered = ordered.transpose(1, 2)
    at = levels.to(middles).expand(*middles.shape[:2], len(levels)).contiguous()
    above = torch.searchsorted(middles, at).clamp(1, middles.shape[2] - 1)
    left, right = (middles.gather(2, place) for place in (above - 1, above))
    low, high = (ordered.gather(2, place) for place in (above - 1, above))
    share = ((at - left) / (right - left).clamp(min=1e-300)).clamp(0.0, 1.0)
    return torch.lerp(low, high, share).transpose(1, 2)
