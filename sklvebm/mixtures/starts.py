"""First assignments of rows to the components of a mixture, by k-means++."""

import numpy as np
from sklearn.cluster import kmeans_plusplus

_LOG_START = 100.0  # standardised units; distances use logarithms of larger values
# Candidates for each centre. The number does not depend on the number of centres: otherwise the
# first centres of a longer draw would not be those of a shorter one.
_N_LOCAL_TRIALS = 4


class Starts:
    """Centres of one seed, drawn once for all numbers of components.

    The first k centres of a longer draw are those of a draw of k centres.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, n_columns)
        Rows on which distances are measured.
    seed : int
        Seed of k-means++.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.
    """

    def __init__(self, rows: np.ndarray, seed: int, row_weights: np.ndarray | None = None) -> None:
        self.rows, self.seed, self.row_weights = _drawn_in(rows), seed, row_weights
        self._centres = np.empty((0, rows.shape[1]))

    def labels(self, n_components: int) -> np.ndarray:
        """Return the index of the nearest of the first centres of every row, (n_samples,)."""
        if n_components == 1:
            return np.zeros(len(self.rows), dtype=np.int64)
        if len(self._centres) < n_components:
            # a search tries more and more components: doubling limits the number of draws
            n_drawn = min(max(n_components, 2 * len(self._centres)), len(self.rows))
            self._centres, _ = kmeans_plusplus(
                self.rows,
                n_drawn,
                sample_weight=self.row_weights,
                random_state=self.seed,
                n_local_trials=_N_LOCAL_TRIALS,
            )
        centres = self._centres[:n_components]
        return ((centres**2).sum(1) - 2.0 * (self.rows @ centres.T)).argmin(1)


def _drawn_in(X: np.ndarray) -> np.ndarray:
    """Return rows in which values beyond a hundred grow by their logarithm.

    Squared distances then keep their digits. Otherwise copies of one distant row have distances
    above zero by rounding, and k-means++ draws all centres there.
    """
    size = np.abs(X)
    if size.max(initial=0.0) <= _LOG_START:
        return X
    far = np.maximum(size, _LOG_START)
    return np.where(
        size > _LOG_START,
        np.sign(X) * _LOG_START * (1.0 + np.log(far / _LOG_START)),
        X,
    )
