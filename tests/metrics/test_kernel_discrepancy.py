"""Maximum mean discrepancy against Gaussian closed forms, loops over pairs, and permutations."""

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from sklvebm.metrics import _pairwise, maximum_mean_discrepancy, mmd_permutation_test

SIGMAS = 4.0


def mean_kernel(shift, variance, n_features, h):
    """Return E k(x, y) where x - y is normal with that mean and variance in each coordinate."""
    width = h**2 + variance
    return (h**2 / width) ** (0.5 * n_features) * np.exp(-0.5 * shift @ shift / width)


def gaussian_mmd(shift, sd, n_features, bandwidths):
    """Return the squared discrepancy of N(0, I) and N(shift, sd² I)."""
    none = np.zeros(n_features)
    return np.mean(
        [
            mean_kernel(none, 2.0, n_features, h)
            + mean_kernel(none, 2.0 * sd**2, n_features, h)
            - 2.0 * mean_kernel(shift, 1.0 + sd**2, n_features, h)
            for h in bandwidths
        ]
    )


def loops(X, Y, bandwidths):
    def k(x, y):
        return np.mean([np.exp(-0.5 * ((x - y) ** 2).sum() / h**2) for h in bandwidths])

    def within(rows):
        n = len(rows)
        return np.mean([k(rows[i], rows[j]) for i in range(n) for j in range(n) if i != j])

    return within(X) + within(Y) - 2.0 * np.mean([k(x, y) for x in X for y in Y])


@pytest.mark.parametrize(("shift", "sd"), [(0.0, 1.0), (0.7, 1.0), (0.0, 1.5)])
@pytest.mark.parametrize("bandwidths", [[1.0], [0.5, 2.0]])
def test_estimates_are_unbiased_for_gaussians(shift, sd, bandwidths):
    generator = np.random.RandomState(0)
    shift = np.array([shift, 0.0])
    # few rows: an estimate with the diagonal would be off by about 1 / 12 + 1 / 8
    values = [
        maximum_mean_discrepancy(
            generator.randn(12, 2), shift + sd * generator.randn(8, 2), bandwidths=bandwidths
        )
        for _ in range(400)
    ]
    error = np.std(values) / np.sqrt(400)
    assert abs(np.mean(values) - gaussian_mmd(shift, sd, 2, bandwidths)) < SIGMAS * error
    assert SIGMAS * error < 0.03


@pytest.mark.parametrize("block", [2**22, 20])
def test_blocks_of_pairs_give_what_loops_over_pairs_give(monkeypatch, block):
    monkeypatch.setattr(_pairwise, "_BLOCK_PAIRS", block)
    generator = np.random.RandomState(0)
    X, Y = generator.randn(11, 3), generator.randn(7, 3) + 0.5
    expected = loops(X, Y, [0.5, 2.0])
    value = maximum_mean_discrepancy(X, Y, bandwidths=[0.5, 2.0])
    assert value == pytest.approx(expected, abs=1e-12)
    test = mmd_permutation_test(X, Y, bandwidths=[0.5, 2.0], n_permutations=3, random_state=0)
    assert test.statistic == pytest.approx(expected, abs=1e-12)
    generator = np.random.RandomState(0)
    pooled = np.concatenate([X, Y])
    for null in test.null:
        chosen = np.isin(np.arange(18), generator.permutation(18)[:11])
        divided = loops(pooled[chosen], pooled[~chosen], [0.5, 2.0])
        assert null == pytest.approx(divided, abs=1e-12)


def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch):
    monkeypatch.setattr(_pairwise, "_BLOCK_PAIRS", 2**15)
    X = np.random.RandomState(0).randn(2000, 2)
    tracemalloc.start()
    maximum_mean_discrepancy(X, X + 1.0, bandwidths=[1.0])
    mmd_permutation_test(X[:1000], X[1000:], bandwidths=[1.0], n_permutations=20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # all pairs at once would take 32 MB
    assert peak < 8e6


def test_bandwidths_are_multiples_of_the_median_distance_unless_given():
    generator = np.random.RandomState(0)
    X, Y = generator.randn(50, 2), generator.randn(40, 2) + 1.0
    median = np.median(pdist(np.concatenate([X, Y])))
    default = maximum_mean_discrepancy(X, Y)
    explicit = maximum_mean_discrepancy(X, Y, bandwidths=median * 2.0 ** np.arange(-2, 3))
    assert default == pytest.approx(explicit, rel=1e-12)


def test_samples_of_equal_rows_have_finite_values():
    X = np.zeros((6, 2))
    assert maximum_mean_discrepancy(X, X) == 0.0
    # most rows are equal: the median distance is zero, the mean is not
    mostly = np.concatenate([X, [[1.0, 0.0]]])
    assert np.isfinite(maximum_mean_discrepancy(X, mostly))


def test_p_values_are_uniform_when_both_samples_have_one_law():
    generator = np.random.RandomState(0)
    p_values = np.array(
        [
            mmd_permutation_test(
                generator.randn(20, 2), generator.randn(30, 2), n_permutations=39, random_state=i
            ).p_value
            for i in range(300)
        ]
    )
    for level in (0.1, 0.5, 0.9):
        error = np.sqrt(level * (1.0 - level) / 300)
        assert abs((p_values <= level + 1e-12).mean() - level) < SIGMAS * error


def test_different_laws_get_the_least_p_value():
    generator = np.random.RandomState(0)
    X, Y = generator.randn(60, 2), 2.0 * generator.randn(60, 2)
    test = mmd_permutation_test(X, Y, n_permutations=99, random_state=0)
    assert test.p_value == pytest.approx(0.01)
    assert test.null.shape == (99,)
    assert abs(test.null.mean()) < SIGMAS * test.null.std() / np.sqrt(99)


@pytest.mark.parametrize("bandwidths", [[0.0], [1.0, -1.0], [[1.0]]])
def test_bandwidths_must_be_positive(bandwidths):
    with pytest.raises(ValueError, match="bandwidths must be a sequence of positive numbers"):
        maximum_mean_discrepancy([[0.0], [1.0]], [[0.0], [1.0]], bandwidths=bandwidths)


def test_a_single_row_has_no_pairs():
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        maximum_mean_discrepancy([[0.0]], [[0.0], [1.0]])
