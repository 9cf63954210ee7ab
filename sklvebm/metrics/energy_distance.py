"""Energy distance of two samples in any number of dimensions."""

from typing import Any

import numpy as np

from sklvebm.metrics._pairwise import check_two_samples, mean_between, mean_within
from sklvebm.validation import validate_params


@validate_params({"X": ["array-like"], "Y": ["array-like"]})
def energy_distance(X: Any, Y: Any) -> float:
    r"""Estimate the energy distance of two samples, without bias.

    .. math:: D = 2 E|x - y| - E|x - x'| - E|y - y'|

    with means over pairs of different rows [1]_. It is zero, and its estimate zero on average, if
    and only if both samples have the same distribution. It has no parameter.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows of one sample, at least two.
    Y : array-like of shape (n_other_samples, n_features)
        Rows of the other.

    Returns
    -------
    distance : float
        In units of X; for equal distributions, estimates can be negative.

    Raises
    ------
    ValueError
        If numbers of features differ or a sample has less than two rows.

    See Also
    --------
    noise_floor : Its values between halves of one sample.

    Notes
    -----
    In contrast, `scipy.stats.energy_distance` returns the square root of the biased estimate, in
    one dimension. Time is quadratic in the number of rows; memory is limited to blocks of 32 MiB.

    References
    ----------
    .. [1] G. J. Székely and M. L. Rizzo, "Energy statistics: a class of statistics based on
       distances", Journal of Statistical Planning and Inference 143, 2013.

    Examples
    --------
    >>> from sklvebm.metrics import energy_distance
    >>> energy_distance([[0.0], [1.0]], [[5.0], [6.0]])
    8.0
    """
    X, Y = check_two_samples(X, Y)
    return 2.0 * mean_between(X, Y, np.sqrt) - mean_within(X, np.sqrt) - mean_within(Y, np.sqrt)
