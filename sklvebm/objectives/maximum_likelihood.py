r"""Maximum likelihood by coupled particle flows: data particles against a joint pool.

.. math:: \nabla_\theta L = -\frac1n \sum_i E_{p(z|x_i)}[\nabla_\theta f(x_i, z)]
                            + E_{p(x,z)}[\nabla_\theta f(x, z)]        (docs/theory/model.md, eq. 6)

Both expectations are over persistent particles. With one temperature, this is the published
algorithm. With several, the pool is a ladder of replicas. All rungs enter the second expectation
with their multistate weights.
"""

import math
from collections.abc import Hashable
from typing import Any, cast

import torch
from torch import Tensor

from sklvebm.backends import select_contrast
from sklvebm.communication import Communicator
from sklvebm.mcmc.state import Batch, IndependentNoise, ParticleState
from sklvebm.models.energies import PathEnergy
from sklvebm.objectives.frame_move import can_move_in_frames, move_in_frames
from sklvebm.objectives.joint_move import can_move_together, move_together
from sklvebm.objectives.parts import JoinedRows, contrast_in_parts, in_parts
from sklvebm.objectives.pool import Sweep, n_blocks_of
from sklvebm.objectives.posteriors import (
    AmortisedPosterior,
    GaussianPosterior,
    ParticlePosterior,
    Posterior,
    PosteriorMove,
)
from sklvebm.objectives.tempered_pool import TemperedPool, Weighing, free_energy_bound
from sklvebm.row_weights import mean_on_device
from sklvebm.smc.quasi_random import latent_nodes

POSTERIORS = ("particles", "gaussian", "amortized")
NEGATIVES = ("persistent", "contrastive")
_MONITOR_NODES = 16  # latents per monitored row
_LARGE = 2**14  # particles of a pool, whose rows are not made all at once


class ParticleLikelihood:
    """The saddle objective of the latent-variable energy-based model.

    Parameters
    ----------
    dynamics : {"crank-nicolson", "mala", "leimkuhler-matthews", "heun", "ula"}
        Langevin kernel of pool and latents.
    posterior : {"particles", "gaussian", "amortized"}
        What stands for the posteriors of the rows.
    negatives : {"persistent", "contrastive"}
        Where the pool starts an update: where it was, or at rows of the batch with their posterior
        particles, which is joint contrastive divergence and needs a single temperature.
    n_particles : int
        Posterior particles per row.
    n_chains : int
        Joint particles per temperature.
    n_temperatures : int
        Rungs of the ladder; 1 is the plain persistent pool.
    n_langevin_steps : int
        Steps of the pool per update; latents take half as many, at least one.
    step_size : float or None
        Langevin step, squared whitened units per nat; where it starts, if the kernel adapts it.
    most_bytes : float, default=math.inf
        Bytes of posterior particles up to which they stay in memory; more are mapped from a file.
    """

    loss_name, has_total_bound = "contrast", True

    def __init__(
        self,
        *,
        dynamics: str,
        posterior: str = "particles",
        negatives: str = "persistent",
        n_particles: int,
        n_chains: int,
        n_temperatures: int,
        n_langevin_steps: int,
        step_size: float | None,
        most_bytes: float = math.inf,
    ) -> None:
        self.tempered = TemperedPool(
            dynamics=dynamics,
            n_chains=n_chains,
            n_temperatures=n_temperatures,
            n_langevin_steps=n_langevin_steps,
            step_size=step_size,
        )
        self.negatives, self.n_particles, self.n_chains = negatives, n_particles, n_chains
        self._row_share = 1.0  # of this rank's rows in the mean over all ranks
        n_latent_steps = max(1, n_langevin_steps // 2)
        self.posterior: Posterior
        if posterior == "particles":
            self.posterior = ParticlePosterior(
                self.tempered.kernel,
                n_particles,
                n_latent_steps,
                proposes_independently=n_temperatures > 1,
                most_bytes=most_bytes,
            )
        else:
            family = GaussianPosterior if posterior == "gaussian" else AmortisedPosterior
            self.posterior = family(n_particles, n_latent_steps)

    # Several processes -------------------------------------------------------------------------

    def share(self, ranks: Communicator, row_share: float) -> None:
        """Share the rows and the pool among ranks: losses are such that their mean is the loss.

        Parameters
        ----------
        ranks : Communicator
            Each has `n_chains` chains of the pool.
        row_share : float
            Weight of this rank's rows in the mean over all ranks; one where all have equal weight.
        """
        self.tempered.ranks, self._row_share = ranks, row_share

    # State -------------------------------------------------------------------------------------

    def init(self, energy: PathEnergy, n_rows: int, *, generator: torch.Generator) -> ParticleState:
        """Draw all particles exactly from the reference, where an untrained model is stationary."""
        state = self.tempered.init(energy, generator)
        return state._replace(latents=self.posterior.init(energy, n_rows, generator))

    # One update --------------------------------------------------------------------------------

    def step(
        self, energy: PathEnergy, batch: Batch, state: ParticleState, generator: torch.Generator
    ) -> tuple[Tensor, ParticleState, dict[str, Tensor]]:
        """Move all particles and return the loss whose gradient is the likelihood's.

        Parameters
        ----------
        energy : AnchoredEnergy or BridgedEnergy
            The model.
        batch : Batch
            Rows of this update.
        state : ParticleState
            Particles before the update. Those of the batch's rows, and a large pool, are moved in
            place: a deep copy keeps them.
        generator : torch.Generator
            Source of all noise.

        Returns
        -------
        loss : Tensor, 0-d
            Energy contrast, in nats; differentiable in the parameters only. Its value is not a
            likelihood.
        state : ParticleState
            Particles after the update.
        metrics : dict of str to 0-d Tensor
            Swap rate and acceptances; read once per epoch.
        """
        state = self.before_update(energy, batch.index, state, generator)
        loss, state, metrics = self.update(energy, batch, state, generator)
        return loss, self.after_update(state), metrics

    def works_in_place(
        self, energy: PathEnergy, state: ParticleState, device: torch.device
    ) -> bool:
        """Return whether updates on a device always make the same operations.

        A pool that is moved in blocks has a source of noise for each, made anew by the host.
        """
        return device.type != "cpu" and n_blocks_of(energy, state.pool) == 1

    def completed(self, energy: PathEnergy, state: ParticleState) -> ParticleState:
        """Return the state: it always has all its tensors."""
        return state

    def _moves_together(
        self, energy: PathEnergy, n_rows: int, state: ParticleState, device: torch.device
    ) -> bool:
        """Return whether posterior particles and a persistent pool are moved together."""
        n = n_rows * self.n_particles
        return self._may_move_together and can_move_together(energy, n, state, device)

    @property
    def _may_move_together(self) -> bool:
        """Whether both sides are particles that stay where they are between updates."""
        return isinstance(self.posterior, ParticlePosterior) and self.negatives == "persistent"

    def before_update(
        self, energy: PathEnergy, index: Tensor, state: ParticleState, generator: torch.Generator
    ) -> ParticleState:
        """Return the state with independence proposals, if it is time for them.

        Where posteriors and pool are moved apart, the pool receives them when it is moved.
        """
        if not self._moves_together(energy, len(index), state, index.device):
            return state
        return self.tempered.proposed(energy, state, IndependentNoise(generator))

    def after_update(self, state: ParticleState) -> ParticleState:
        """Return the state after one update more, with a respaced ladder if it is time."""
        return self.tempered.respaced(state)

    def kind_of_update(self, state: ParticleState) -> Hashable:
        """Return the numbers of the host that the operations of `update` depend on."""
        proposes = not self._may_move_together and self.tempered.is_time_to_propose(state)
        return proposes, self.tempered.kind_of_update(state)

    def update(
        self, energy: PathEnergy, batch: Batch, state: ParticleState, generator: torch.Generator
    ) -> tuple[Tensor, ParticleState, dict[str, Tensor]]:
        """Return loss, state and metrics as `step`, without what is done every few updates."""
        noise = IndependentNoise(generator)
        moved, sweep = self._moved(energy, batch, state, noise)
        loss, weighing = self._contrast(energy, moved, sweep, state, noise)

        state = self.tempered.swept(state, sweep, weighing)
        state = state._replace(latents=moved.latents, latent_step_size=moved.step_size)
        metrics = {**self.tempered.metrics(sweep), "latent_acceptance": moved.acceptance}
        return loss, state, metrics

    def _contrast(
        self,
        energy: PathEnergy,
        moved: PosteriorMove,
        sweep: Sweep,
        state: ParticleState,
        noise: IndependentNoise,
    ) -> tuple[Tensor, Weighing]:
        """Return the mean correction of rows minus the weighted mean of the pool, 0-d, nats."""
        particles, negative = self.tempered.read_out(sweep, noise), sweep.rows
        n, shape = len(moved.rows), particles.shape[:2]
        contrast = select_contrast(energy)
        correction = sweep.correction
        rows: Any
        if contrast is not None and correction is not None and particles[..., 0].numel() > _LARGE:
            rows = JoinedRows(energy.reference, moved.rows, particles.flatten(0, 1))
        else:
            if negative is None:
                negative = energy.reference.rows(particles.flatten(0, 1))
            rows = torch.cat([moved.rows, negative])
        if contrast is None:
            of_rows = in_parts(energy, energy.correction, *energy.reference.parts(rows))
            correction = of_rows[n:].detach().view(shape)
        elif correction is None and len(state.betas) == 1:
            correction = particles[..., 0]  # weights that are equal do not depend on it
        elif correction is None:
            with torch.no_grad():
                parts = energy.reference.parts(rows[n:])
                correction = in_parts(energy, energy.correction, *parts).view(shape)
        weighing = self.tempered.weigh(correction, state)
        weights = moved.rows.new_full((len(rows),), self._row_share / n)
        torch.mul(weighing.weights, -1.0, out=weights[n:])
        if contrast is None:
            return weights @ of_rows, weighing
        return contrast_in_parts(energy, contrast, rows, weights), weighing

    def _moved(
        self, energy: PathEnergy, batch: Batch, state: ParticleState, noise: IndependentNoise
    ) -> tuple[PosteriorMove, Sweep]:
        """Move both sides: together if they can be, which takes half the operations."""
        posterior, n_rows = self.posterior, len(batch.x)
        if self._moves_together(energy, n_rows, state, batch.x.device):
            kernel, n = self.tempered.kernel, n_rows * self.n_particles
            in_frames = can_move_in_frames(energy, kernel, state, n)
            move = move_in_frames if in_frames else move_together
            own = cast(ParticlePosterior, posterior)
            return move(energy, batch, state, noise, tempered=self.tempered, posterior=own)
        moved = posterior.move(energy, batch, state, noise)
        if self.negatives != "persistent":
            state = state._replace(pool=self._pool_at_data(energy, moved, noise))
        return moved, self.tempered.move(energy, state, noise)

    def _pool_at_data(
        self, energy: PathEnergy, moved: PosteriorMove, noise: IndependentNoise
    ) -> Tensor:
        """Return particles (1, C, D + L) at rows of the batch and their posterior particles."""
        n = len(moved.rows)
        order = torch.randperm(n, generator=noise.generator, device=moved.rows.device)
        index = order.repeat(-(-self.n_chains // n))[: self.n_chains]
        reference = energy.reference
        x, z = reference.parts(moved.rows[index])
        return torch.cat([reference.from_features(x), reference.from_latents(x, z)], 1)[None]

    def ready(
        self, energy: PathEnergy, state: ParticleState, n_rows: int, generator: torch.Generator
    ) -> ParticleState:
        """Return the state to train from: posteriors of these rows, a pool that fits the energy."""
        if not self.posterior.fits(state.latents, n_rows):
            state = state._replace(latents=self.posterior.init(energy, n_rows, generator))
        return self.tempered.settled(energy, state, generator)

    def particles(self, state: ParticleState) -> ParticleState:
        """Return the particles of a state: the state itself."""
        return state

    def measures(self, energy: PathEnergy, state: ParticleState) -> dict[str, Tensor]:
        """Return the largest coordinates; see `TemperedPool.measures`."""
        return self.tempered.measures(energy, state)

    def problem(self, state: ParticleState, metrics: dict[str, float]) -> str | None:
        """Return why the pool does not represent the model; see `TemperedPool.problem`."""
        return self.tempered.problem(state, metrics)

    # Bounds ------------------------------------------------------------------------------------

    @torch.no_grad()
    def lower_bound(
        self,
        energy: PathEnergy,
        state: ParticleState,
        target: PathEnergy,
        x: Tensor,
        generator: torch.Generator,
        *,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean ELBO of `target` on rows x (N, D), in nats.

        Parameters
        ----------
        energy : AnchoredEnergy or BridgedEnergy
            The model whose path the pool follows.
        state : ParticleState
            The pool.
        target : AnchoredEnergy or BridgedEnergy
            A model close to `energy` on the same reference, such as its running average.
        x : Tensor of shape (N, D)
            Rows.
        generator : torch.Generator
            Source of noise, used only where there is no ladder.
        """
        nodes = latent_nodes(_MONITOR_NODES, energy.n_latents, seed=0).to(x)
        log_z = self.tempered.log_partition(energy, state, target, generator)
        return -mean_on_device(free_energy_bound(target, x, nodes), row_weights) - log_z
