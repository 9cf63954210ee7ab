"""Draws within bounds, against truncated normal distributions."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.exceptions import NotFittedError

from sklvebm import MixtureStack, ParticleLVEBM, sample_within


@pytest.fixture(scope="module")
def gaussian():
    """One Gaussian with a correlation of 0.6."""
    random = np.random.default_rng(0)
    X = random.multivariate_normal([1.0, -2.0], [[4.0, 1.2], [1.2, 1.0]], 4000)
    frame = pd.DataFrame(X, columns=["a", "b"])
    return MixtureStack(covariance_types=["full"], max_components=1, random_state=0).fit(frame)


def test_draws_are_those_of_the_truncated_distribution(gaussian):
    rows, acceptance = sample_within(gaussian, {"a": (2.0, 5.0)}, 4000, random_state=0)
    assert rows.shape == (4000, 2)
    (weights, means, covariances, _) = gaussian.members_[0]
    assert len(weights) == 1
    mean, scale = means[0, 0], np.sqrt(covariances[0, 0, 0])
    cut = stats.truncnorm((2.0 - mean) / scale, (5.0 - mean) / scale, mean, scale)
    # the tails of the stack have a weight below 1e-3
    assert stats.kstest(rows[:, 0], cut.cdf).pvalue > 1e-3
    share = stats.norm(mean, scale).cdf(5.0) - stats.norm(mean, scale).cdf(2.0)
    # the number of draws depends on the acceptance, which biases the ratio by less than 1 in 1,000
    error = np.sqrt(share * (1.0 - share) / (4000 / share))
    assert acceptance == pytest.approx(share, abs=4.0 * error + 2e-3)
    # the other column follows the regression on the first
    slope = covariances[0, 0, 1] / covariances[0, 0, 0]
    left = rows[:, 1] - means[0, 1] - slope * (rows[:, 0] - mean)
    spread = np.sqrt(covariances[0, 1, 1] - slope * covariances[0, 0, 1])
    assert abs(left.mean()) < 4.0 * spread / np.sqrt(4000)


def test_open_ends_numbers_of_columns_and_seeds(gaussian):
    first = sample_within(gaussian, {1: (None, -2.5), "a": (0.0, None)}, 50, random_state=3)
    again = sample_within(gaussian, {1: (None, -2.5), "a": (0.0, None)}, 50, random_state=3)
    np.testing.assert_array_equal(first.X, again.X)
    assert (first.X[:, 1] <= -2.5).all()
    assert (first.X[:, 0] >= 0.0).all()
    other = sample_within(gaussian, {1: (None, -2.5), "a": (0.0, None)}, 50, random_state=4)
    assert not np.array_equal(first.X, other.X)


def test_rare_intervals_are_found_or_named(gaussian):
    rows, acceptance = sample_within(gaussian, {"a": (7.5, None)}, 5, random_state=0)
    assert (rows[:, 0] >= 7.5).all()
    assert acceptance < 0.002
    with pytest.raises(ValueError, match="of 1000 draws are within the bounds"):
        sample_within(gaussian, {"a": (20.0, None)}, 5, random_state=0, max_draws=1000)


def test_an_energy_with_frames():
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
    model = ParticleLVEBM(1, reference="gaussian", max_iter=1, random_state=0).fit(X)
    rows, _ = sample_within(
        model.set_output(transform="pandas"), {"b": (0.0, 1.0)}, 20, random_state=0
    )
    assert isinstance(rows, pd.DataFrame)
    assert rows["b"].between(0.0, 1.0).all()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "non-empty mapping"),
        ([("a", (0, 1))], "non-empty mapping"),
        ({"c": (0, 1)}, "column 'c'"),
        ({2: (0, 1)}, "column 2"),
        ({True: (0, 1)}, "column True"),
        ({"a": 1.0}, "pair"),
        ({"a": "01"}, "pair"),
        ({"a": (1.0, 1.0)}, "low < high"),
        ({"a": (2.0, 1.0)}, "low < high"),
        ({"a": (float("nan"), 1.0)}, "numbers or None"),
        ({"a": ("low", 1.0)}, "numbers or None"),
    ],
)
def test_unusable_bounds_are_named(gaussian, bounds, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sample_within(gaussian, bounds)


def test_other_arguments_are_checked(gaussian):
    with pytest.raises(NotFittedError):
        sample_within(MixtureStack(), {0: (0, 1)})
    with pytest.raises(TypeError, match="have sample"):
        sample_within(MixtureStack, {0: (0, 1)})
    for name in ("n_samples", "max_draws"):
        with pytest.raises(ValueError, match=name):
            sample_within(gaussian, {0: (0, 1)}, **{name: 0})
