"""`MixtureStack`: the cross-validated average of Gaussian mixtures as an estimator."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklvebm.by_rows import answer_rows
from sklvebm.estimators._common.answers import FittedDensityMixin
from sklvebm.estimators._common.config import MARGINS
from sklvebm.estimators._common.fit_on_ranks import (
    fit_of_ranks,
    receive_fitted,
    send_fitted,
)
from sklvebm.estimators._common.frames import ContainerOfRows, framed
from sklvebm.estimators._common.margins import summary
from sklvebm.estimators._common.missing_cells import MissingCellsMixin, Question, exact_answer
from sklvebm.estimators._common.parameters import (
    Number,
    OneOf,
    Rule,
    Seed,
    SomeOf,
    check_parameters,
    parameters_of,
)
from sklvebm.estimators._common.progress import CallbackSupport, fit_task
from sklvebm.estimators._common.reading import answers_in_parts
from sklvebm.estimators._common.rows_to_fit import gathered_on_first, rows_to_fit
from sklvebm.estimators._common.serialization import plain_reference, reference_from_plain
from sklvebm.estimators._common.transactional_fit import Reporter, unchanged_on_failure
from sklvebm.inference.products import Expert, affine_units
from sklvebm.messages import naming_memory
from sklvebm.mixtures.choice import choose_mixture
from sklvebm.mixtures.column_densities import margins_of_option
from sklvebm.mixtures.expectation_maximization import Mixture
from sklvebm.mixtures.margins import choose_margins
from sklvebm.mixtures.missing_cells import reference_log_components, reference_log_marginal
from sklvebm.mixtures.missing_fit import complete_rows
from sklvebm.mixtures.policy import DEFAULT_POLICY, EFFORTS, StackPolicy, policy_of
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_selection import fit_anchor, probabilistic_pca, reference_of
from sklvebm.mixtures.stacking import MixtureChoice
from sklvebm.preprocessing.dequantization import warn_of_repeated_rows
from sklvebm.preprocessing.scaling import (
    Standardisation,
    check_reach,
    fit_standardisation,
    standardisation_from_plain,
    zero_where_squares_overflow,
)
from sklvebm.row_blocks import Sliceable, has_missing
from sklvebm.runtime import chunks, draw_seed, generator_of, numerical_session, without_numpy_errors

_RULES: dict[str, Rule] = {
    "covariance_types": SomeOf(DEFAULT_POLICY.covariance_types),
    "max_components": Number(True, 1),
    "margins": OneOf(MARGINS),
    "effort": OneOf(EFFORTS),
    "verbose": Number(True, 0, flag=True),
    "random_state": Seed(),
}


class StackModel(NamedTuple):
    """Parameters for scoring and sampling."""

    reference: MixtureReference  # float64, on the CPU, without latents
    standardisation: Standardisation


def _in_units(member: Mixture, units: Standardisation) -> Mixture:
    """Return a mixture of standardised rows in the units of X, but for mapped columns."""
    is_mapped = units.is_mapped
    factors = np.where(is_mapped, 1.0, units.scale)
    means = member.means * factors + np.where(is_mapped, 0.0, units.mean)
    if member.covariance_type == "diag":
        covariances = member.covariances * factors**2
    elif member.covariance_type == "low-rank":
        loadings, variances = np.split(member.covariances, [-1], axis=2)
        covariances = np.concatenate(
            [loadings * factors[:, None], variances * factors[:, None] ** 2], axis=2
        )
    else:
        covariances = member.covariances * factors[:, None] * factors
    return member._replace(means=means, covariances=covariances)


def _to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Replace the reference in an estimator's attributes by arrays."""
    plain = dict(state)
    model: StackModel = plain.pop("_model")
    del plain["reference_"]
    plain["members_"] = [list(member) for member in plain["members_"]]
    plain["_plain"] = {
        "reference": plain_reference(model.reference),
        "standardisation": model.standardisation.plain(),
    }
    return plain


def _from_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Undo `_to_plain`."""
    parts = state.pop("_plain")
    reference = reference_from_plain(parts["reference"])
    units = standardisation_from_plain(parts["standardisation"])
    members = [Mixture(*member) for member in state["members_"]]
    model = StackModel(reference, units)
    return {**state, "members_": members, "reference_": reference, "_model": model}


class MixtureStack(
    ContainerOfRows, CallbackSupport, MissingCellsMixin, FittedDensityMixin, BaseEstimator
):
    """Average of Gaussian mixtures whose kinds and weights cross-validation chooses.

    Single mixtures depend on where their fit starts. The mean of several densities is smoother and
    has a higher likelihood on new rows than its members. Covariance types, numbers of components,
    ridges and weights are chosen by the likelihood of held-out rows; then all rows are fitted.
    Defensive components with the tails of Student's t keep the log-density of a far row finite: it
    falls with the logarithm of the distance. The density is exact, without sampling error.

    The energies of this package start from such a stack, and are kept only where held-out rows
    prefer them to it.

    Parameters
    ----------
    covariance_types : sequence of str, default=("full", "tied", "diag", "low-rank")
        Covariances to try: one for each component, one for all, variances for each, or a few
        directions and variances for each (a mixture of factor analysers). "low-rank" is tried with
        16 columns or more and fewer than four rows for each of them.
    max_components : int, default=200
        Components of one member, at most.
    margins : {"auto", "all", "histogram", "none"}, default="auto"
        Which columns are made normal by densities of their own. "none": no column. "histogram":
        columns with edges (rounded values, counts, proportions), where a histogram beats smooth
        densities. "all": the others, too, by Gaussian mixtures; from 1,000 rows and four columns
        on. "auto": the choice that held-out rows prefer. Stacks with such columns cannot be
        composed, and as `reference=` this parameter is ignored.
    effort : {"fast", "default", "thorough"}, default="default"
        How many candidates and members `fit` tries: "fast" takes a third to a half of the time of
        "default", "thorough" one and a half to four times as much.
    verbose : int, default=0
        Whether `fit` prints its stages.
    random_state : int, RandomState, Generator or None, default=None
        Source of folds and starts; an integer repeats a fit on the same machine.

    Attributes
    ----------
    members_ : list of Mixture
        Members as named tuples `(weights, means, covariances, covariance_type)`, in the units of
        X; in mapped columns in those of the normal values. Covariances of type "low-rank" have
        shape (n, n_features, rank + 1): loadings, and variances in the last column.
    weights_ : ndarray of shape (n_members,)
        Weights of the members, summing to one minus `tail_weight_`.
    tail_weight_ : float
        Weight of all defensive components.
    n_components_ : int
        Components of all members together.
    reference_ : MixtureReference
        The same density in standardised units.
    mean_, scale_ : ndarray of shape (n_features,)
        Units of the standardisation.
    margins_ : str
        "all", "histogram" or "none": which columns are mapped.
    n_bins_ : ndarray of shape (n_features,)
        Bins of each column's histogram; 0 for columns without one.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns, where X had some.

    See Also
    --------
    ParticleLVEBM : Corrects such a stack by an energy with latents.
    sklearn.mixture.GaussianMixture : One mixture, with a given number of components.

    Notes
    -----
    As `reference=` of an energy, the parameters restrict the stack. A clone is fitted to the
    energy's own rows, with the energy's random numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import MixtureStack
    >>> random = np.random.RandomState(0)
    >>> X = np.concatenate([random.normal(0, 1, (100, 2)), random.normal(5, 0.5, (50, 2))])
    >>> stack = MixtureStack(covariance_types=["diag"], random_state=0).fit(X)
    >>> stack.score_samples([[0.0, 0.0]]) > stack.score_samples([[2.5, 2.5]])
    array([ True])
    >>> stack.sample(3, random_state=0).shape
    (3, 2)
    """

    _to_plain, _from_plain = staticmethod(_to_plain), staticmethod(_from_plain)

    def __init__(
        self,
        *,
        covariance_types=("full", "tied", "diag", "low-rank"),
        max_components=200,
        margins="auto",
        effort="default",
        verbose=0,
        random_state=None,
    ) -> None:
        self.covariance_types = covariance_types
        self.max_components = max_components
        self.margins = margins
        self.effort = effort
        self.verbose = verbose
        self.random_state = random_state

    @without_numpy_errors
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Choose the mixtures and fit them to rows X.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Training rows, at least two, NaN in missing cells; not modified. May be the path of a
            file for `open_rows`. Of more than 100,000 rows that are not in memory, a random part of
            them is fitted, in the units of all.
        y : Ignored
            Present for the interface of scikit-learn.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How often each row counts, not negative; only ratios matter. None counts each row once.

        Returns
        -------
        self : MixtureStack
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If X or a parameter is not usable; names it, the rule and the value.
        """
        with (
            fit_task(self, X, n_tasks=2),
            unchanged_on_failure(self),
            naming_memory("fit fewer rows or columns"),
            fit_of_ranks() as ranks,
        ):
            with ranks.agreement():
                check_parameters(parameters_of(self), _RULES)
                least = 2 if ranks.size == 1 else 1
                how: dict[str, Any] = {"reset": True, "least": least, "may_miss": True}
                given = rows_to_fit(self, X, sample_weight, **how)
            given = gathered_on_first(ranks, self, given)
            if ranks.rank > 0:
                receive_fitted(ranks, self)
                return self
            X, row_weights, places, share = given.distinct(least=2)
            warn_of_repeated_rows(share)
            units = given.units() or fit_standardisation(X, row_weights, places)
            rows = units.apply(X)
            check_reach(rows, X, places)
            with numerical_session(torch.get_num_threads()):
                self._fit_standardised(rows, row_weights, units)
            send_fitted(ranks, self)
        return self

    def _fit_standardised(
        self, rows: np.ndarray, row_weights: np.ndarray | None, units: Standardisation
    ) -> None:
        """Fit standardised rows and set the fitted attributes."""
        random_state, report = generator_of(self.random_state), Reporter(self, "log-likelihood")
        report.phase("choosing", f"choosing mixtures of {len(rows)} rows")
        observed = rows if has_missing(rows) else None
        if observed is not None:
            report.stage("completing rows with missing cells")
            rows = complete_rows(rows, random_state.randint(2**30), row_weights=row_weights)
        how: dict[str, Any] = {"observed": observed, "row_weights": row_weights}
        choice, units = self._choice(rows, how, units, random_state, report)
        observed = None if observed is None else units.mapped(observed)
        rows = units.mapped(rows)
        report.tasks.begin("fitting")
        how = {"observed": observed, "row_weights": row_weights}
        anchor = fit_anchor(rows, choice, random_state, least_defensive_weight=0.0, **how)
        latents = probabilistic_pca(rows, 1, row_weights)
        reference = reference_of(rows, anchor, latents).without_latents()
        members = [_in_units(member, units) for member in anchor.ensemble.members]
        tail_weight = float(anchor.defensive_weights.sum())
        self.__dict__.update(
            _model=StackModel(reference, units),
            members_=members,
            weights_=(1.0 - tail_weight) * anchor.ensemble.weights,
            tail_weight_=tail_weight,
            n_components_=sum(len(member.weights) for member in members),
            reference_=reference,
            mean_=units.mean,
            scale_=units.scale,
            margins_=units.word,
            n_bins_=units.n_bins,
        )
        report.stage(f"{len(members)} members, {self.n_components_} components")
        report.tasks.end()

    def _choice(
        self,
        rows: np.ndarray,
        how: dict[str, Any],
        units: Standardisation,
        random_state: np.random.RandomState,
        report: Reporter,
    ) -> tuple[MixtureChoice, Standardisation]:
        """Choose mixtures of standardised rows, and whether their columns are mapped.

        `how` holds the rows with NaN in missing cells, or None, and the weights of rows.
        """
        policy, margins, choice = self.stack_policy(), None, None
        observed, row_weights = how["observed"], how["row_weights"]
        if self.margins not in ("auto", "none"):
            given = rows if observed is None else observed
            margins = margins_of_option(self.margins, given, row_weights)
        elif self.margins == "auto":
            found = choose_margins(rows, random_state.randint(2**30), policy, **how)
            margins, choice = found.margins, found.choice
            if choice is not None:
                report.stage(summary(found))
        units = units._replace(margins=margins)
        if choice is None:
            observed = None if observed is None else units.mapped(observed.copy())
            mapped = units.mapped(rows.copy())
            choice = choose_mixture(mapped, random_state, policy, observed, row_weights)
        return choice, units

    def stack_policy(self) -> StackPolicy:
        """Return the settings of the search that follow from the parameters.

        Returns
        -------
        policy : StackPolicy
            That of `effort`, with the given covariance types and numbers of components.
        """
        check_parameters(parameters_of(self), _RULES)
        policy = policy_of(self.effort)
        grid = tuple(k for k in policy.component_grid if k <= self.max_components)
        kinds = tuple(self.covariance_types)
        return replace(policy, covariance_types=kinds, component_grid=grid)

    @answers_in_parts
    @without_numpy_errors
    def score_samples(self, X: Any) -> np.ndarray:
        """Return the log-density of each row.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Rows, NaN in missing cells.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Exact, nats, in the units of X: the density of the observed cells, and zero for a row
            that has none.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError, TypeError
            If X does not fit the training data.
        """
        X = self._checked_rows(X)
        units = self._model.standardisation
        rows = units.view(X)
        values = self._answered(rows, lambda reference, x, _: reference_log_marginal(reference, x))
        values = zero_where_squares_overflow(values, rows) + units.log_jacobian_of(X)
        return values.astype(X.dtype)

    @answers_in_parts
    @without_numpy_errors
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the posterior probabilities of the components given each row.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_mixture_components + 1)
            Columns follow the components of `members_` in turn; the last one is that of all
            defensive components together. Rows sum to one.
        """
        X = self._checked_rows(X)

        def answer(reference: MixtureReference, x: Tensor, _: int) -> Tensor:
            shares = torch.softmax(reference_log_components(reference, x), 1)
            tails = shares[:, self.n_components_ :].sum(1, keepdim=True)
            return torch.cat([shares[:, : self.n_components_], tails], 1)

        return self._answered(self._model.standardisation.view(X), answer).astype(X.dtype)

    @without_numpy_errors
    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows from the density.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState, Generator or None, default=None
            None gives new draws at each call, an integer the same ones.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Independent, exact draws in the units of the training data; a frame where `set_output`
            says so.
        """
        n_samples = self._checked_number("n_samples", n_samples)
        generator = torch.Generator().manual_seed(draw_seed(random_state))
        reference, units = self._model
        with numerical_session(1):
            x, _ = reference.split(reference.sample(n_samples, generator))
        return framed(self, units.invert(x.numpy()))

    def _answered(
        self, rows: Sliceable, answer: Callable[[MixtureReference, Tensor, int], Tensor]
    ) -> np.ndarray:
        """Apply `answer(reference, x, number)` to standardised rows in chunks."""
        reference = self._model.reference
        parts = chunks(len(rows), 1, 4 * len(reference.log_weights))
        return answer_rows(reference, rows, self._run_device(), answer, parts)

    def _answer_cells(self, rows: np.ndarray, question: Question) -> np.ndarray:
        return exact_answer(self._model.reference, rows, self._run_device(), question)

    def _run_device(self) -> torch.device:
        return torch.device("cpu")

    def _expert(self) -> Expert:
        """Return the density as a factor of `sklvebm.compose`."""
        check_is_fitted(self)
        reference, units = self._model
        return Expert(
            reference=reference,
            correction=lambda x, z: x.new_zeros(len(x)),
            **affine_units(units),
            log_partition=0.0,
            bounded=True,
        )
