"""`TransformedDensity`: the density of rows from a density of transformed rows."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Tags, TransformerTags, get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from sklvebm.estimators._common.answers import MeanScoreMixin
from sklvebm.estimators._common.fit_on_ranks import check_is_alone
from sklvebm.estimators._common.frames import framed, plain_arrays, set_container
from sklvebm.estimators._common.parameters import Number, OneOf
from sklvebm.estimators._common.transactional_fit import unchanged_on_failure
from sklvebm.estimators._common.validation import check_takes_weights, checked_weights
from sklvebm.estimators.margins import GaussianMargins
from sklvebm.estimators.particle_lvebm import ParticleLVEBM
from sklvebm.messages import naming_columns
from sklvebm.runtime import without_numpy_errors
from sklvebm.validation import as_plain_array

_N_MEAN_LEVELS = 64  # quantiles whose average is the mean of a missing cell


def _estimator_has(name: str) -> Callable[[Any], bool]:
    def check(self: Any) -> bool:
        getattr(getattr(self, "estimator_", self.estimator or ParticleLVEBM()), name)
        return True

    return check


class TransformedDensity(MeanScoreMixin, BaseEstimator):
    r"""Fit a density to transformed rows and convert it to one of the rows.

    .. math:: \log p(x) = \log q(T(x)) + \log |\det T'(x)|

    A `Pipeline` scores rows in the units of its last step. Here, scores are in the units of X, and
    draws are mapped back to X.

    Parameters
    ----------
    estimator : estimator or None, default=None
        A density with `score_samples`: one of this package, `GaussianMixture`, `KernelDensity`.
        None is `ParticleLVEBM()`.
    transformer : transformer, "passthrough" or None, default=None
        An invertible one with `log_abs_det_jacobian`. None is `GaussianMargins()`; "passthrough"
        leaves rows unchanged, for comparisons by `GridSearchCV`.

    Attributes
    ----------
    estimator_ : estimator
        Fitted to transformed rows.
    transformer_ : transformer
        Fitted to rows.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if X has any.

    See Also
    --------
    GaussianMargins : Makes columns with edges normal.
    sklearn.compose.TransformedTargetRegressor : The same idea for regression.

    Notes
    -----
    Scores keep their meaning: a lower bound plus the exact change of variables is a lower bound.
    Latents are those of the transformed rows.

    Rows may have missing cells, NaN, where both parts allow them. The transformer must then change
    each column by itself and leave missing cells missing, as `GaussianMargins` does: otherwise the
    density of the observed cells does not follow from that of the transformed ones.

    References
    ----------
    .. [1] A. Sklar, "Fonctions de répartition à n dimensions et leurs marges", 1959.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.mixture import GaussianMixture
    >>> from sklvebm import TransformedDensity, dequantize
    >>> X = dequantize(load_digits().data, random_state=0)
    >>> plain = GaussianMixture(20, covariance_type="diag", random_state=0).fit(X[:1000])
    >>> model = TransformedDensity(plain).fit(X[:1000])
    >>> bool(model.score(X[1000:]) > plain.score(X[1000:]) + 10.0)
    True
    """

    def __init__(self, estimator=None, *, transformer=None) -> None:
        self.estimator = estimator
        self.transformer = transformer

    @without_numpy_errors
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the transformer to rows, and the density to the transformed rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells where both parts allow them.
        y : Ignored
            Present for the interface of scikit-learn.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How often each row counts, for the density, and for the transformer if its `fit` takes
            weights. None counts each row once.

        Returns
        -------
        self : TransformedDensity
            The fitted estimator.

        Raises
        ------
        TypeError
            If the transformer has no `log_abs_det_jacobian` or `inverse_transform`, or the
            estimator no `score_samples`; or if there are weights, and its `fit` takes none.
        ValueError
            If X or the weights are not usable.
        RuntimeError
            Within `distributed` of several processes.
        """
        check_is_alone(self)
        transformer = self._transformer()
        estimator = ParticleLVEBM() if self.estimator is None else clone(self.estimator)
        for part, name in (
            (transformer, "log_abs_det_jacobian"),
            (transformer, "inverse_transform"),
            (estimator, "score_samples"),
        ):
            if not hasattr(part, name):
                raise TypeError(f"{type(part).__name__} has no {name}, which a density needs.")
        with unchanged_on_failure(self):
            X = self._rows(X, reset=True)
            weights = checked_weights(sample_weight, X)
            check_takes_weights(estimator, weights)
            known = {} if weights is None else {"sample_weight": weights}
            is_weighted = has_fit_parameter(transformer, "sample_weight")
            with plain_arrays():
                transformer.fit(X, **(known if is_weighted else {}))
                estimator.fit(np.asarray(transformer.transform(X)), **known)
        self.transformer_, self.estimator_ = transformer, estimator
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
        log_density : ndarray of shape (n_samples,)
            Nats, in the units of X; a bound where the estimator's is one.
        """
        check_is_fitted(self)
        X = self._rows(X, reset=False)
        with plain_arrays():
            values = self.estimator_.score_samples(self._inner(X))
            return np.asarray(values + self.transformer_.log_abs_det_jacobian(X))

    @available_if(_estimator_has("conditional_mean"))
    @without_numpy_errors
    def conditional_mean(self, X: Any) -> Any:
        """Return rows with missing cells replaced by their means given the observed cells.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Means of 64 conditional quantiles, in the units of X: those of a map are the map of the
            quantiles. Observed cells are unchanged.
        """
        levels = (np.arange(_N_MEAN_LEVELS) + 0.5) / _N_MEAN_LEVELS
        rows = self._checked(X)
        found = self._mapped_back(rows, self.estimator_.conditional_quantiles, levels)
        # the mean of equal values is equal but for rounding
        return framed(self, np.where(np.isnan(rows), found.mean(axis=1), rows), like=X)

    @available_if(_estimator_has("conditional_quantiles"))
    @without_numpy_errors
    def conditional_quantiles(
        self, X: Any, quantiles: Sequence[float] = (0.05, 0.5, 0.95)
    ) -> np.ndarray:
        """Return quantiles of each missing cell given the observed cells of its row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        quantiles : sequence of float, default=(0.05, 0.5, 0.95)
            Probabilities between zero and one.

        Returns
        -------
        X : ndarray of shape (n_samples, n_quantiles, n_features)
            In the units of X, for a transformer that increases; observed cells are unchanged.
        """
        rows = self._checked(X)
        return self._mapped_back(rows, self.estimator_.conditional_quantiles, quantiles)

    @available_if(_estimator_has("sample_conditional"))
    @without_numpy_errors
    def sample_conditional(self, X: Any, n_draws: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw the missing cells of each row given its observed cells.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        n_draws : int, default=1
            Draws for each row.
        random_state : int, RandomState, Generator or None, default=None
            None gives new draws at each call, an integer the same ones.

        Returns
        -------
        X : ndarray of shape (n_samples, n_draws, n_features)
            Completed rows in the units of X; observed cells are unchanged.
        """
        rows = self._checked(X)
        return self._mapped_back(rows, self.estimator_.sample_conditional, n_draws, random_state)

    @available_if(_estimator_has("sample"))
    @without_numpy_errors
    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState, Generator or None, default=None
            Passed on to estimators whose `sample` takes one.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Draws in the units of the training data.

        Raises
        ------
        ValueError
            If the estimator's `sample` takes no `random_state`, and one is given.
        """
        check_is_fitted(self)
        Number(True, 1).check("n_samples", n_samples)
        options: dict[str, Any] = {}
        if "random_state" in inspect.signature(self.estimator_.sample).parameters:
            options["random_state"] = random_state
        elif random_state is not None:
            raise ValueError(
                f"{type(self.estimator_).__name__}.sample takes no random_state: its draws follow "
                "the random_state that it was constructed with."
            )
        with plain_arrays():
            drawn = self.estimator_.sample(n_samples, **options)
            # mixtures of scikit-learn return the component of each draw, too
            drawn = np.asarray(drawn[0] if isinstance(drawn, tuple) else drawn)
            X = np.asarray(self.transformer_.inverse_transform(drawn))
        return framed(self, X)

    @available_if(_estimator_has("transform"))
    @without_numpy_errors
    def transform(self, X: Any) -> Any:
        """Return the estimator's latents of transformed rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Latents.
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        with plain_arrays():
            Z = np.asarray(self.estimator_.transform(self._inner(rows)))
        return framed(self, Z, self.get_feature_names_out(), like=X)

    @available_if(_estimator_has("transform"))
    @without_numpy_errors
    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """Fit to rows, and return their latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present for the interface of scikit-learn.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Latents.
        """
        return self.fit(X, y).transform(X)

    @available_if(_estimator_has("inverse_transform"))
    @without_numpy_errors
    def inverse_transform(self, X: Any) -> Any:
        """Return the estimator's inverse transform of latents, in the units of the data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Latents.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Columns that the transformer changed are nearer to conditional medians than to means.
        """
        check_is_fitted(self)
        with plain_arrays():
            inner = self.estimator_.inverse_transform(as_plain_array(X))
            rows = np.asarray(self.transformer_.inverse_transform(np.asarray(inner)))
        return framed(self, rows, like=X)

    @available_if(_estimator_has("transform"))
    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the latents.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the columns, which must be those of `fit`.

        Returns
        -------
        names : ndarray of str
            Those of the estimator.

        Raises
        ------
        ValueError
            If `input_features` are others.
        """
        check_is_fitted(self)
        own: Any = getattr(self, "feature_names_in_", None)
        given: Any = own if input_features is None else np.asarray(input_features, dtype=object)
        if own is not None and not np.array_equal(own, given):
            raise ValueError("input_features is not equal to feature_names_in_")
        return self.estimator_.get_feature_names_out(given)

    @available_if(_estimator_has("transform"))
    def set_output(self, *, transform: Any = None) -> Self:
        """Choose the container of latents, draws and rows.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None, default=None
            Arrays, or frames with column names; None changes nothing.

        Returns
        -------
        self : TransformedDensity
            The estimator.

        Raises
        ------
        ValueError
            If the container has another name.
        """
        set_container(self, transform)
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if hasattr(self, "transform"):
            tags.transformer_tags = TransformerTags()
        parts = (self.estimator or ParticleLVEBM(), self._transformer(checked=False))
        tags.input_tags.allow_nan = all(get_tags(part).input_tags.allow_nan for part in parts)
        return tags

    def _checked(self, X: Any) -> np.ndarray:
        """Return validated rows for a fitted model."""
        check_is_fitted(self)
        return self._rows(X, reset=False)

    def _mapped_back(
        self, X: np.ndarray, answer: Callable[..., np.ndarray], *arguments: Any
    ) -> np.ndarray:
        """Return the estimator's answers (N, Q, D) about transformed rows, in the units of X."""
        with plain_arrays():
            found = np.asarray(answer(self._inner(X), *arguments))
            rows = np.asarray(self.transformer_.inverse_transform(found.reshape(-1, X.shape[1])))
        return np.where(np.isnan(X)[:, None], rows.reshape(found.shape), X[:, None])

    def _inner(self, X: Any) -> np.ndarray:
        """Return transformed rows, which the estimator was fitted to."""
        return np.asarray(self.transformer_.transform(X))

    def _transformer(self, checked: bool = True) -> Any:
        """Return an unfitted transformer; a name that means none is an error where `checked`."""
        if self.transformer is None:
            return GaussianMargins()
        if isinstance(self.transformer, str):
            if checked:
                OneOf(("passthrough",)).check("transformer", self.transformer)
            return GaussianMargins(max_bins=0)
        return clone(self.transformer) if checked else self.transformer

    def _rows(self, X: Any, reset: bool) -> np.ndarray:
        with naming_columns(X):
            return validate_data(
                self,
                as_plain_array(X),
                reset=reset,
                dtype=np.float64,
                ensure_all_finite="allow-nan" if get_tags(self).input_tags.allow_nan else True,
            )
