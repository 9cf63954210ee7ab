"""`margins`: columns that histograms make normal inside the estimators."""

import pickle

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from sklvebm import MixtureStack, ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM, compose
from sklvebm.mixtures.margins import choose_margins
from sklvebm.mixtures.policy import DEFAULT_POLICY
from sklvebm.preprocessing.margins import Bins
from sklvebm.preprocessing.scaling import Standardisation, standardisation_from_plain

ENERGIES = [
    ParticleLVEBM(1, max_iter=2, n_chains=64, hidden_layer_sizes=(8,), random_state=0),
    WassersteinFlowEBM(max_iter=2, n_chains=64, hidden_layer_sizes=(8,), random_state=0),
    PotentialFlowEBM((8,), max_iter=2, random_state=0),
]
ALL = [MixtureStack(random_state=0), *ENERGIES]


def name_of(estimator):
    return type(estimator).__name__


def rows(n=400, seed=0):
    """Return a column of two blocks, and a normal one that depends on it."""
    random = np.random.default_rng(seed)
    first = random.uniform(10.0, 14.0, n) + 16.0 * (random.uniform(size=n) < 0.3)
    return np.stack([first, 0.02 * first + 0.5 * random.standard_normal(n)], 1)


def cdf(x):
    """Return the distribution function of the first column."""
    return 0.7 * np.clip((x - 10.0) / 4.0, 0.0, 1.0) + 0.3 * np.clip((x - 26.0) / 4.0, 0.0, 1.0)


MEAN_LOG_DENSITY = 0.7 * np.log(0.7 / 4.0) + 0.3 * np.log(0.3 / 4.0)  # of the first column, nats


def mapped(estimator, X):
    return pickle.loads(pickle.dumps(estimator)).set_params(margins="histogram").fit(X)


@pytest.fixture(scope="module", params=ALL, ids=name_of)
def fitted(request):
    return mapped(request.param, rows())


def test_columns_with_edges_are_mapped_and_others_are_not(fitted):
    assert (fitted.n_bins_ > 0).tolist() == [True, False]


def test_the_marginal_density_of_a_mapped_column_integrates_to_one(fitted):
    (bins, _) = fitted._model.standardisation.margins
    low, high = bins.edges[[0, -1]] * fitted.scale_[0] + fitted.mean_[0]

    def density(x):
        return float(np.exp(fitted.score_samples(np.array([[x, np.nan]]))[0]))

    cuts = bins.edges[1:-1] * fitted.scale_[0] + fitted.mean_[0]
    inner, _ = quad(density, low, high, points=cuts[:40], limit=200, epsabs=1e-5)
    tails = [quad(density, low - 20.0, low)[0], quad(density, high, high + 20.0)[0]]
    # an energy's score is a bound, with the upper estimate of log Z
    slack = 0.05 if hasattr(fitted, "diagnostics_") else 1e-4
    assert inner + sum(tails) == pytest.approx(1.0, abs=slack)


def test_scores_have_the_jacobian_of_the_map(fitted):
    # densities of mapped rows, divided by the finite differences of the map
    X, step = rows(50, seed=1), 1e-6
    units = fitted._model.standardisation
    up, down = units.apply(X + step), units.apply(X - step)
    slopes = np.log((up - down) / (2.0 * step)).sum(1)
    inner = units.apply(X)
    plain = pickle.loads(pickle.dumps(fitted))
    affine = Standardisation(np.zeros(2), np.ones(2))
    plain._model = plain._model._replace(standardisation=affine)
    expected = plain.score_samples(inner) + slopes
    # a few steps cross an edge of a bin, where the slope jumps
    close = np.isclose(fitted.score_samples(X), expected, atol=1e-4)
    assert close.mean() > 0.9


def test_draws_have_the_edges_of_the_rows(fitted):
    X = rows()
    draws = fitted.sample(4000, random_state=0)
    outside = (draws[:, 0] < X[:, 0].min()) | (draws[:, 0] > X[:, 0].max())
    # two tails of one row in 401 each: 20 expected, standard error 4.5
    assert outside.sum() < 20 + 5 * 4.5
    assert stats.kstest(draws[:, 0], cdf).statistic < 0.08


def test_conditional_means_are_those_of_draws_in_the_units_of_the_data(fitted):
    X = rows(6, seed=2)
    X[:, 0] = np.nan
    draws = fitted.sample_conditional(X, n_draws=2000, random_state=0)[:, :, 0]
    error = draws.std(1) / np.sqrt(2000)
    found = fitted.conditional_mean(X)[:, 0]
    # 64 quantiles miss parts of the exponential tails, which hold a four hundredth of the mass
    assert (np.abs(found - draws.mean(1)) < 5.0 * error + 0.15).all()
    low, high = fitted.conditional_quantiles(X, (0.05, 0.95))[:, :, 0].T
    inside = ((draws > low[:, None]) & (draws < high[:, None])).mean(1)
    assert (np.abs(inside - 0.9) < 5.0 * np.sqrt(0.09 / 2000) + 0.03).all()


def test_a_pickle_scores_the_same(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.score_samples(rows(20)), fitted.score_samples(rows(20)))


def test_models_with_mapped_columns_cannot_be_composed(fitted):
    with pytest.raises(ValueError, match="margins='none'"):
        compose([(fitted, 1.0), (fitted, 1.0)])


@pytest.mark.parametrize("estimator", ENERGIES, ids=name_of)
def test_the_monitored_value_is_a_score_of_the_rows(estimator):
    # without held-out rows, all rows are monitored
    model = pickle.loads(pickle.dumps(estimator))
    model.set_params(margins="histogram", max_iter=0, early_stopping=False).fit(rows())
    names = ("lower_bound_", "log_likelihood_")
    (monitored,) = (getattr(model, name) for name in names if hasattr(model, name))
    assert monitored == pytest.approx(model.score(rows()), abs=1e-6)


def test_a_continued_fit_keeps_the_histograms():
    model = mapped(ENERGIES[0], rows())
    (bins, _) = model._model.standardisation.margins
    model.partial_fit(rows(300, seed=5))
    (after, _) = model._model.standardisation.margins
    assert after is bins or all(np.array_equal(a, b) for a, b in zip(after, bins, strict=True))
    assert np.isfinite(model.score(rows(100, seed=6)))


def test_auto_maps_columns_where_held_out_rows_prefer_it():
    X = rows(1000)
    auto = MixtureStack(random_state=0).fit(X)
    plain = MixtureStack(margins="none", random_state=0).fit(X)
    new = rows(4000, seed=3)
    gains = auto.score_samples(new) - plain.score_samples(new)
    assert auto.n_bins_[0] > 0
    assert gains.mean() > 3.0 * gains.std() / np.sqrt(len(new))
    assert not plain.n_bins_.any()


def test_auto_leaves_edges_alone_that_belong_to_two_columns_together():
    random = np.random.default_rng(0)
    X = random.uniform(0.0, 4.0, (6000, 2))
    X = X[np.floor(X).sum(1) % 2 == 0][:2000]
    assert MixtureStack(margins="histogram", random_state=0).fit(X).n_bins_.all()
    assert not MixtureStack(random_state=0).fit(X).n_bins_.any()


def test_auto_with_missing_cells_judges_the_observed_ones():
    X = rows(1000)
    X[::3, 1], X[1::4, 0] = np.nan, np.nan
    model = MixtureStack(random_state=0).fit(X)
    assert (model.n_bins_ > 0).tolist() == [True, False]
    new = rows(2000, seed=3)
    new[:, 1] = np.nan
    # bins and their edges cost some hundredths
    assert model.score(new) == pytest.approx(MEAN_LOG_DENSITY, abs=0.05)


def test_a_row_is_left_out_of_its_own_bin():
    random = np.random.default_rng(0)
    x = np.concatenate([random.uniform(0.0, 1.0, 30), [0.0, 1.0]])
    counts = np.histogram(x, np.linspace(0.0, 1.0, 5))[0]
    outside = 1.0 / (len(x) + 1.0)

    def bins_of(counts):
        shares = (counts + 0.5) / (counts.sum() + 2.0)
        cumulative = np.concatenate([[0.0], np.cumsum(shares)])
        return Bins(np.linspace(0.0, 1.0, 5), outside + (1.0 - 2.0 * outside) * cumulative, 0.25)

    bins = bins_of(counts)
    for value in x[:10]:
        fewer = counts.copy()
        fewer[int(value * 4)] -= 1
        expected = bins.log_density(np.array([value])) - bins_of(fewer).log_density(
            np.array([value])
        )
        np.testing.assert_allclose(bins.left_out(np.array([value])), expected, rtol=1e-9)


def test_the_gain_of_the_choice_is_that_of_new_rows():
    X = rows(1000)
    standardised = (X - X.mean(0)) / X.std(0)
    found = choose_margins(standardised, 0, DEFAULT_POLICY)
    new = rows(20_000, seed=4)
    auto = MixtureStack(random_state=0).fit(X).score_samples(new)
    plain = MixtureStack(margins="none", random_state=0).fit(X).score_samples(new)
    # both estimates have a standard error of about 0.01, and five folds fit four fifths of the rows
    assert found.gain == pytest.approx((auto - plain).mean(), abs=0.04)


def test_states_of_versions_without_margins_are_read():
    old = standardisation_from_plain({"mean": np.zeros(2), "scale": np.ones(2)})
    assert old.margins is None
    assert old.n_bins.tolist() == [0, 0]


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_margins_has_four_values(estimator):
    model = pickle.loads(pickle.dumps(estimator)).set_params(margins="bins")
    values = "'auto', 'all', 'histogram', 'none'"
    with pytest.raises(ValueError, match=f"margins must be one of {values}"):
        model.fit(rows())
