"""`compose`: products of powers of fitted models, with draws and normalised densities."""

import copy
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from sklvebm.estimators._common.frames import container_of, features_of, in_container
from sklvebm.estimators._common.parameters import Number
from sklvebm.estimators._common.validation import checked_rows
from sklvebm.estimators.distribution_expert import DistributionExpert
from sklvebm.inference.products import Composition
from sklvebm.messages import FEWER_ROWS, naming_memory
from sklvebm.runtime import draw_seed, numerical_session, seeded_generator, without_numpy_errors
from sklvebm.smc.log_partition import LogPartition
from sklvebm.threads import threads_for

_CPU = torch.device("cpu")
_MULTIPLY_ADDS = 2**12  # of an energy per row, for the number of threads


class ComposedEnergy:
    r"""A product of powers of fitted densities; made by `compose`.

    .. math:: E(x) = -\sum_i w_i \log p_i(x)

    Parameters
    ----------
    models : list of estimators
        Fitted models.
    weights : list of float
        Their powers.
    n_nodes : int, default=64
        Nodes over latents.

    Attributes
    ----------
    models : list of estimators
        Copies of the models, as they were when composed.
    weights : list of float
        Their powers.
    n_nodes : int
        Nodes over latents.
    n_features_in_ : int
        Number of features of all models.
    log_partition_ : LogPartition
        Bracket of log Z, nats; set by `log_partition`.

    See Also
    --------
    compose : Checks its arguments and makes one.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import PotentialFlowEBM, compose
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> params = {"reference": "gaussian", "max_iter": 0, "random_state": 0}
    >>> model = PotentialFlowEBM(**params).fit(X)
    >>> composed = compose([(model, 2.0)])
    >>> composed.energy(X).shape
    (200,)
    """

    def __init__(self, models, weights, n_nodes=64) -> None:
        self.models, self.weights, self.n_nodes = models, weights, n_nodes
        self.n_features_in_ = models[0].n_features_in_
        self._composition()  # raises now if the product is not integrable

    def __repr__(self) -> str:
        pairs = zip(self.models, self.weights, strict=True)
        terms = " + ".join(f"{weight:g} * {type(model).__name__}" for model, weight in pairs)
        return f"ComposedEnergy({terms})"

    @without_numpy_errors
    def energy(self, X: Any) -> np.ndarray:
        """Return the energy of each row, un-normalised.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        energy : ndarray of shape (n_samples,)
            `-sum w_i log p_i(x)` in nats, with densities in the units of X; lower is likelier. A
            deterministic function of the row.

        Raises
        ------
        ValueError, TypeError
            If X does not fit the models.
        """
        X = checked_rows(self.models[0], X, reset=False)
        with numerical_session(threads_for(len(X), _MULTIPLY_ADDS)), naming_memory(FEWER_ROWS):
            rows = torch.from_numpy(np.array(X, dtype=np.float64))
            values = self._composition().energy(rows).numpy()
        return values.astype(X.dtype)

    @without_numpy_errors
    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows by annealing from a mixture that covers the composition.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState, Generator or None, default=None
            None gives new draws at each call, an integer the same ones.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Draws in the units of the data; a frame if `set_output` of a model is set to one.

        Notes
        -----
        A correction or a negative weight can up-weight components of that mixture that are too rare
        for a walker. If the energy varies little over such a component, walkers start in it with
        its weight in the composition.
        """
        Number(True, 1).check("n_samples", n_samples)
        generator = seeded_generator(draw_seed(random_state), _CPU)
        advice = "decrease n_samples"
        with numerical_session(threads_for(n_samples, _MULTIPLY_ADDS)), naming_memory(advice):
            X = self._composition().draw(int(n_samples), generator).numpy()
        named = [model for model in self.models if hasattr(model, "feature_names_in_")]
        set_ = [kind for kind in map(container_of, self.models) if kind != "default"]
        names = features_of((named or self.models)[0])
        return in_container(set_[0] if set_ else "default", X, names)

    @without_numpy_errors
    def log_partition(
        self, *, n_walkers: int = 512, tolerance: float = 0.05, random_state: Any = None
    ) -> LogPartition:
        """Bracket `log Z` of the composition by annealing in both directions, and store it.

        Parameters
        ----------
        n_walkers : int, default=512
            Walkers in each direction; at least 32.
        tolerance : float, default=0.05
            Width of the bracket, in nats, at which the number of annealing steps stops growing; 512
            at most.
        random_state : int, RandomState, Generator or None, default=None
            Source of all noise.

        Returns
        -------
        log_partition : LogPartition
            Of the product of the normalised densities in the units of X; nats. Also stored as
            `log_partition_`, which `score_samples` uses.

        Notes
        -----
        Annealing starts from a mixture: the product of the powers of the models' references, with a
        component for the tails if a weight is negative. Missed components are treated as in
        `sample`. The bracket misses modes outside of that mixture: those of a component that is
        not among the 256 heaviest, or of a rare one over which the energy varies by many nats.
        """
        Number(True, 32).check("n_walkers", n_walkers)
        Number(False, 0.0, open_low=True).check("tolerance", tolerance)
        generator = seeded_generator(draw_seed(random_state), _CPU)
        advice = "decrease n_walkers or n_nodes"
        with numerical_session(threads_for(n_walkers, _MULTIPLY_ADDS)), naming_memory(advice):
            result = self._composition().normalise(int(n_walkers), float(tolerance), generator)
        self.log_partition_: LogPartition = result.estimate
        return self.log_partition_

    @without_numpy_errors
    def score_samples(self, X: Any) -> np.ndarray:
        """Return the normalised log-density of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            `-energy(X) - log_partition_.value`, nats, in the units of X. All rows share the error
            of the normaliser, which the bracket estimates.

        Raises
        ------
        NotFittedError
            Before `log_partition`.
        """
        if not hasattr(self, "log_partition_"):
            raise NotFittedError(
                "This composition has no normaliser yet. Call log_partition() before "
                "score_samples; energy() and sample() do not need it."
            )
        energy = self.energy(X)
        return -energy - energy.dtype.type(self.log_partition_.value)

    def _composition(self) -> Composition:
        experts = [model._expert() for model in self.models]
        with numerical_session(1):
            return Composition(experts, self.weights, self.n_nodes)


@without_numpy_errors
def compose(terms: Any, *, n_nodes: int = 64) -> "ComposedEnergy":
    r"""Compose fitted models into a product of powers of their densities.

    .. math:: p(x) \propto \prod_i p_i(x)^{w_i}

    With weights 1 and 1, rows have a high density under both models [1]_. A negative weight lowers
    the density where that model is high. A single weight below (above) 1 tempers a model and gives
    more (less) varied rows.

    Parameters
    ----------
    terms : iterable of (model, weight)
        Fitted models with the same features, `ParticleLVEBM`, `WassersteinFlowEBM`,
        `PotentialFlowEBM`, `MixtureStack` or compositions of them, and finite weights that are not
        zero. A distribution of `torch.distributions`, or of a zuko flow, is a model, too: with
        `event_shape` (n_features,), in float64 and in the units of the rows. Gaussian ones and
        mixtures of them are used exactly, with any weight; others need a weight of at least 1.
    n_nodes : int, default=64
        Quasi-random nodes that integrate out the latents of a model in its energy, and in draws if
        its weight is not 1 (otherwise its latents are sampled jointly, exactly). A power of two, at
        least 2.

    Returns
    -------
    composed : ComposedEnergy
        Has `energy`, `sample`, `log_partition` and, after that, `score_samples`. Models are copied.

    Raises
    ------
    NotFittedError
        If a model is not fitted.
    TypeError
        If a term is not a pair of a model and a number.
    ValueError
        If models have different features, a weight is not allowed, or the product cannot be shown
        to be integrable: in every direction, models with positive weights must decay faster,
        together, than models with negative weights.

    See Also
    --------
    ComposedEnergy : What is returned.
    interpolate : Goes from one row to another through one model's latents.

    References
    ----------
    .. [1] G. E. Hinton, "Training Products of Experts by Minimizing Contrastive Divergence",
       Neural Computation 14, 2002.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import PotentialFlowEBM, compose
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = PotentialFlowEBM(max_iter=0, random_state=0).fit(X)
    >>> cooler = compose([(model, 2.0)])
    >>> cooler.sample(5, random_state=0).shape
    (5, 2)
    >>> log_z = cooler.log_partition(random_state=0)
    >>> bool(log_z.lower <= log_z.value <= log_z.upper)
    True
    >>> cooler.score_samples(X).shape
    (200,)
    """
    models, weights = [], []
    for model, weight in map(_checked_term, _as_list(terms)):
        if isinstance(model, ComposedEnergy):  # a power of a product is a product of powers
            models += model.models
            weights += [weight * own for own in model.weights]
        else:
            models.append(model)
            weights.append(weight)
    Number(True, 2).check("n_nodes", n_nodes)
    if n_nodes & (n_nodes - 1):
        raise ValueError(f"n_nodes must be a power of two, got {n_nodes!r}.")
    _check_together(models, weights)
    return ComposedEnergy([copy.deepcopy(model) for model in models], weights, int(n_nodes))


def _as_list(terms: Any) -> Any:
    if not isinstance(terms, Iterable) or isinstance(terms, str | dict):
        raise TypeError(f"terms must be pairs (model, weight), got {terms!r}.")
    terms = list(terms)
    if not terms:
        raise ValueError("terms must not be empty: there is nothing to compose.")
    return terms


def _checked_term(term: Any) -> tuple[Any, float]:
    """Return model and weight of a term, or raise."""
    if not isinstance(term, tuple | list) or len(term) != 2:
        raise TypeError(f"Every term must be a pair (model, weight), got {term!r}.")
    model, weight = term
    if isinstance(model, torch.distributions.Distribution | torch.nn.Module):
        model = DistributionExpert(model)
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise TypeError(f"weight must be a number, got {weight!r} of type {type(weight).__name__}.")
    if not math.isfinite(weight) or weight == 0.0:
        raise ValueError(f"weight must be finite and not zero, got {weight!r}.")
    if not isinstance(model, ComposedEnergy):
        if isinstance(model, type) or not hasattr(model, "_expert"):
            kind = model.__name__ if isinstance(model, type) else type(model).__name__
            raise TypeError(
                "Every model must be a fitted density of this package (ParticleLVEBM, "
                f"PotentialFlowEBM, ...) or a composition, got {kind}."
            )
        model._expert()  # raises NotFittedError
    return model, float(weight)


def _check_together(models: list[BaseEstimator], weights: list[float]) -> None:
    """Raise ValueError where models cannot be multiplied with these weights."""
    widths = [model.n_features_in_ for model in models]
    if len(set(widths)) > 1:
        raise ValueError(f"All models must have the same number of features, got {widths}.")
    names = [list(getattr(model, "feature_names_in_", [])) for model in models]
    given = [own for own in names if own]
    if any(own != given[0] for own in given):
        raise ValueError(f"All models must have the same features, got {given}.")
    for model, weight in zip(models, weights, strict=True):
        if model._expert().bounded:
            continue
        if min(weights) < 0.0 or weight < 1.0:
            raise ValueError(
                f"Weights are {weights}, but {type(model).__name__} has an energy of your own, for "
                "which integrability of other powers is unknown: its weight must be at least 1, "
                "and no weight negative."
            )
