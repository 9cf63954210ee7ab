"""Kepler orbits: conserved quantities, the direction of the pericentre, and an integrator."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from sklvebm.datasets import make_kepler_orbits
from sklvebm.datasets.kepler import _kepler_state

SIGMAS = 4.0
QUIET = {"noise": 0.0, "return_factors": True, "random_state": 0}


def angular_momentum(X):
    return X[:, 0] * X[:, 3] - X[:, 1] * X[:, 2]


@pytest.mark.parametrize("eccentricities", [(0.1, 0.6), (0.0, 0.0), (0.95, 0.999)])
def test_factors_are_what_the_motion_conserves(eccentricities):
    X, factors = make_kepler_orbits(300, eccentricity_range=eccentricities, **QUIET)
    distance = np.hypot(X[:, 0], X[:, 1])
    energy = 0.5 * (X[:, 2] ** 2 + X[:, 3] ** 2) - 1.0 / distance
    assert np.allclose(factors[:, 0], energy, atol=1e-9)
    assert np.allclose(factors[:, 1], angular_momentum(X), atol=1e-9)


def test_pericentres_lie_on_the_positive_first_axis():
    X, factors = make_kepler_orbits(300, **QUIET)
    distance = np.hypot(X[:, 0], X[:, 1])
    # the vector of Laplace, Runge and Lenz points there and is as long as the eccentricity
    momentum = angular_momentum(X)
    vector = momentum[:, None] * np.stack([X[:, 3], -X[:, 2]], 1) - X[:, :2] / distance[:, None]
    eccentricity = np.sqrt(1.0 + 2.0 * factors[:, 0] * factors[:, 1] ** 2)
    assert np.allclose(vector, np.stack([eccentricity, 0.0 * eccentricity], 1), atol=1e-9)


def test_the_phase_advances_in_proportion_to_time():
    energy, eccentricity, phase = np.array([[-0.4], [0.5], [0.7]])
    start = _kepler_state(energy, eccentricity, phase)[0]

    def rates(_, state):
        return [*state[2:], *(-state[:2] / np.hypot(*state[:2]) ** 3)]

    later = solve_ivp(rates, (0.0, 5.0), start, rtol=1e-11, atol=1e-11, method="DOP853").y[:, -1]
    # Kepler's third law
    mean_motion = (-2.0 * energy) ** 1.5
    expected = _kepler_state(energy, eccentricity, (phase + 5.0 * mean_motion) % (2.0 * np.pi))
    assert np.allclose(later, expected[0], atol=1e-8)


def test_energy_and_eccentricity_are_uniform_in_their_ranges():
    _, factors = make_kepler_orbits(
        5000, energy_range=(-2.0, -1.0), eccentricity_range=(0.2, 0.4), **QUIET
    )
    eccentricity = np.sqrt(1.0 + 2.0 * factors[:, 0] * factors[:, 1] ** 2)
    for values, low, high in ((factors[:, 0], -2.0, -1.0), (eccentricity, 0.2, 0.4)):
        assert low <= values.min() + 1e-12
        assert values.max() <= high + 1e-12
        width = high - low
        error = width / np.sqrt(12.0 * 5000)
        assert abs(values.mean() - 0.5 * (low + high)) < SIGMAS * error
        # the square of a centred uniform number has mean w²/12 and variance w⁴/180
        error = width**2 / np.sqrt(180.0 * 5000)
        assert abs(values.var() - width**2 / 12.0) < SIGMAS * error


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("energy_range", (-0.5, 0.0)),
        ("energy_range", (-0.2, -0.5)),
        ("energy_range", (-0.2,)),
        ("eccentricity_range", (0.1, 1.0)),
        ("eccentricity_range", (-0.1, 0.5)),
    ],
)
def test_illegal_ranges_are_named(name, bounds):
    with pytest.raises(ValueError, match=f"{name} must be .* got "):
        make_kepler_orbits(5, **{name: bounds})
