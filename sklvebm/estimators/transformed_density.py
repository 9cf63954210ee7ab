"""The density of rows, from one of their transforms."""

import inspect

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from sklvebm.estimators._boundary import as_plain_array
from sklvebm.estimators._iterative_fit import unchanged_on_failure
from sklvebm.estimators._mean_score import MeanScoreMixin
from sklvebm.estimators._parameters import Number, OneOf
from sklvebm.estimators.margins import GaussianMargins
from sklvebm.estimators.particle_lvebm import ParticleLVEBM


def _estimator_has(name):
    def check(self):
        getattr(getattr(self, "estimator_", self.estimator or ParticleLVEBM()), name)
        return True

    return check


class TransformedDensity(MeanScoreMixin, BaseEstimator):
    r"""Fit a density to transformed rows and say what it means for the rows themselves.

    .. math:: \log p(x) = \log q(T(x)) + \log |\det T'(x)|

    A `Pipeline` scores rows in the units of its last step; here scores are in the units of X, and
    draws are mapped back.

    Parameters
    ----------
    estimator : estimator or None, default=None
        A density with `score_samples`: one of this package, `GaussianMixture`, `KernelDensity`.
        None is `ParticleLVEBM()`.
    transformer : transformer, "passthrough" or None, default=None
        An invertible one with `log_abs_det_jacobian`. None is `GaussianMargins()`; "passthrough"
        leaves rows as they are, for `GridSearchCV` to compare.

    Attributes
    ----------
    estimator_ : estimator
        Fitted to transformed rows.
    transformer_ : transformer
        Fitted to rows.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
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
    .. [1] A. Sklar, "Fonctions de répartition à n dimensions et leurs marges", 1959: margins and
       what is left without them.

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

    def __init__(self, estimator=None, *, transformer=None):
        self.estimator = estimator
        self.transformer = transformer

    def fit(self, X, y=None):
        """Fit the transformer to rows, and the density to what it makes of them.

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
            transformer.fit(X)
            estimator.fit(transformer.transform(X))
        self.transformer_, self.estimator_ = transformer, estimator
        return self

    def score_samples(self, X):
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
        values = self.estimator_.score_samples(self.transformer_.transform(X))
        return values + self.transformer_.log_abs_det_jacobian(X)

    @available_if(_estimator_has("sample"))
    def sample(self, n_samples=1, random_state=None):
        """Draw rows.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
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
        options = {}
        if "random_state" in inspect.signature(self.estimator_.sample).parameters:
            options["random_state"] = random_state
        elif random_state is not None:
            raise ValueError(
                f"{type(self.estimator_).__name__}.sample takes no random_state: its draws follow "
                "the random_state that it was constructed with."
            )
        drawn = self.estimator_.sample(n_samples, **options)
        # mixtures of scikit-learn say which component each draw is from
        return self.transformer_.inverse_transform(drawn[0] if isinstance(drawn, tuple) else drawn)

    @available_if(_estimator_has("transform"))
    def transform(self, X):
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
        X = self._rows(X, reset=False)
        return self.estimator_.transform(self.transformer_.transform(X))

    @available_if(_estimator_has("inverse_transform"))
    def inverse_transform(self, Z):
        """Return what the estimator makes of latents, in the units of X.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Latents.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            The inverse transform of a mean is, column by column, closer to a median than to a mean.
        """
        check_is_fitted(self)
        return self.transformer_.inverse_transform(self.estimator_.inverse_transform(Z))

    def _transformer(self):
        if self.transformer is None:
            return GaussianMargins()
        if isinstance(self.transformer, str):
            OneOf(("passthrough",)).check("transformer", self.transformer)
            return GaussianMargins(max_bins=0)
        return clone(self.transformer)

    def _rows(self, X, reset):
        return validate_data(self, as_plain_array(X), reset=reset, dtype=np.float64)
