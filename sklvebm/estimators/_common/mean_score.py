"""`score`, which every density has in common."""

import numpy as np
from sklearn.base import DensityMixin

from sklvebm.runtime import without_numpy_errors


class MeanScoreMixin(DensityMixin):
    """Score rows by the mean of `score_samples`, which the estimator provides."""

    # an HTML representation has no link rather than one to scikit-learn's pages
    _doc_link_module, _doc_link_template = "sklvebm", ""

    @without_numpy_errors
    def score(self, X, y=None):
        """Return the mean over rows of `score_samples`, as `GaussianMixture.score` does.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present for the interface of scikit-learn.

        Returns
        -------
        score : float
            Nats per row, in the units of X; a bound where `score_samples` returns bounds.
        """
        # rows of single precision are summed in double
        return float(self.score_samples(X).mean(dtype=np.float64))
