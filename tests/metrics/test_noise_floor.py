"""The noise floor of a metric whose law between halves is known."""

import numpy as np
import pytest

from sklvebm.metrics import energy_distance, noise_floor

SIGMAS = 4.0


def mean_difference(X, Y):
    return abs(float(X.mean() - Y.mean()))


def test_halves_differ_in_their_means_as_draws_without_replacement_do():
    X = np.random.RandomState(0).randn(1000, 1)
    floor = noise_floor(mean_difference, X, n_splits=2000, quantiles=(0.25, 0.75), random_state=0)
    # given the rows, the difference of the means of two halves has variance 4 s² / n
    spread = np.sqrt(4.0 * X.var(ddof=1) / 1000)
    for value, quantile, density in (
        (floor.lower, 0.25, 0.3186),
        (floor.median, 0.5, 0.6745),
        (floor.upper, 0.75, 1.1503),
    ):
        # quantiles of |normal|, with the standard error of a sample quantile
        slope = 2.0 * np.exp(-0.5 * density**2) / np.sqrt(2.0 * np.pi)
        error = np.sqrt(quantile * (1.0 - quantile) / 2000) / slope
        assert abs(value / spread - density) < SIGMAS * error


def test_parts_are_disjoint_of_the_size_asked_for_and_never_the_same():
    seen = []

    def metric(X, Y):
        seen.append((X[:, 0].tolist(), Y[:, 0].tolist()))
        return len(seen)

    X = np.arange(11.0)[:, None]
    floor = noise_floor(metric, X, n_splits=30, random_state=0)
    assert {(len(a), len(b)) for a, b in seen} == {(5, 5)}
    assert all(len({*a, *b}) == 10 for a, b in seen)
    assert len({tuple(a) for a, _ in seen}) == 30
    assert floor.values.tolist() == list(range(1, 31))
    assert floor.median == 15.5
    seen.clear()
    noise_floor(metric, X, n_splits=3, n_rows=2)
    assert {(len(a), len(b)) for a, b in seen} == {(2, 2)}


def test_a_sample_of_another_law_lies_above_the_floor():
    generator = np.random.RandomState(0)
    X = generator.randn(400, 2)
    floor = noise_floor(energy_distance, X, random_state=0)
    assert floor.lower <= floor.median <= floor.upper
    assert abs(floor.median) < floor.upper < energy_distance(X[:200], generator.randn(200, 2) + 0.5)


def test_illegal_parameters_are_named():
    with pytest.raises(ValueError, match="at most half of the 5 rows of X, got 3"):
        noise_floor(mean_difference, np.zeros((5, 1)), n_rows=3)
    for quantiles in ((0.9, 0.1), (0.5,), (0.1, 1.1)):
        with pytest.raises(ValueError, match="quantiles must be"):
            noise_floor(mean_difference, np.zeros((5, 1)), quantiles=quantiles)
    with pytest.raises(ValueError, match="'metric' parameter"):
        noise_floor("mean", np.zeros((5, 1)))
