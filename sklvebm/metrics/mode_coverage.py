"""Modes of a sample that another sample covers, and its outlying rows."""

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import column_or_1d

from sklvebm.metrics._pairwise import check_two_samples
from sklvebm.validation import Interval, validate_params


class ModeCoverage(NamedTuple):
    """Distribution of generated rows over the modes of a reference sample.

    Attributes
    ----------
    covered : float
        Share of the modes with at least `threshold` times their share of rows.
    total_variation : float
        Half the summed absolute difference of the modes' shares, in [0, 1].
    outlying : float
        Share of rows whose nearest reference row is farther than the `quantile` of distances
        between nearest reference rows: about `1 - quantile` for a perfect sample.
    shares : ndarray of shape (n_modes,)
        Share of the rows in each mode, in the order of the sorted labels.

    See Also
    --------
    mode_coverage : Computes it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import ModeCoverage
    >>> ModeCoverage(0.5, 0.5, 0.05, shares=np.array([1.0, 0.0])).covered
    0.5
    """

    covered: float
    total_variation: float
    outlying: float
    shares: np.ndarray


@validate_params(
    {
        "X": ["array-like"],
        "labels": ["array-like"],
        "Y": ["array-like"],
        "threshold": [Interval(Real, 0, 1, closed="right")],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
    }
)
def mode_coverage(
    X: Any, labels: Any, Y: Any, *, threshold: float = 0.2, quantile: float = 0.99
) -> ModeCoverage:
    """Count the modes of a labelled sample that another sample covers.

    A row of Y belongs to the mode of its nearest neighbour in X, for modes of any shape.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows of the reference, at least two.
    labels : array-like of shape (n_samples,)
        Mode of each row of X.
    Y : array-like of shape (n_other_samples, n_features)
        Generated rows.
    threshold : float, default=0.2
        Smallest ratio of a mode's share in Y to its share in X for a covered mode; in (0, 1].
    quantile : float, default=0.99
        Quantile of the distances of rows of X from their nearest neighbour beyond which a row of Y
        is outlying.

    Returns
    -------
    coverage : ModeCoverage
        `covered`, `total_variation`, `outlying` and `shares`, all without unit.

    Raises
    ------
    ValueError
        If shapes do not match or a parameter is not legal.

    See Also
    --------
    noise_floor : Values of a metric between two parts of one sample.
    energy_distance : A distance that needs no modes.

    Notes
    -----
    Even a perfect sample has a total variation of the order of `sqrt(n_modes / n_other_samples)`.
    X and Y must not share rows: no row of a copy of X is outlying.

    Examples
    --------
    >>> from sklvebm.metrics import mode_coverage
    >>> X, labels = [[0.0], [0.1], [5.0], [5.1]], [0, 0, 1, 1]
    >>> result = mode_coverage(X, labels, [[0.05], [0.2], [0.0]])
    >>> result.covered, result.total_variation, result.shares.tolist()
    (0.5, 0.5, [1.0, 0.0])
    """
    X, Y = check_two_samples(X, Y, least=1)
    labels = column_or_1d(labels)
    if len(labels) != len(X) or len(X) < 2:
        raise ValueError(
            f"X must have at least two rows and labels one entry for each, got {len(X)} rows and "
            f"{len(labels)} labels."
        )
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    neighbours = NearestNeighbors(n_neighbors=1).fit(X)
    # without an argument, a row is not its own neighbour
    usual = neighbours.kneighbors()[0][:, 0]
    distance, nearest = (each[:, 0] for each in neighbours.kneighbors(Y))
    shares = np.bincount(index[nearest], minlength=len(counts)) / len(Y)
    rightful = counts / len(X)
    return ModeCoverage(
        covered=float(np.mean(shares >= threshold * rightful)),
        total_variation=float(0.5 * np.abs(shares - rightful).sum()),
        outlying=float(np.mean(distance > np.quantile(usual, quantile))),
        shares=shares,
    )
