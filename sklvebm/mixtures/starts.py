"""First assignments of rows to the components of a mixture, by k-means++."""

import numpy as np

_LOG_START = 100.0  # standardised units; distances use logarithms of larger values
# Candidates for each centre. The number does not depend on the number of centres: otherwise the
# first centres of a longer draw would not be those of a shorter one.
_N_LOCAL_TRIALS = 4


class Starts:
    """Centres of one seed, drawn once for all numbers of components.

    The first k centres of a longer draw are those of a draw of k centres: a search that tries more
    and more components goes on with the draw. Centres are those of scikit-learn's k-means++ with
    the same seed; its checks of rows take longer than a draw from a small table.

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
        self.rows = _drawn_in(rows)
        self._source = np.random.RandomState(seed)
        self._row_weights = np.ones(len(rows)) if row_weights is None else row_weights
        self._places: list[int] = []  # of the centres drawn so far
        self._squares = np.einsum("ij,ij->i", self.rows, self.rows)
        self._nearest = np.empty(0)  # squared distance of each row to the nearest of them
        self._potential: np.ndarray | float = np.nan  # its weighted sum over rows

    def labels(self, n_components: int) -> np.ndarray:
        """Return the index of the nearest of the first centres of every row, (n_samples,)."""
        if n_components == 1:
            return np.zeros(len(self.rows), dtype=np.int64)
        while len(self._places) < min(n_components, len(self.rows)):
            self._draw()
        centres = self.rows[self._places[:n_components]]
        return ((centres**2).sum(1) - 2.0 * (self.rows @ centres.T)).argmin(1)

    def _draw(self) -> None:
        """Draw the next centre: of several candidates, the one that leaves the least distances."""
        row_weights = self._row_weights
        if not self._places:
            shares = row_weights / row_weights.sum()
            self._places.append(int(self._source.choice(len(self.rows), p=shares)))
            self._nearest = self._distances(self._places)[0]
            self._potential = self._nearest @ row_weights
            return
        levels = self._source.uniform(size=_N_LOCAL_TRIALS) * self._potential
        tried = np.searchsorted(np.cumsum(row_weights * self._nearest), levels)
        tried = np.minimum(tried, len(self.rows) - 1)  # rounding
        nearest = np.minimum(self._nearest, self._distances(tried))
        potentials = nearest @ row_weights
        best = int(potentials.argmin())
        self._places.append(int(tried[best]))
        self._nearest, self._potential = nearest[best], potentials[best]

    def _distances(self, places: list[int] | np.ndarray) -> np.ndarray:
        """Return squared distances of rows at some places to all rows, (n_places, n_samples)."""
        some = self.rows[places]
        distances = -2.0 * (some @ self.rows.T)
        distances += self._squares[places, None]
        distances += self._squares
        return np.maximum(distances, 0.0, out=distances)


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
