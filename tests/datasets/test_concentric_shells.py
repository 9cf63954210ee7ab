"""Shells: the closed form against quadrature over the radius, and against draws."""

import numpy as np
import pytest
from scipy.integrate import quad

from sklvebm.datasets import (
    concentric_shells_entropy,
    concentric_shells_log_density,
    make_concentric_shells,
)

SIGMAS = 4.0
PUBLISHED = ((0.5, 1.0, 1.5), 0.05, 0.02)
OVERLAPPING = ((0.3, 0.7), 0.2, 0.15)
CASES = pytest.mark.parametrize("case", [PUBLISHED, OVERLAPPING], ids=["published", "overlapping"])


def shell_density(distance, radius, noise):
    """Return the density of a sphere blurred in space: a hyperbolic sine over its argument."""
    argument = distance * abs(radius) / noise**2
    ratio = -np.expm1(-2.0 * argument) / (2.0 * argument) if argument > 0.0 else 1.0
    exponent = -0.5 * ((distance - abs(radius)) / noise) ** 2
    return ratio * np.exp(exponent) / (2.0 * np.pi * noise**2) ** 1.5


def radial_density(distance, radii, radial_noise, noise):
    radii = np.asarray(radii)

    def integrand(r):
        law = np.exp(-0.5 * ((r - radii) / radial_noise) ** 2).mean()
        return law * shell_density(distance, r, noise) / (np.sqrt(2.0 * np.pi) * radial_noise)

    span = radii.min() - 12.0 * radial_noise, radii.max() + 12.0 * radial_noise
    peaks = (radii * noise**2 + distance * radial_noise**2) / (noise**2 + radial_noise**2)
    value, _ = quad(integrand, *span, points=peaks, epsabs=0.0, epsrel=1e-11, limit=2000)
    return value


@CASES
@pytest.mark.parametrize("distance", [0.0, 1e-10, 1e-6, 0.03, 0.1, 0.5, 0.72, 1.0, 1.6])
def test_density_is_the_radial_integral_in_every_direction(case, distance):
    radii, radial_noise, noise = case
    direction = np.array([[1.0, 0.0, 0.0], [0.0, 0.6, -0.8]])
    value = concentric_shells_log_density(
        distance * direction, radii=radii, radial_noise=radial_noise, noise=noise
    )
    assert np.allclose(value, np.log(radial_density(distance, *case)), atol=1e-8, rtol=0.0)


@pytest.mark.parametrize("radial_noise", [0.0, 1e-9])
def test_shells_without_radial_noise_are_blurred_spheres(radial_noise):
    distance = np.array([0.0, 0.2, 0.9, 1.1])
    exact = [np.log(shell_density(each, 1.0, 0.1)) for each in distance]
    value = concentric_shells_log_density(
        np.outer(distance, [0.0, 1.0, 0.0]), radii=[1.0], radial_noise=radial_noise, noise=0.1
    )
    assert np.allclose(value, exact, atol=1e-9, rtol=0.0)


def test_far_rows_have_finite_log_densities():
    far = concentric_shells_log_density([[1e5, 0.0, 0.0]])[0]
    # the Gaussian tail along the radius leads; the rest is logarithmic
    assert far == pytest.approx(-0.5 * (1e5 - 1.5) ** 2 / 0.0029, rel=1e-6)


@CASES
def test_mass_is_one_and_entropy_is_the_integral_over_space(case):
    radii, radial_noise, noise = case
    parameters = {"radii": radii, "radial_noise": radial_noise, "noise": noise}
    distance = np.linspace(0.0, radii[-1] + 12.0 * np.hypot(radial_noise, noise), 4001)
    value = concentric_shells_log_density(np.outer(distance, [0.0, 0.0, 1.0]), **parameters)
    mass = 4.0 * np.pi * distance**2 * np.exp(value) * (distance[1] - distance[0])
    assert mass.sum() == pytest.approx(1.0, abs=1e-8)
    assert concentric_shells_entropy(**parameters) == pytest.approx(-(mass @ value), abs=1e-8)


def test_mean_log_density_of_fresh_rows_is_minus_the_entropy():
    value = concentric_shells_log_density(make_concentric_shells(20_000, random_state=0))
    error = value.std() / np.sqrt(20_000)
    assert abs(value.mean() + concentric_shells_entropy()) < SIGMAS * error
    # nearest neighbours found -1.915 for the published constants
    assert concentric_shells_entropy() == pytest.approx(1.915, abs=0.02)


def test_factors_are_spherical_coordinates_of_the_row_without_noise():
    X, factors = make_concentric_shells(5000, noise=0.0, return_factors=True, random_state=0)
    radius, polar, azimuth = factors.T
    expected = radius[:, None] * np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], 1
    )
    assert np.allclose(X, expected)
    # uniform on the sphere: the cosine has mean zero and variance one third
    assert abs(np.cos(polar).mean()) < SIGMAS * np.sqrt(1.0 / 3.0 / 5000)
    # its square has variance 1/5 - 1/9
    assert abs((np.cos(polar) ** 2).mean() - 1.0 / 3.0) < SIGMAS * np.sqrt(4.0 / 45.0 / 5000)


def test_illegal_rows_are_refused():
    with pytest.raises(ValueError, match="X must have 3 features, got 2"):
        concentric_shells_log_density(np.zeros((1, 2)))
