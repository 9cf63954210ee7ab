"""`DensityOutlierDetector`: calibrated shares, missing cells, shares of cells in closed form."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import BaseEstimator, DensityMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.utils import get_tags

from sklvebm import DensityOutlierDetector, MixtureStack
from sklvebm.applications.calibration import threshold
from sklvebm.applications.shares import (
    above_baseline,
    leave_one_out,
    random_orders,
    shapley,
)

MEAN = np.array([1.0, -2.0, 0.5])
ROOT = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-0.3, 0.2, 0.1]])
COVARIANCE = ROOT @ ROOT.T
N_TRAIN, N_FRESH = 2000, 20_000
SHARE = 0.05
# of the share flagged: the error of a quantile of the training rows, then of counting fresh rows
SHARE_ERROR = np.sqrt(SHARE * (1.0 - SHARE) * (1.0 / N_TRAIN + 1.0 / N_FRESH))


class KnownNormal(DensityMixin, BaseEstimator):
    """A normal density with given parameters, rows of which may have missing cells."""

    def __init__(self, mean=MEAN, covariance=COVARIANCE):
        self.mean = mean
        self.covariance = covariance

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def score_samples(self, X):
        found = np.zeros(len(X))
        for hidden in np.unique(np.isnan(X), axis=0):
            own, seen = (np.isnan(X) == hidden).all(1), np.flatnonzero(~hidden)
            if len(seen):
                part = multivariate_normal(self.mean[seen], self.covariance[np.ix_(seen, seen)])
                found[own] = part.logpdf(X[np.ix_(own, seen)].reshape(own.sum(), -1)).reshape(-1)
        return found

    def sample_conditional(self, X, n_draws, random_state):
        raise AssertionError("rows are complete")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def draw(n, seed):
    return MEAN + np.random.default_rng(seed).normal(size=(n, 3)) @ ROOT.T


@pytest.fixture(scope="module")
def rows():
    X = draw(N_TRAIN, 0)
    X.flags.writeable = False
    return X


@pytest.fixture(scope="module")
def known(rows):
    return DensityOutlierDetector(KnownNormal(), contamination=SHARE, random_state=0).fit(rows)


# The threshold ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "density", [KnownNormal(), GaussianMixture(random_state=0)], ids=["known", "fitted"]
)
def test_the_contamination_is_the_share_of_fresh_inliers_that_are_flagged(rows, density):
    detector = DensityOutlierDetector(density, contamination=SHARE, random_state=0).fit(rows)
    flagged = (detector.predict(draw(N_FRESH, 1)) == -1).mean()
    assert abs(flagged - SHARE) < 3.0 * SHARE_ERROR
    assert (detector.predict(rows) == -1).sum() == SHARE * N_TRAIN


def test_a_density_with_peaks_at_its_rows_is_calibrated(rows):
    narrow = KernelDensity(bandwidth=0.05)
    X, fresh = rows[:600], draw(N_FRESH, 1)
    detector = DensityOutlierDetector(narrow, contamination=SHARE, random_state=0).fit(X)
    flagged = (detector.predict(fresh) == -1).mean()
    # six sevenths of the rows of a fold: new rows are a little more likely after the last fit
    assert abs(flagged - SHARE) < 4.0 * np.sqrt(SHARE * (1.0 - SHARE) / len(X))
    own = narrow.fit(X)
    in_sample = (own.score_samples(fresh) < np.quantile(own.score_samples(X), SHARE)).mean()
    assert in_sample > 4.0 * SHARE


def test_an_outlier_of_the_training_rows_cannot_hide_in_its_own_peak(rows):
    X = np.concatenate([rows[:300], [[50.0, 50.0, 50.0]]])
    detector = DensityOutlierDetector(KernelDensity(bandwidth=0.3), random_state=0)
    assert detector.fit_predict(X)[-1] == -1
    assert detector.training_scores_.argmin() == 300
    # the density of all rows has a peak there
    assert detector.estimator_.score_samples(X)[-1] > detector.offset_


@pytest.mark.parametrize("n_columns", [1, 2, 10, 100])
def test_auto_flags_about_one_normal_row_in_a_hundred(n_columns):
    X = np.random.default_rng(0).normal(size=(100_000, n_columns))
    scores = -0.5 * (X**2).sum(1)
    flagged = (scores < threshold(scores, "auto")).mean()
    assert 0.0099 < flagged < 0.015


def test_auto_is_hardly_moved_by_outliers():
    inliers = -np.random.default_rng(0).exponential(size=20_000)
    clean = threshold(inliers, "auto")
    # quantiles of 20,000 exponential draws: the level ln 100 within four standard errors
    assert clean == pytest.approx(-np.log(100.0), abs=0.25)
    mixed = np.concatenate([inliers, np.full(1000, -1e6)])
    assert (inliers < threshold(mixed, "auto")).mean() > 0.002
    assert threshold(mixed, "auto") > -10.0
    assert np.quantile(mixed, 0.01) == -1e6


def test_a_training_row_is_scored_without_itself_and_any_row_alone(known, rows):
    X = np.concatenate([draw(5, 2), rows[:5]])
    detector = DensityOutlierDetector(GaussianMixture(3), random_state=0).fit(rows[:100])
    whole = detector.score_samples(X)
    np.testing.assert_allclose(whole, [detector.score_samples(row[None])[0] for row in X])
    np.testing.assert_array_equal(whole[5:], detector.training_scores_[:5])
    np.testing.assert_array_equal(whole[:5], detector.estimator_.score_samples(X[:5]))
    fold = detector.fold_estimators_[detector._fold_of[0]]
    assert whole[5] == fold.score_samples(X[5:6])[0]


def test_equal_rows_are_held_out_together(rows):
    X = np.repeat(rows[:50], 4, axis=0)
    narrow = DensityOutlierDetector(KernelDensity(bandwidth=1e-3), random_state=0).fit(X)
    # none of the copies has been seen: no score is that of the peak of a kernel
    assert narrow.training_scores_.max() < narrow.estimator_.score_samples(X).min() - 100.0


# Missing cells ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [[0], [1, 2], [0, 1]])
def test_every_pattern_of_missing_cells_has_its_own_threshold(known, hidden):
    fresh = draw(N_FRESH, 1)
    fresh[:, hidden] = np.nan
    flagged = (known.predict(fresh) == -1).mean()
    # 400 training rows stand for each pattern
    assert abs(flagged - SHARE) < 3.0 * np.sqrt(SHARE * (1.0 - SHARE) / 400)
    # one threshold for all would flag nothing, or most of the rows
    plain = (known.estimator_.score_samples(fresh) < known.offset_).mean()
    assert abs(plain - SHARE) > 0.01


def test_a_row_without_observed_cells_is_an_inlier(known):
    X = np.full((1, 3), np.nan)
    assert known.predict(X) == [1]
    assert known.score_samples(X) == np.median(known.training_scores_)


def test_training_rows_may_have_missing_cells(rows):
    X = np.where(np.random.default_rng(3).random((600, 3)) < 0.2, np.nan, rows[:600])
    stack = MixtureStack(covariance_types=["full"], max_components=1)
    detector = DensityOutlierDetector(stack, contamination=0.1, n_folds=2, random_state=0).fit(X)
    assert (detector.predict(X) == -1).sum() == 60
    assert detector.predict([[np.nan, -2.0, 0.5], [np.nan, -2.0, 5.0]]).tolist() == [1, -1]
    flagged = (detector.predict(draw(5000, 1)) == -1).mean()
    assert abs(flagged - 0.1) < 4.0 * np.sqrt(0.09 * (1.0 / 400 + 1.0 / 600))


# Which cells --------------------------------------------------------------------------------------


def given_others(X, column):
    """Return mean and standard deviation of a column given the others, in closed form."""
    others = np.delete(np.arange(3), column)
    gain = np.linalg.solve(COVARIANCE[np.ix_(others, others)], COVARIANCE[others, column])
    variance = COVARIANCE[column, column] - COVARIANCE[column, others] @ gain
    return MEAN[column] + (X[:, others] - MEAN[others]) @ gain, np.sqrt(variance)


def closed_form(X):
    """Return `-log p(x_j | x_rest)` of normal rows, (N, 3)."""
    columns = []
    for column in range(3):
        mean, scale = given_others(X, column)
        z = (X[:, column] - mean) / scale
        columns.append(0.5 * z**2 + np.log(scale) + 0.5 * np.log(2.0 * np.pi))
    return np.stack(columns, 1)


def test_the_share_left_out_is_the_conditional_surprise():
    X = draw(50, 4)
    found = leave_one_out(KnownNormal().score_samples, X)
    np.testing.assert_allclose(found.values[0], closed_form(X), rtol=1e-9)


def marginal_surprise(X, columns):
    hidden = np.setdiff1d(np.arange(3), columns)
    X = X.copy()
    X[:, hidden] = np.nan
    return -KnownNormal().score_samples(X)


def test_exact_shapley_values_are_those_of_the_definition():
    X = draw(20, 5)
    found = shapley(KnownNormal().score_samples, X, None).values[0]
    # of the first column: (v(1) - 0) / 3 + (v(12) - v(2)) / 6 + (v(13) - v(3)) / 6 + ...
    v = lambda *columns: marginal_surprise(X, list(columns))  # noqa: E731
    first = v(0) / 3 + (v(0, 1) - v(1) + v(0, 2) - v(2)) / 6 + (v(0, 1, 2) - v(1, 2)) / 3
    np.testing.assert_allclose(found[:, 0], first, rtol=1e-9)
    np.testing.assert_allclose(found.sum(1), v(0, 1, 2), rtol=1e-12)


def test_shapley_values_of_independent_columns_are_their_surprises():
    density = KnownNormal(MEAN, np.diag([4.0, 1.0, 0.01]))
    X = MEAN + np.random.default_rng(6).normal(size=(20, 3)) * [2.0, 1.0, 0.1]
    found = shapley(density.score_samples, X, None).values[0]
    z = (X - MEAN) / [2.0, 1.0, 0.1]
    expected = 0.5 * z**2 + np.log([2.0, 1.0, 0.1]) + 0.5 * np.log(2.0 * np.pi)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_random_orders_agree_with_all_sets_within_their_standard_error():
    covariance = 0.8 * np.ones((6, 6)) + 0.2 * np.eye(6)
    density = KnownNormal(np.zeros(6), covariance)
    X = np.random.default_rng(7).normal(size=(100, 6))
    usual = X[50:]
    exact, none = above_baseline(
        shapley(density.score_samples, X, None), shapley(density.score_samples, usual, None)
    )
    orders = random_orders(6, 12, np.random.RandomState(0))
    own, baseline = (shapley(density.score_samples, part, orders) for part in (X, usual))
    np.testing.assert_allclose(own.values.sum(2) + density.score_samples(X), 0.0, atol=1e-9)
    found, errors = above_baseline(own, baseline)
    assert (none == 0.0).all()
    assert (errors > 0.0).all()
    # six pairs: Student's t with five degrees of freedom, whose variance is 5 / 3; the entries of a
    # table share the orders, so that the limits are wide
    z = (found - exact) / errors
    assert 0.3 < np.mean(z**2) < 3.5
    assert random_orders(6, 13, np.random.RandomState(0)) is None


def test_orders_come_in_pairs_with_their_reverse():
    orders = random_orders(12, 5, np.random.RandomState(0))
    assert orders.shape == (6, 12)
    np.testing.assert_array_equal(orders[::2], orders[1::2, ::-1])


def test_explained_rows_are_above_the_mean_of_training_rows(known):
    X = draw(40, 8)
    shares = known.explain_outlier(X)
    z = np.stack(
        [(X[:, j] - m) / s for j, (m, s) in enumerate(given_others(X, j) for j in range(3))]
    )
    # the mean of z**2 / 2 over 200 training rows has the standard error sqrt(1 / 400)
    difference = shares - 0.5 * (z.T**2 - 1.0)
    assert np.ptp(difference, axis=0).max() < 1e-8
    assert np.abs(difference).max() < 4.0 * np.sqrt(0.5 / 200)


def test_shapley_shares_sum_to_what_the_row_lacks(known):
    X = draw(10, 9)
    shares, errors = known.explain_outlier(X, method="shapley", return_std_error=True)
    usual = known.score_samples(known._completed.rows[:200]).mean()
    np.testing.assert_allclose(shares.sum(1), usual - known.score_samples(X), atol=1e-9)
    assert (errors == 0.0).all()


def test_shares_do_not_depend_on_the_units_of_columns(known, rows):
    units = np.array([10.0, 0.1, 7.0])
    other = KnownNormal(MEAN * units, COVARIANCE * units * units[:, None])
    scaled = DensityOutlierDetector(other, contamination=SHARE, random_state=0).fit(rows * units)
    X = draw(10, 10)
    for method in ("leave_one_out", "shapley"):
        expected = known.explain_outlier(X, method=method)
        found = scaled.explain_outlier(X * units, method=method)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_wrong_cell_has_the_largest_share(known):
    X = draw(200, 11)
    X[:, 1] += 8.0 * given_others(X, 1)[1]
    assert (known.explain_outlier(X).argmax(1) == 1).mean() > 0.7


def test_missing_cells_have_no_share_and_a_baseline_of_their_own(known):
    X = draw(30, 12)
    X[::2, 0] = np.nan
    for method in ("leave_one_out", "shapley"):
        shares = known.explain_outlier(X, method=method)
        assert (shares[::2, 0] == 0.0).all()
        single = np.concatenate([known.explain_outlier(row[None], method=method) for row in X])
        np.testing.assert_allclose(shares, single, atol=1e-9)


# The interface ------------------------------------------------------------------------------------


def test_estimators_without_missing_cells_cannot_explain(rows):
    detector = DensityOutlierDetector(GaussianMixture(), random_state=0).fit(rows[:100])
    assert not get_tags(detector).input_tags.allow_nan
    with pytest.raises(TypeError, match="GaussianMixture does not allow missing cells"):
        detector.explain_outlier(rows[:1])
    with pytest.raises(ValueError, match="NaN"):
        detector.predict([[np.nan, 0.0, 0.0]])


def test_the_default_takes_missing_cells_and_the_seed(moons):
    X = moons[:60].copy()
    X[0, 0] = np.nan
    assert get_tags(DensityOutlierDetector()).input_tags.allow_nan
    detector = DensityOutlierDetector(n_folds=2, random_state=0).fit(X)
    assert type(detector.estimator_) is MixtureStack
    assert detector.estimator_.random_state is not None
    assert detector.explain_outlier(X[:2]).shape == (2, 2)
    options = {"estimator": GaussianMixture(3), "random_state": 0}
    first, second = (DensityOutlierDetector(**options).fit(X[1:]) for _ in range(2))
    np.testing.assert_array_equal(first.training_scores_, second.training_scores_)


def test_pickles_clones_and_frames(known, rows):
    stored = pickle.loads(pickle.dumps(known))
    np.testing.assert_array_equal(stored.predict(rows), known.predict(rows))
    assert not hasattr(clone(known), "offset_")
    frame = pd.DataFrame(rows[:100], columns=["a", "b", "c"])
    detector = DensityOutlierDetector(GaussianMixture(), random_state=0).fit(frame)
    assert list(detector.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_array_equal(detector.score_samples(frame), detector.training_scores_)
    with pytest.raises(ValueError, match="feature names"):
        detector.predict(frame.rename(columns={"a": "z"}))


def test_a_parameter_set_after_fit_changes_nothing(rows):
    X = rows[:100].copy()
    X[3, 0] = np.nan
    detector = DensityOutlierDetector(KnownNormal(), contamination=0.1, random_state=0)
    detector.fit(rows[:100])
    before = detector.decision_function(X)
    np.testing.assert_array_equal(
        detector.set_params(contamination=0.4).decision_function(X), before
    )


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        ({"contamination": 0.0}, ValueError, "contamination must be a number > 0.*'auto', got 0.0"),
        ({"contamination": 0.6}, ValueError, "contamination must be .*<= 0.5.* got 0.6"),
        ({"contamination": "few"}, TypeError, "contamination must be .*'few'"),
        ({"n_folds": 1}, ValueError, "n_folds must be an integer >= 2, got 1"),
        ({"random_state": "a"}, TypeError, "random_state must be .*'a'"),
        ({"estimator": LinearRegression()}, TypeError, "LinearRegression has no score_samples"),
    ],
)
def test_wrong_parameters_are_named(rows, parameters, kind, message):
    with pytest.raises(kind, match=message):
        DensityOutlierDetector(**parameters).fit(rows[:20])


def test_wrong_rows_and_options_are_refused(known):
    with pytest.raises(ValueError, match="at least 3 different rows, got 1"):
        DensityOutlierDetector().fit(np.ones((10, 2)))
    with pytest.raises(NotFittedError):
        DensityOutlierDetector().explain_outlier([[0.0]])
    with pytest.raises(ValueError, match="method must be one of .*'lime'"):
        known.explain_outlier(draw(2, 0), method="lime")
    with pytest.raises(ValueError, match="n_chains must be an integer >= 4, got 2"):
        known.explain_outlier(draw(2, 0), n_chains=2)
    with pytest.raises(TypeError, match="return_std_error must be True or False"):
        known.explain_outlier(draw(2, 0), return_std_error=1)
