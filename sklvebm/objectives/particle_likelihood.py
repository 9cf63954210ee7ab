r"""Maximum likelihood by coupled particle flows: data particles against a joint pool.

.. math:: \nabla_\theta L = -\frac1n \sum_i E_{p(z|x_i)}[\nabla_\theta f(x_i, z)]
                            + E_{p(x,z)}[\nabla_\theta f(x, z)]           (docs/theory.md, eq. 6)

Both expectations are over persistent particles. With one temperature this is the published
algorithm; with several, the pool is a ladder of replicas and all of its rungs enter the second
expectation with their multistate weights.
"""

import math

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.dynamics.langevin import KERNELS, start
from sklvebm.dynamics.tempering import respaced_ladder
from sklvebm.energies import PathEnergy
from sklvebm.gradients import joint_target
from sklvebm.log_partition import (
    Ladder,
    anneal,
    annealing_schedule,
    latent_nodes,
    log_mean_exp,
    mbar,
)
from sklvebm.objectives.pool import RESPACE_EVERY, Sweep, equilibrate, pool_corrections, sweep_pool
from sklvebm.objectives.posteriors import (
    AmortisedPosterior,
    GaussianPosterior,
    ParticlePosterior,
    Posterior,
    PosteriorMove,
)
from sklvebm.particles import Batch, IndependentNoise, ParticleState, stack_rows

POSTERIORS = ("particles", "gaussian", "amortized")
NEGATIVES = ("persistent", "contrastive")
_FARTHEST = 1e3  # times the reference's farthest draw: a particle that has run away
_LEAST_SWAP_RATE = 0.005  # below it the ladder is broken: rungs do not overlap
_CONTRAST_ROWS = 64  # rows of a batch that enter the contrastive term: 64 x 64 energies
_MONITOR_NODES = 16  # latents per monitored row
_MONITOR_STEPS = 32  # annealing steps of the monitored log Z when there is no ladder


class ParticleLikelihood:
    """The saddle objective of the latent-variable energy-based model.

    Parameters
    ----------
    dynamics : {"crank-nicolson", "mala", "leimkuhler-matthews", "ula"}
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
    information_weight : float
        Weight of the contrastive term on the latents; 0 is plain maximum likelihood.
    """

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
        information_weight: float,
    ) -> None:
        self.kernel, self.negatives = KERNELS[dynamics], negatives
        self.n_particles, self.n_chains = n_particles, n_chains
        self.n_temperatures, self.n_langevin_steps = n_temperatures, n_langevin_steps
        self.step_size = self.kernel.default_step_size if step_size is None else step_size
        self.information_weight = information_weight
        n_latent_steps = max(1, n_langevin_steps // 2)
        self.posterior: Posterior
        if posterior == "particles":
            self.posterior = ParticlePosterior(
                self.kernel, n_particles, n_latent_steps, offer_reference=n_temperatures > 1
            )
        else:
            family = GaussianPosterior if posterior == "gaussian" else AmortisedPosterior
            self.posterior = family(n_particles, n_latent_steps)

    # State -------------------------------------------------------------------------------------

    def init(self, energy: PathEnergy, n_rows: int, *, generator: torch.Generator) -> ParticleState:
        """Draw all particles exactly from the reference, where an untrained model is stationary."""
        reference = energy.reference
        like = reference.location
        t, c = self.n_temperatures, self.n_chains
        pool = reference.sample(t * c, generator).reshape(t, c, -1)
        betas = torch.linspace(0.0, 1.0, t, dtype=like.dtype) if t > 1 else torch.ones(1)
        zeros = torch.zeros(t, dtype=torch.float64, device=like.device)
        return ParticleState(
            latents=self.posterior.init(energy, n_rows, generator),
            pool=pool,
            pool_step_size=like.new_full((t,), self.step_size),
            latent_step_size=like.new_full((), self.step_size),
            log_partitions=zeros,
            spread=zeros.clone(),
            betas=betas.to(like),
            n_updates=0,
        )

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
            Particles before the update; not modified.
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
        noise = IndependentNoise(generator)
        moved = self.posterior.move(energy, batch, state, noise)
        if self.negatives == "contrastive":
            state = state._replace(pool=self._pool_at_data(energy, moved, noise))
        sweep = self.move_pool(energy, state, noise)

        positive = energy.correction(moved.x, moved.z).mean()
        negative, log_partitions, spread = self._negative_phase(
            energy, self._read_out(sweep, noise), state
        )
        loss = positive - negative
        if self.information_weight > 0.0:
            loss = loss + self.information_weight * self._contrastive_term(energy, batch, moved.z)

        n_updates = state.n_updates + 1
        betas = state.betas
        if self.n_temperatures > 2 and n_updates % RESPACE_EVERY == 0:
            betas = respaced_ladder(betas, spread, self.n_temperatures)
        state = ParticleState(
            latents=moved.latents,
            pool=sweep.pool,
            pool_step_size=sweep.step_size,
            latent_step_size=moved.step_size,
            log_partitions=log_partitions,
            spread=spread,
            betas=betas,
            n_updates=n_updates,
        )
        metrics = {
            # one, if there is no pair to swap
            "swap_rate": torch.nan_to_num(sweep.swap_acceptance.nanmean(), nan=1.0),
            "least_swap_rate": torch.nan_to_num(sweep.swap_acceptance, nan=1.0).min()
            if self.n_temperatures > 1
            else torch.ones(()),
            "pool_acceptance": sweep.acceptance.mean(),
            "latent_acceptance": moved.acceptance,
        }
        return loss, state, metrics

    def _pool_at_data(
        self, energy: PathEnergy, moved: PosteriorMove, noise: IndependentNoise
    ) -> Tensor:
        """Return particles (1, C, D + L) at rows of the batch and their posterior particles."""
        n = len(moved.x)
        order = torch.randperm(n, generator=noise.generator, device=moved.x.device)
        index = order.repeat(-(-self.n_chains // n))[: self.n_chains]
        x, z = moved.x[index], moved.z[index]
        reference = energy.reference
        return torch.cat([reference.from_features(x), reference.from_latents(x, z)], 1)[None]

    def move_pool(self, energy: PathEnergy, state: ParticleState, noise: IndependentNoise) -> Sweep:
        """Move the whole pool once; see `pool.sweep_pool`."""
        return sweep_pool(energy, state, self.kernel, self.n_langevin_steps, noise)

    def _read_out(self, sweep: Sweep, noise: IndependentNoise) -> Tensor:
        """Return the particles that the pool's chains stand for, as the kernel defines them."""
        t, c, width = sweep.pool.shape
        flat = sweep.pool.reshape(t * c, width)
        sizes = sweep.step_size.repeat_interleave(c)
        return self.kernel.readout(flat, sizes, noise).reshape(t, c, width)

    def _negative_phase(
        self, energy: PathEnergy, pool: Tensor, state: ParticleState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean correction under the model and the ladder's log Z and spread."""
        correction = pool_corrections(energy, pool)
        if len(correction) == 1:
            return correction.mean(), state.log_partitions, state.spread
        detached = correction.detach().double()
        log_partitions, log_mixture = mbar(detached, state.betas, state.log_partitions, max_iter=3)
        weights = torch.softmax(-detached.reshape(-1) - log_mixture, 0).to(correction.dtype)
        share = 0.05 if state.n_updates > 20 else 0.3
        spread = torch.lerp(state.spread, detached.var(1), share)
        return weights @ correction.reshape(-1), log_partitions, spread

    def _contrastive_term(self, energy: PathEnergy, batch: Batch, z: Tensor) -> Tensor:
        """Return InfoNCE with the energy as critic: can row i be told from the latent? Nats."""
        n = min(_CONTRAST_ROWS, len(batch.x))
        rows = batch.x[:n].repeat_interleave(n, 0)
        columns = z.reshape(len(batch.x), self.n_particles, -1)[:n, 0].repeat(n, 1)
        energies = energy.correction(rows, columns) - energy.reference.log_conditional(
            rows, columns
        )
        logits = -energies.reshape(n, n)
        return torch.nn.functional.cross_entropy(logits, torch.arange(n, device=logits.device))

    def equilibrate(
        self,
        energy: PathEnergy,
        state: ParticleState,
        n_sweeps: int,
        n_snapshots: int,
        generator: torch.Generator,
    ) -> tuple[ParticleState, Tensor]:
        """Move the pool at fixed parameters; see `pool.equilibrate`."""
        return equilibrate(
            energy, state, self.kernel, self.n_langevin_steps, n_sweeps, n_snapshots, generator
        )

    def problem(self, state: ParticleState, metrics: dict[str, float]) -> str | None:
        """Say why the pool cannot stand for the model any more; None if it can.

        Parameters
        ----------
        state : ParticleState
            Particles after an epoch.
        metrics : dict of str to float
            Means over the epoch.

        Returns
        -------
        problem : str or None
            Particles that are not finite or far out, or a ladder that lets nothing through.
        """
        pool = state.pool
        if not bool(torch.isfinite(pool).all()):
            return "particles are not finite"
        # the first rung of a ladder is drawn from the reference
        limit = _FARTHEST * max(1.0, float(pool[0].abs().max()) if len(pool) > 1 else 1.0)
        if float(pool.abs().max()) > limit:
            return f"a particle is {float(pool.abs().max()):.2g} white units from the centre"
        if metrics["least_swap_rate"] < _LEAST_SWAP_RATE:
            return f"the ladder's swap rate fell to {metrics['least_swap_rate']:.2g}"
        return None

    # Bounds ------------------------------------------------------------------------------------

    def ladder(self, state: ParticleState) -> Ladder:
        """Return what the annealing schedule needs of the pool."""
        return Ladder(state.betas, state.pool_step_size, state.spread)

    @torch.no_grad()
    def lower_bound(
        self,
        energy: PathEnergy,
        state: ParticleState,
        target: PathEnergy,
        x: Tensor,
        generator: torch.Generator,
    ) -> float:
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
        free_energy = self.free_energy_bound(target, x, nodes)
        return float(-free_energy.mean()) - self.log_partition(energy, state, target, generator)

    def log_partition(
        self,
        energy: PathEnergy,
        state: ParticleState,
        target: PathEnergy,
        generator: torch.Generator,
    ) -> float:
        """Return log Z of `target` from the ladder's particles, in nats; see `lower_bound`.

        With a single rung there is no ladder, and a short annealing from the reference is used.
        """
        t, c = self.n_temperatures, self.n_chains
        if t == 1:
            betas, step_sizes = annealing_schedule(self.ladder(state), _MONITOR_STEPS)
            path = joint_target(target, select_correction_and_grad(target))
            chains = start(target.reference.sample(c, generator), path)
            log_weights, _ = anneal(
                chains, path, betas, step_sizes=step_sizes, noise=IndependentNoise(generator)
            )
            return log_mean_exp(log_weights)
        correction = pool_corrections(energy, state.pool)
        _, log_mixture = mbar(correction, state.betas, state.log_partitions)
        wanted = pool_corrections(target, state.pool).reshape(-1).double()
        return float(torch.logsumexp(-wanted - log_mixture, 0))

    @torch.no_grad()
    def free_energy_bound(self, energy: PathEnergy, x: Tensor, nodes: Tensor) -> Tensor:
        """Return an importance-sampled upper bound on F(x) in expectation, (N,), nats.

        Parameters
        ----------
        energy : AnchoredEnergy or BridgedEnergy
            The model.
        x : Tensor of shape (N, D)
            Rows.
        nodes : Tensor of shape (n_nodes, L)
            Whitened latents, the same for every row.
        """
        n_nodes = len(nodes)
        rows = stack_rows(x, n_nodes)
        z = energy.reference.to_latents(rows, nodes.repeat(len(x), 1))
        correction = energy.correction(rows, z).reshape(len(x), n_nodes).double()
        log_mean = torch.logsumexp(-correction, 1) - math.log(n_nodes)
        return -energy.reference.log_marginal(x).double() - log_mean
