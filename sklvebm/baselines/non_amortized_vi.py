"""`NonAmortizedVI`: variational inference with one Gaussian per row instead of an encoder."""

from typing import Any, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from sklvebm.baselines._bounds import GaussianMixtures, diagonal_gaussians
from sklvebm.baselines._contract import RULES, DecoderDensityMixin
from sklvebm.baselines._decoder import LatentModel
from sklvebm.baselines._fitting import BoundObjective, WeightedRows, principal_latents
from sklvebm.baselines._inference import gauss_newton, most_likely_latents
from sklvebm.estimators._common.parameters import Number, Rule
from sklvebm.mcmc.state import Batch
from sklvebm.smc.quasi_random import latent_nodes

_FIRST_SCALE = 0.1  # first standard deviations in training
_LOG_SCALE_RANGE = (-8.0, 3.0)  # of the log standard deviations
_GRADIENT_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.99, 1e-8  # of Adam
# the Gaussians of new rows: quasi-random nodes, steps of Adam and their first size
_N_FIT_NODES, _LATENT_LEARNING_RATE = 16, 0.05
_BRIEF_STEPS, _THOROUGH_STEPS = 10, 100


class FreeGaussians(NamedTuple):
    """A diagonal Gaussian per row with its moments of Adam."""

    parameters: Tensor  # (N, 2, L): mean and log standard deviation
    gradients: Tensor  # (N, 2, L), running mean
    squares: Tensor  # (N, 2, L), running mean
    n_steps: Tensor  # (N, 1, 1)

    def mean_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations, each (N, L)."""
        mean, log_scale = self.parameters.unbind(1)
        return mean, torch.exp(log_scale.clamp(*_LOG_SCALE_RANGE))


def free_gaussians(mean: Tensor, scale: Tensor) -> FreeGaussians:
    """Return Gaussians with means and standard deviations (N, L), and moments of zero."""
    parameters = torch.stack([mean, torch.log(scale)], 1)
    zero = torch.zeros_like(parameters)
    return FreeGaussians(parameters, zero, zero, parameters.new_zeros(len(mean), 1, 1))


def negative_bound(model: LatentModel, x: Tensor, q: FreeGaussians, noise: Tensor) -> Tensor:
    """Return minus the evidence lower bound of rows x (B, D) with noise (..., K, L), (B,)."""
    mean, scale = q.mean_and_scale()
    z = mean.unsqueeze(1) + scale.unsqueeze(1) * noise
    divergence = 0.5 * (mean.square() + scale.square() - 1.0).sum(1) - torch.log(scale).sum(1)
    return divergence - model.decoder.log_likelihood(x.unsqueeze(1), z).mean(1)


def improved(
    model: LatentModel, x: Tensor, q: FreeGaussians, noise: Tensor, rate: float
) -> FreeGaussians:
    """Return Gaussians after one step of Adam on their bound, each row with its own moments."""
    with torch.enable_grad():
        parameters = q.parameters.detach().requires_grad_(True)
        loss = negative_bound(model, x, q._replace(parameters=parameters), noise).sum()
        (gradient,) = torch.autograd.grad(loss, parameters)
    n_steps = q.n_steps + 1.0
    gradients = _GRADIENT_DECAY * q.gradients + (1.0 - _GRADIENT_DECAY) * gradient
    squares = _SQUARE_DECAY * q.squares + (1.0 - _SQUARE_DECAY) * gradient.square()
    first = gradients / (1.0 - _GRADIENT_DECAY**n_steps)
    second = squares / (1.0 - _SQUARE_DECAY**n_steps)
    step = rate * first / (torch.sqrt(second) + _EPSILON)
    return FreeGaussians(q.parameters - step, gradients, squares, n_steps)


class FreeBound(BoundObjective):
    """The evidence lower bound with a Gaussian per row."""

    def __init__(self, n_latent_steps: int, latent_learning_rate: float) -> None:
        self.n_latent_steps, self.latent_learning_rate = n_latent_steps, latent_learning_rate

    def init(
        self, model: LatentModel, rows: WeightedRows, generator: torch.Generator
    ) -> FreeGaussians:
        """Return narrow Gaussians around the principal components."""
        mean = principal_latents(rows, model.n_latents, generator)
        return free_gaussians(mean, torch.full_like(mean, _FIRST_SCALE))

    def step(
        self, model: LatentModel, batch: Batch, state: FreeGaussians, generator: torch.Generator
    ) -> tuple[Tensor, FreeGaussians, dict[str, Tensor]]:
        """Improve the Gaussians of the rows; return minus their mean bound."""
        q = FreeGaussians(*(part[batch.index] for part in state))
        shape = (len(batch.x), 1, model.n_latents)

        def noise() -> Tensor:
            like = batch.x
            return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

        for _ in range(self.n_latent_steps):
            q = improved(model, batch.x, q, noise(), self.latent_learning_rate)
        state = FreeGaussians(
            *(whole.index_copy(0, batch.index, part) for whole, part in zip(state, q, strict=True))
        )
        scale = q.mean_and_scale()[1].mean()
        return negative_bound(model, batch.x, q, noise()).mean(), state, {"latent_scale": scale}

    def posterior(
        self, model: LatentModel, x: Tensor, seed: int, *, thorough: bool
    ) -> GaussianMixtures:
        """Optimise a Gaussian for each row, from the likeliest latents."""
        mean = most_likely_latents(model, x, seed, thorough=thorough)
        precision = torch.diagonal(gauss_newton(model, x, mean).precision, dim1=1, dim2=2)
        q = free_gaussians(mean, precision.rsqrt())
        nodes = latent_nodes(_N_FIT_NODES, model.n_latents, seed + 1).to(x)
        n_steps = _THOROUGH_STEPS if thorough else _BRIEF_STEPS
        for step in range(n_steps):
            rate = _LATENT_LEARNING_RATE * (1.0 - step / n_steps)
            q = improved(model, x, q, nodes, rate)
        return diagonal_gaussians(*q.mean_and_scale())


class NonAmortizedVI(DecoderDensityMixin, BaseEstimator):
    r"""Variational inference without an encoder: one Gaussian per row.

    .. math:: \max_\theta \sum_i \max_{m_i, s_i} \; \mathbb{E}_{q_i} [\log p_\theta(x_i | z)]
              - KL(q_i \| N(0, I)), \qquad q_i = N(m_i, \mathrm{diag}(s_i^2))

    Adam optimises means and standard deviations, with separate moments for every row [1]_. The
    optimisation for new rows starts at their likeliest latents. `transform` returns `m`,
    `score_samples` the importance-weighted bound [2]_ with `q` as proposal.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents z.
    hidden_layer_sizes : sequence of int, default=(64, 64)
        Hidden layers of the decoder; () makes it affine.
    activation : {"silu", "softplus", "tanh"}, default="tanh"
        Activation of the hidden layers.
    n_latent_steps : int, default=4
        Steps of Adam on a row's Gaussian per update.
    latent_learning_rate : float, default=0.03
        Step of Adam on means and log standard deviations.
    initial_variance : float, default=0.003
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
    VAE : The same bound with an encoder.

    References
    ----------
    .. [1] M. D. Hoffman, D. M. Blei, C. Wang, J. Paisley, "Stochastic variational inference",
       Journal of Machine Learning Research 14, 2013.
    .. [2] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm.baselines import NonAmortizedVI
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = NonAmortizedVI(n_components=2, n_iter_no_change=1, random_state=0).fit(X)
    >>> model.transform(X).shape
    (200, 2)
    >>> model.sample(5, random_state=0).shape
    (5, 2)
    """

    _rules: dict[str, Rule] = {
        **RULES,
        "n_latent_steps": Number(True, 1),
        "latent_learning_rate": Number(False, 0.0, open_low=True),
    }

    def __init__(
        self,
        n_components=2,
        *,
        hidden_layer_sizes=(64, 64),
        activation="tanh",
        n_latent_steps=4,
        latent_learning_rate=0.03,
        initial_variance=0.003,
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
        self.n_latent_steps = n_latent_steps
        self.latent_learning_rate = latent_learning_rate
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
        return FreeBound(self.n_latent_steps, self.latent_learning_rate)
