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
from sklvebm.dynamics.langevin import KERNELS, adapt_step_size, reference_step, start
from sklvebm.dynamics.tempering import respaced_ladder, swap_replicas
from sklvebm.energies import PathEnergy
from sklvebm.gradients import joint_target, latent_target
from sklvebm.log_partition import (
    Ladder,
    anneal,
    annealing_schedule,
    latent_nodes,
    log_mean_exp,
    mbar,
)
from sklvebm.particles import Batch, IndependentNoise, ParticleState, stack_rows, take_chains

_RESPACE_EVERY = 10  # updates
_CONTRAST_ROWS = 64  # rows of a batch that enter the contrastive term: 64 x 64 energies
_MONITOR_NODES = 16  # latents per monitored row
_MONITOR_STEPS = 32  # annealing steps of the monitored log Z when there is no ladder


class ParticleLikelihood:
    """The saddle objective of the latent-variable energy-based model.

    Parameters
    ----------
    dynamics : {"mala", "leimkuhler-matthews", "ula"}
        Langevin kernel of pool and latents.
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
        n_particles: int,
        n_chains: int,
        n_temperatures: int,
        n_langevin_steps: int,
        step_size: float | None,
        information_weight: float,
    ) -> None:
        self.kernel = KERNELS[dynamics]
        self.n_particles, self.n_chains = n_particles, n_chains
        self.n_temperatures, self.n_langevin_steps = n_temperatures, n_langevin_steps
        self.step_size = self.kernel.default_step_size if step_size is None else step_size
        self.information_weight = information_weight

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
            latents=self.init_latents(energy, n_rows, generator=generator),
            pool=pool,
            pool_step_size=like.new_full((t,), self.step_size),
            latent_step_size=like.new_full((), self.step_size),
            log_partitions=zeros,
            spread=zeros.clone(),
            betas=betas.to(like),
            n_updates=0,
        )

    def init_latents(
        self, energy: PathEnergy, n_rows: int, *, generator: torch.Generator
    ) -> Tensor:
        """Draw posterior particles from the reference posterior: e ~ N(0, I), (N, K, L)."""
        like = energy.reference.location
        shape = (n_rows, self.n_particles, energy.n_latents)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

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
        latents, latent_step_size, latent_acceptance = self._move_latents(
            energy, batch, state, noise
        )
        pool, pool_step_size, acceptance, swap_rate = self.move_pool(energy, state, noise)

        x, z = self._data_particles(energy, batch, latents, latent_step_size, noise)
        positive = energy.correction(x, z).mean()
        seen = self._read_out(pool, pool_step_size[:, None, None], noise)
        negative, log_partitions, spread = self._negative_phase(energy, seen, state)
        loss = positive - negative
        if self.information_weight > 0.0:
            loss = loss + self.information_weight * self._contrastive_term(energy, batch, z)

        all_latents = state.latents.clone()
        all_latents[batch.index] = latents
        n_updates = state.n_updates + 1
        betas = state.betas
        if self.n_temperatures > 2 and n_updates % _RESPACE_EVERY == 0:
            betas = respaced_ladder(betas, spread, self.n_temperatures)
        state = state._replace(
            latents=all_latents,
            pool=pool,
            pool_step_size=pool_step_size,
            latent_step_size=latent_step_size,
            log_partitions=log_partitions,
            spread=spread,
            betas=betas,
            n_updates=n_updates,
        )
        metrics = {
            "swap_rate": swap_rate,
            "pool_acceptance": acceptance.mean(),
            "latent_acceptance": latent_acceptance,
        }
        return loss, state, metrics

    def move_pool(
        self, energy: PathEnergy, state: ParticleState, noise: IndependentNoise
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Swap neighbours, redraw the reference rung and move every rung by Langevin steps.

        Returns the pool (T, C, D + L), step sizes (T,), acceptances (T,) and the swap rate.
        """
        t, c = self.n_temperatures, self.n_chains
        target = joint_target(energy, select_correction_and_grad(energy))
        pool = state.pool
        swap_rate = torch.ones((), device=pool.device)
        if t > 1:
            fresh = energy.reference.sample(c, noise.generator).to(pool.dtype)
            pool = torch.cat([fresh.unsqueeze(0), pool[1:]])
        chains = start(pool.reshape(t * c, -1), target)
        if t > 1:
            correction = chains.value.correction.reshape(t, c)
            index, swap_rate = swap_replicas(
                correction, state.betas, parity=state.n_updates % 2, noise=noise
            )
            chains = take_chains(chains, index)
        beta = state.betas.repeat_interleave(c)
        step_size = state.pool_step_size
        for _ in range(self.n_langevin_steps):
            chains, info = self.kernel.step(
                chains, target, beta=beta, step_size=step_size.repeat_interleave(c), noise=noise
            )
            acceptance = info.acceptance.reshape(t, c).mean(1)
            step_size = adapt_step_size(self.kernel, step_size, acceptance)
        return chains.position.reshape(t, c, -1), step_size, acceptance, swap_rate

    def _move_latents(
        self, energy: PathEnergy, batch: Batch, state: ParticleState, noise: IndependentNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Move the posterior particles of the batch; return them, their step size, acceptance."""
        position = state.latents[batch.index].reshape(-1, energy.n_latents)
        x = stack_rows(batch.x, self.n_particles)
        target = latent_target(energy, x, select_correction_and_grad(energy))
        chains = start(position, target)
        beta = torch.ones_like(chains.value.correction)
        if self.n_temperatures > 1:
            chains, _ = reference_step(
                chains, target, noise.normal(position), beta=beta, noise=noise
            )
        step_size = state.latent_step_size
        for _ in range(max(1, self.n_langevin_steps // 2)):
            chains, info = self.kernel.step(
                chains, target, beta=beta, step_size=step_size.expand(len(beta)), noise=noise
            )
            acceptance = info.acceptance.mean()
            step_size = adapt_step_size(self.kernel, step_size, acceptance)
        latents = chains.position.reshape(-1, self.n_particles, energy.n_latents)
        return latents, step_size, acceptance

    def _read_out(self, position: Tensor, step_size: Tensor, noise: IndependentNoise) -> Tensor:
        """Return the particles that chains (..., P) stand for, as the kernel defines them."""
        sizes = step_size.expand(position.shape[:-1] + (1,)).reshape(-1)
        flat = position.reshape(len(sizes), -1)
        return self.kernel.readout(flat, sizes, noise).reshape(position.shape)

    def _data_particles(
        self,
        energy: PathEnergy,
        batch: Batch,
        latents: Tensor,
        step_size: Tensor,
        noise: IndependentNoise,
    ) -> tuple[Tensor, Tensor]:
        """Return the batch's rows (B * K, D) with their particles z (B * K, L)."""
        x = stack_rows(batch.x, self.n_particles)
        e = self._read_out(latents, step_size, noise).reshape(-1, energy.n_latents)
        return x, energy.reference.to_latents(x, e)

    def _negative_phase(
        self, energy: PathEnergy, pool: Tensor, state: ParticleState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean correction under the model and the ladder's log Z and spread."""
        t, c = self.n_temperatures, self.n_chains
        correction = energy.correction(*energy.reference.split(pool.reshape(t * c, -1)))
        if t == 1:
            return correction.mean(), state.log_partitions, state.spread
        detached = correction.detach().double()
        log_partitions, log_mixture = mbar(
            detached.reshape(t, c), state.betas, state.log_partitions, max_iter=3
        )
        weights = torch.softmax(-detached - log_mixture, 0).to(correction.dtype)
        variance = detached.reshape(t, c).var(1)
        spread = torch.lerp(state.spread, variance, 0.05 if state.n_updates > 20 else 0.3)
        return weights @ correction, log_partitions, spread

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
        """Move the pool at fixed parameters until it can stand for the model.

        Parameters
        ----------
        energy : AnchoredEnergy or BridgedEnergy
            The model.
        state : ParticleState
            The pool to start from.
        n_sweeps : int
            Sweeps; ladder, step sizes and spread adapt during the first half.
        n_snapshots : int
            How often the model's rung is recorded, evenly over the second half.
        generator : torch.Generator
            Source of all noise.

        Returns
        -------
        state : ParticleState
            After the last sweep.
        draws : Tensor of shape (n_snapshots * n_chains, D + L)
            Positions at b = 1.
        """
        noise = IndependentNoise(generator)
        half = n_sweeps // 2
        gap = max(1, (n_sweeps - half) // n_snapshots)
        snapshots = []
        for sweep in range(n_sweeps):
            pool, step_size, _, _ = self.move_pool(energy, state, noise)
            state = state._replace(pool=pool, n_updates=state.n_updates + 1)
            if sweep < half:
                x, z = energy.reference.split(pool.reshape(-1, pool.shape[2]))
                variance = energy.correction(x, z).detach().double().reshape(pool.shape[:2]).var(1)
                spread = torch.lerp(state.spread, variance, 1.0 if sweep == 0 else 0.2)
                state = state._replace(pool_step_size=step_size, spread=spread)
                if self.n_temperatures > 2 and sweep % _RESPACE_EVERY == _RESPACE_EVERY - 1:
                    betas = respaced_ladder(state.betas, spread, self.n_temperatures)
                    state = state._replace(betas=betas)
            elif (n_sweeps - 1 - sweep) % gap == 0:
                snapshots.append(pool[-1])
        return state, torch.cat(snapshots[-n_snapshots:])

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
        x, z = energy.reference.split(state.pool.reshape(t * c, -1))
        correction = energy.correction(x, z).reshape(t, c)
        _, log_mixture = mbar(correction, state.betas, state.log_partitions)
        return float(torch.logsumexp(-target.correction(x, z).double() - log_mixture, 0))

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
