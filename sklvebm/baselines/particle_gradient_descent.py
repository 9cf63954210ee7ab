"""`ParticleGradientDescent`: Langevin particles of the posteriors, gradient ascent of a decoder."""

from typing import Any, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from sklvebm.baselines._bounds import GaussianMixtures
from sklvebm.baselines._contract import RULES, DecoderDensityMixin
from sklvebm.baselines._decoder import LatentModel
from sklvebm.baselines._fitting import BoundObjective, WeightedRows, principal_latents
from sklvebm.baselines._inference import (
    langevin,
    laplace,
    most_likely_latents,
    posterior_target,
    whitened_target,
)
from sklvebm.estimators._common.parameters import Number, Rule
from sklvebm.mcmc.adaptation import adapt_step_size
from sklvebm.mcmc.langevin import KERNELS, start
from sklvebm.mcmc.state import Batch, IndependentNoise, SharedNoise, stack_rows
from sklvebm.smc.quasi_random import latent_nodes

_KERNEL = KERNELS["crank-nicolson"]
_FIRST_STEP_SIZE = 0.05  # squared units per nat
_FIRST_SPREAD = 0.1  # standard deviation of a row's first particles
# posterior particles of new rows, Langevin steps and step size, squared whitened units per nat
_POSTERIOR_PARTICLES, _POSTERIOR_STEPS, _POSTERIOR_STEP_SIZE = 8, 20, 0.5


class PosteriorParticles(NamedTuple):
    """Particles of all rows and their step size."""

    latents: Tensor  # (N, K, L)
    step_size: Tensor  # 0-d, squared units per nat


class ParticleObjective(BoundObjective):
    """The joint log-density, averaged over posterior particles.

    Its gradient is that of the likelihood if the particles follow the posteriors.
    """

    def __init__(self, n_particles: int, n_langevin_steps: int) -> None:
        self.n_particles, self.n_langevin_steps = n_particles, n_langevin_steps

    def init(self, model: LatentModel, rows: WeightedRows, generator: torch.Generator) -> Any:
        """Return particles around the principal components."""
        centre = principal_latents(rows, model.n_latents, generator)
        shape = (len(centre), self.n_particles, model.n_latents)
        noise = torch.randn(shape, generator=generator, dtype=centre.dtype, device=centre.device)
        return PosteriorParticles(
            centre.unsqueeze(1) + _FIRST_SPREAD * noise, centre.new_tensor(_FIRST_STEP_SIZE)
        )

    def step(
        self,
        model: LatentModel,
        batch: Batch,
        state: Any,
        generator: torch.Generator,
    ) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Move the particles of the rows; return minus their mean joint log-density."""
        z = state.latents[batch.index]
        with torch.no_grad():
            target = posterior_target(model, stack_rows(batch.x, self.n_particles))
            moved, acceptance = langevin(
                start(z.flatten(0, 1), target),
                target,
                state.step_size,
                self.n_langevin_steps,
                IndependentNoise(generator),
            )
            z = moved.reshape(z.shape)
            state = PosteriorParticles(
                state.latents.index_copy(0, batch.index, z),
                adapt_step_size(_KERNEL, state.step_size, acceptance),
            )
        loss = -model.log_joint(batch.x.unsqueeze(1), z).mean()
        return loss, state, {"acceptance": acceptance, "step_size": state.step_size}

    def posterior(
        self, model: LatentModel, x: Tensor, seed: int, *, thorough: bool
    ) -> GaussianMixtures:
        """Return Gaussians around particles that started at the Laplace approximation."""
        z = most_likely_latents(model, x, seed, thorough=thorough)
        q = laplace(model, x, z.unsqueeze(1))
        if not thorough:
            return q
        n = _POSTERIOR_PARTICLES
        nodes = latent_nodes(n, model.n_latents, seed + 2).to(x)
        copies = GaussianMixtures(*(stack_rows(part, n) for part in q))
        target = whitened_target(model, stack_rows(x, n), copies)
        e, _ = langevin(
            start(nodes.repeat(len(x), 1), target),
            target,
            _POSTERIOR_STEP_SIZE,
            _POSTERIOR_STEPS,
            SharedNoise(torch.Generator().manual_seed(seed + 3), n),
        )
        z = copies.mean[:, 0] + torch.einsum("bij,bj->bi", copies.factor[:, 0], e)
        return laplace(model, x, z.reshape(len(x), n, -1))


class ParticleGradientDescent(DecoderDensityMixin, BaseEstimator):
    r"""Particle gradient descent: posterior particles for every row, gradient ascent of a decoder.

    .. math:: dz_{ik} = \nabla_z \log p_\theta(x_i, z_{ik}) dt + \sqrt{2}\, dB_{ik}, \qquad
              d\theta = \tfrac{1}{NK} \textstyle\sum_{ik} \nabla_\theta
              \log p_\theta(x_i, z_{ik}) dt

    A discretised gradient flow of the free energy [1]_, here with Metropolis-adjusted steps of
    adapted size, mini-batches and Adam. `score_samples` returns the importance-weighted bound [2]_
    with Gaussians around eight particles of the row as proposal, and `transform` the posterior mean
    with the same weights.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents z.
    hidden_layer_sizes : sequence of int, default=(64, 64)
        Hidden layers of the decoder; () makes it affine.
    activation : {"silu", "softplus", "tanh"}, default="silu"
        Activation of the hidden layers.
    n_particles : int, default=4
        Posterior particles per row.
    n_langevin_steps : int, default=2
        Langevin steps of a row's particles per update.
    initial_variance : float, default=0.01
        Variance of the decoder at the start, in standardised units: below 1, the variance of the
        rows, so that the decoder depends on its latents. It is learned, one value per feature.
    variance_floor : float, default=0.0001
        Least variance of the decoder, in standardised units.
    n_importance_samples : int, default=256
        Draws per row of the bound that `score_samples` returns; a power of two, 16 at least.
    learning_rate_init : float, default=0.003
        Step of Adam. It is multiplied by 0.3 at each of two plateaus; the third ends training.
    alpha : float, default=0.0
        Decoupled weight decay, per unit of learning rate.
    batch_size : int or "auto", default="auto"
        Rows per update; "auto" gives about sixteen updates per epoch, of 32 to 256 rows.
    max_iter : int, default=100
        Epochs at most.
    tol : float or None, default=0.001
        Smallest relevant improvement of the monitored bound, nats per row. None trains for
        `max_iter` epochs at one learning rate.
    early_stopping : bool, default=True
        Monitor held-out rows; False monitors training rows. The best parameters are kept.
    validation_fraction : float, default=0.1
        Share of rows held out by early stopping.
    n_iter_no_change : int, default=10
        Epochs without improvement that count as a plateau.
    device : str, default="auto"
        Where training runs: "cpu", "cuda", "cuda:1", ...; "auto" uses CUDA if available.
    dtype : {"float32", "float64"}, default="float32"
        Precision of training. Scores and latents are computed in float64.
    verbose : int, default=0
        Print the stages of `fit`, and a line every `verbose` epochs; 0 prints nothing.
    random_state : int, RandomState, Generator or None, default=None
        Source of all randomness of `fit`.

    Attributes
    ----------
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the columns.
    noise_variance_ : ndarray of shape (n_features,)
        Variance of the decoder, in squared units of X.
    lower_bound_ : float
        Best monitored bound, nats per row, in the units of X.
    lower_bounds_ : list of float
        Monitored bound after each epoch.
    history_ : list of dict
        Epoch, bound, learning rate and metrics of each epoch.
    n_iter_ : int
        Epochs run.
    converged_ : bool
        Whether training ended at a plateau before `max_iter`.
    batch_size_ : int
        Value that training used, where "auto" was given, too.
    n_features_in_ : int
        Number of features seen by `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, when X has string column names.
    device_ : str
        Device that training ran on.

    See Also
    --------
    LatentEBM : The same with a learned prior.

    References
    ----------
    .. [1] J. Kuntz, J. N. Lim, A. M. Johansen, "Particle algorithms for maximum likelihood training
       of latent variable models", AISTATS 2023.
    .. [2] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm.baselines import ParticleGradientDescent
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = ParticleGradientDescent(n_components=2, n_iter_no_change=1, random_state=0).fit(X)
    >>> model.transform(X).shape
    (200, 2)
    >>> model.sample(5, random_state=0).shape
    (5, 2)
    """

    _rules: dict[str, Rule] = {
        **RULES,
        "n_particles": Number(True, 1),
        "n_langevin_steps": Number(True, 1),
    }

    def __init__(
        self,
        n_components=2,
        *,
        hidden_layer_sizes=(64, 64),
        activation="silu",
        n_particles=4,
        n_langevin_steps=2,
        initial_variance=0.01,
        variance_floor=1e-4,
        n_importance_samples=256,
        learning_rate_init=0.003,
        alpha=0.0,
        batch_size="auto",
        max_iter=100,
        tol=0.001,
        early_stopping=True,
        validation_fraction=0.1,
        n_iter_no_change=10,
        device="auto",
        dtype="float32",
        verbose=0,
        random_state=None,
    ) -> None:
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.n_particles = n_particles
        self.n_langevin_steps = n_langevin_steps
        self.initial_variance = initial_variance
        self.variance_floor = variance_floor
        self.n_importance_samples = n_importance_samples
        self.learning_rate_init = learning_rate_init
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.device = device
        self.dtype = dtype
        self.verbose = verbose
        self.random_state = random_state

    def _objective(self) -> Any:
        return ParticleObjective(self.n_particles, self.n_langevin_steps)
