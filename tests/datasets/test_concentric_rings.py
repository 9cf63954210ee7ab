"""Rings: the angular integral against the radial one with a Bessel function, and against draws."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ive

from sklvebm.datasets import (
    concentric_rings_entropy,
    concentric_rings_log_density,
    make_concentric_rings,
)

SIGMAS = 4.0
PUBLISHED = ((0.5, 1.0, 1.5), 0.05, 0.02)
OVERLAPPING = ((0.3, 0.7), 0.2, 0.15)


def radial_density(distance, radii, radial_noise, noise):
    """Integrate over the radius: a circle blurred in the plane has a Bessel function for density.

    A negative radius is the opposite direction, and the Bessel function is even.
    """
    radii = np.asarray(radii)

    def integrand(r):
        law = np.exp(-0.5 * ((r - radii) / radial_noise) ** 2).mean()
        circle = ive(0, distance * abs(r) / noise**2) * np.exp(
            -0.5 * ((distance - abs(r)) / noise) ** 2
        )
        return law * circle / (np.sqrt(2.0 * np.pi) * radial_noise * 2.0 * np.pi * noise**2)

    span = radii.min() - 12.0 * radial_noise, radii.max() + 12.0 * radial_noise
    peaks = (radii * noise**2 + distance * radial_noise**2) / (noise**2 + radial_noise**2)
    value, _ = quad(integrand, *span, points=peaks, epsabs=0.0, epsrel=1e-11, limit=2000)
    return value


@pytest.mark.parametrize("case", [PUBLISHED, OVERLAPPING], ids=["published", "overlapping"])
@pytest.mark.parametrize("distance", [0.0, 0.1, 0.5, 0.72, 1.0, 1.6])
def test_density_is_the_radial_integral_in_every_direction(case, distance):
    radii, radial_noise, noise = case
    angle = np.array([0.0, 1.0, 4.0])
    X = distance * np.stack([np.cos(angle), np.sin(angle)], 1)
    value = concentric_rings_log_density(X, radii=radii, radial_noise=radial_noise, noise=noise)
    assert np.allclose(value, np.log(radial_density(distance, *case)), atol=1e-9, rtol=0.0)


def test_rings_without_radial_noise_are_blurred_circles():
    distance = np.array([0.2, 0.9, 1.1])
    exact = np.log(ive(0, distance / 0.1**2) / (2.0 * np.pi * 0.1**2))
    exact -= 0.5 * ((distance - 1.0) / 0.1) ** 2
    value = concentric_rings_log_density(
        np.stack([distance, 0.0 * distance], 1), radii=[1.0], radial_noise=0.0, noise=0.1
    )
    assert np.allclose(value, exact, atol=1e-12, rtol=0.0)


def test_a_row_counts_the_same_among_any_others():
    # rows share grids and are worked off in blocks; far rows have grids of their own
    X = np.concatenate([make_concentric_rings(700, random_state=0), [[30.0, -40.0], [0.0, 0.0]]])
    together = concentric_rings_log_density(X)
    rows = [0, 1, 350, 699, 700, 701]
    alone = [concentric_rings_log_density(X[[row]])[0] for row in rows]
    assert np.allclose(together[rows], alone, rtol=1e-12)


@pytest.mark.parametrize("case", [PUBLISHED, OVERLAPPING], ids=["published", "overlapping"])
def test_mass_is_one_and_entropy_is_the_integral_over_the_plane(case):
    radii, radial_noise, noise = case
    parameters = {"radii": radii, "radial_noise": radial_noise, "noise": noise}
    # the integrands are smooth and vanish at both ends: equidistant nodes are enough
    distance = np.linspace(0.0, radii[-1] + 12.0 * np.hypot(radial_noise, noise), 4001)
    value = concentric_rings_log_density(np.stack([distance, 0.0 * distance], 1), **parameters)
    mass = 2.0 * np.pi * distance * np.exp(value) * (distance[1] - distance[0])
    # where rings reach the origin, the trapezoidal rule errs there by about the squared spacing
    assert mass.sum() == pytest.approx(1.0, abs=1e-6)
    tolerance = 1e-5 if case is PUBLISHED else 1e-3
    entropy = concentric_rings_entropy(**parameters)
    assert entropy == pytest.approx(-(mass @ value), abs=tolerance)


def test_mean_log_density_of_fresh_rows_is_minus_the_entropy():
    value = concentric_rings_log_density(make_concentric_rings(20_000, random_state=0))
    error = value.std() / np.sqrt(20_000)
    assert abs(value.mean() + concentric_rings_entropy()) < SIGMAS * error
    # nearest neighbours found -1.330 for the published constants
    assert concentric_rings_entropy() == pytest.approx(1.330, abs=0.02)


def test_factors_are_radius_and_angle_of_the_row_without_noise():
    X, factors = make_concentric_rings(20_000, noise=0.0, return_factors=True, random_state=0)
    radius, angle = factors.T
    assert np.allclose(X, radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))
    ring = np.abs(radius[:, None] - PUBLISHED[0]).argmin(1)
    share = np.bincount(ring, minlength=3) / 20_000
    assert np.abs(share - 1.0 / 3.0).max() < SIGMAS * np.sqrt(2.0 / 9.0 / 20_000)
    deviation = (radius - np.asarray(PUBLISHED[0])[ring]).std()
    assert deviation == pytest.approx(0.05, abs=SIGMAS * 0.05 / np.sqrt(2 * 20_000))


def test_parameters_are_used():
    X = make_concentric_rings(1000, radii=[3.0], radial_noise=0.01, noise=0.0, random_state=0)
    assert np.hypot(*X.T).mean() == pytest.approx(3.0, abs=SIGMAS * 0.01 / np.sqrt(1000))


@pytest.mark.parametrize("radii", [[], [0.5, -1.0], [0.0], [[1.0]], ["a"], [np.nan]])
@pytest.mark.parametrize("function", [make_concentric_rings, concentric_rings_entropy])
def test_radii_must_be_positive_numbers(function, radii):
    with pytest.raises(ValueError):  # noqa: PT011  (scikit-learn words some of them)
        function(radii=radii)


def test_illegal_rows_are_refused():
    with pytest.raises(ValueError, match="X must have 2 features, got 3"):
        concentric_rings_log_density(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="NaN"):
        concentric_rings_log_density([[0.0, np.nan]])
    with pytest.raises(ValueError, match="got a distance of 1e"):
        concentric_rings_log_density([[0.0, 1e6]])
    with pytest.raises(ValueError, match="'noise' parameter"):
        concentric_rings_log_density([[0.0, 1.0]], noise=0.0)
