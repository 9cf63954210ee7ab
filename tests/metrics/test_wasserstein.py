"""Wasserstein distances against Brenier maps, quantiles, and another library."""

import numpy as np
import pytest
from scipy.stats import norm

from sklvebm.metrics import sliced_wasserstein_distance, wasserstein, wasserstein_distance_2

SIGMAS = 4.0


def rows(n, n_features, seed=0):
    return np.random.RandomState(seed).randn(n, n_features)


@pytest.mark.parametrize("n_features", [1, 2, 5])
def test_gradients_of_convex_functions_are_optimal_maps(n_features):
    X = rows(60, n_features)
    factor = rows(n_features, n_features, seed=1)
    Y = X @ (factor @ factor.T) + 0.3
    exact = np.sqrt(((X - Y) ** 2).sum(1).mean())
    shuffled = Y[np.random.RandomState(2).permutation(60)]
    assert wasserstein_distance_2(X, shuffled) == pytest.approx(exact, rel=1e-9)


def test_large_samples_of_normal_laws_are_as_far_apart_as_the_laws():
    generator = np.random.RandomState(0)
    squares = [
        wasserstein_distance_2(generator.randn(4000, 1), 0.5 + 2.0 * generator.randn(4000, 1)) ** 2
        for _ in range(50)
    ]
    # squared difference of means plus that of standard deviations; the empirical laws add
    # about log n / n each
    error = np.std(squares) / np.sqrt(50)
    assert abs(np.mean(squares) - 1.25) < SIGMAS * error + 2.0 * np.log(4000) * 5.0 / 4000


def test_quantiles_of_samples_of_different_sizes_are_paired_exactly():
    # halves of [0, 1] against thirds: pieces of 1/3, 1/6, 1/6, 1/3
    value = wasserstein_distance_2([[0.0], [1.0]], [[0.0], [2.0], [5.0]])
    expected = (0.0 + 4.0 / 6.0 + 1.0 / 6.0 + 16.0 / 3.0) ** 0.5
    assert value == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 5), (12, 30), (1, 4)])
def test_different_sizes_in_one_dimension_agree_with_the_transport_programme(n, m):
    X, Y = rows(n, 1), rows(m, 1, seed=1) + 0.5
    programme = wasserstein._transport_cost((X - Y.T) ** 2)
    assert wasserstein_distance_2(X, Y) ** 2 == pytest.approx(programme, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25)])
def test_values_are_those_of_another_library(n, m):
    ot = pytest.importorskip("ot")
    X, Y = rows(n, 3), 1.5 * rows(m, 3, seed=1) + 0.5
    masses = np.full(n, 1.0 / n), np.full(m, 1.0 / m)
    expected = np.sqrt(ot.emd2(*masses, ot.dist(X, Y)))
    assert wasserstein_distance_2(X, Y) == pytest.approx(expected, rel=1e-8)


def test_samples_of_different_sizes_must_not_have_too_many_pairs(monkeypatch):
    with pytest.raises(ValueError, match="at most 250000 pairs, got 600 times 500"):
        wasserstein_distance_2(np.zeros((600, 2)), np.zeros((500, 2)))
    monkeypatch.setattr(wasserstein, "_MAX_ROUTES", 10)
    # no limit for equal sizes and on the line
    assert wasserstein_distance_2(rows(9, 2), rows(9, 2) + [3.0, 4.0]) == pytest.approx(5.0)
    assert wasserstein_distance_2(rows(9, 1), np.repeat(rows(9, 1), 2, axis=0)) < 1e-12


@pytest.mark.parametrize("n_features", [2, 5])
def test_a_shift_is_sliced_to_its_root_mean_square_projection(n_features):
    X, shift = rows(30, n_features), np.full(n_features, 2.0)
    value = sliced_wasserstein_distance(X, X + shift, n_projections=2000, random_state=0)
    squared = shift @ shift
    # the square of a coordinate of a random direction has this variance
    variance = 2.0 * (n_features - 1) / (n_features**2 * (n_features + 2))
    error = squared * np.sqrt(variance / 2000)
    assert abs(value**2 - squared / n_features) < SIGMAS * error


@pytest.mark.parametrize("m", [40, 23])
def test_projections_are_compared_on_the_line(monkeypatch, m):
    X, Y = rows(40, 3), rows(m, 3, seed=1) + 0.5
    directions = np.random.RandomState(5).randn(3, 6)
    directions /= np.linalg.norm(directions, axis=0)
    squares = [wasserstein_distance_2(X @ d[:, None], Y @ d[:, None]) ** 2 for d in directions.T]
    for block in (2**22, 2 * (40 + m)):
        monkeypatch.setattr(wasserstein, "_BLOCK_PROJECTIONS", block)
        value = sliced_wasserstein_distance(X, Y, n_projections=6, random_state=5)
        assert value == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-12)


def test_slicing_agrees_with_another_library():
    ot = pytest.importorskip("ot")
    X, Y = rows(40, 3), rows(30, 3, seed=1) + 0.5
    directions = np.random.RandomState(5).randn(3, 20)
    directions /= np.linalg.norm(directions, axis=0)
    expected = ot.sliced_wasserstein_distance(X, Y, projections=directions)
    value = sliced_wasserstein_distance(X, Y, n_projections=20, random_state=5)
    assert value == pytest.approx(expected, rel=1e-8)


def test_one_dimension_has_one_direction():
    X, Y = rows(20, 1), rows(25, 1, seed=1) ** 2
    assert sliced_wasserstein_distance(X, Y, n_projections=3) == pytest.approx(
        wasserstein_distance_2(X, Y), rel=1e-12
    )


def test_quantile_samples_of_normal_laws_approach_the_closed_form():
    levels = (np.arange(2000) + 0.5) / 2000
    X, Y = norm.ppf(levels)[:, None], norm.ppf(levels)[:, None] * 3.0 - 1.0
    # the cut-off tails hold about 1e-3 of the variance
    assert wasserstein_distance_2(X, Y) == pytest.approx(np.sqrt(5.0), rel=2e-3)
