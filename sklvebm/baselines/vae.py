"""`VAE`: the variational autoencoder as a scikit-learn estimator."""

from typing import Any

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from sklvebm.baselines._bounds import GaussianMixtures, diagonal_gaussians
from sklvebm.baselines._contract import DecoderDensityMixin
from sklvebm.baselines._decoder import Architecture, LatentModel
from sklvebm.baselines._fitting import BoundObjective, WeightedRows
from sklvebm.mcmc.state import Batch

_LOG_SCALE_RANGE = (-8.0, 3.0)  # of the encoder's log standard deviations


def encode(model: LatentModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of `q(z | x)`, each (N, L)."""
    mean, log_scale = model.encoder(x).chunk(2, dim=1)
    return mean, torch.exp(log_scale.clamp(*_LOG_SCALE_RANGE))


class AmortizedBound(BoundObjective):
    """The evidence lower bound with an encoder that gives the Gaussian of a row."""

    def init(self, model: LatentModel, rows: WeightedRows, generator: torch.Generator) -> None:
        """Return None: there is no state between updates."""
        return None

    def step(
        self, model: LatentModel, batch: Batch, state: None, generator: torch.Generator
    ) -> tuple[Tensor, None, dict[str, Tensor]]:
        """Return minus the mean bound of the rows, with one reparameterised draw each."""
        mean, scale = encode(model, batch.x)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        z = mean + scale * noise
        divergence = 0.5 * (mean.square() + scale.square() - 1.0).sum(1) - torch.log(scale).sum(1)
        loss = divergence.mean() - model.decoder.log_likelihood(batch.x, z).mean()
        return loss, None, {"divergence": divergence.detach().mean()}

    def posterior(
        self, model: LatentModel, x: Tensor, seed: int, *, thorough: bool
    ) -> GaussianMixtures:
        """Return the encoder's Gaussians."""
        return diagonal_gaussians(*encode(model, x))


class VAE(DecoderDensityMixin, BaseEstimator):
    r"""Variational autoencoder: a decoder and an encoder.

    .. math:: \max_{\theta, \phi} \; \mathbb{E}_{q_\phi(z | x)} [\log p_\theta(x | z)]
              - KL(q_\phi(z | x) \| N(0, I))

    Prior N(0, I), Gaussian decoder with one variance per feature, Gaussian encoder with a
    diagonal covariance [1]_. `transform` returns the encoder's mean, `score_samples` the
    importance-weighted bound [2]_ with the encoder as proposal.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents z.
    hidden_layer_sizes : sequence of int, default=(64, 64)
        Hidden layers of encoder and decoder; () makes both affine.
    activation : {"silu", "softplus", "tanh"}, default="tanh"
        Activation of the hidden layers.
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
    max_iter : int, default=200
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
    NonAmortizedVI : The same bound without an encoder.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-encoding variational Bayes", ICLR 2014.
    .. [2] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm.baselines import VAE
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = VAE(n_components=2, n_iter_no_change=1, random_state=0).fit(X)
    >>> model.transform(X).shape
    (200, 2)
    >>> model.sample(5, random_state=0).shape
    (5, 2)
    """

    def __init__(
        self,
        n_components=2,
        *,
        hidden_layer_sizes=(64, 64),
        activation="tanh",
        initial_variance=0.01,
        variance_floor=1e-4,
        n_importance_samples=256,
        learning_rate_init=0.003,
        alpha=0.0,
        batch_size="auto",
        max_iter=200,
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

    def _architecture(self, n_features: int) -> Architecture:
        return super()._architecture(n_features)._replace(has_encoder=True)

    def _objective(self) -> Any:
        return AmortizedBound()
