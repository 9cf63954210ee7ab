r"""Maximum likelihood by near-proximal steps along a Wasserstein gradient flow of particles.

.. math:: \theta_{k+1} = \arg\min_\theta\; E_{data}[f_\theta]
              + \log E_{\rho_k}[e^{f_{\theta_k} - f_\theta}]
              + \tfrac c2 E_{\rho_k} |\nabla f_\theta - v_k|^2
              \qquad \text{(docs/theory/wasserstein\_flow.md, eq. 3)}

f is the energy above the reference's. ρ_k are the particles, which do not move while the parameters
take a few inner steps. The first two terms are the relative entropy of the data to the model, up to
a constant. The third term depends on v_k:

* `v_k = \nabla f_{\theta_k}` gives a proximal (JKO) step. The term bounds the distance that one
  unit of Langevin time puts between particles under the old and under the new energy. The fixed
  point is that of maximum likelihood.
* `v_k = -\nabla E_{ref}` penalises the gradient of the whole energy, which biases it.
* Without the term, the method is persistent contrastive divergence.

References
----------
.. [1] Y. Wu, P. Wei, L. Lin, "A near-optimal gradient flow for learning neural energy-based
   models", arXiv:1910.14216, 2019.
"""

import math
from collections.abc import Hashable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.communication import Communicator
from sklvebm.mcmc.state import Batch, IndependentNoise, ParticleState
from sklvebm.models.energies import PathEnergy
from sklvebm.objectives.parts import in_parts
from sklvebm.objectives.pool import n_blocks_of
from sklvebm.objectives.tempered_pool import METRICS, TemperedPool, free_energy_bound
from sklvebm.row_weights import mean_on_device
from sklvebm.smc.quasi_random import latent_nodes

PROXIMAL = ("jko", "gradient-penalty", "none")


class Centre(NamedTuple):
    """Start of a proximal step: particles that do not move while the parameters do."""

    x: Tensor  # (T * C, D), in the units of the features
    weights: Tensor  # (T * C,), importance weights of the model at the start of the step, b = 1
    correction: Tensor  # (T * C,), at the start of the step, nats
    grad: Tensor  # (T * C, D), the gradient v of the penalty
    metrics: dict[str, Tensor]  # of the last sweep of the pool
    n_inner: int  # inner steps since the start


class FlowState(NamedTuple):
    """Particles and the start of the current proximal step."""

    particles: ParticleState
    centre: Centre | None  # None before the first update


class WassersteinFlow:
    """Objective of `sklvebm.training.train` for an energy without latents.

    Parameters
    ----------
    pool : TemperedPool
        Negative particles.
    proximal : {"jko", "gradient-penalty", "none"}, default="jko"
        Penalty on the gradient of the energy: on its distance from the gradient before the step, on
        its size, or none.
    proximal_weight : float, default=0.1
        The factor c of the penalty, in squared units of the features.
    n_inner_steps : int, default=2
        Updates of the parameters for each move of the particles. The gradient of the JKO penalty
        is zero at the first update; with one inner step, the method is contrastive divergence.
    half_life : float or None, default=None
        Moves of the particles after which c is halved; None keeps it.
    linearised : bool, default=False
        Whether the relative entropy is replaced by its tangent at the old parameters. Particles
        then keep their weights, and only the penalty bounds the inner problem.
    """

    loss_name, has_total_bound = "contrast", True

    def __init__(
        self,
        pool: TemperedPool,
        *,
        proximal: str = "jko",
        proximal_weight: float = 0.1,
        n_inner_steps: int = 2,
        half_life: float | None = None,
        linearised: bool = False,
    ) -> None:
        self.tempered, self.proximal, self.proximal_weight = pool, proximal, proximal_weight
        self.n_inner_steps, self.half_life, self.linearised = n_inner_steps, half_life, linearised
        # half the factor where it changes: a recording reads it where it is
        self._halved = torch.zeros(())
        self._row_share = 1.0  # of this rank's rows in the mean over all ranks

    def share(self, ranks: Communicator, row_share: float) -> None:
        """Share the rows and the pool among ranks; see `ParticleLikelihood.share`."""
        self.tempered.ranks, self._row_share = ranks, row_share

    def ready(
        self, energy: PathEnergy, state: ParticleState, n_rows: int, generator: torch.Generator
    ) -> FlowState:
        """Return the first state of training; particles of another energy are burnt in first."""
        return FlowState(self.tempered.settled(energy, state, generator), None)

    def particles(self, state: FlowState) -> ParticleState:
        """Return the particles of a state."""
        return state.particles

    # One update --------------------------------------------------------------------------------

    def step(
        self, energy: PathEnergy, batch: Batch, state: FlowState, generator: torch.Generator
    ) -> tuple[Tensor, FlowState, dict[str, Tensor]]:
        """Return the loss of one inner step. The particles move before the first one.

        Parameters
        ----------
        energy : AnchoredEnergy or BridgedEnergy
            The model, without latents.
        batch : Batch
            Rows of this update.
        state : FlowState
            Before the update. A large pool is moved in place.
        generator : torch.Generator
            Source of all noise.

        Returns
        -------
        loss : Tensor, 0-d
            Energy contrast plus penalty, in nats; differentiable in the parameters.
        state : FlowState
            State after the update.
        metrics : dict of str to 0-d Tensor
            Swap rates, acceptance, and `movement`: the weighted mean of `|grad f - v|^2`.
        """
        state = self.before_update(energy, batch.index, state, generator)
        loss, state, metrics = self.update(energy, batch, state, generator)
        return loss, self.after_update(state), metrics

    def works_in_place(self, energy: PathEnergy, state: FlowState, device: torch.device) -> bool:
        """Return whether updates on a device always make the same operations.

        A pool that is moved in blocks has a source of noise for each, made anew by the host.
        """
        return device.type != "cpu" and n_blocks_of(energy, state.particles.pool) == 1

    def completed(self, energy: PathEnergy, state: FlowState) -> FlowState:
        """Return the state with tensors for the start of a step, if the first one is to come."""
        if state.centre is not None:
            return state
        pool = state.particles.pool
        x = pool.new_zeros(pool.shape[0] * pool.shape[1], energy.n_features)
        zeros, zero = torch.zeros_like(x[:, 0]), pool.new_zeros(())
        metrics = dict.fromkeys(METRICS, zero)
        centre = Centre(x, zeros, zeros, x, metrics, self.n_inner_steps)
        return state._replace(centre=centre)

    def before_update(
        self, energy: PathEnergy, index: Tensor, state: FlowState, generator: torch.Generator
    ) -> FlowState:
        """Return the state with independence proposals, if particles move and it is time."""
        if self.half_life is not None:
            self._halved = self._halved.to(state.particles.pool).fill_(0.5 * self._weight(state))
        if not self._moves(state):
            return state
        noise = IndependentNoise(generator)
        return state._replace(particles=self.tempered.proposed(energy, state.particles, noise))

    def after_update(self, state: FlowState) -> FlowState:
        """Return the state after one inner step more, with a respaced ladder if it is time."""
        centre, particles = cast(Centre, state.centre), state.particles
        if self._moves(state):
            return FlowState(self.tempered.respaced(particles), centre._replace(n_inner=1))
        return state._replace(centre=centre._replace(n_inner=centre.n_inner + 1))

    def kind_of_update(self, state: FlowState) -> Hashable:
        """Return the numbers of the host that the operations of `update` depend on."""
        moves = self._moves(state)
        of_sweep = self.tempered.kind_of_update(state.particles) if moves else None
        return moves, of_sweep, self._weight(state) == 0.0

    def update(
        self, energy: PathEnergy, batch: Batch, state: FlowState, generator: torch.Generator
    ) -> tuple[Tensor, FlowState, dict[str, Tensor]]:
        """Return loss, state and metrics as `step`, without what is done every few updates."""
        weight = self._weight(state)
        if self._moves(state):
            with torch.no_grad():
                state = self._moved(energy, state, IndependentNoise(generator))
        centre = cast(Centre, state.centre)
        positive = in_parts(energy, energy.correction, batch.x, batch.x[:, :0]).mean()
        if weight == 0.0:
            correction = in_parts(energy, energy.correction, centre.x, centre.x[:, :0])
            movement = torch.zeros_like(positive)
        else:

            def correction_and_movement(x: Tensor, centre_grad: Tensor) -> Tensor:
                correction, grad = differentiable_grad(energy, x)
                return torch.stack([correction, (grad - centre_grad).square().sum(1)], 1)

            both = in_parts(energy, correction_and_movement, centre.x, centre.grad)
            correction, movement = both[:, 0], centre.weights @ both[:, 1]
        halved = 0.5 * weight if self.half_life is None else self._halved
        loss = self._row_share * positive - self._negative(centre, correction) + halved * movement
        return loss, state, {**centre.metrics, "movement": movement.detach()}

    def _moves(self, state: FlowState) -> bool:
        """Return whether the particles move before the next inner step, the first of a new one."""
        return state.centre is None or state.centre.n_inner >= self.n_inner_steps

    def _moved(self, energy: PathEnergy, state: FlowState, noise: IndependentNoise) -> FlowState:
        """Move the pool and start a proximal step at its particles; counts are of before."""
        particles = state.particles
        n_inner = self.n_inner_steps if state.centre is None else state.centre.n_inner
        sweep = self.tempered.sweep(energy, particles, noise)
        position = self.tempered.read_out(sweep, noise)
        t, c = position.shape[:2]
        y = position.reshape(t * c, -1)
        x = energy.reference.to_features(y)
        correction, grad = select_correction_and_grad(energy)(x)
        weighing = self.tempered.weigh(correction.reshape(t, c), particles)
        if self.proximal == "gradient-penalty":
            _, pull = energy.reference.marginal_energy_and_grad(y)
            grad = -pull @ energy.reference.inverse_root
        weights = weighing.weights.to(correction.dtype)
        centre = Centre(x, weights, correction, grad, self.tempered.metrics(sweep), n_inner)
        return FlowState(self.tempered.swept(particles, sweep, weighing), centre)

    def _negative(self, centre: Centre, correction: Tensor) -> Tensor:
        """Return a 0-d tensor whose gradient is that of the mean correction under the model."""
        if self.linearised:
            return centre.weights @ correction
        # the change of log Z: its gradient weights the particles by the new parameters
        moved = torch.log(centre.weights) + centre.correction - correction
        return centre.weights @ centre.correction - self._log_mean_over_ranks(moved)

    def _log_mean_over_ranks(self, log_weights: Tensor) -> Tensor:
        """Return the log of the mean over ranks of their sums of weights, 0-d.

        Its gradient is that of the rank's own weights, such that the mean over ranks of gradients
        is the gradient of the result.
        """
        ranks = self.tempered.ranks
        if ranks.size == 1:
            return torch.logsumexp(log_weights, 0)
        own = log_weights.detach()
        total = torch.logsumexp(ranks.gather(own).flatten(), 0) - math.log(ranks.size)
        return total + torch.exp(own - total) @ (log_weights - own)

    def _weight(self, state: FlowState) -> float:
        """Return the factor c of the penalty in the next inner step."""
        if self.proximal == "none":
            return 0.0
        if self.half_life is None:
            return self.proximal_weight
        # moves before that of this proximal step
        n_moves = state.particles.n_updates - (0 if self._moves(state) else 1)
        return self.proximal_weight * 0.5 ** (n_moves / self.half_life)

    # Judgements --------------------------------------------------------------------------------

    def measures(self, energy: PathEnergy, state: FlowState) -> dict[str, Tensor]:
        """Return distances of the particles; see `TemperedPool.measures`."""
        return self.tempered.measures(energy, state.particles)

    def problem(self, state: FlowState, metrics: dict[str, float]) -> str | None:
        """Return why the pool does not represent the model; see `TemperedPool.problem`."""
        return self.tempered.problem(state.particles, metrics)

    @torch.no_grad()
    def lower_bound(
        self,
        energy: PathEnergy,
        state: FlowState,
        target: PathEnergy,
        x: Tensor,
        generator: torch.Generator,
        *,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean log-likelihood of `target` on rows x (N, D), in nats.

        Its error is that of log Z, which is estimated from the particles of `energy`.
        """
        free_energy = free_energy_bound(target, x, latent_nodes(1, 0, seed=0).to(x))
        log_z = self.tempered.log_partition(energy, state.particles, target, generator)
        return -mean_on_device(free_energy, row_weights) - log_z


def differentiable_grad(energy: PathEnergy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the correction (B,) at x (B, D) and its gradient (B, D), both differentiable.

    The hand-derived gradient of the kernels keeps no graph, so that automatic differentiation is
    used.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        correction = energy.correction(x, x[:, :0])
        (grad,) = torch.autograd.grad(correction.sum(), x, create_graph=True)
    return correction, grad
