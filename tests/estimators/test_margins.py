"""Columns with edges: closed forms, quadrature, and when bins are left alone."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklvebm import GaussianMargins, dequantize


def uniform(n=2000, low=2.0, high=5.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, (n, 1))


def steps(n=3000, seed=0):
    """Return draws of three unequal blocks, and their density."""
    random = np.random.default_rng(seed)
    block = random.choice(3, n, p=[0.7, 0.1, 0.2])
    return (block + random.uniform(size=n))[:, None]


@parametrize_with_checks([GaussianMargins()])
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


def test_a_uniform_column_is_one_bin_with_the_map_of_the_closed_form():
    X = uniform()
    margins = GaussianMargins().fit(X)
    (bins,) = margins.bins_
    assert margins.n_bins_.tolist() == [1]
    assert bins.edges.tolist() == [X.min(), X.max()]
    # all but the two tails, one row in 2,001 each
    x = np.linspace(X.min(), X.max(), 50)
    share = (x - X.min()) / np.ptp(X)
    expected = stats.norm.ppf((1.0 + 1999.0 * share) / 2001.0)
    np.testing.assert_allclose(margins.transform(x[:, None])[:, 0], expected, atol=1e-12)


def test_the_density_of_every_column_integrates_to_one():
    (bins,) = GaussianMargins().fit(steps()).bins_
    cuts = bins.edges[[0, 1, -2, -1]]
    inner = quad(lambda x: np.exp(bins.log_density(np.array([x])))[0], cuts[0], cuts[-1], limit=500)
    assert inner[0] == pytest.approx(1.0 - 2.0 / 3001.0, abs=1e-6)
    below = quad(lambda x: np.exp(bins.log_density(np.array([x])))[0], cuts[0] - 40.0, cuts[0])
    above = quad(lambda x: np.exp(bins.log_density(np.array([x])))[0], cuts[-1], cuts[-1] + 40.0)
    assert below[0] == pytest.approx(1.0 / 3001.0, rel=1e-6)
    assert above[0] == pytest.approx(1.0 / 3001.0, rel=1e-6)


def test_bins_find_the_blocks_and_their_shares():
    X = steps()
    margins = GaussianMargins().fit(X)
    assert margins.n_bins_[0] % 3 == 0
    (bins,) = margins.bins_
    middle = np.exp(bins.log_density(np.array([0.5, 1.5, 2.5])))
    # shares of 3,000 rows: at most 0.0084 standard errors; a block may be several bins
    assert np.abs(middle - [0.7, 0.1, 0.2]).max() < 5.0 * 0.0084 * np.sqrt(margins.n_bins_[0] / 3)


def test_transforms_of_rows_are_standard_normal():
    X = steps()
    z = GaussianMargins().fit(X[:1500]).transform(X[1500:])[:, 0]
    # of rows not seen; five standard errors of each moment
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        error = np.sqrt(2.0 * variance / 1500.0)  # of rows, and as much of the bins
        assert abs((z**power).mean() - moment) < 5.0 * error


@pytest.mark.parametrize("make", [uniform, steps])
def test_there_and_back_also_far_outside(make):
    X = make()
    margins = GaussianMargins().fit(X)
    width = margins.bins_[0].tail
    far = np.array([[X.min() - 30.0 * width], [X.max() + 300.0 * width], [X.max()], [X.min()]])
    rows = np.concatenate([X, far])
    Z = margins.transform(rows)
    assert np.isfinite(Z).all()
    np.testing.assert_allclose(margins.inverse_transform(Z), rows, rtol=1e-9)
    order = np.argsort(rows[:, 0])
    assert (np.diff(Z[order, 0]) >= 0.0).all()


@pytest.mark.parametrize("make", [uniform, steps])
def test_the_jacobian_is_the_derivative(make):
    X = make()
    margins = GaussianMargins().fit(X)
    (bins,) = margins.bins_
    width = bins.tail
    middles = bins.edges[:-1] + 0.4 * width  # within bins, and in both tails
    x = np.concatenate([middles, [X.min() - 3.0 * width, X.max() + 5.0 * width]])[:, None]
    size = 1e-6 * width
    slope = (margins.transform(x + size) - margins.transform(x - size))[:, 0] / (2.0 * size)
    np.testing.assert_allclose(margins.log_abs_det_jacobian(x), np.log(slope), atol=1e-5)


def test_the_jacobian_of_rows_is_the_sum_over_columns():
    X = np.column_stack(
        [uniform()[:, 0], np.random.default_rng(1).standard_normal(2000), steps(2000)]
    )
    margins = GaussianMargins().fit(X)
    assert margins.n_bins_[1] == 0
    np.testing.assert_array_equal(margins.transform(X)[:, 1], X[:, 1])
    alone = [GaussianMargins().fit(X[:, [j]]).log_abs_det_jacobian(X[:, [j]]) for j in range(3)]
    np.testing.assert_allclose(margins.log_abs_det_jacobian(X), sum(alone), atol=1e-12)


@pytest.mark.parametrize(
    "draw",
    [
        lambda r, n: r.standard_normal(n),
        lambda r, n: np.where(
            r.uniform(size=n) < 0.3, 0.2 * r.standard_normal(n) + 4.0, r.standard_normal(n)
        ),
        lambda r, n: r.standard_t(3, n),
        lambda r, n: r.gamma(4.0, size=n),
    ],
    ids=["normal", "two bumps", "heavy tails", "skewed"],
)
def test_smooth_columns_are_left_as_they_are(draw):
    """Bins may win by chance: of a hundred such columns of 500 rows, none was seen to be mapped."""
    X = draw(np.random.default_rng(3), (500, 40))
    assert (GaussianMargins().fit(X).n_bins_ > 0).sum() <= 3


def test_constant_columns_few_rows_and_outliers_are_left_as_they_are():
    X = uniform()
    X[3] = 1e6
    assert GaussianMargins().fit(X).n_bins_.tolist() == [0]
    assert GaussianMargins().fit(np.ones((50, 1))).n_bins_.tolist() == [0]
    assert GaussianMargins().fit(uniform(19)).n_bins_.tolist() == [0]
    assert GaussianMargins(max_bins=0).fit(uniform()).n_bins_.tolist() == [0]


def test_the_steps_of_rounded_pixels_are_found():
    X = dequantize(load_digits().data, step=1.0, random_state=0)
    margins = GaussianMargins(max_bins=20).fit(X)
    pixel = 21  # between 0 and 16 in all steps
    assert margins.n_bins_[pixel] == 17
    assert margins.n_bins_[0] == 1  # always 0, plus noise
    np.testing.assert_allclose(margins.bins_[pixel].edges, np.arange(-0.5, 17.0), atol=0.01)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="max_bins"):
        GaussianMargins(max_bins=-1).fit(uniform())
    margins = GaussianMargins().fit(uniform())
    with pytest.raises(ValueError, match="1 columns"):
        margins.inverse_transform(np.zeros((3, 2)))


@pytest.mark.parametrize("n_levels", [2, 5, 17, 100])
def test_rounded_values_without_noise_have_no_bins(n_levels):
    random = np.random.default_rng(0)
    X = random.integers(0, n_levels, (1000, 1)).astype(float)
    assert GaussianMargins().fit(X).n_bins_.tolist() == [0]
    assert GaussianMargins().fit(dequantize(X, random_state=0)).n_bins_[0] > 0
    # rounding much finer than the bins does not matter
    fine = np.round(random.uniform(size=(1000, 1)), 3)
    assert GaussianMargins().fit(fine).n_bins_.tolist() == [1]
