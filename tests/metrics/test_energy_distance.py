"""Energy distance against the closed form for normal laws and SciPy's one-dimensional one."""

import numpy as np
import pytest
import scipy.stats

from sklvebm.metrics import _pairwise, energy_distance

SIGMAS = 4.0


def mean_absolute(mean, sd):
    """Return E|z| of a normal number."""
    normal = scipy.stats.norm
    return sd * np.sqrt(2.0 / np.pi) * np.exp(-0.5 * (mean / sd) ** 2) + mean * (
        1.0 - 2.0 * normal.cdf(-mean / sd)
    )


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_estimates_are_unbiased_for_normal_laws(mean, sd):
    exact = (
        2.0 * mean_absolute(mean, np.hypot(1.0, sd))
        - mean_absolute(0.0, np.sqrt(2.0))
        - mean_absolute(0.0, np.sqrt(2.0) * sd)
    )
    generator = np.random.RandomState(0)
    # few rows: pairs of a row with itself would add about 1.1 / 12 + 1.1 sd / 8
    values = [
        energy_distance(generator.randn(12, 1), mean + sd * generator.randn(8, 1))
        for _ in range(1000)
    ]
    error = np.std(values) / np.sqrt(1000)
    assert abs(np.mean(values) - exact) < SIGMAS * error
    assert SIGMAS * error < 0.1


@pytest.mark.parametrize("block", [2**22, 50])
def test_values_are_those_of_scipy_once_pairs_of_a_row_with_itself_are_left_out(monkeypatch, block):
    monkeypatch.setattr(_pairwise, "_BLOCK_PAIRS", block)
    generator = np.random.RandomState(0)
    X, Y = generator.randn(30, 1), generator.randn(20, 1) + 1.0
    # SciPy: the root of the estimate that divides by n² where this one divides by n (n - 1)
    biased = scipy.stats.energy_distance(X[:, 0], Y[:, 0]) ** 2
    within = sum(np.abs(rows - rows.T).mean() / (len(rows) - 1) for rows in (X, Y))
    assert energy_distance(X, Y) == pytest.approx(biased - within, abs=1e-12)


def test_distances_are_euclidean_in_several_dimensions():
    X, Y = np.array([[0.0, 0.0], [0.0, 1.0]]), np.array([[3.0, 4.0], [3.0, 5.0]])
    between = (5.0 + np.hypot(3, 5) + np.hypot(3, 3) + 5.0) / 4.0
    assert energy_distance(X, Y) == pytest.approx(2.0 * between - 2.0)
