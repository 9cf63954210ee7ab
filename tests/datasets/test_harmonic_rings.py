"""Wavy rings: the density against direct quadrature, a rotation, circles, and draws."""

import numpy as np
import pytest
from scipy.integrate import quad

from sklvebm.datasets import (
    concentric_rings_entropy,
    concentric_rings_log_density,
    harmonic_rings_entropy,
    harmonic_rings_log_density,
    make_harmonic_rings,
)

SIGMAS = 4.0
# nothing in common with the published constants
OTHER = {
    "radii": [1.0, 2.0],
    "cosines": [[0.0, 0.1], [0.2, 0.0]],
    "sines": [[0.0, 0.0, 0.05], [-0.1, 0.0, 0.0]],
    "radial_noise": 0.1,
    "noise": 0.05,
}


def published_radius(ring, angle):
    waves = (
        0.0,
        0.22 * np.cos(3.0 * angle),
        0.30 * np.cos(5.0 * angle) - 0.12 * np.cos(10.0 * angle),
    )
    return (0.6, 1.5, 2.4)[ring] + waves[ring]


def other_radius(ring, angle):
    waves = (
        0.1 * np.cos(2.0 * angle) + 0.05 * np.sin(3.0 * angle),
        0.2 * np.cos(angle) - 0.1 * np.sin(angle),
    )
    return (1.0, 2.0)[ring] + waves[ring]


def quadrature_density(x, radius_of, n_rings, radial_noise, noise):
    """Integrate the Gaussian density of a row given angle and ring, with its full covariance."""

    def integrand(angle):
        u = np.array([np.cos(angle), np.sin(angle)])
        covariance = radial_noise**2 * np.outer(u, u) + noise**2 * np.eye(2)
        total = 0.0
        for ring in range(n_rings):
            misfit = x - radius_of(ring, angle) * u
            total += np.exp(-0.5 * misfit @ np.linalg.solve(covariance, misfit))
        return total / np.sqrt(np.linalg.det(2.0 * np.pi * covariance))

    at = np.arctan2(x[1], x[0]) + np.linspace(-np.pi, np.pi, 33)
    pieces = [
        quad(integrand, *ends, epsabs=0.0, epsrel=1e-10, limit=200)[0]
        for ends in zip(at[:-1], at[1:], strict=True)
    ]
    return sum(pieces) / (2.0 * np.pi * n_rings)


@pytest.mark.parametrize("x", [[0.6, 0.1], [-1.2, 0.7], [2.0, -1.3], [0.4, 0.1]])
def test_published_density_is_the_quadrature_of_gaussians(x):
    exact = np.log(quadrature_density(np.array(x), published_radius, 3, 0.02, 0.02))
    assert harmonic_rings_log_density([x])[0] == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("x", [[1.0, 0.3], [-0.5, -1.7], [0.1, 0.0]])
def test_other_coefficients_have_the_density_of_their_quadrature(x):
    exact = np.log(quadrature_density(np.array(x), other_radius, 2, 0.1, 0.05))
    assert harmonic_rings_log_density([x], **OTHER)[0] == pytest.approx(exact, abs=1e-8)


def test_the_grid_resolves_waves_that_are_steeper_than_the_row_is_far():
    def steep_radius(_, angle):
        return 0.5 + 0.4 * np.cos(20.0 * angle)

    parameters = {"radii": [0.5], "cosines": [[0.0] * 19 + [0.4]], "radial_noise": 0.0}
    for x in ([0.1, 0.0], [0.0, 0.2]):
        exact = quadrature_density(np.array(x), steep_radius, 1, 0.0, 0.02)
        value = harmonic_rings_log_density([x], noise=0.02, **parameters)[0]
        assert value == pytest.approx(np.log(exact), abs=1e-8)


def test_rings_without_waves_are_concentric_circles():
    plain = {"radii": [0.5, 1.0], "radial_noise": 0.05, "noise": 0.02}
    X = np.array([[0.3, 0.4], [0.0, 0.75], [-1.0, 0.02]])
    assert np.allclose(
        harmonic_rings_log_density(X, cosines=None, **plain),
        concentric_rings_log_density(X, **plain),
        atol=1e-12,
    )
    assert harmonic_rings_entropy(cosines=None, **plain) == pytest.approx(
        concentric_rings_entropy(**plain), abs=1e-9
    )


def test_mean_log_density_of_fresh_rows_is_minus_the_entropy():
    value = harmonic_rings_log_density(make_harmonic_rings(6000, random_state=0))
    entropy = harmonic_rings_entropy()
    assert abs(value.mean() + entropy) < SIGMAS * value.std() / np.sqrt(6000)
    # nearest neighbours found -1.069 for the published constants
    assert entropy == pytest.approx(1.069, abs=0.02)


def test_entropy_of_other_coefficients_is_the_integral_over_the_plane():
    at, spacing = np.linspace(-3.4, 3.4, 341, retstep=True)
    X = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
    value = harmonic_rings_log_density(X, **OTHER)
    mass = np.exp(value) * spacing**2
    assert mass.sum() == pytest.approx(1.0, abs=1e-6)
    assert harmonic_rings_entropy(**OTHER) == pytest.approx(-(mass @ value), abs=1e-4)


@pytest.mark.parametrize(
    ("parameters", "radius_of"), [({}, published_radius), (OTHER, other_radius)]
)
def test_rows_lie_where_the_factors_say(parameters, radius_of):
    quiet = {**parameters, "radial_noise": 0.0, "noise": 0.0}
    X, factors = make_harmonic_rings(500, return_factors=True, random_state=0, **quiet)
    mean_radius, radius, angle = factors.T
    centres = np.unique(mean_radius)
    assert centres.tolist() == list(parameters.get("radii", (0.6, 1.5, 2.4)))
    expected = [
        radius_of(ring, each)
        for ring, each in zip(np.searchsorted(centres, mean_radius), angle, strict=True)
    ]
    assert np.allclose(radius, expected)
    assert np.allclose(X, radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))


def test_coefficients_need_one_row_for_each_ring():
    with pytest.raises(ValueError, match="cosines must have one row for each of the 2 radii"):
        make_harmonic_rings(5, radii=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"sines .* 3 radii, got 1"):
        harmonic_rings_entropy(sines=[[0.1]])
