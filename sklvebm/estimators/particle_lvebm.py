"""`ParticleLVEBM`: the latent-variable energy-based model as a scikit-learn estimator."""

from sklearn.base import BaseEstimator

from sklvebm.estimators._common.config import MARGINS
from sklvebm.estimators._common.fit import ContinuedFitMixin
from sklvebm.estimators._common.parameters import Cache, Flag, Number, OneOf, Rule, Seed, Widths
from sklvebm.estimators._ebm.answers import LatentDensityMixin
from sklvebm.estimators._ebm.config import likelihood_config
from sklvebm.estimators._ebm.family import pool_family
from sklvebm.latent_maps.selection import LATENT_MAPS
from sklvebm.mcmc.langevin import KERNELS
from sklvebm.mixtures.policy import EFFORTS
from sklvebm.models.energies import ACTIVATIONS
from sklvebm.models.networks import EMBEDDINGS
from sklvebm.objectives.density_ratio import INITS
from sklvebm.objectives.maximum_likelihood import NEGATIVES, POSTERIORS

_RULES: dict[str, Rule] = {
    "n_components": Number(True, 1),
    "hidden_layer_sizes": Widths(word="auto"),
    "image_shape": Widths(none=True),
    "latent_map": OneOf(LATENT_MAPS),
    "margins": OneOf(MARGINS),
    "effort": OneOf(EFFORTS),
    "max_iter": Number(True, 0),
    "tol": Number(False, 0.0, none=True),
    "early_stopping": Flag(),
    "warm_start": Flag(),
    "memory": Cache(),
    "verbose": Number(True, 0, flag=True),
    "random_state": Seed(),
    "activation": OneOf(tuple(ACTIVATIONS)),
    "embedding": OneOf(EMBEDDINGS),
    "n_networks": Number(True, 1, word="auto"),
    "init": OneOf(INITS),
    "dynamics": OneOf(tuple(KERNELS)),
    "posterior": OneOf(POSTERIORS),
    "negatives": OneOf(NEGATIVES),
    "step_size": Number(False, 0.0, open_low=True, none=True),
    "n_particles": Number(True, 1, word="auto"),
    "n_chains": Number(True, 2),
    "n_temperatures": Number(True, 1, word="auto"),
    "n_langevin_steps": Number(True, 1),
    "learning_rate_init": Number(False, 0.0, open_low=True, word="auto"),
    "alpha": Number(False, 0.0, word="auto"),
    "batch_size": Number(True, 1, word="auto"),
    "validation_fraction": Number(False, 0.0, 1.0, open_low=True),
    "n_iter_no_change": Number(True, 1),
    "dtype": OneOf(("float32", "float64")),
}
_RESOLVED = (
    "hidden_layer_sizes",
    "embedding",
    "n_networks",
    "init",
    "n_particles",
    "n_temperatures",
    "learning_rate_init",
    "alpha",
    "batch_size",
)


_FAMILY = pool_family(
    _RULES, likelihood_config, monitored="ELBO", value="lower_bound", resolved=_RESOLVED
)


class ParticleLVEBM(ContinuedFitMixin, LatentDensityMixin, BaseEstimator):
    r"""Latent-variable energy-based model trained by Langevin particles.

    .. math:: p(x, z) = \exp(-E(x, z)) / Z, \qquad E = E_{ref} + c \tanh(g_\theta / c)

    Maximum likelihood as a saddle problem [1]_: a tempered pool of joint particles `(x, z)`
    represents the model, and a few posterior particles `z` per row represent the data. Both move by
    Langevin dynamics while the parameters ascend the likelihood. `E_ref` is the energy of a
    normalised density, the reference (a Gaussian mixture by default), which is the untrained model.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents z.
    hidden_layer_sizes : sequence of int or "auto", default="auto"
        Hidden layers of the network g; ignored when `energy` is given. "auto" is (64, 64) for up
        to seven features and latents together without an embedding, else (128, 128); (64,) with
        `image_shape`, after the convolutions.
    image_shape : sequence of int or None, default=None
        Height and width, or height, width and channels, where rows are flattened images: g is then
        convolutional in x (`ConvEnergy`). None treats all columns alike. Ignored when `energy` is
        given.
    reference : {"mixture", "gaussian"}, GaussianMixture or MixtureReference, default="mixture"
        The density that the energy corrects. "mixture": Gaussian mixtures, averaged with weights
        by cross-validation, with Student-like tails. "gaussian": the Gaussian of probabilistic PCA.
        A mixture estimator: a clone, fitted to the standardised rows. Or a reference in
        standardised units.
    margins : {"auto", "all", "histogram", "none"}, default="auto"
        Which columns are made normal by densities of their own. "none": no column. "histogram":
        columns with edges (rounded values, counts, proportions), where a histogram beats smooth
        densities. "all": the others, too, by Gaussian mixtures; from 1,000 rows and four columns
        on. "auto": the choice that held-out rows prefer; only with mixtures chosen by
        cross-validation. Models with such columns cannot be composed.
    effort : {"fast", "default", "thorough"}, default="default"
        How much time `fit` may take. "fast" tries fewer mixtures, divides `max_iter` by four and
        `n_iter_no_change` by two, and trains particles only where a density ratio proves a gain.
        "thorough" tries more mixtures, multiplies `max_iter`, `n_iter_no_change` and `n_chains` by
        two, and trains particles also where a gain is only possible.
    latent_map : {"auto", "linear", "manifold"}, default="auto"
        Map from rows to the centre of their latents: that of probabilistic PCA, or a nonlinear one
        by Isomap or, with two latents or more, an autoencoder. "auto" selects a nonlinear map if it
        rebuilds held-out rows clearly better. Scores do not depend on it. Ignored when `energy` is
        given.
    max_iter : int, default=200
        Epochs at most; 0 keeps the reference.
    tol : float or None, default=0.001
        Smallest relevant improvement of the monitored ELBO, nats per row. None trains for
        `max_iter` epochs at one learning rate.
    early_stopping : bool, default=True
        Monitor the ELBO on held-out rows, which neither reference nor training uses, and keep the
        best parameters. False monitors training rows.
    warm_start : bool, default=False
        Continue from the last fit, with its reference, units, particles and optimiser. The
        reference and the units do not change, and are kept where training does not help.
    device : str, default="auto"
        Where training runs: "cpu", "cuda", "cuda:1", ...; "auto" uses CUDA if available.
    memory : None, str, path-like or joblib.Memory, default=None
        Folder in which references are kept. Fits with the same rows, the same integer
        `random_state` and the same parameters of the reference then reuse them: in a grid search,
        candidates that differ in the training of the energy. `joblib.Memory(folder).reduce_size`
        bounds its size. None keeps nothing.
    verbose : int, default=0
        Print the stages of `fit`, a line every `verbose` epochs, and whether the trained model is
        kept; 0 prints nothing.
    random_state : int, RandomState, Generator or None, default=None
        Source of all randomness of `fit`.

        **The parameters below are research options.** Their defaults seldom need a change, unless
        `diagnostics_` reports a problem.
    activation : {"silu", "softplus", "tanh"}, default="tanh"
        Activation of the network g.
    embedding : {"auto", "periodic", "none"}, default="auto"
        Inputs of the network g: "periodic" gives it learned sines and cosines of every column
        (`PeriodicEnergy`), "none" the columns. "auto" is "periodic" with four features or more (one
        with `reference="gaussian"`), a thousand rows or more and a hundred rows or more per
        feature, without `image_shape`. Ignored when `energy` is given.
    n_networks : int or "auto", default="auto"
        Networks whose mean is g. In the density ratio each of them learns by itself, and what they
        learn by chance cancels. Time of training and of scores is proportional to it. "auto" is 4
        for networks with an embedding that start from the ratio, fewer beyond 25,000 rows, and one
        from 50,001 on (`effort`: 1 with "fast", twice as many with "thorough"); else 1. Ignored
        when `energy` is given.
    init : {"auto", "ratio", "reference"}, default="auto"
        Where training by particles starts. "reference": at the reference. "ratio": at the density
        ratio of rows to reference, trained for at most half of `max_iter` epochs by classifying
        rows and exact draws of the reference [2]_. If that shows no gain on held-out rows, training
        ends. "auto" is "ratio" for networks with an embedding; for others it is "reference", and
        the ratio only decides whether particles are trained at all. Both need complete rows, some
        of them held out, and several temperatures. Only a first `fit` has a start.
    energy : torch.nn.Module, callable or None, default=None
        A complete energy instead of the anchored network: a module with
        `energy(x, z) -> (n_rows,)` in nats, in standardised units of x, or a factory
        `(n_features, n_components) -> module`. `fit` trains a copy, in evaluation mode: dropout is
        inactive. `exp(-energy)` must be integrable. `fit` checks for signs of the contrary, for
        randomness, and for dependence of rows on their batch.
    dynamics : str, default="crank-nicolson"
        Langevin kernel of all particles: "crank-nicolson", a Metropolis-adjusted step whose
        proposals are exact on the reference; "mala"; "leimkuhler-matthews"; "heun", of second
        order; or "ula", with `n_temperatures=1` the published algorithm.
    posterior : {"particles", "gaussian", "amortized"}, default="particles"
        Approximation of the posteriors of the rows in training: particles, one diagonal Gaussian
        per row, or an encoder. Scores and latents always use annealed particles.
    negatives : {"persistent", "contrastive"}, default="persistent"
        Start of the pool in an update: the end of the last update, or rows of the batch with their
        posterior particles (joint contrastive divergence, biased; one temperature only).
    step_size : float or None, default=None
        Langevin step, in squared whitened units per nat. None chooses by kernel. The two
        Metropolis-adjusted kernels adapt it to an acceptance of 0.6.
    n_particles : int or "auto", default="auto"
        Posterior particles, or draws of the variational family, per row; "auto" is 1 for up to
        seven features and latents together or from 10,000 rows on, else 4.
    n_chains : int, default=128
        Joint particles per temperature.
    n_temperatures : int or "auto", default="auto"
        Rungs of the ladder between reference and model; 1 is the plain persistent pool. "auto" is
        4 for up to seven features and latents together, else 8; 1 for contrastive negatives.
    n_langevin_steps : int, default=2
        Steps of the pool per update; latents take half as many, at least one.
    learning_rate_init : float or "auto", default="auto"
        Step of Adam. It is divided by about 3 at each of two plateaus; the third ends training.
        "auto" is 0.001 after the density ratio; else 0.02 for a thousand rows or more with up to
        seven features and latents together, 0.01 otherwise.
    alpha : float or "auto", default="auto"
        Decoupled weight decay, per unit of learning rate. Small values allow energies that are hard
        to normalise (a wide bracket of log Z); large ones keep the energy near the reference.
        "auto" is 0.1 after the density ratio; else 0.01 for a thousand rows or more with up to
        seven features and latents together, 0.5 otherwise.
    batch_size : int or "auto", default="auto"
        Rows per update; "auto" gives 8 updates per epoch of 32 to 256 rows, and 32 for many rows.
    validation_fraction : float, default=0.1
        Share of rows held out by early stopping.
    n_iter_no_change : int, default=10
        Epochs without improvement that count as a plateau.
    dtype : {"float32", "float64"}, default="float32"
        Precision of training. Scores and latents are computed in float64.

    Attributes
    ----------
    energy_ : AnchoredEnergy, MappedEnergy or BridgedEnergy
        Trained energy `E(x, z)` in nats, in standardised units, float64.
    reference_ : MixtureReference
        The density it is anchored on, in standardised units.
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the columns.
    margins_ : str
        "all", "histogram" or "none": which columns are mapped.
    n_bins_ : ndarray of shape (n_features,)
        Bins of each column's histogram; 0 for columns without one.
    log_partition_ : LogPartition
        Named tuple `value, lower, upper, standard_error, effective_sample_size`; nats.
    diagnostics_ : Diagnostics
        Acceptances, swap rates, R-hat, bracket of log Z, effective sample sizes; `verdict` is one
        line, `report()` text.
    lower_bound_ : float
        Best monitored ELBO, nats per row, in the units of X.
    lower_bounds_ : list of float
        Monitored ELBO after each epoch.
    history_ : list of dict
        Epoch, ELBO, learning rate, swap rates and acceptances of each epoch. `problem` is the
        reason if an epoch was undone and repeated with a lower learning rate (its ELBO is NaN),
        else "".
    n_iter_ : int
        Epochs run.
    converged_ : bool
        Whether training ended at a plateau before `max_iter`.
    improved_ : bool
        Whether the model is better on the monitored rows than the alternative, a reference fitted
        to all rows: by two standard errors (more where rows are few), with annealed
        estimates on the safe side, and without an objection of `diagnostics_`. If not, it is that
        reference.
    hidden_layer_sizes_ : tuple of int
        Values that training used, where "auto" was given, too.
    embedding_ : {"periodic", "none"}
        Inputs of the network.
    n_networks_ : int
        Networks whose mean corrects the reference.
    init_ : {"ratio", "reference"}
        Where a first `fit` starts.
    n_particles_, n_temperatures_, batch_size_ : int
        Particles per row, rungs of the ladder, rows per update.
    learning_rate_init_, alpha_ : float
        Step of Adam, weight decay.
    latent_map_ : {"linear", "manifold"}
        Kind of the latent map; "linear" when `energy` is given.
    n_features_in_ : int
        Number of features seen by `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, when X has string column names.
    device_ : str
        Device that training ran on.

    See Also
    --------
    sklearn.mixture.GaussianMixture : The default reference, and a fast density estimator.
    sklearn.decomposition.PCA : Linear latents; its `score` is a density, too.
    sklearn.neighbors.KernelDensity : Its `score` is a sum, not a mean.

    Notes
    -----
    `score` uses the upper estimate of log Z and an upper bound of the free energy, so that its
    expectation is not above the log-likelihood. The likelihood does not determine `p(z | x)`: the
    coordinates of the latents are a convention. See `docs/theory/model.md`.

    References
    ----------
    .. [1] S. Tang et al., "Particle Dynamics for Latent-Variable Energy-Based Models",
       Proceedings of Machine Learning Research 337, 2026.
    .. [2] M. Gutmann, A. Hyvärinen, "Noise-Contrastive Estimation of Unnormalized Statistical
       Models", Journal of Machine Learning Research 13, 2012.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import ParticleLVEBM
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = ParticleLVEBM(n_components=1, random_state=0).fit(X)
    >>> model.transform(X).shape
    (200, 1)
    >>> model.sample(5, random_state=0).shape
    (5, 2)
    >>> bool(model.score(X) > -1.2)
    True
    """

    _family = _FAMILY

    def __init__(
        self,
        n_components=2,
        *,
        hidden_layer_sizes="auto",
        image_shape=None,
        reference="mixture",
        margins="auto",
        effort="default",
        latent_map="auto",
        max_iter=200,
        tol=0.001,
        early_stopping=True,
        warm_start=False,
        device="auto",
        memory=None,
        verbose=0,
        random_state=None,
        activation="tanh",
        embedding="auto",
        n_networks="auto",
        init="auto",
        energy=None,
        dynamics="crank-nicolson",
        posterior="particles",
        negatives="persistent",
        step_size=None,
        n_particles="auto",
        n_chains=128,
        n_temperatures="auto",
        n_langevin_steps=2,
        learning_rate_init="auto",
        alpha="auto",
        batch_size="auto",
        validation_fraction=0.1,
        n_iter_no_change=10,
        dtype="float32",
    ) -> None:
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.image_shape = image_shape
        self.reference = reference
        self.margins = margins
        self.effort = effort
        self.latent_map = latent_map
        self.max_iter = max_iter
        self.tol = tol
        self.early_stopping = early_stopping
        self.warm_start = warm_start
        self.device = device
        self.memory = memory
        self.verbose = verbose
        self.random_state = random_state
        self.activation = activation
        self.embedding = embedding
        self.n_networks = n_networks
        self.init = init
        self.energy = energy
        self.dynamics = dynamics
        self.posterior = posterior
        self.negatives = negatives
        self.step_size = step_size
        self.n_particles = n_particles
        self.n_chains = n_chains
        self.n_temperatures = n_temperatures
        self.n_langevin_steps = n_langevin_steps
        self.learning_rate_init = learning_rate_init
        self.alpha = alpha
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.dtype = dtype
