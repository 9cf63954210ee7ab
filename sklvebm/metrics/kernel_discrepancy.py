"""Maximum mean discrepancy of two samples, and its permutation test."""

from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.utils import check_array

from sklvebm.metrics._pairwise import (
    OfDistances,
    blocks,
    check_two_samples,
    mean_between,
    mean_within,
    median_distance,
)
from sklvebm.validation import Interval, check_random_state, validate_params

_RELATIVE_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # in median distances of pooled rows
_CONSTRAINTS: dict[str, list[Any]] = {
    "X": ["array-like"],
    "Y": ["array-like"],
    "bandwidths": ["array-like", None],
}


class PermutationTest(NamedTuple):
    """A statistic with its distribution under the hypothesis of equal distributions.

    Attributes
    ----------
    statistic : float
        Value of the two samples.
    p_value : float
        Share of values at least as large among the permutations and the value itself.
    null : ndarray of shape (n_permutations,)
        Values for random divisions of the pooled rows.

    See Also
    --------
    mmd_permutation_test : Computes it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import PermutationTest
    >>> PermutationTest(statistic=0.2, p_value=0.25, null=np.array([0.0, 0.1, -0.1])).p_value
    0.25
    """

    statistic: float
    p_value: float
    null: np.ndarray


@validate_params(_CONSTRAINTS)
def maximum_mean_discrepancy(X: Any, Y: Any, *, bandwidths: Any = None) -> float:
    r"""Estimate the squared maximum mean discrepancy of two samples, without bias.

    .. math:: \mathrm{MMD}^2 = E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y), \qquad
        k(x, y) = \frac{1}{S} \sum_s e^{-|x - y|^2 / (2 h_s^2)}

    with means over pairs of different rows [1]_. It is zero, and its estimate zero on average, if
    and only if both samples have the same distribution.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows of one sample, at least two.
    Y : array-like of shape (n_other_samples, n_features)
        Rows of the other.
    bandwidths : array-like of shape (n_bandwidths,) or None, default=None
        Bandwidths h, in units of X. None takes 1/4, 1/2, 1, 2 and 4 times the median distance of
        pooled rows. Values with different bandwidths cannot be compared.

    Returns
    -------
    mmd_squared : float
        Squared discrepancy, without unit, at most 2; for equal distributions, estimates can be
        negative.

    Raises
    ------
    ValueError
        If numbers of features differ, a sample has less than two rows, or a bandwidth is not
        positive.

    See Also
    --------
    mmd_permutation_test : Whether it differs from zero.
    noise_floor : Its values between halves of one sample.

    Notes
    -----
    Time is quadratic in the number of rows; memory is limited to blocks of 32 MiB. The median is
    that of up to 1,000 evenly spaced rows of each sample.

    References
    ----------
    .. [1] A. Gretton et al., "A kernel two-sample test", Journal of Machine Learning Research 13,
       2012.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import maximum_mean_discrepancy
    >>> X = np.random.RandomState(0).randn(500, 2)
    >>> near = maximum_mean_discrepancy(X[:250], X[250:])
    >>> far = maximum_mean_discrepancy(X[:250], X[250:] + 1.0)
    >>> bool(abs(near) < 0.01 < far)
    True
    """
    X, Y = check_two_samples(X, Y)
    kernel = _kernel(X, Y, bandwidths)
    return mean_within(X, kernel) + mean_within(Y, kernel) - 2.0 * mean_between(X, Y, kernel)


@validate_params(
    {
        **_CONSTRAINTS,
        "n_permutations": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }
)
def mmd_permutation_test(
    X: Any, Y: Any, *, bandwidths: Any = None, n_permutations: int = 200, random_state: Any = None
) -> PermutationTest:
    """Test equality of distributions by permutations of the maximum mean discrepancy.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows of one sample, at least two.
    Y : array-like of shape (n_other_samples, n_features)
        Rows of the other.
    bandwidths : array-like of shape (n_bandwidths,) or None, default=None
        As in `maximum_mean_discrepancy`; the same for all permutations.
    n_permutations : int, default=200
        Random divisions of the pooled rows; the least p-value is `1 / (n_permutations + 1)`.
    random_state : int, RandomState, Generator or None, default=None
        Source of the permutations.

    Returns
    -------
    test : PermutationTest
        `statistic` (squared discrepancy), `p_value` and `null`. Rows must be independent.

    Raises
    ------
    ValueError
        If numbers of features differ, a sample has less than two rows, or a parameter is not legal.

    See Also
    --------
    maximum_mean_discrepancy : The statistic alone.
    classifier_two_sample_test : A test by the accuracy of a classifier.

    Notes
    -----
    Kernel values of pairs are computed once, in blocks, for all permutations.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import mmd_permutation_test
    >>> X = np.random.RandomState(0).randn(200, 2)
    >>> mmd_permutation_test(X[:100], X[100:] + 1.0, random_state=0).p_value < 0.01
    True
    """
    X, Y = check_two_samples(X, Y)
    random_state = check_random_state(random_state)
    kernel = _kernel(X, Y, bandwidths)
    pooled, n, m = np.concatenate([X, Y]), len(X), len(Y)
    # column 0 is the given division; ones mark the rows of the first sample
    member = np.zeros((n + m, n_permutations + 1))
    member[:n, 0] = 1.0
    for column in range(1, n_permutations + 1):
        member[random_state.permutation(n + m)[:n], column] = 1.0
    everything = 0.0
    first, within_first = (np.zeros(n_permutations + 1) for _ in range(2))
    for rows in blocks(n + m, n + m):
        values = kernel(cdist(pooled[rows], pooled, "sqeuclidean"))
        values[np.arange(len(values)), np.arange(rows.start, rows.stop)] = 0.0
        row_sums = values.sum(1)
        everything += row_sums.sum()
        first += row_sums @ member[rows]
        within_first += np.einsum("ij,ij->j", member[rows], values @ member)
    between = first - within_first
    within_second = everything - first - between
    null = within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2.0 * between / (n * m)
    statistic, null = float(null[0]), null[1:]
    p_value = (1.0 + np.sum(null >= statistic)) / (n_permutations + 1.0)
    return PermutationTest(statistic, float(p_value), null)


def _kernel(X: np.ndarray, Y: np.ndarray, bandwidths: Any) -> OfDistances:
    """Return the kernel as a function of squared distances."""
    if bandwidths is None:
        bandwidths = median_distance(X, Y) * np.array(_RELATIVE_BANDWIDTHS)
    bandwidths = check_array(bandwidths, ensure_2d=False, dtype=np.float64, input_name="bandwidths")
    if bandwidths.ndim != 1 or bandwidths.min() <= 0.0:
        raise ValueError(
            f"bandwidths must be a sequence of positive numbers, got {bandwidths.tolist()}."
        )

    def kernel(squared_distances: np.ndarray) -> np.ndarray:
        total = np.zeros_like(squared_distances)
        for h in bandwidths:
            total += np.exp(squared_distances * (-0.5 / h**2))
        return total / len(bandwidths)

    return kernel
