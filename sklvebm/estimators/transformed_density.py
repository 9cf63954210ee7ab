"""`TransformedDensity`: the density of rows from a density of transformed rows."""

import inspect
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Tags, TransformerTags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from sklvebm.estimators._common.answers import MeanScoreMixin
from sklvebm.estimators._common.frames import CONTAINERS, framed, plain_arrays
from sklvebm.estimators._common.parameters import Number, OneOf
from sklvebm.estimators._common.transactional_fit import unchanged_on_failure
from sklvebm.estimators.margins import GaussianMargins
from sklvebm.estimators.particle_lvebm import ParticleLVEBM
from sklvebm.messages import naming_columns
from sklvebm.runtime import without_numpy_errors
from sklvebm.validation import as_plain_array


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
    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the transformer to rows, and the density to the transformed rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present for the interface of scikit-learn.

        Returns
        -------
        self : TransformedDensity
            The fitted estimator.

        Raises
        ------
        TypeError
            If the transformer has no `log_abs_det_jacobian` or `inverse_transform`, or the
            estimator no `score_samples`.
        """
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
            with plain_arrays():
                transformer.fit(X)
                estimator.fit(np.asarray(transformer.transform(X)))
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
        if transform is not None:
            OneOf(CONTAINERS).check("transform", transform)
            self._sklearn_output_config = {"transform": transform}
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if hasattr(self, "transform"):
            tags.transformer_tags = TransformerTags()
        return tags

    def _inner(self, X: Any) -> np.ndarray:
        """Return transformed rows, which the estimator was fitted to."""
        return np.asarray(self.transformer_.transform(X))

    def _transformer(self) -> Any:
        if self.transformer is None:
            return GaussianMargins()
        if isinstance(self.transformer, str):
            OneOf(("passthrough",)).check("transformer", self.transformer)
            return GaussianMargins(max_bins=0)
        return clone(self.transformer)

    def _rows(self, X: Any, reset: bool) -> np.ndarray:
        with naming_columns(X):
            return validate_data(self, as_plain_array(X), reset=reset, dtype=np.float64)
