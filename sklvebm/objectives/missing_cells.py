"""Training on rows with missing cells: they are particles that the energy moves, as latents are."""

from typing import Any

import torch
from torch import Tensor

from sklvebm.inference.missing_cells import moved_cells
from sklvebm.mcmc.langevin import KERNELS
from sklvebm.mcmc.state import Batch, IndependentNoise, ParticleState
from sklvebm.models.energies import PathEnergy
from sklvebm.objectives.row_particles import RowParticles
from sklvebm.objectives.tempered_pool import log_ratio_to_reference
from sklvebm.row_weights import mean_on_device
from sklvebm.smc.quasi_random import latent_nodes

_STEP_SIZE = KERNELS["crank-nicolson"].default_step_size
_MONITOR_NODES = 16  # latents per completion of a monitored row
_MAX_MOVED_ROWS = 64  # of one update: conditioning the mixture of a reference takes most of it


class WithMissingCells:
    """An objective on completed rows, whose missing cells move before every update.

    The gradient of the likelihood of the observed cells is the expectation of the ordinary one over
    the missing cells and latents given these. Each row has one persistent particle of its missing
    cells, joined to the first particle of its latents.

    Parameters
    ----------
    objective : ParticleLikelihood or WassersteinFlow
        The objective on complete rows.
    observed : Tensor of shape (N, D)
        Standardised training rows, NaN in missing cells.
    rows : Tensor of shape (N, D)
        The same rows completed, on the device of training; modified.
    base : float
        Mean log density of the monitored rows' observed cells under the reference, nats.
    n_copies : int
        Completions of each monitored row by the reference, row by row.
    """

    def __init__(
        self, objective: Any, observed: Tensor, rows: Tensor, *, base: float, n_copies: int
    ) -> None:
        self.objective, self.observed, self.rows = objective, observed, rows
        self.base, self.n_copies = base, n_copies
        self.is_missing = torch.isnan(observed).any(1)

    def __getattr__(self, name: str) -> Any:
        # everything that is not defined here is the objective's own
        return getattr(self.objective, name)

    def state(self) -> dict[str, Any]:
        """Return the completed rows, not copied: they are particles, too."""
        return {"rows": self.rows}

    def load(self, state: dict[str, Any]) -> None:
        """Copy completed rows that `state` returned to the place of these."""
        self.rows.copy_(state["rows"])

    def step(
        self, energy: PathEnergy, batch: Batch, state: Any, generator: torch.Generator
    ) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Move missing cells of the batch, then take the objective's step."""
        self._move_cells(energy, batch.index, state, generator)
        result: tuple[Tensor, Any, dict[str, Tensor]] = self.objective.step(
            energy, self._completed(batch), state, generator
        )
        return result

    def before_update(
        self, energy: PathEnergy, index: Tensor, state: Any, generator: torch.Generator
    ) -> Any:
        """Move missing cells of the batch, then do what the objective does before an update.

        Cells are never moved by a recording: the host sorts the patterns of the batch.
        """
        self._move_cells(energy, index, state, generator)
        return self.objective.before_update(energy, index, state, generator)

    def update(
        self, energy: PathEnergy, batch: Batch, state: Any, generator: torch.Generator
    ) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Return loss, state and metrics of the objective's update, with completed rows."""
        result: tuple[Tensor, Any, dict[str, Tensor]] = self.objective.update(
            energy, self._completed(batch), state, generator
        )
        return result

    def _completed(self, batch: Batch) -> Batch:
        return Batch(self.rows[batch.index], batch.index)

    @torch.no_grad()
    def lower_bound(
        self,
        energy: PathEnergy,
        state: Any,
        target: PathEnergy,
        x: Tensor,
        generator: torch.Generator,
        *,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean bound on the log density of observed cells, nats, 0-d.

        Parameters are those of the objective; `x` are completions, (N * n_copies, D).
        """
        nodes = latent_nodes(_MONITOR_NODES, energy.n_latents, seed=0).to(x)
        ratios = log_ratio_to_reference(target, x, nodes, self.n_copies)
        particles = state if isinstance(state, ParticleState) else state.particles
        log_z = self.objective.tempered.log_partition(energy, particles, target, generator)
        return self.base + mean_on_device(ratios, row_weights) - log_z

    def _move_cells(
        self, energy: PathEnergy, index: Tensor, state: Any, generator: torch.Generator
    ) -> None:
        """Move the missing cells of rows at places `index`, in place."""
        places = index[self.is_missing[index]][:_MAX_MOVED_ROWS]
        if len(places):
            self._move(energy, places, state, IndependentNoise(generator))

    def _move(
        self, energy: PathEnergy, places: Tensor, state: Any, noise: IndependentNoise
    ) -> None:
        rows = self.rows[places]
        latents = state.latents if isinstance(state, ParticleState) else None
        if isinstance(latents, RowParticles):
            e = latents.values[places, 0]
        else:  # other families draw latents anew
            e = noise.normal(rows.new_empty(len(places), energy.n_latents))
        position = torch.cat([rows, e], 1)
        step_size = rows.new_tensor(_STEP_SIZE)
        moved = moved_cells(energy, self.observed[places], position, step_size, noise)
        self.rows[places] = moved[:, : rows.shape[1]]
        if isinstance(latents, RowParticles):
            latents.values[places, 0] = moved[:, rows.shape[1] :]
