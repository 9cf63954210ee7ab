"""Scores of transformed rows in the units of the rows: closed forms and the contract."""

import numpy as np
import pytest
from scipy.integrate import quad
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklvebm import (
    GaussianMargins,
    MixtureStack,
    ParticleLVEBM,
    TransformedDensity,
    WassersteinFlowEBM,
)


class LogScale(TransformerMixin, BaseEstimator):
    """The logarithm of every column."""

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return np.log(X)

    def inverse_transform(self, Z):
        return np.exp(Z)

    def log_abs_det_jacobian(self, X):
        return -np.log(X).sum(1)


SHARES = np.array([0.6, 0.1, 0.3])


def blocks(n=600, n_features=2, seed=0):
    """Return rows of independent columns of three blocks each."""
    random = np.random.default_rng(seed)
    shape = (n, n_features)
    return random.choice(3, shape, p=SHARES) + random.uniform(size=shape)


@parametrize_with_checks([TransformedDensity(KernelDensity())])
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


def test_a_gaussian_of_logarithms_is_log_normal():
    X = np.exp(0.5 * np.random.default_rng(0).standard_normal((300, 1)) + 1.0)
    model = TransformedDensity(GaussianMixture(reg_covar=0.0), transformer=LogScale()).fit(X)
    mean, sd = np.log(X).mean(), np.log(X).std()
    expected = -0.5 * ((np.log(X[:, 0]) - mean) / sd) ** 2
    expected -= np.log(X[:, 0] * sd * np.sqrt(2.0 * np.pi))
    np.testing.assert_allclose(model.score_samples(X), expected, rtol=1e-9)
    assert model.score(X) == pytest.approx(expected.mean())
    assert (model.sample(50) > 0.0).all()


def test_the_density_integrates_to_one():
    X = np.random.default_rng(0).uniform(size=(2000, 1))
    model = TransformedDensity(GaussianMixture(3, random_state=0)).fit(X)
    edges = model.transformer_.bins_[0].edges
    cuts = np.unique(np.concatenate([[-3.0], edges, [6.0]]))
    total = sum(
        quad(lambda x: np.exp(model.score_samples([[x]]))[0], low, high, epsabs=1e-8)[0]
        for low, high in zip(cuts[:-1], cuts[1:], strict=True)
    )
    assert total == pytest.approx(1.0, abs=1e-5)


def test_edges_gain_what_they_are_worth():
    """Beside the truth: without margins the stack of mixtures is short by ten times as much."""
    X, fresh = blocks(2000, 5), blocks(4000, 5, seed=1)
    truth = np.log(SHARES)[np.floor(fresh).astype(int)].sum(1)
    plain = WassersteinFlowEBM(margins="none", max_iter=0, random_state=0)
    short = truth - TransformedDensity(plain).fit(X).score_samples(fresh)
    alone = truth - plain.fit(X).score_samples(fresh)
    assert short.mean() > -5.0 * short.std() / np.sqrt(4000.0)  # nobody knows more than the truth
    assert short.mean() < 0.1 * alone.mean()


def test_passthrough_is_the_estimator_itself_and_a_search_decides():
    X = blocks(900, 5)
    plain = GaussianMixture(3, random_state=0).fit(X)
    model = TransformedDensity(plain, transformer="passthrough").fit(X)
    np.testing.assert_array_equal(model.score_samples(X), plain.score_samples(X))
    grid = {"transformer": ["passthrough", GaussianMargins()]}
    search = GridSearchCV(TransformedDensity(plain), grid, cv=3).fit(X)
    assert isinstance(search.best_params_["transformer"], GaussianMargins)
    smooth = np.random.default_rng(0).standard_normal((300, 2))
    scores = GridSearchCV(TransformedDensity(plain), grid, cv=3).fit(smooth).cv_results_
    assert scores["mean_test_score"][0] == scores["mean_test_score"][1]


def test_draws_have_the_edges_of_the_rows():
    X = blocks(2000)
    # one Gaussian is the truth of independent normal margins
    draws = TransformedDensity(GaussianMixture(random_state=0)).fit(X).sample(4000)
    ours, theirs = (np.histogram(part[:, 0], [0, 1, 2, 3])[0] / len(part) for part in (draws, X))
    assert np.abs(ours - theirs).max() < 5.0 * np.sqrt(0.24 / 4000.0)  # five standard errors
    assert ((draws > X.min() - 0.2) & (draws < X.max() + 0.2)).mean() > 0.99


def test_random_state_reaches_those_who_take_one():
    X = blocks(200)
    kernel = TransformedDensity(KernelDensity(bandwidth=0.3)).fit(X)
    np.testing.assert_array_equal(
        kernel.sample(5, random_state=3), kernel.sample(5, random_state=3)
    )
    mixture = TransformedDensity(GaussianMixture(2, random_state=0)).fit(X)
    assert mixture.sample(5).shape == (5, 2)
    with pytest.raises(ValueError, match="takes no random_state"):
        mixture.sample(5, random_state=0)


def test_latents_are_those_of_the_transformed_rows():
    X = blocks(200)
    model = TransformedDensity(ParticleLVEBM(1, max_iter=0, random_state=0)).fit(X)
    Z = model.transform(X)
    units = model.transformer_.transform(X)
    np.testing.assert_array_equal(Z, model.estimator_.transform(units))
    assert model.inverse_transform(Z[:5]).shape == (5, 2)
    mixture = TransformedDensity(GaussianMixture())
    assert not hasattr(mixture, "transform")
    assert not hasattr(mixture, "inverse_transform")
    assert hasattr(mixture, "sample")
    assert hasattr(TransformedDensity(), "transform")


def test_parts_that_cannot_serve_are_named():
    X = blocks(50)
    with pytest.raises(TypeError, match="StandardScaler has no log_abs_det_jacobian"):
        TransformedDensity(GaussianMixture(), transformer=StandardScaler()).fit(X)
    with pytest.raises(TypeError, match="StandardScaler has no score_samples"):
        TransformedDensity(StandardScaler()).fit(X)
    with pytest.raises(ValueError, match="passthrough"):
        TransformedDensity(GaussianMixture(), transformer="none").fit(X)
    with pytest.raises(NotFittedError):
        TransformedDensity().score_samples(X)


def test_a_failed_fit_leaves_what_was_there():
    X = blocks(50)
    model = TransformedDensity(GaussianMixture(2, random_state=0)).fit(X)
    before = model.score_samples(X)
    model.set_params(estimator__n_components=500)
    with pytest.raises(ValueError, match="n_components|n_samples"):
        model.fit(np.hstack([X, X]))
    np.testing.assert_array_equal(model.score_samples(X), before)


@pytest.fixture(scope="module")
def with_holes():
    """A uniform column and one that depends on it, with a tenth of the cells missing."""
    random = np.random.RandomState(0)
    first = random.uniform(size=1500)
    rows = np.column_stack([first, np.floor(8.0 * first) + random.uniform(size=1500)])
    holes = np.where(random.uniform(size=rows.shape) < 0.1, np.nan, rows)
    return TransformedDensity(MixtureStack(margins="none", random_state=0)).fit(holes)


def test_the_density_of_observed_cells_is_a_marginal(with_holes):
    assert (with_holes.transformer_.n_bins_ > 0).all()
    grid = np.linspace(-3.0, 11.0, 14_001)
    for value in (0.2, 0.55, 0.9):
        joint = np.exp(with_holes.score_samples(np.column_stack([np.full_like(grid, value), grid])))
        found = np.exp(with_holes.score_samples([[value, np.nan]]))[0]
        assert found == pytest.approx(np.trapezoid(joint, grid), rel=2e-3)
    assert with_holes.score_samples([[np.nan, np.nan]]) == pytest.approx(0.0, abs=1e-12)


def test_conditional_answers_come_back_in_the_units_of_the_rows(with_holes):
    rows = np.array([[0.3, np.nan], [np.nan, 6.5], [0.5, 4.5]])
    draws = with_holes.sample_conditional(rows, 4000, random_state=0)
    assert draws.shape == (3, 4000, 2)
    levels = [0.1, 0.5, 0.9]
    quantiles = with_holes.conditional_quantiles(rows, levels)
    means = np.asarray(with_holes.conditional_mean(rows))
    for row, column in ((0, 1), (1, 0)):
        own = np.sort(draws[row, :, column])
        # binomial error of the share of draws below a quantile, at four sigmas
        shares = np.searchsorted(own, quantiles[row, :, column]) / 4000
        assert (np.abs(shares - levels) < 4.0 * np.sqrt(0.25 / 4000)).all()
        middle = own[40:-40]  # defensive components reach far
        assert means[row, column] == pytest.approx(middle.mean(), abs=0.1 * own[200:-200].std())
    for answer in (draws[:, 0], draws[:, -1], quantiles[:, 1], means):
        np.testing.assert_array_equal(answer[~np.isnan(rows)], rows[~np.isnan(rows)])


def test_missing_cells_need_both_parts():
    rows = np.array([[0.0, np.nan], [1.0, 2.0], [2.0, 1.0]])
    assert get_tags(TransformedDensity(MixtureStack())).input_tags.allow_nan
    for model in (
        TransformedDensity(GaussianMixture()),
        TransformedDensity(MixtureStack(), transformer=LogScale()),
    ):
        assert not get_tags(model).input_tags.allow_nan
        with pytest.raises(ValueError, match="NaN"):
            model.fit(rows)


def test_margins_leave_missing_cells_missing():
    random = np.random.RandomState(0)
    rows = random.uniform(size=(600, 2))
    holes = np.where(random.uniform(size=rows.shape) < 0.2, np.nan, rows)
    margins = GaussianMargins().fit(holes)
    normal = np.asarray(margins.transform(holes))
    np.testing.assert_array_equal(np.isnan(normal), np.isnan(holes))
    np.testing.assert_allclose(np.asarray(margins.inverse_transform(normal)), holes, atol=1e-9)
    own = GaussianMargins().fit(holes[~np.isnan(holes[:, :1])[:, 0]][:, :1])
    np.testing.assert_array_equal(own.bins_[0].edges, margins.bins_[0].edges)
    log_slopes = margins.log_abs_det_jacobian(holes)
    np.testing.assert_allclose(log_slopes[np.isnan(holes).all(1)], 0.0)
    with pytest.raises(ValueError, match=r"Columns \[1\] of X have no observed value"):
        GaussianMargins().fit([[1.0, np.nan], [2.0, np.nan]])
