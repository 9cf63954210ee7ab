"""The posterior side of the likelihood gradient: particles, or one of two Gaussian families.

Particles follow the exact posterior of their row. The Gaussian families are variational inference:
one diagonal Gaussian per row, or one encoder for all rows. Training with them climbs their bound
instead of the likelihood.

The state of all rows can be larger than everything else. A move writes the rows of its batch in
place, and an epoch is undone by a deep copy.
"""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklvebm.adam import Adam
from sklvebm.backends import select_correction_and_grad
from sklvebm.inference.variational import AmortisedGaussian, negative_evidence_bound
from sklvebm.mcmc.adaptation import adapt_step_size
from sklvebm.mcmc.langevin import Kernel, reference_step, start
from sklvebm.mcmc.state import Batch, IndependentNoise, ParticleState, deferred, stack_rows
from sklvebm.models.energies import PathEnergy
from sklvebm.models.targets import latent_target
from sklvebm.objectives.parts import noises_of_parts, parts_of_work
from sklvebm.objectives.row_particles import RowParticles
from sklvebm.threads import side_by_side

_ROW_LEARNING_RATE = 0.05  # of the Gaussians per row
_ENCODER_LEARNING_RATE = 3e-3
_DECAY = (0.9, 0.99)  # memory of Adam's moments


class PosteriorMove(NamedTuple):
    """Latents of a batch after one move, and the state of all rows."""

    latents: Any  # the family's state for all rows: the one before, written in place
    step_size: Tensor  # 0-d
    rows: Tensor  # (B * K, D + L), rows of the batch with their latents z
    acceptance: Tensor  # 0-d; one for the Gaussian families


class ParticlePosterior:
    """Persistent particles, K per row, moved by the kernel of the pool.

    Parameters
    ----------
    kernel : Kernel
        How particles move.
    n_particles : int
        Particles K per row.
    n_steps : int
        Kernel steps per move.
    proposes_independently : bool
        Whether a draw of the reference posterior is proposed to every particle first.
    most_bytes : float, default=math.inf
        Bytes of particles up to which they stay in memory.
    """

    def __init__(
        self,
        kernel: Kernel,
        n_particles: int,
        n_steps: int,
        proposes_independently: bool,
        most_bytes: float = math.inf,
    ) -> None:
        self.kernel, self.n_particles = kernel, n_particles
        self.n_steps, self.proposes_independently = n_steps, proposes_independently
        self.most_bytes = most_bytes

    def init(self, energy: PathEnergy, n_rows: int, generator: torch.Generator) -> RowParticles:
        """Draw particles from the reference posterior, e ~ N(0, I): (N, K, L)."""
        shape = (n_rows, self.n_particles, energy.n_latents)
        latents = RowParticles(shape, energy.reference.location, self.most_bytes)
        latents.values.normal_(generator=generator)
        return latents

    def fits(self, latents: Any, n_rows: int) -> bool:
        """Return whether a state is of this family and size."""
        shape = (n_rows, self.n_particles)
        return isinstance(latents, RowParticles) and latents.values.shape[:2] == shape

    def move(
        self, energy: PathEnergy, batch: Batch, state: ParticleState, noise: IndependentNoise
    ) -> PosteriorMove:
        """Move the particles of the batch's rows, in parallel parts where the network is large."""
        everyone = state.latents.values
        position = everyone[batch.index].reshape(-1, energy.n_latents)
        x = stack_rows(batch.x, self.n_particles)
        n_parts = parts_of_work(energy, len(x), x.device)

        def moved(x: Tensor, position: Tensor, noise: IndependentNoise) -> tuple[Tensor, ...]:
            return self._moved(energy, x, position, state.latent_step_size, noise)

        of_parts = side_by_side(
            moved,
            x.tensor_split(n_parts),
            position.tensor_split(n_parts),
            noises_of_parts(noise, n_parts),
        )
        position, e, *means = (torch.cat(of_part) for of_part in zip(*of_parts, strict=True))
        step_size, acceptance = (of_part.mean() for of_part in means)
        everyone[batch.index] = position.reshape(len(batch.x), self.n_particles, -1)
        rows = torch.cat([x, energy.reference.to_latents(x, e)], 1)
        return PosteriorMove(state.latents, step_size, rows, acceptance)

    def _moved(
        self,
        energy: PathEnergy,
        x: Tensor,
        position: Tensor,
        step_size: Tensor,
        noise: IndependentNoise,
    ) -> tuple[Tensor, ...]:
        """Return chains (B, L), their particles (B, L), step size and acceptance, (1,) each."""
        target = deferred(latent_target(energy, x, select_correction_and_grad(energy)))
        chains = start(position, target)
        beta = torch.ones_like(position[:, 0])
        if self.proposes_independently:
            chains, _ = reference_step(
                chains, target, noise.normal(position), beta=beta, noise=noise
            )
        for _ in range(self.n_steps):
            chains, info = self.kernel.step(
                chains, target, beta=beta, step_size=step_size.expand(len(beta)), noise=noise
            )
            acceptance = info.acceptance.mean()
            step_size = adapt_step_size(self.kernel, step_size, acceptance)
        e = self.kernel.readout(chains.position, step_size.expand(len(beta)), noise)
        return chains.position, e, step_size.reshape(1), acceptance.reshape(1)


class RowGaussians(NamedTuple):
    """Parameters and Adam moments of one diagonal Gaussian per row."""

    parameters: Tensor  # (N, 2 L): mean and logarithm of the standard deviation
    first: Tensor  # (N, 2 L)
    second: Tensor  # (N, 2 L)
    count: Tensor  # type: ignore[assignment]  # (N,), steps taken; hides `tuple.count`


class GaussianPosterior:
    """One diagonal Gaussian per row (non-amortised variational inference).

    Parameters
    ----------
    n_particles : int
        Draws K per row and step.
    n_steps : int
        Steps of Adam per move.
    """

    def __init__(self, n_particles: int, n_steps: int) -> None:
        self.n_particles, self.n_steps = n_particles, n_steps

    def init(self, energy: PathEnergy, n_rows: int, generator: torch.Generator) -> RowGaussians:
        """Start every row at the reference posterior N(0, I)."""
        like = energy.reference.location
        zeros = like.new_zeros(n_rows, 2 * energy.n_latents)
        return RowGaussians(zeros, zeros.clone(), zeros.clone(), like.new_zeros(n_rows))

    def fits(self, latents: Any, n_rows: int) -> bool:
        """Return whether a state is of this family and size."""
        return isinstance(latents, RowGaussians) and len(latents.count) == n_rows

    def move(
        self, energy: PathEnergy, batch: Batch, state: ParticleState, noise: IndependentNoise
    ) -> PosteriorMove:
        """Climb the bound of the batch's rows, then draw from their Gaussians."""
        x = stack_rows(batch.x, self.n_particles)
        rows = RowGaussians(*(part[batch.index] for part in state.latents))
        target = latent_target(energy, x, select_correction_and_grad(energy))
        for _ in range(self.n_steps):
            e, xi = self._draw(rows, noise)
            grad = target.evaluate(e.flatten(0, 1)).grad.reshape(e.shape)
            mean, log_scale = rows.parameters.chunk(2, dim=1)
            scale = torch.exp(log_scale)
            slope_mean = grad.mean(1) + mean
            slope_scale = (grad * xi).mean(1) * scale + scale.square() - 1.0
            rows = _adam(rows, torch.cat([slope_mean, slope_scale], 1))
        for whole, part in zip(state.latents, rows, strict=True):
            whole[batch.index] = part
        e, _ = self._draw(rows, noise)
        z = energy.reference.to_latents(x, e.flatten(0, 1))
        joined = torch.cat([x, z], 1)
        return PosteriorMove(state.latents, state.latent_step_size, joined, x.new_ones(()))

    def _draw(self, rows: RowGaussians, noise: IndependentNoise) -> tuple[Tensor, Tensor]:
        """Return draws (B, K, L) and the noise they were made of."""
        mean, log_scale = rows.parameters.chunk(2, dim=1)
        xi = noise.normal(mean.new_empty(len(mean), self.n_particles, mean.shape[1]))
        return mean[:, None] + torch.exp(log_scale)[:, None] * xi, xi


def _adam(rows: RowGaussians, slope: Tensor) -> RowGaussians:
    """Descend `slope` (B, 2 L) by one step of Adam, with moments and counts of each row's own."""
    count = rows.count + 1.0
    first = torch.lerp(slope, rows.first, _DECAY[0])
    second = torch.lerp(slope.square(), rows.second, _DECAY[1])
    debiased = first / (1.0 - _DECAY[0] ** count[:, None])
    size = torch.sqrt(second / (1.0 - _DECAY[1] ** count[:, None])) + 1e-8
    return RowGaussians(
        rows.parameters - _ROW_LEARNING_RATE * debiased / size, first, second, count
    )


class Encoder(NamedTuple):
    """An encoder with its optimiser; both are updated in place."""

    network: AmortisedGaussian
    optimizer: Adam

    def __deepcopy__(self, memo: dict[int, Any]) -> "Encoder":
        # the network first: the optimiser's parameters are the network's
        network = copy.deepcopy(self.network, memo)
        return Encoder(network, copy.deepcopy(self.optimizer, memo))


class AmortisedPosterior:
    """A diagonal Gaussian that one network computes from the row, as in a variational autoencoder.

    Parameters
    ----------
    n_particles : int
        Draws K per row and step.
    n_steps : int
        Steps of Adam per move.
    """

    def __init__(self, n_particles: int, n_steps: int) -> None:
        self.n_particles, self.n_steps = n_particles, n_steps

    def init(self, energy: PathEnergy, n_rows: int, generator: torch.Generator) -> Encoder:
        """Start at the reference posterior N(0, I) for every row."""
        like = energy.reference.location
        source = torch.Generator().manual_seed(
            int(torch.randint(2**31, (), generator=generator, device=like.device))
        )
        network = AmortisedGaussian(energy.n_features, energy.n_latents, generator=source).to(like)
        optimizer = Adam(network.parameters(), learning_rate=_ENCODER_LEARNING_RATE)
        return Encoder(network, optimizer)

    def fits(self, latents: Any, n_rows: int) -> bool:
        """Return whether a state is of this family; an encoder serves any number of rows."""
        return isinstance(latents, Encoder)

    def move(
        self, energy: PathEnergy, batch: Batch, state: ParticleState, noise: IndependentNoise
    ) -> PosteriorMove:
        """Climb the bound of the batch's rows, then draw from the encoder's Gaussians."""
        network, optimizer = state.latents
        parameters = list(network.parameters())
        shape = (len(batch.x), self.n_particles, energy.n_latents)
        for _ in range(self.n_steps):
            xi = noise.normal(batch.x.new_empty(shape))
            with torch.enable_grad():
                mean, scale = network(batch.x)
                loss = negative_evidence_bound(energy, batch.x, mean, scale, xi)
                gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        e = network.gaussians(batch.x)
        scale = torch.diagonal(e.factor, dim1=1, dim2=2)
        xi = noise.normal(batch.x.new_empty(shape))
        draws = e.mean[:, None] + scale[:, None] * xi
        x = stack_rows(batch.x, self.n_particles)
        z = energy.reference.to_latents(x, draws.flatten(0, 1))
        joined = torch.cat([x, z], 1)
        return PosteriorMove(state.latents, state.latent_step_size, joined, x.new_ones(()))


Posterior = ParticlePosterior | GaussianPosterior | AmortisedPosterior
