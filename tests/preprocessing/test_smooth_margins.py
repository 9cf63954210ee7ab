"""Smooth densities of columns: the map to normal values, its slope and its inverse."""

import numpy as np
import pytest
from scipy.special import ndtri_exp
from scipy.stats import norm

from sklvebm.preprocessing.margins import SmoothMargin, margin_from_plain, plain_margin

MIXTURE = SmoothMargin(
    np.array([0.3, 0.6, 0.1]), np.array([-1.0, 0.5, 3.0]), np.array([0.2, 1.0, 4.0]), 1e3
)


def log_tail(x, *, upper):
    """Return the log of the probability beyond x (N,), by scipy's distribution."""
    tail = norm.logsf if upper else norm.logcdf
    parts = [np.log(w) + tail(x, m, s) for w, m, s in zip(*MIXTURE[:3], strict=True)]
    return np.logaddexp.reduce(parts)


def test_one_component_is_an_affine_map_at_any_distance():
    margin = SmoothMargin(np.ones(1), np.array([2.0]), np.array([0.5]), 100.0)
    x = np.array([-1e30, -1e8, -40.0, 0.0, 2.0, 3.0, 60.0, 1e8, 1e30])
    z, log_slope = margin.to_normal(x)
    np.testing.assert_allclose(z, (x - 2.0) / 0.5, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(log_slope, np.log(2.0), rtol=1e-9)


def test_values_have_the_probabilities_of_the_mixture_in_the_bulk_and_in_the_tails():
    x = np.concatenate([np.linspace(-12.0, 15.0, 200), [-1e4, -90.0, 90.0, 1e4]])
    lower, upper = log_tail(x, upper=False), log_tail(x, upper=True)
    expected = np.where(lower < upper, ndtri_exp(lower), -ndtri_exp(upper))
    np.testing.assert_allclose(MIXTURE.to_normal(x)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("middle", [-2e4, -80.0, -3.0, 0.4, 7.0, 80.0, 2e4])
def test_slopes_are_those_of_the_map(middle):
    size = 1e-5 * max(1.0, abs(middle))
    x = middle + size * np.array([-1.0, 0.0, 1.0])
    z, log_slope = MIXTURE.to_normal(x)
    assert log_slope[1] == pytest.approx(np.log((z[2] - z[0]) / (2.0 * size)), abs=1e-6)


def test_the_inverse_is_exact_for_draws_of_any_shape_far_values_and_gaps():
    z = np.random.default_rng(0).standard_normal((50, 4, 3))
    z[0, 0] = [30.0, -30.0, np.nan]
    x = MIXTURE.from_normal(z)
    assert x.shape == z.shape
    np.testing.assert_allclose(MIXTURE.to_normal(x.reshape(-1))[0], z.reshape(-1), atol=1e-10)
    far = np.array([-1e30, -1e6, 1e6, 1e30])
    np.testing.assert_allclose(MIXTURE.from_normal(MIXTURE.to_normal(far)[0]), far, rtol=1e-12)
    gap = SmoothMargin(np.array([0.4, 0.6]), np.array([-1e3, 1e3]), np.array([0.1, 0.1]), 1e3)
    z = np.linspace(-4.0, 4.0, 41)
    np.testing.assert_allclose(gap.to_normal(gap.from_normal(z))[0], z, atol=1e-8)


def test_a_row_adds_to_its_own_density_what_leaving_it_out_takes():
    differences = []
    for x in np.random.default_rng(1).standard_normal((20, 200)):
        others = [np.delete(x, i) for i in range(len(x))]
        alone = [norm.logpdf(x[i], o.mean(), o.std()) for i, o in enumerate(others)]
        margin = SmoothMargin(np.ones(1), np.array([x.mean()]), np.array([x.std()]), 200.0)
        differences.append((margin.log_density(x) - alone).mean())
    error = np.std(differences) / np.sqrt(20)
    # terms of second order are a few percent of 0.01 nats
    assert np.mean(differences) == pytest.approx(margin.left_out(x)[0], abs=4.0 * error + 5e-4)


def test_the_description_by_plain_types_is_complete():
    again = margin_from_plain(plain_margin(MIXTURE))
    x = np.linspace(-5.0, 5.0, 11)
    np.testing.assert_array_equal(again.to_normal(x)[0], MIXTURE.to_normal(x)[0])
    assert margin_from_plain(plain_margin(None)) is None
