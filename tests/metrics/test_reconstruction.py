"""Reconstruction errors of constants, copies and noise."""

import numpy as np
import pytest

from sklvebm.metrics import reconstruction_rmse

SIGMAS = 4.0


def test_error_is_the_standard_deviation_of_the_noise_per_coordinate():
    generator = np.random.RandomState(0)
    X = generator.randn(5000, 3)
    value = reconstruction_rmse(X, X + 0.1 * generator.randn(5000, 3))
    assert type(value) is float
    assert value == pytest.approx(0.1, abs=SIGMAS * 0.1 / np.sqrt(2 * 15_000))


def test_the_mean_has_relative_error_one_and_a_copy_none():
    X = np.random.RandomState(0).randn(50, 3) * [1.0, 5.0, 0.1] + 7.0
    constant = np.broadcast_to(X.mean(0), X.shape)
    assert reconstruction_rmse(X, constant, relative=True) == pytest.approx(1.0)
    assert reconstruction_rmse(X, X) == 0.0
    absolute = reconstruction_rmse(X, X + 1.0)
    assert absolute == pytest.approx(1.0)
    assert reconstruction_rmse(X, X + 1.0, relative=True) == pytest.approx(
        1.0 / np.sqrt(X.var(0).mean())
    )


def test_illegal_pairs_are_refused():
    with pytest.raises(ValueError, match="equally many rows, got 2 and 1"):
        reconstruction_rmse([[0.0], [1.0]], [[0.0]])
    with pytest.raises(ValueError, match="must not be constant"):
        reconstruction_rmse([[1.0], [1.0]], [[0.0], [1.0]], relative=True)
