"""`ParticleImputer`: fills missing cells from a fitted density."""

import math
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.impute import MissingIndicator
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from sklvebm.documentation import LinksToDocumentation
from sklvebm.estimators._common.fit_on_ranks import check_is_alone
from sklvebm.estimators._common.frames import plain_arrays
from sklvebm.estimators._common.parameters import (
    Flag,
    OneOf,
    Rule,
    Seed,
    check_parameters,
    parameters_of,
)
from sklvebm.estimators._common.stored_version import VersionedState
from sklvebm.estimators._common.transactional_fit import unchanged_on_failure
from sklvebm.estimators._common.validation import check_takes_weights, checked_weights
from sklvebm.estimators.mixture_stack import MixtureStack
from sklvebm.messages import naming_columns
from sklvebm.row_weights import positive_rows
from sklvebm.runtime import draw_seed, without_numpy_errors
from sklvebm.validation import as_plain_array

# strategy -> the method of the estimator that answers it
_METHODS = {
    "mean": "conditional_mean",
    "median": "conditional_quantiles",
    "sample": "sample_conditional",
}
_RULES: dict[str, Rule] = {
    "strategy": OneOf(tuple(_METHODS)),
    "add_indicator": Flag(),
    "keep_empty_features": Flag(),
    "random_state": Seed(),
}


def _is_nan(value: Any) -> bool:
    return isinstance(value, Real) and math.isnan(value)


class ParticleImputer(LinksToDocumentation, VersionedState, TransformerMixin, BaseEstimator):
    """Fill missing cells from their distribution given the observed cells of the row.

    A density is fitted to the rows, missing cells included. A missing cell is then replaced by the
    mean, the median or a draw of its conditional distribution. Use it before any model that needs
    complete rows. The conditional mean has the least squared error; draws keep the spread of the
    columns and their dependence.

    Parameters
    ----------
    estimator : estimator or None, default=None
        Density with `conditional_mean`, `conditional_quantiles` and `sample_conditional`, such as
        `ParticleLVEBM` or `WassersteinFlowEBM`. None is `MixtureStack()`.
    missing_values : float, default=np.nan
        The value of missing cells. With a number instead of NaN, NaN is an error.
    strategy : {"mean", "median", "sample"}, default="mean"
        What replaces a missing cell: the mean or the median given the observed cells, or a draw.
        The missing cells of a row are drawn jointly.
    add_indicator : bool, default=False
        Whether to append a column of zeros and ones for each column that had missing cells in
        `fit`: one where the cell was missing.
    keep_empty_features : bool, default=False
        Whether columns without any observed cell in `fit` are kept. Their missing cells become
        zero. Otherwise they are dropped, with a warning.
    random_state : int, RandomState, Generator or None, default=None
        Source of the draws, and of the estimator's random numbers if its own `random_state` is
        None. An integer gives the same draws at each call of `transform`.

    Attributes
    ----------
    estimator_ : estimator
        Density fitted to the columns with observed cells.
    indicator_ : MissingIndicator or None
        Marks missing cells; None without `add_indicator`.
    is_empty_ : ndarray of shape (n_features,), bool
        Columns without observed cells in `fit`.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if X has any.

    See Also
    --------
    MixtureStack : The default density.
    DensityOutlierDetector : Finds rows and cells that a density does not expect.
    sklearn.impute.KNNImputer : Fills cells by means of similar rows.

    Notes
    -----
    Cells are assumed to be missing at random: given the observed cells of a row, whether others are
    missing does not depend on their values [1]_. Where the absence of a value says something about
    it, `add_indicator` lets a later model use that; the filled values do not.

    For multiple imputation [2]_, call `transform` with several seeds of one fitted imputer:
    `imputer.set_params(random_state=k).transform(X)` with `strategy="sample"`. Complete rows are
    returned as they are.

    References
    ----------
    .. [1] D. B. Rubin, "Inference and missing data", Biometrika 63, 1976.
    .. [2] D. B. Rubin, "Multiple Imputation for Nonresponse in Surveys", 1987.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import MixtureStack, ParticleImputer
    >>> random = np.random.RandomState(0)
    >>> x = random.normal(size=200)
    >>> X = np.stack([x, 2.0 * x + 0.1 * random.normal(size=200)], 1)
    >>> X[:20, 1] = np.nan
    >>> density = MixtureStack(covariance_types=["full"], max_components=1)
    >>> filled = ParticleImputer(density, random_state=0).fit_transform(X)
    >>> bool(np.abs(filled[:20, 1] - 2.0 * x[:20]).max() < 0.1)
    True
    """

    def __init__(
        self,
        estimator=None,
        *,
        missing_values=np.nan,
        strategy="mean",
        add_indicator=False,
        keep_empty_features=False,
        random_state=None,
    ) -> None:
        self.estimator = estimator
        self.missing_values = missing_values
        self.strategy = strategy
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.random_state = random_state

    @without_numpy_errors
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the density to rows with missing cells.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows; not modified.
        y : Ignored
            Present for the interface of scikit-learn.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How often each row counts in the density. None counts each row once.

        Returns
        -------
        self : ParticleImputer
            The fitted transformer.

        Raises
        ------
        TypeError
            If the estimator has no method that the strategy needs, or its `fit` takes no
            `sample_weight` and one is given.
        ValueError
            If X or a parameter is not usable; names it, the rule and the value.
        RuntimeError
            Within `distributed` of several processes.
        """
        check_is_alone(self)
        check_parameters(parameters_of(self), _RULES)
        _check_missing_values(self.missing_values)
        estimator = MixtureStack() if self.estimator is None else clone(self.estimator)
        self._check_answers(estimator)
        with unchanged_on_failure(self):
            rows = self._rows(X, reset=True)
            rows, weights = positive_rows(rows, checked_weights(sample_weight, rows))
            check_takes_weights(estimator, weights)
            is_missing = np.isnan(rows)
            is_empty = is_missing.all(axis=0)
            if is_empty.all():
                raise ValueError("X must have at least one observed cell, all cells are missing.")
            self._warn_of_empty(is_empty)
            indicator = None
            if self.add_indicator:
                indicator = MissingIndicator(error_on_new=False).fit(rows)
            seeds = estimator.get_params(deep=False)
            if "random_state" in seeds and seeds["random_state"] is None:
                estimator.set_params(random_state=draw_seed(self.random_state))
            known = {} if weights is None else {"sample_weight": weights}
            with plain_arrays():
                estimator.fit(rows[:, ~is_empty], **known)
            self.estimator_, self.indicator_, self.is_empty_ = estimator, indicator, is_empty
        return self

    @without_numpy_errors
    def transform(self, X: Any) -> Any:
        """Return rows with their missing cells filled.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; not modified.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features_out)
            Observed cells are unchanged. Empty columns are dropped or kept; the columns of the
            indicator come last.
        """
        check_is_fitted(self)
        OneOf(tuple(_METHODS)).check("strategy", self.strategy)
        rows = self._rows(X, reset=False)
        is_missing = np.isnan(rows)
        filled = rows.copy()
        of_estimator = np.ix_(is_missing[:, ~self.is_empty_].any(axis=1), ~self.is_empty_)
        if of_estimator[0].size:
            filled[of_estimator] = self._filled(rows[of_estimator])
        if self.keep_empty_features:
            filled[is_missing & self.is_empty_] = 0.0
        else:
            filled = filled[:, ~self.is_empty_]
        if self.indicator_ is None:
            return filled
        with plain_arrays():
            marks = np.asarray(self.indicator_.transform(rows))
        return np.hstack([filled, marks.astype(filled.dtype)])

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns of `transform`.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the columns, which must be those of `fit`. None takes the names of `fit`, or
            x0, x1, ...

        Returns
        -------
        names : ndarray of str
            Names of the columns that are kept, then those of the indicator.

        Raises
        ------
        ValueError
            If `input_features` are others.
        """
        check_is_fitted(self)
        names = self._input_names(input_features)
        kept = names if self.keep_empty_features else names[~self.is_empty_]
        if self.indicator_ is None:
            return kept
        return np.concatenate([kept, self.indicator_.get_feature_names_out(names)])

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimator_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = _is_nan(self.missing_values)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of the columns that the estimator was fitted to, without missing cells."""
        with plain_arrays():
            if self.strategy == "mean":
                return np.asarray(self.estimator_.conditional_mean(rows))
            if self.strategy == "median":
                return np.asarray(self.estimator_.conditional_quantiles(rows, [0.5]))[:, 0]
            drawn = self.estimator_.sample_conditional(rows, 1, draw_seed(self.random_state))
            return np.asarray(drawn)[:, 0]

    def _check_answers(self, estimator: Any) -> None:
        """Raise if an estimator lacks the method of the strategy."""
        name = _METHODS[self.strategy]
        if not hasattr(estimator, name):
            raise TypeError(
                f"{type(estimator).__name__} has no {name}, which strategy={self.strategy!r} "
                "needs; pass a density such as MixtureStack or ParticleLVEBM."
            )

    def _rows(self, X: Any, reset: bool) -> np.ndarray:
        """Return validated rows, NaN in missing cells."""
        by_nan = _is_nan(self.missing_values)
        with naming_columns(X):
            rows: np.ndarray = validate_data(
                self,
                as_plain_array(X),
                reset=reset,
                dtype=[np.float64, np.float32],
                order="C",
                ensure_all_finite="allow-nan" if by_nan else True,
            )
        return rows if by_nan else np.where(rows == self.missing_values, np.nan, rows)

    def _warn_of_empty(self, is_empty: np.ndarray) -> None:
        """Warn of columns without observed cells that will be dropped."""
        if is_empty.any() and not self.keep_empty_features:
            names = self._input_names(None)[is_empty].tolist()
            warnings.warn(
                f"Columns {names} of X have no observed value; transform will drop them. "
                "keep_empty_features=True keeps them, filled with zeros.",
                stacklevel=3,
            )

    def _input_names(self, given: Sequence[str] | None) -> np.ndarray:
        """Return the names of all columns, those of `fit` if there are any."""
        own: Any = getattr(self, "feature_names_in_", None)
        if given is None:
            if own is not None:
                return own
            return np.array([f"x{i}" for i in range(self.n_features_in_)], dtype=object)
        names = np.asarray(given, dtype=object)
        if own is not None and not np.array_equal(own, names):
            raise ValueError("input_features is not equal to feature_names_in_")
        if len(names) != self.n_features_in_:
            raise ValueError(
                "input_features should have length equal to number of features "
                f"({self.n_features_in_}), got {len(names)}"
            )
        return names


def _check_missing_values(value: Any) -> None:
    """Raise if the value of missing cells is not a number."""
    if isinstance(value, bool) or not isinstance(value, Real) or math.isinf(value):
        raise TypeError(f"missing_values must be np.nan or a finite number, got {value!r}.")
