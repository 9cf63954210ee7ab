"""Lorenz's system: balances that the stationary law obeys, and rates of change."""

import numpy as np
import pytest

from sklvebm.datasets import make_lorenz

SIGMAS = 5.0


@pytest.mark.parametrize(
    ("parameters", "sigma", "rho", "beta"),
    [({}, 10.0, 28.0, 8.0 / 3.0), ({"sigma": 9.0, "rho": 25.0, "beta": 2.5}, 9.0, 25.0, 2.5)],
)
def test_trajectories_run_along_the_equations_at_a_pace_of_their_own(parameters, sigma, rho, beta):
    h = 1e-4
    before, at, after = (
        make_lorenz(200, duration=1.0 + shift, noise=0.0, random_state=0, **parameters).T
        for shift in (-h, 0.0, h)
    )
    x, y, z = at
    rates = np.array([sigma * (y - x), x * (rho - z) - y, x * y - beta * z])
    # central differences err by (20 h)² / 6: rates change by a factor e within 1 / 20 at most;
    # the tolerance of 1e-8 over h is small beside rates of some tens
    change = (after - before) / (2.0 * h)
    pace = (change * rates).sum(0) / (rates**2).sum(0)
    misfit = np.linalg.norm(change - pace * rates, axis=0) / np.linalg.norm(change, axis=0)
    assert misfit.max() < 1e-3
    assert 1.0 - 1e-3 < pace.min() < 1.1
    assert 1.9 < pace.max() < 2.0 + 1e-3


def test_rates_of_change_average_to_zero_on_the_attractor():
    x, y, z = make_lorenz(3000, duration=12.0, noise=0.0, random_state=0).T
    # of z, x² / 2, y² / 2 and x, by the equations of motion
    rates = {
        "z": x * y - 8.0 / 3.0 * z,
        "x²": 10.0 * (x * y - x**2),
        "y²": x * y * (28.0 - z) - y**2,
        "x": 10.0 * (y - x),
    }
    for name, rate in rates.items():
        assert abs(rate.mean()) < SIGMAS * rate.std() / np.sqrt(3000), name
    assert abs(x.mean()) < SIGMAS * x.std() / np.sqrt(3000)
    # both wings, far from the fixed points inside them
    assert min((x > 10.0).mean(), (x < -10.0).mean()) > 0.05


def test_everything_comes_to_rest_below_the_critical_rayleigh_number():
    X = make_lorenz(20, rho=0.5, duration=60.0, noise=0.0, random_state=0)
    assert np.abs(X).max() < 1e-4


def test_factors_are_the_states_without_noise():
    parameters = {"duration": 1.0, "random_state": 0}
    _, factors = make_lorenz(20, return_factors=True, **parameters)
    assert np.array_equal(factors, make_lorenz(20, noise=0.0, **parameters))
