"""`HardEM`: alternating maximisation over the latents of rows and the decoder's parameters."""

from typing import Any, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from sklvebm.baselines._bounds import GaussianMixtures
from sklvebm.baselines._contract import RULES, DecoderDensityMixin
from sklvebm.baselines._decoder import LatentModel
from sklvebm.baselines._fitting import BoundObjective, WeightedRows, principal_latents
from sklvebm.baselines._inference import laplace, maximise_posterior, most_likely_latents
from sklvebm.estimators._common.parameters import Number, Rule
from sklvebm.mcmc.state import Batch
from sklvebm.row_weights import mean_on_device


class RowLatents(NamedTuple):
    """The likeliest latents of all rows, standardised under the weights of the rows.

    Without this constraint the joint density of rows and latents has no maximum: latents shrink
    to the mode of the prior, and the decoder's weights grow.
    """

    position: Tensor  # (N, L)
    row_weights: Tensor | None  # (N,); None counts each row once

    def replaced(self, index: Tensor, z: Tensor) -> "RowLatents":
        """Return the latents with others z (B, L) for some rows, standardised again."""
        position = self.position.index_copy(0, index, z)
        centred = position - mean_on_device(position, self.row_weights)
        variance = mean_on_device(centred.square(), self.row_weights)
        return self._replace(position=centred / variance.sqrt().clamp(min=1e-6))


class JointLikelihood(BoundObjective):
    """The joint log-density of rows and their likeliest latents."""

    def __init__(self, n_latent_steps: int) -> None:
        self.n_latent_steps = n_latent_steps

    def init(
        self, model: LatentModel, rows: WeightedRows, generator: torch.Generator
    ) -> RowLatents:
        """Return first latents of all rows."""
        first = principal_latents(rows, model.n_latents, generator)
        return RowLatents(first, rows.row_weights)

    def step(
        self, model: LatentModel, batch: Batch, state: RowLatents, generator: torch.Generator
    ) -> tuple[Tensor, RowLatents, dict[str, Tensor]]:
        """Improve the latents of the rows; return minus their mean joint log-density."""
        with torch.no_grad():
            z = state.position[batch.index]
            z = maximise_posterior(model, batch.x, z, self.n_latent_steps)
            state = state.replaced(batch.index, z)
            z = state.position[batch.index]
        squares = z.square().sum(1).mean()
        return -model.log_joint(batch.x, z).mean(), state, {"squared_latents": squares}

    def posterior(
        self, model: LatentModel, x: Tensor, seed: int, *, thorough: bool
    ) -> GaussianMixtures:
        """Return the Laplace approximation at the likeliest latents."""
        z = most_likely_latents(model, x, seed, thorough=thorough)
        return laplace(model, x, z.unsqueeze(1))


class HardEM(DecoderDensityMixin, BaseEstimator):
    r"""Hard EM: the likeliest latents of every row replace its posterior.

    .. math:: \max_\theta \sum_i \max_{z_i} \log p_\theta(x_i, z_i)

    Levenberg-Marquardt steps maximise over latents, which are standardised over the rows; otherwise
    they would shrink without limit. Adam maximises over the decoder's parameters. `transform`
    returns the likeliest latents, `score_samples` the importance-weighted bound [1]_ with the
    Laplace approximation as proposal.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents z.
    hidden_layer_sizes : sequence of int, default=(64, 64)
        Hidden layers of the decoder; () makes it affine.
    activation : {"silu", "softplus", "tanh"}, default="tanh"
        Activation of the hidden layers.
    n_latent_steps : int, default=2
        Levenberg-Marquardt steps of a row's latents per update.
    initial_variance : float, default=0.1
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
    NonAmortizedVI : Gaussians instead of point estimates.

    Notes
    -----
    The objective is not a likelihood: it can increase while the bound on held-out rows decreases.
    Early stopping uses the bound and then ends training after few epochs.

    References
    ----------
    .. [1] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm.baselines import HardEM
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = HardEM(n_components=2, n_iter_no_change=1, random_state=0).fit(X)
    >>> model.transform(X).shape
    (200, 2)
    >>> model.sample(5, random_state=0).shape
    (5, 2)
    """

    _rules: dict[str, Rule] = {**RULES, "n_latent_steps": Number(True, 1)}

    def __init__(
        self,
        n_components=2,
        *,
        hidden_layer_sizes=(64, 64),
        activation="tanh",
        n_latent_steps=2,
        initial_variance=0.1,
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
        self.n_latent_steps = n_latent_steps
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
        return JointLikelihood(self.n_latent_steps)
