"""`PotentialFlowEBM`: a scalar potential whose gradient carries noise to data, as an estimator."""

from sklearn.base import BaseEstimator

from sklvebm.estimators._common.config import MARGINS
from sklvebm.estimators._common.fit import EpochFitMixin
from sklvebm.estimators._common.parameters import Cache, Flag, Number, OneOf, Rule, Seed, Widths
from sklvebm.estimators._flow.answers import FlowDensityMixin
from sklvebm.estimators._flow.family import flow_family
from sklvebm.mixtures.policy import EFFORTS
from sklvebm.models.energies import ACTIVATIONS
from sklvebm.objectives.flow_matching import LOSSES

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
    "loss": OneOf(LOSSES),
    "consistency": Number(False, 0.0),
    "n_steps": Number(True, 1, word="auto"),
    "n_probes": Number(True, 1, word="auto"),
    "n_langevin_steps": Number(True, 0),
    "energy_time": Number(False, 0.0, 1.0, open_low=True),
    "learning_rate_init": Number(False, 0.0, open_low=True, word="auto"),
    "alpha": Number(False, 0.0),
    "batch_size": Number(True, 1, word="auto"),
    "validation_fraction": Number(False, 0.0, 1.0, open_low=True),
    "n_iter_no_change": Number(True, 1),
    "dtype": OneOf(("float32", "float64")),
}
_RESOLVED = ("hidden_layer_sizes", "learning_rate_init", "batch_size", "n_probes")
_FAMILY = flow_family(_RULES, _RESOLVED)


class PotentialFlowEBM(EpochFitMixin, FlowDensityMixin, BaseEstimator):
    r"""Energy-based model whose potential carries noise to data (variational potential flow).

    .. math:: \dot x = \nabla \Phi(x, t), \quad x_0 \sim N(0, I), \qquad
              E_t(x) = -\frac{t \Phi(x, t) - |x|^2 / 2}{1 - t}

    One scalar potential gives the velocity of a flow and the energy of its density at every time
    [1]_. It corrects the potential of a Gaussian mixture, which has a closed form and is the
    untrained model. The correction is kept only if held-out rows have a higher likelihood with it.
    The log-densities of flow and energy, both in nats, are compared as a check.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int or "auto", default="auto"
        Hidden layers of the correction's network. "auto" is (64, 64) for up to three features,
        else (512,): with one layer the exact trace of the change of variables is cheap. With
        `image_shape`, one number: the kernels of the local units; "auto" is (16,).
    image_shape : sequence of int or None, default=None
        Height and width, or height, width and channels, where rows are flattened images: the
        network is then a layer of local units with shared kernels (`ConvLayerEnergy`). None treats
        all columns alike.
    reference : {"mixture", "gaussian"}, GaussianMixture or MixtureReference, default="mixture"
        The density that the potential corrects. "mixture": Gaussian mixtures, averaged with weights
        by cross-validation, with Student-like tails. "gaussian": the Gaussian of probabilistic PCA.
        A mixture estimator: a clone, fitted to the standardised rows. Or the marginal of the
        features of a reference in standardised units.
    margins : {"auto", "all", "histogram", "none"}, default="auto"
        Which columns are made normal by densities of their own. "none": no column. "histogram":
        columns with edges (rounded values, counts, proportions), where a histogram beats smooth
        densities. "all": the others, too, by Gaussian mixtures; from 1,000 rows and four columns
        on. "auto": the choice that held-out rows prefer; only with mixtures chosen by
        cross-validation. Models with such columns cannot be composed.
    effort : {"fast", "default", "thorough"}, default="default"
        How much time `fit` may take. "fast" tries fewer mixtures, divides `max_iter` by four and
        `n_iter_no_change` by two. "thorough" tries more mixtures and multiplies `max_iter` and
        `n_iter_no_change` by two.
    max_iter : int, default=100
        Epochs at most; 0 keeps the reference.
    tol : float or None, default=0.001
        Smallest relevant improvement of the monitored log-likelihood, nats per row. None trains for
        `max_iter` epochs at one learning rate.
    early_stopping : bool, default=True
        Monitor the log-likelihood on held-out rows, which neither reference nor training uses,
        and keep the best parameters. False monitors training rows.
    warm_start : bool, default=False
        Continue from the last fit, with its reference, units, parameters and optimiser. The
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
        Activation of the network.
    loss : {"flow-matching", "covariance", "vapo"}, default="flow-matching"
        "flow-matching": the variational loss as a regression. "covariance": the same in
        expectation, by the covariance of potential and noise, with a larger variance. "vapo": the
        published variant with a correlation, a cosine and penalties, which has another minimiser.
    consistency : float, default=0.1
        Weight of a penalty on the violation of the continuity equation by the energies. With 0, the
        log-densities of flow and energy can differ.
    n_steps : int or "auto", default="auto"
        Fourth-order steps of likelihoods and transforms; "auto" doubles until held-out rows change
        by at most 0.001 nats (root mean square) and 0.0001 standard deviations (median).
    n_probes : int or "auto", default="auto"
        Directions for the trace of the change of variables, which is exact with as many as
        features. "auto" is exact for up to 16 features or with one hidden layer, else 16.
    n_langevin_steps : int, default=0
        Metropolis-adjusted Langevin moves of draws under the explicit energy.
    energy_time : float, default=1.0
        Time of the explicit energy, in (0, 1]. 1 is that of the data; earlier energies are those of
        rows with noise.
    learning_rate_init : float or "auto", default="auto"
        Step of Adam. It is divided by about 3 at each of two plateaus; the third ends training.
        "auto" is 0.01 for up to three features, else 0.005.
    alpha : float, default=0.01
        Decoupled weight decay, per unit of learning rate.
    batch_size : int or "auto", default="auto"
        Rows per update; "auto" gives about eight updates per epoch, of 32 to 256 rows.
    validation_fraction : float, default=0.1
        Share of rows held out by early stopping.
    n_iter_no_change : int, default=10
        Epochs without improvement that count as a plateau.
    dtype : {"float32", "float64"}, default="float32"
        Precision of training. Everything else is computed in float64.

    Attributes
    ----------
    potential_ : AnchoredPotential
        The potential in standardised units, float64: `potential_(x, t)`, `potential_.velocity`,
        `potential_.energy`.
    reference_ : MixtureReference
        The density it is anchored on, in standardised units.
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the columns.
    margins_ : str
        "all", "histogram" or "none": which columns are mapped.
    n_bins_ : ndarray of shape (n_features,)
        Bins of each column's histogram; 0 for columns without one.
    log_partition_ : LogPartition
        Of the explicit energy: named tuple `value, lower, upper, standard_error,
        effective_sample_size`; nats.
    diagnostics_ : FlowDiagnostics
        Errors of the integrator, the round trip and the trace, agreement of flow and energy,
        bracket of log Z; `verdict` is one line, `report()` text.
    log_likelihood_ : float
        Best monitored log-likelihood, nats per row, in the units of X.
    log_likelihoods_ : list of float
        Monitored log-likelihood after each epoch.
    history_ : list of dict
        Epoch, log-likelihood, learning rate, loss and inconsistency of each epoch; `problem` is the
        reason if an epoch was undone, else "".
    n_iter_ : int
        Epochs run.
    converged_ : bool
        Whether training ended at a plateau before `max_iter`.
    improved_ : bool
        Whether the model is better on the monitored rows than the alternative, a reference fitted
        to all rows: by two standard errors (more where rows are few). If not, it is
        that reference.
    hidden_layer_sizes_ : tuple of int
        Values that training used, where "auto" was given, too.
    batch_size_, n_probes_, n_steps_ : int
        Rows per update, directions of the trace, steps of the integrator.
    learning_rate_init_ : float
        Step of Adam.
    n_features_in_ : int
        Number of features seen by `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, when X has string column names.
    device_ : str
        Device that training ran on.

    See Also
    --------
    ParticleLVEBM : Corrects the same reference, with latents and a bound on the likelihood.
    sklearn.mixture.GaussianMixture : The default reference, and a fast density estimator.

    Notes
    -----
    By default the likelihood is exact up to the integrator's error. An estimated trace uses the
    same directions for every row. See `docs/user_guide/potential_flow.md`.

    References
    ----------
    .. [1] J. Loo et al., "Variational Potential Flow: A Novel Probabilistic Framework for
       Energy-Based Generative Modelling", arXiv:2504.16262, 2025.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import PotentialFlowEBM
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = PotentialFlowEBM(max_iter=20, tol=0.1, random_state=0).fit(X)
    >>> Z = model.transform(X)
    >>> bool(abs(model.inverse_transform(Z) - X).max() < 0.01)
    True
    >>> model.sample(5, random_state=0).shape
    (5, 2)
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
        max_iter=100,
        tol=0.001,
        early_stopping=True,
        warm_start=False,
        device="auto",
        memory=None,
        verbose=0,
        random_state=None,
        activation="tanh",
        loss="flow-matching",
        consistency=0.1,
        n_steps="auto",
        n_probes="auto",
        n_langevin_steps=0,
        energy_time=1.0,
        learning_rate_init="auto",
        alpha=0.01,
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
        self.loss = loss
        self.consistency = consistency
        self.n_steps = n_steps
        self.n_probes = n_probes
        self.n_langevin_steps = n_langevin_steps
        self.energy_time = energy_time
        self.learning_rate_init = learning_rate_init
        self.alpha = alpha
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.dtype = dtype
