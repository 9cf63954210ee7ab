"""`WassersteinFlowEBM`: an energy of the features alone, trained by near-proximal steps."""

from sklearn.base import BaseEstimator

from sklvebm.estimators._common.config import MARGINS
from sklvebm.estimators._common.fit import ContinuedFitMixin
from sklvebm.estimators._common.parameters import Cache, Flag, Number, OneOf, Rule, Seed, Widths
from sklvebm.estimators._ebm.answers import FeatureDensityMixin
from sklvebm.estimators._ebm.config import proximal_config
from sklvebm.estimators._ebm.family import pool_family
from sklvebm.mcmc.langevin import KERNELS
from sklvebm.mixtures.policy import EFFORTS
from sklvebm.models.energies import ACTIVATIONS
from sklvebm.models.networks import EMBEDDINGS
from sklvebm.objectives.density_ratio import INITS
from sklvebm.objectives.proximal import PROXIMAL

_RULES: dict[str, Rule] = {
    "hidden_layer_sizes": Widths(word="auto"),
    "image_shape": Widths(none=True),
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
    "proximal": OneOf(PROXIMAL),
    "proximal_weight": Number(False, 0.0),
    "penalty_half_life": Number(False, 0.0, open_low=True, none=True),
    "n_inner_steps": Number(True, 1),
    "dynamics": OneOf(tuple(KERNELS)),
    "step_size": Number(False, 0.0, open_low=True, none=True),
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
    "n_temperatures",
    "learning_rate_init",
    "alpha",
    "batch_size",
)


_FAMILY = pool_family(
    _RULES,
    proximal_config,
    monitored="log-likelihood",
    value="log_likelihood",
    resolved=_RESOLVED,
)


class WassersteinFlowEBM(ContinuedFitMixin, FeatureDensityMixin, BaseEstimator):
    r"""Energy-based model of the features alone, trained by near-proximal gradient-flow steps.

    .. math:: p(x) = \exp(-E(x)) / Z, \qquad E = E_{ref} + c \tanh(g_\theta / c)

    A tempered pool of particles follows the Wasserstein gradient flow of their relative entropy to
    the model (Langevin dynamics), while the parameters take proximal steps [1]_: each move of the
    particles is followed by a few updates with a penalty on the change of the energy's gradient at
    the particles. `E_ref` is the energy of a normalised density, the reference (a Gaussian mixture
    by default), which is the untrained model. The correction is kept only if held-out rows have a
    higher likelihood with it.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int or "auto", default="auto"
        Hidden layers of the network g. "auto" is (64, 64) for up to seven features without an
        embedding, else (128, 128); (64,) with `image_shape`, after the convolutions.
    image_shape : sequence of int or None, default=None
        Height and width, or height, width and channels, where rows are flattened images: g is then
        convolutional (`ConvEnergy`). None treats all columns alike.
    reference : {"mixture", "gaussian"}, GaussianMixture or MixtureReference, default="mixture"
        The density that the energy corrects. "mixture": Gaussian mixtures, averaged with weights
        by cross-validation, with Student-like tails. "gaussian": one Gaussian with the covariance
        of the rows. A mixture estimator: a clone, fitted to the standardised rows. Or the marginal
        of the features of a reference in standardised units.
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
    max_iter : int, default=200
        Epochs at most; 0 keeps the reference.
    tol : float or None, default=0.001
        Smallest relevant improvement of the monitored log-likelihood, nats per row. None trains for
        `max_iter` epochs at one learning rate.
    early_stopping : bool, default=True
        Monitor the log-likelihood on held-out rows, which neither reference nor training uses,
        and keep the best parameters. False monitors training rows.
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
        feature, without `image_shape`.
    n_networks : int or "auto", default="auto"
        Networks whose mean is g. In the density ratio each of them learns by itself, and what they
        learn by chance cancels. Time of training and of scores is proportional to it. "auto" is 4
        for networks with an embedding that start from the ratio, fewer beyond 25,000 rows, and one
        from 50,001 on (`effort`: 1 with "fast", twice as many with "thorough"); else 1.
    init : {"auto", "ratio", "reference"}, default="auto"
        Where training by particles starts. "reference": at the reference. "ratio": at the density
        ratio of rows to reference, trained for at most half of `max_iter` epochs by classifying
        rows and exact draws of the reference [2]_. If that shows no gain on held-out rows, training
        ends. "auto" is "ratio" for networks with an embedding; for others it is "reference", and
        the ratio only decides whether particles are trained at all. Both need complete rows, some
        of them held out, and several temperatures. Only a first `fit` has a start.
    proximal : {"jko", "gradient-penalty", "none"}, default="jko"
        The proximal term. "jko": the change of the energy's gradient at the particles since their
        last move (unbiased). "gradient-penalty": the gradient itself, which flattens the energy
        while the weight is positive (for a Gaussian of variance v, the learned variance is
        v + 2 `proximal_weight`). "none": persistent contrastive divergence.
    proximal_weight : float, default=0.1
        Weight of that term, in squared standardised units; larger weights give shorter steps.
    penalty_half_life : float or None, default=100.0
        Moves of the pool after which the weight of "gradient-penalty" is halved; None keeps weight
        and bias. Other proximal terms ignore it.
    n_inner_steps : int, default=2
        Updates of the parameters for each move of the pool. With one, "jko" equals "none": the
        change since the last move is zero.
    dynamics : str, default="crank-nicolson"
        Langevin kernel of the pool: "crank-nicolson", a Metropolis-adjusted step whose proposals
        are exact on the reference; "mala"; "leimkuhler-matthews", exact in the limit for Gaussians;
        "heun", of second order at all times; or "ula".
    step_size : float or None, default=None
        Langevin step, in squared whitened units per nat. None chooses by kernel. The two
        Metropolis-adjusted kernels adapt it to an acceptance of 0.6.
    n_chains : int, default=128
        Particles per temperature.
    n_temperatures : int or "auto", default="auto"
        Rungs of the ladder between reference and model; 1 is the plain persistent pool. "auto" is
        4 for up to seven features, else 8.
    n_langevin_steps : int, default=4
        Steps of the pool per move.
    learning_rate_init : float or "auto", default="auto"
        Step of Adam. It is divided by about 3 at each of two plateaus; the third ends training.
        "auto" is 0.001 after the density ratio; else 0.02 for a thousand rows or more with up to
        seven features, 0.01 otherwise.
    alpha : float or "auto", default="auto"
        Decoupled weight decay, per unit of learning rate. "auto" is 0.1 after the density ratio;
        else 0.01 for a thousand rows or more with up to seven features, 0.5 otherwise.
    batch_size : int or "auto", default="auto"
        Rows per update; "auto" gives 8 updates per epoch of 32 to 256 rows, and 32 for many rows.
    validation_fraction : float, default=0.1
        Share of rows held out by early stopping.
    n_iter_no_change : int, default=10
        Epochs without improvement that count as a plateau.
    dtype : {"float32", "float64"}, default="float32"
        Precision of training. Scores are computed in float64.

    Attributes
    ----------
    energy_ : FeatureEnergy
        Trained energy `energy_(x)` in nats, in standardised units, float64.
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
    log_likelihood_ : float
        Best monitored log-likelihood, nats per row, in the units of X.
    log_likelihoods_ : list of float
        Monitored log-likelihood after each epoch.
    history_ : list of dict
        Epoch, log-likelihood, learning rate, contrast, swap rates, acceptance and `movement` (the
        unweighted proximal term) of each epoch. `problem` is the reason if an epoch was undone and
        repeated with a lower learning rate, else "".
    n_iter_ : int
        Epochs run.
    converged_ : bool
        Whether training ended at a plateau before `max_iter`.
    improved_ : bool
        Whether the model is better on the monitored rows than the alternative, a reference fitted
        to all rows: by two standard errors (more where rows are few) and with the
        upper estimate of log Z. If not, it is that reference.
    hidden_layer_sizes_ : tuple of int
        Values that training used, where "auto" was given, too.
    embedding_ : {"periodic", "none"}
        Inputs of the network.
    n_networks_ : int
        Networks whose mean corrects the reference.
    init_ : {"ratio", "reference"}
        Where a first `fit` starts.
    n_temperatures_, batch_size_ : int
        Rungs of the ladder, rows per update.
    learning_rate_init_, alpha_ : float
        Step of Adam, weight decay.
    n_features_in_ : int
        Number of features seen by `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, when X has string column names.
    device_ : str
        Device that training ran on.

    See Also
    --------
    ParticleLVEBM : The same reference and pool, with latents.
    PotentialFlowEBM : A flow instead of Markov chains: exact likelihood, invertible map.
    sklearn.mixture.GaussianMixture : The default reference, and a fast density estimator.

    Notes
    -----
    Without latents the energy of a row is exact. The only error of `score` is that of log Z, for
    which it uses the upper estimate. See `docs/user_guide/wasserstein_flow.md`.

    References
    ----------
    .. [1] Y. Wu, P. Wei, L. Lin, "A near-optimal gradient flow for learning neural energy-based
       models", arXiv:1910.14216, 2019.
    .. [2] M. Gutmann, A. Hyvärinen, "Noise-Contrastive Estimation of Unnormalized Statistical
       Models", Journal of Machine Learning Research 13, 2012.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import WassersteinFlowEBM
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = WassersteinFlowEBM(max_iter=20, tol=0.1, random_state=0).fit(X)
    >>> model.sample(5, random_state=0).shape
    (5, 2)
    >>> bool(model.score(X) > -1.2)
    True
    """

    _family = _FAMILY

    def __init__(
        self,
        hidden_layer_sizes="auto",
        *,
        image_shape=None,
        reference="mixture",
        margins="auto",
        effort="default",
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
        proximal="jko",
        proximal_weight=0.1,
        penalty_half_life=100.0,
        n_inner_steps=2,
        dynamics="crank-nicolson",
        step_size=None,
        n_chains=128,
        n_temperatures="auto",
        n_langevin_steps=4,
        learning_rate_init="auto",
        alpha="auto",
        batch_size="auto",
        validation_fraction=0.1,
        n_iter_no_change=10,
        dtype="float32",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.image_shape = image_shape
        self.reference = reference
        self.margins = margins
        self.effort = effort
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
        self.proximal = proximal
        self.proximal_weight = proximal_weight
        self.penalty_half_life = penalty_half_life
        self.n_inner_steps = n_inner_steps
        self.dynamics = dynamics
        self.step_size = step_size
        self.n_chains = n_chains
        self.n_temperatures = n_temperatures
        self.n_langevin_steps = n_langevin_steps
        self.learning_rate_init = learning_rate_init
        self.alpha = alpha
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.dtype = dtype
