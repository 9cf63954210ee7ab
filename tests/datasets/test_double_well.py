"""The double well: normaliser, equipartition, convolution and entropy."""

import numpy as np
import pytest
from scipy.integrate import quad

from sklvebm.datasets import double_well_entropy, double_well_log_density, make_double_well

SIGMAS = 4.0
SYSTEMS = [
    {"barrier": 3.0, "half_distance": 1.0, "temperature": 1.0},
    {"barrier": 0.2, "half_distance": 2.0, "temperature": 0.7},
    {"barrier": 40.0, "half_distance": 0.5, "temperature": 2.0},
]
every_system = pytest.mark.parametrize("system", SYSTEMS, ids=["default", "shallow", "deep"])


def potential(q, barrier, half_distance, **_):
    return barrier * ((q / half_distance) ** 2 - 1.0) ** 2


def position_law(system):
    """Return the normalised density of the position, by adaptive quadrature."""
    reach = 6.0 * system["half_distance"]
    temperature = system["temperature"]

    def weight(q):
        return np.exp(-potential(q, **system) / temperature)

    wells = [-system["half_distance"], system["half_distance"]]
    total, _ = quad(weight, -reach, reach, points=wells, epsabs=0.0, epsrel=1e-11, limit=500)
    return lambda q: weight(q) / total


def gaussian(p, variance):
    return np.exp(-0.5 * p**2 / variance) / np.sqrt(2.0 * np.pi * variance)


@every_system
def test_density_without_noise_is_normalised_by_the_bessel_functions(system):
    law = position_law(system)
    for q, p in [(0.0, 0.0), (system["half_distance"], 1.0), (-0.3, -2.0)]:
        exact = np.log(law(q) * gaussian(p, system["temperature"]))
        value = double_well_log_density([[q, p]], **system)[0]
        assert value == pytest.approx(exact, abs=1e-9)


@every_system
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_noise_convolves_the_position_and_widens_the_momentum(system, noise):
    law = position_law(system)
    for q, p in [(0.1, 0.0), (system["half_distance"], 1.0)]:
        ends = q - 12.0 * noise, q + 12.0 * noise
        position, _ = quad(
            lambda at, q=q: law(at) * gaussian(at - q, noise**2),
            *ends,
            epsabs=0.0,
            epsrel=1e-10,
            limit=500,
        )
        exact = np.log(position * gaussian(p, system["temperature"] + noise**2))
        value = double_well_log_density([[q, p]], noise=noise, **system)[0]
        assert value == pytest.approx(exact, abs=1e-7)


@every_system
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_mean_log_density_of_fresh_rows_is_minus_the_entropy(system, noise):
    X = make_double_well(5000, noise=noise, random_state=0, **system)
    value = double_well_log_density(X, noise=noise, **system)
    error = value.std() / np.sqrt(len(X))
    assert abs(value.mean() + double_well_entropy(noise=noise, **system)) < SIGMAS * error


def test_entropy_of_two_deep_wells_is_that_of_two_gaussians():
    # curvature 8 h / w² at the bottom of each; the quartic term costs about the inverse barrier
    entropy = double_well_entropy(barrier=5000.0)
    expected = np.log(2.0) + 0.5 * np.log(2.0 * np.pi * np.e / 40_000.0)
    assert entropy - 0.5 * np.log(2.0 * np.pi * np.e) == pytest.approx(expected, abs=1e-3)


@every_system
def test_rows_are_in_equilibrium(system):
    X = make_double_well(20_000, random_state=0, **system)
    q, p = X.T
    scaled = q / system["half_distance"]
    force = 4.0 * system["barrier"] / system["half_distance"] * scaled * (scaled**2 - 1.0)
    # equipartition: both momentum and force put the temperature into their coordinate
    for virial in (p * p, q * force):
        error = virial.std() / np.sqrt(len(X))
        assert abs(virial.mean() - system["temperature"]) < SIGMAS * error
    for odd in (q, p, q * p):
        assert abs(odd.mean()) < SIGMAS * odd.std() / np.sqrt(len(X))


@every_system
def test_factors_are_well_and_energy(system):
    X, (well, energy) = _transposed(make_double_well(200, return_factors=True, **system))
    assert np.array_equal(well, np.sign(X[:, 0]))
    assert np.allclose(energy, potential(X[:, 0], **system) + 0.5 * X[:, 1] ** 2)


def _transposed(result):
    return result[0], result[1].T


def test_long_lists_of_rows_are_convolved_in_blocks():
    X = make_double_well(1201, noise=0.1, random_state=0)
    value = double_well_log_density(X, noise=0.1)
    for row in (0, 499, 500, 1200):
        assert value[row] == double_well_log_density(X[[row]], noise=0.1)[0]
