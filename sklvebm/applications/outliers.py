"""`DensityOutlierDetector`: rows, and cells of rows, that a fitted density does not expect."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils import Tags, get_tags
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from sklvebm.applications.calibration import (
    CompletedRows,
    CrossFit,
    completed_rows,
    cross_fit,
    pattern_thresholds,
    threshold,
)
from sklvebm.applications.shares import (
    Shares,
    above_baseline,
    leave_one_out,
    random_orders,
    shapley,
)
from sklvebm.documentation import LinksToDocumentation
from sklvebm.estimators._common.fit_on_ranks import check_is_alone
from sklvebm.estimators._common.parameters import (
    Flag,
    Number,
    OneOf,
    Rule,
    Seed,
    check_parameters,
    parameters_of,
)
from sklvebm.estimators._common.stored_version import VersionedState
from sklvebm.estimators._common.transactional_fit import unchanged_on_failure
from sklvebm.estimators._common.validation import (
    check_takes_weights,
    checked_weights,
    weighted_rows,
)
from sklvebm.estimators.mixture_stack import MixtureStack
from sklvebm.messages import naming_columns
from sklvebm.row_weights import chosen, quantiles_of
from sklvebm.runtime import draw_seed, generator_of, without_numpy_errors
from sklvebm.validation import as_plain_array

_RULES: dict[str, Rule] = {
    "contamination": Number(False, 0.0, 0.5, open_low=True, word="auto"),
    "n_folds": Number(True, 2),
    "random_state": Seed(),
}
_BASELINE_ROWS = 200


class DensityOutlierDetector(LinksToDocumentation, VersionedState, OutlierMixin, BaseEstimator):
    """Detect outliers as rows of low density, with a threshold from rows that were held out.

    A density is fitted to the rows. A row is an outlier if its log-density is below `offset_`. The
    threshold is a quantile of cross-fitted scores: each training row is scored by a density that
    was fitted without it. Hence `contamination=0.05` flags about five percent of new inliers, and
    an outlier among the training rows cannot hide by a peak of the density at its own place.
    `explain_outlier` tells which cells make a row improbable.

    Parameters
    ----------
    estimator : estimator or None, default=None
        Density with `score_samples`: one of this package, `GaussianMixture`, `KernelDensity`. None
        is `MixtureStack()`.
    contamination : float or "auto", default="auto"
        Share of training rows to flag, at most 0.5. "auto" flags rows beyond the level that about
        one inlier in a hundred is below; see Notes.
    n_folds : int, default=5
        Folds of the cross-fitting. `fit` takes `n_folds + 1` fits of the estimator.
    random_state : int, RandomState, Generator or None, default=None
        Source of the folds, and of the estimator's random numbers if its own `random_state` is
        None.

    Attributes
    ----------
    estimator_ : estimator
        Density fitted to all rows.
    fold_estimators_ : list of estimator
        Densities fitted to all rows but those of one fold.
    offset_ : float
        Threshold of `score_samples`, nats.
    training_scores_ : ndarray of shape (n_samples,)
        Cross-fitted scores of the training rows, nats.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if X has any.

    See Also
    --------
    MixtureStack : The default density.
    ParticleImputer : Fills the missing cells of rows.
    sklearn.ensemble.IsolationForest : Isolates rows by random splits, without a density.

    Notes
    -----
    Rows of the training data, recognised by their values, are always scored by the density that was
    fitted without them. `fit_predict` therefore judges them as if they were new.

    With "auto", the threshold is the higher of two levels: the 0.01 quantile of the cross-fitted
    scores, and the level that one inlier in a hundred is below if `-score` falls exponentially
    beyond its upper quartile. The latter follows from the quantiles 0.75 and 0.9 of `-score`, which
    a few percent of outliers hardly move.

    Where the estimator allows missing cells, `score_samples` is the log-density of the observed
    cells, shifted so that `offset_` serves every pattern of missing cells approximately: the shift
    is the difference of the thresholds of 400 training rows with and without the same cells hidden
    [1]_. A row without observed cells gets the
    median score.

    References
    ----------
    .. [1] R. Laxhammar, G. Falkman, "Conformal prediction for distribution-independent anomaly
       detection in streaming vessel data", 2010, the idea of a threshold from held-out scores.
    .. [2] L. S. Shapley, "A value for n-person games", Contributions to the Theory of Games 2,
       1953.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.mixture import GaussianMixture
    >>> from sklvebm import DensityOutlierDetector
    >>> X = np.random.RandomState(0).normal(size=(500, 2))
    >>> detector = DensityOutlierDetector(GaussianMixture(), random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [5.0, 0.0]])
    array([ 1, -1])
    """

    def __init__(
        self, estimator=None, *, contamination="auto", n_folds=5, random_state=None
    ) -> None:
        self.estimator = estimator
        self.contamination = contamination
        self.n_folds = n_folds
        self.random_state = random_state

    @without_numpy_errors
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the density and its threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, at least three different ones; outliers may be among them.
        y : Ignored
            Present for the interface of scikit-learn.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How often each row counts, in the densities and in the share `contamination`. None
            counts each row once.

        Returns
        -------
        self : DensityOutlierDetector
            The fitted detector.

        Raises
        ------
        TypeError
            If the estimator has no `score_samples`, or its `fit` takes no `sample_weight` and one
            is given.
        ValueError
            If X or a parameter is not usable; names it, the rule and the value.
        RuntimeError
            Within `distributed` of several processes.
        """
        check_is_alone(self)
        check_parameters(parameters_of(self), _RULES)
        with unchanged_on_failure(self):
            rows = self._rows(X, reset=True)
            random = generator_of(self.random_state)
            seed = draw_seed(random)
            distinct, weights = self._distinct(rows, sample_weight)
            n_folds = int(self.n_folds)
            fit = cross_fit(distinct, lambda: self._unfitted(seed), n_folds, random, weights)
            self.estimator_, self.fold_estimators_ = fit.estimator, fit.fold_estimators
            self._fold_of, self._place_of = fit.fold_of, fit.place_of
            self._completed: CompletedRows = completed_rows(fit, distinct, random, weights)
            # thresholds of patterns agree with `offset_` also if the parameter is changed later
            self._contamination = self.contamination
            self._reference_threshold = self._level(np.zeros((1, rows.shape[1]), bool))[0]
            self._median_score = 0.0
            scores, is_empty = self._scores(distinct), np.isnan(distinct).all(axis=1)
            of_others = scores[~is_empty], 0.5, chosen(weights, ~is_empty)
            self._median_score = float(quantiles_of(*of_others))
            scores[is_empty] = self._median_score
            self.training_scores_ = scores if distinct is rows else self._scores(rows)
            self.offset_ = threshold(scores, self.contamination, weights)
        return self

    @without_numpy_errors
    def score_samples(self, X: Any) -> np.ndarray:
        """Return the log-density of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            Nats, in the units of X; the lower, the more abnormal. For rows with missing cells
            shifted as the Notes of the class say.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X does not fit the training data.
        """
        check_is_fitted(self)
        return self._scores(self._rows(X, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:
        """Return how far the score of each row is above the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        decision : ndarray of shape (n_samples,)
            `score_samples(X) - offset_`, nats; negative for outliers.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return whether each row is an inlier.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            1 for inliers, -1 for outliers.
        """
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    @without_numpy_errors
    def explain_outlier(
        self,
        X: Any,
        *,
        method: str = "leave_one_out",
        n_chains: int = 32,
        random_state: Any = None,
        return_std_error: bool = False,
    ) -> Any:
        """Return how much each cell adds to the surprise `-log p` of its row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        method : {"leave_one_out", "shapley"}, default="leave_one_out"
            "leave_one_out" is the surprise of a cell given all others, `-log p(x_j | x_rest)`:
            large where a cell contradicts the rest of its row. "shapley" is the mean surprise of
            the cell when the cells of the row are revealed in random orders.
        n_chains : int, default=32
            Random orders for "shapley", at least four, in pairs of an order and its reverse. All
            sets of columns are evaluated instead, exactly, if that takes fewer evaluations (up to
            seven columns by default).
        random_state : int, RandomState, Generator or None, default=None
            Source of the orders.
        return_std_error : bool, default=False
            Return standard errors of the shares as well, from the spread over the orders.

        Returns
        -------
        shares : ndarray of shape (n_samples, n_features)
            Nats, above the mean share of the same column in 200 training rows with the same cells
            hidden. Zero is an ordinary cell; units of the columns do not matter. Shares by
            "shapley" sum to the mean log-density of these rows minus that of the row. Zero in
            missing cells.
        std_errors : ndarray of shape (n_samples, n_features)
            Only if `return_std_error`; zero where the shares are exact.

        Raises
        ------
        TypeError
            If the estimator does not allow missing cells, so that it has no conditionals.
        """
        check_is_fitted(self)
        OneOf(("leave_one_out", "shapley")).check("method", method)
        Number(True, 4).check("n_chains", n_chains)
        Flag().check("return_std_error", return_std_error)
        if not get_tags(self.estimator_).input_tags.allow_nan:
            raise TypeError(
                f"{type(self.estimator_).__name__} does not allow missing cells, which shares of "
                "cells need; use a density such as MixtureStack or ParticleLVEBM."
            )
        rows = self._rows(X, reset=False)
        random = generator_of(random_state)
        orders = random_orders(rows.shape[1], n_chains, random)

        def shares_of(one: np.ndarray, models: np.ndarray) -> Shares:
            def log_density(x: np.ndarray) -> np.ndarray:
                return self._fit().log_density(x, np.tile(models, len(x) // len(models)))

            if method == "shapley":
                return shapley(log_density, one, orders)
            return leave_one_out(log_density, one)

        found = self._above_baseline(rows, shares_of)
        return found if return_std_error else found[0]

    def _above_baseline(
        self, rows: np.ndarray, shares_of: Callable[[np.ndarray, np.ndarray], Shares]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return shares above those of training rows with the same cells hidden, and errors."""
        values, errors = np.zeros(rows.shape), np.zeros(rows.shape)
        models = self._fit().models_of(rows)
        patterns, which = np.unique(np.isnan(rows), axis=0, return_inverse=True)
        usual, usual_models = (part[:_BASELINE_ROWS] for part in self._completed)
        for number, hidden in enumerate(patterns):
            own = which.reshape(-1) == number
            baseline = shares_of(np.where(hidden, np.nan, usual), usual_models)
            found = above_baseline(shares_of(rows[own], models[own]), baseline)
            values[own], errors[own] = (np.where(hidden, 0.0, part) for part in found)
        return values, errors

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = MixtureStack() if self.estimator is None else self.estimator
        tags.input_tags.allow_nan = get_tags(inner).input_tags.allow_nan
        return tags

    def _unfitted(self, seed: int) -> Any:
        """Return an unfitted density."""
        estimator = MixtureStack() if self.estimator is None else clone(self.estimator)
        if not hasattr(estimator, "score_samples"):
            raise TypeError(f"{type(estimator).__name__} has no score_samples; pass a density.")
        parameters = estimator.get_params(deep=False)
        if "random_state" in parameters and parameters["random_state"] is None:
            estimator.set_params(random_state=seed)
        return estimator

    def _distinct(
        self, rows: np.ndarray, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return rows without copies and their weights, where the density's `fit` takes weights."""
        weights = checked_weights(sample_weight, rows)
        estimator = self._unfitted(seed=0)
        check_takes_weights(estimator, weights)
        if not has_fit_parameter(estimator, "sample_weight"):
            return rows, None
        return weighted_rows(rows, weights, least=1)[:2]

    def _fit(self) -> CrossFit:
        return CrossFit(self.estimator_, self.fold_estimators_, self._fold_of, self._place_of)

    def _level(self, is_missing: np.ndarray) -> np.ndarray:
        """Return thresholds for rows with given missing cells (N, D), (N,), nats."""
        return pattern_thresholds(self._fit(), self._completed, is_missing, self._contamination)

    def _scores(self, rows: np.ndarray) -> np.ndarray:
        """Return scores of validated rows, nats."""
        fit = self._fit()
        scores = fit.log_density(rows, fit.models_of(rows))
        is_missing = np.isnan(rows)
        some = is_missing.any(axis=1) & ~is_missing.all(axis=1)
        if some.any():
            scores[some] += self._reference_threshold - self._level(is_missing[some])
        scores[is_missing.all(axis=1)] = self._median_score
        return scores

    def _rows(self, X: Any, reset: bool) -> np.ndarray:
        allows_nan = get_tags(self).input_tags.allow_nan
        with naming_columns(X):
            rows: np.ndarray = validate_data(
                self,
                as_plain_array(X),
                reset=reset,
                dtype=np.float64,
                order="C",
                ensure_min_samples=3 if reset else 1,
                ensure_all_finite="allow-nan" if allows_nan else True,
            )
        return rows
