"""`GaussianMargins`: transforms columns with edges, such as dequantised values, to normal ones."""

import warnings
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from sklvebm.documentation import LinksToDocumentation
from sklvebm.estimators._common.fit_on_ranks import check_is_alone
from sklvebm.estimators._common.frames import framed
from sklvebm.estimators._common.parameters import Number
from sklvebm.estimators._common.stored_version import VersionedState
from sklvebm.estimators._common.validation import checked_rows, weighted_rows
from sklvebm.messages import naming_columns
from sklvebm.mixtures.column_densities import column_margins
from sklvebm.preprocessing.scaling import check_reach, fit_standardisation
from sklvebm.runtime import without_numpy_errors
from sklvebm.validation import as_plain_array


class GaussianMargins(
    LinksToDocumentation, VersionedState, OneToOneFeatureMixin, TransformerMixin, BaseEstimator
):
    r"""Make columns with edges normal, each by its own distribution function.

    Gaussian mixtures and smooth energies fit edges badly: on a uniform column, the best Gaussian is
    0.18 nats worse than the uniform density. Rounded values with noise (`dequantize`), counts and
    proportions have such edges in every column. Here, a histogram estimates the distribution F of
    a column, which is mapped to :math:`\Phi^{-1}(F(x))`, a normal variable. Columns with an equally
    good smooth density stay unchanged.

    Parameters
    ----------
    max_bins : int, default=64
        Upper limit on the bins of a column; 0 leaves all columns unchanged.

    Attributes
    ----------
    n_bins_ : ndarray of shape (n_features,)
        Bins of each column; 0 for unchanged columns.
    bins_ : list of Bins or None
        Their densities.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if X has any.

    See Also
    --------
    TransformedDensity : A density of the original columns, from one of the normal columns.
    dequantize : Adds the noise that rounded values need.
    sklearn.preprocessing.QuantileTransformer : Maps to quantiles, without a density.

    Notes
    -----
    The number of bins maximises the leave-one-out likelihood, a function of the counts. The bins
    must then be better than the best of four Gaussian mixtures by one standard error, in four-fold
    cross-validation on at most 2,000 rows. Outside of the range of the rows, each exponential tail
    has the probability 1 / (n_samples + 1).

    If edges depend on several columns together, as on a checkerboard, the transformation can lower
    the likelihood. `GridSearchCV` can compare both; see `TransformedDensity`. Missing cells, NaN,
    are left out and stay missing.

    References
    ----------
    .. [1] B. W. Silverman, "Density Estimation for Statistics and Data Analysis", 1986, sections
       2.2 and 3.4.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import GaussianMargins
    >>> X = np.random.default_rng(0).uniform(size=(2000, 1))
    >>> margins = GaussianMargins().fit(X)
    >>> margins.n_bins_
    array([1])
    >>> bool(np.allclose(margins.inverse_transform(margins.transform(X)), X))
    True
    """

    def __init__(self, *, max_bins=64) -> None:
        self.max_bins = max_bins

    @without_numpy_errors
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Estimate the density of every column.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        y : Ignored
            Present for the interface of scikit-learn.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How often each row counts; only ratios matter. None counts each row once.

        Returns
        -------
        self : GaussianMargins
            The fitted transformer.

        Raises
        ------
        ValueError
            If X, the weights or a parameter are not usable.
        RuntimeError
            Within `distributed` of several processes.
        """
        check_is_alone(self)
        Number(True, 0).check("max_bins", self.max_bins)
        rows = checked_rows(self, X, reset=True, may_miss=True).astype(np.float64)
        rows, row_weights, places, _ = weighted_rows(rows, sample_weight, least=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constant columns, which have no bins
            check_reach(fit_standardisation(rows).apply(rows), rows, places)
        margins = column_margins(rows, self.max_bins, row_weights)
        self.bins_ = [None] * rows.shape[1] if margins is None else list(margins)
        self.n_bins_ = np.array([0 if b is None else len(b.edges) - 1 for b in self.bins_])
        return self

    @without_numpy_errors
    def transform(self, X: Any) -> Any:
        """Return rows with normal columns.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells, which stay missing.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features)
            Float64.
        """
        return self._normal_and_slopes(X)[0]

    @without_numpy_errors
    def log_abs_det_jacobian(self, X: Any) -> np.ndarray:
        """Return the log-density of rows minus that of their transforms.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.

        Returns
        -------
        log_jacobian : ndarray of shape (n_samples,)
            Log of the determinant of the map's derivative, for the observed cells, nats.
        """
        return np.nan_to_num(self._normal_and_slopes(X)[1], nan=0.0).sum(1)

    @without_numpy_errors
    def inverse_transform(self, X: Any) -> Any:
        """Return rows in the units of the data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with normal columns.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Float64.
        """
        check_is_fitted(self)
        Z = np.array(as_plain_array(X), dtype=np.float64)
        if Z.ndim != 2 or Z.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} columns, got shape {Z.shape}.")
        for j, bins in enumerate(self.bins_):
            if bins is not None:
                Z[:, j] = bins.from_normal(Z[:, j])
        return framed(self, Z, like=X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _normal_and_slopes(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        with naming_columns(X):
            rows = as_plain_array(X)
            how = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
            X = validate_data(self, rows, reset=False, **how)
        Z, slopes = X.copy(), np.zeros(X.shape)
        for j, bins in enumerate(self.bins_):
            if bins is not None:
                Z[:, j], slopes[:, j] = bins.to_normal(X[:, j])
        return Z, slopes
