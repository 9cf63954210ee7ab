"""Sinkhorn divergence against its limits, shifts, Gaussian closed form, and another library."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning

from sklvebm.metrics import _pairwise, sinkhorn_divergence, wasserstein_distance_2


def rows(n, n_features, seed=0):
    return np.random.RandomState(seed).randn(n, n_features)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 50.0])
def test_a_shift_costs_its_square_whatever_the_blur(epsilon):
    X = rows(40, 2)
    # the shift adds a constant to the cost and terms of single rows, which plans cannot change
    value = sinkhorn_divergence(X, X + [0.3, -0.4], epsilon=epsilon, tol=1e-7, max_iter=5000)
    assert value == pytest.approx(0.25, rel=1e-5)


def test_much_blur_leaves_the_means_and_little_leaves_the_exact_distance():
    X, Y = rows(40, 2), 2.0 * rows(30, 2, seed=1) + 1.0
    means = ((X.mean(0) - Y.mean(0)) ** 2).sum()
    # the next order is the variance of the costs over epsilon
    assert sinkhorn_divergence(X, Y, epsilon=1e6, tol=1e-10) == pytest.approx(means, rel=1e-4)
    exact = wasserstein_distance_2(X, Y) ** 2
    little = sinkhorn_divergence(X, Y, epsilon=0.02, max_iter=5000)
    # the entropy of a plan is at most the logarithm of the number of rows
    assert little == pytest.approx(exact, abs=0.02 * np.log(40))


def gaussian_cost(sd, other_sd, epsilon):
    """Return the entropic cost of centred normal laws: the best covariance c of a normal plan.

    The cost is `a² + b² - 2 c - ε log(1 - c² / (a b)²) / 2`.
    """
    product = (sd * other_sd) ** 2
    c = -0.25 * epsilon + np.sqrt(epsilon**2 / 16.0 + product)
    return sd**2 + other_sd**2 - 2.0 * c - 0.5 * epsilon * np.log(1.0 - c**2 / product)


@pytest.mark.parametrize("epsilon", [0.3, 3.0])
def test_normal_laws_have_the_closed_form(epsilon):
    exact = (
        1.0
        + gaussian_cost(1.0, 2.0, epsilon)
        - 0.5 * gaussian_cost(1.0, 1.0, epsilon)
        - 0.5 * gaussian_cost(2.0, 2.0, epsilon)
    )
    values = {}
    for n in (200, 800):
        quantiles = norm.ppf((np.arange(n) + 0.5) / n)[:, None]
        values[n] = sinkhorn_divergence(quantiles, 1.0 + 2.0 * quantiles, epsilon=epsilon, tol=1e-6)
    # quantiles miss about 1 / n of the variance, and four times as many a quarter of that
    assert values[800] == pytest.approx(exact, rel=5e-3)
    assert abs(values[800] - exact) < 0.4 * abs(values[200] - exact)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_values_are_those_of_plans_of_another_library(epsilon):
    ot = pytest.importorskip("ot")

    def cost(A, B):
        masses = np.full(len(A), 1.0 / len(A)), np.full(len(B), 1.0 / len(B))
        costs = ot.dist(A, B)
        plan = ot.sinkhorn(
            *masses, costs, epsilon, method="sinkhorn_log", numItermax=20_000, stopThr=1e-10
        )
        entropy = np.sum(plan * np.log(plan / np.outer(*masses)))
        return np.sum(plan * costs) + epsilon * entropy

    X, Y = rows(30, 2), 1.5 * rows(20, 2, seed=1) + 0.5
    expected = cost(X, Y) - 0.5 * cost(X, X) - 0.5 * cost(Y, Y)
    value = sinkhorn_divergence(X, Y, epsilon=epsilon, tol=1e-9, max_iter=20_000)
    assert value == pytest.approx(expected, rel=1e-6)


def test_the_default_blur_is_a_twentieth_of_the_squared_median_distance():
    X, Y = rows(40, 2), rows(30, 2, seed=1) + 0.5
    epsilon = 0.05 * _pairwise.median_distance(X, Y) ** 2
    assert sinkhorn_divergence(X, Y) == sinkhorn_divergence(X, Y, epsilon=epsilon)


@pytest.mark.parametrize("block", [2**22, 100])
def test_a_sample_is_at_zero_from_itself_and_otherwise_above(monkeypatch, block):
    monkeypatch.setattr(_pairwise, "_BLOCK_PAIRS", block)
    X = rows(40, 2)
    # squared distances are near three, masses right to 1e-3, and the value is stationary
    for same in (X, X[::-1]):
        assert sinkhorn_divergence(X, same) == pytest.approx(0.0, abs=3e-4)
    assert sinkhorn_divergence(X, rows(40, 2, seed=1)) > 0.01


def test_an_iteration_that_does_not_converge_warns():
    with pytest.warns(ConvergenceWarning, match="did not reach tol=1e-09 in 2 iterations"):
        sinkhorn_divergence(rows(30, 2), rows(30, 2, seed=1), max_iter=2, tol=1e-9, epsilon=0.01)
