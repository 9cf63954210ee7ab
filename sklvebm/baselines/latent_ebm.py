"""`LatentEBM`: a decoder with an energy-based prior, both trained with particles."""

from typing import Any, NamedTuple

import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklvebm.baselines._contract import RULES, DecoderDensityMixin, LayerSizes
from sklvebm.baselines._decoder import Architecture, LatentModel
from sklvebm.baselines._fitting import WeightedRows
from sklvebm.baselines._inference import langevin, prior_target
from sklvebm.baselines._prior import (
    STEP_SIZE,
    normal_draws,
    prior_log_partition,
    quick_log_partition,
)
from sklvebm.baselines.particle_gradient_descent import ParticleObjective, PosteriorParticles
from sklvebm.estimators._common.parameters import Number, Rule
from sklvebm.mcmc.langevin import reference_step, start
from sklvebm.mcmc.state import Batch, IndependentNoise
from sklvebm.runtime import seeded_generator
from sklvebm.smc.log_partition import LogPartition


class JointParticles(NamedTuple):
    """Particles of the posteriors and of the prior."""

    posterior: PosteriorParticles
    prior: Tensor  # (C, L)


class EnergyPriorObjective(ParticleObjective):
    """The likelihood of decoder and energy prior, with a pool of chains for the prior."""

    def __init__(self, n_particles: int, n_chains: int, n_langevin_steps: int) -> None:
        super().__init__(n_particles, n_langevin_steps)
        self.n_chains = n_chains

    def init(
        self, model: LatentModel, rows: WeightedRows, generator: torch.Generator
    ) -> JointParticles:
        """Return posterior particles and exact draws of the untrained prior."""
        return JointParticles(
            super().init(model, rows, generator),
            normal_draws(model, self.n_chains, generator),
        )

    def step(
        self, model: LatentModel, batch: Batch, state: JointParticles, generator: torch.Generator
    ) -> tuple[Tensor, JointParticles, dict[str, Tensor]]:
        """Move all particles; return minus the mean joint log-density, including log Z.

        The gradient of log Z is that of minus the mean energy over the prior's particles.
        """
        loss, posterior, metrics = super().step(model, batch, state.posterior, generator)
        with torch.no_grad():
            pool = self._moved(model, state.prior, generator)
        energy = model.prior(pool).mean()
        metrics["prior_energy"] = energy.detach()
        return loss - energy, JointParticles(posterior, pool), metrics

    def _moved(self, model: LatentModel, pool: Tensor, generator: torch.Generator) -> Tensor:
        target, noise = prior_target(model), IndependentNoise(generator)
        chains = start(pool, target)
        # independence proposals (Metropolis) move particles between separate modes
        chains, _ = reference_step(
            chains,
            target,
            normal_draws(model, len(pool), generator),
            beta=torch.ones_like(chains.value.correction),
            noise=noise,
        )
        return langevin(chains, target, STEP_SIZE, self.n_langevin_steps, noise)[0]

    def monitored_log_partition(self, target: LatentModel, state: JointParticles) -> float:
        """Return an estimate of log Z by a short annealing run, nats."""
        device = next(target.parameters()).device
        return quick_log_partition(target, seeded_generator(0, device))

    def normalise(self, model: LatentModel, state: JointParticles, seed: int) -> LogPartition:
        """Bracket log Z by annealing in both directions, nats."""
        return prior_log_partition(model, seeded_generator(seed, torch.device("cpu")))


class LatentEBM(DecoderDensityMixin, BaseEstimator):
    r"""Latent-space energy-based model: a decoder with a learned energy prior.

    .. math:: p(x, z) = \frac{\exp(-U(z))\, N(z; 0, I)}{Z}\, N(x; g(z), \mathrm{diag}(\sigma^2))

    The model of [1]_, trained as in [2]_ with posterior particles of every row and particles of the
    prior. Here, prior particles are persistent, steps are Metropolis-adjusted, and the energy U is
    bounded. `score_samples` and `transform` are those of `ParticleGradientDescent`; the bound uses
    the upper estimate of log Z by annealing in both directions.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents z.
    hidden_layer_sizes : sequence of int, default=(64, 64)
        Hidden layers of the decoder; () makes it affine.
    activation : {"silu", "softplus", "tanh"}, default="silu"
        Activation of the hidden layers.
    prior_layer_sizes : sequence of int, default=(32, 32)
        Hidden layers of the prior's energy U.
    n_particles : int, default=4
        Posterior particles per row.
    n_chains : int, default=256
        Particles of the prior.
    n_langevin_steps : int, default=2
        Langevin steps of all particles per update.
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
    log_partition_ : LogPartition
        Bracket of log Z of the prior, nats: `value, lower, upper, standard_error,
        effective_sample_size`.
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
    ParticleGradientDescent : The same with a standard normal prior.

    References
    ----------
    .. [1] B. Pang, T. Han, E. Nijkamp, S.-C. Zhu, Y. N. Wu, "Learning latent space energy-based
       prior model", NeurIPS 2020.
    .. [2] J. Marks, T. Y. J. Wang, O. D. Akyildiz, "Learning latent energy-based models via
       interacting particle Langevin dynamics", UAI 2026.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm.baselines import LatentEBM
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = LatentEBM(n_components=2, n_iter_no_change=1, random_state=0).fit(X)
    >>> model.transform(X).shape
    (200, 2)
    >>> model.sample(5, random_state=0).shape
    (5, 2)
    """

    _rules: dict[str, Rule] = {
        **RULES,
        "prior_layer_sizes": LayerSizes(),
        "n_particles": Number(True, 1),
        "n_chains": Number(True, 2),
        "n_langevin_steps": Number(True, 1),
    }

    def __init__(
        self,
        n_components=2,
        *,
        hidden_layer_sizes=(64, 64),
        activation="silu",
        prior_layer_sizes=(32, 32),
        n_particles=4,
        n_chains=256,
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
        self.prior_layer_sizes = prior_layer_sizes
        self.n_particles = n_particles
        self.n_chains = n_chains
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

    @property
    def log_partition_(self) -> Any:
        """Bracket of log Z of the prior, nats."""
        check_is_fitted(self)
        return self._model.log_partition

    def _architecture(self, n_features: int) -> Architecture:
        sizes = tuple(int(width) for width in self.prior_layer_sizes)
        return super()._architecture(n_features)._replace(prior_layer_sizes=sizes)

    def _objective(self) -> Any:
        return EnergyPriorObjective(self.n_particles, self.n_chains, self.n_langevin_steps)
