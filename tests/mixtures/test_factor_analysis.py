"""Mixtures with covariances of low rank: SciPy's densities, scikit-learn's maximum, wide tables."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis

from sklvebm import MixtureStack
from sklvebm.mixtures.expectation_maximization import Start, fit_mixtures
from sklvebm.mixtures.factor_analysis import FactorFit, dense, log_densities
from sklvebm.mixtures.policy import DEFAULT_POLICY, n_parameters, rank_of

RANDOM = np.random.RandomState(0)


def rows_of_factors(n_rows, n_features, n_factors, seed=0):
    """Return rows of a factor model, and its covariance."""
    random = np.random.RandomState(seed)
    loadings = random.normal(size=(n_features, n_factors))
    variances = random.uniform(0.2, 2.0, n_features)
    factors = random.normal(size=(n_rows, n_factors))
    rows = factors @ loadings.T + np.sqrt(variances) * random.normal(size=(n_rows, n_features))
    return rows, loadings @ loadings.T + np.diag(variances)


@pytest.mark.parametrize("n_rows", [7, 60_000])  # side by side, and one by one
def test_log_densities_are_those_of_scipy(n_rows):
    X, means = RANDOM.normal(size=(n_rows, 6)), RANDOM.normal(size=(3, 6))
    parts = np.concatenate(
        [RANDOM.normal(size=(3, 6, 2)), np.exp(RANDOM.normal(size=(3, 6, 1)))], 2
    )
    found = log_densities(X, means, parts)
    for m, covariance in enumerate(dense(parts)):
        expected = multivariate_normal(means[m], covariance).logpdf(X)
        np.testing.assert_allclose(found[:, m], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n_rows", "n_features"), [(400, 12), (30, 80)])
def test_one_component_reaches_the_maximum_of_scikit_learn(n_rows, n_features):
    """The likelihood of factor analysis without priors; the ridge is the floor of its variances."""
    X, _ = rows_of_factors(n_rows, n_features, 2)
    fit = FactorFit(X, 2, 1e-9, 0.0, None)
    for _ in range(40):  # continues: one run ends early on purpose
        fit.run(np.zeros(n_rows, dtype=int), 1)
    own = log_densities(X, fit.means, fit.covariances)[:, 0].mean()
    best = FactorAnalysis(2, tol=1e-9, max_iter=20_000, svd_method="lapack").fit(X).score(X)
    assert own == pytest.approx(best, abs=2e-3 * n_features / 12)
    assert own < best + 1e-6


def test_the_likelihood_never_falls():
    X = np.concatenate([rows_of_factors(60, 20, 2, seed)[0] + 2.0 * seed for seed in range(3)])
    labels = RANDOM.randint(3, size=len(X))
    fit = FactorFit(X, 2, 1e-6, 0.0, None)
    values, responsibilities = [], np.eye(3)[labels]
    for _ in range(30):
        fit._maximise(responsibilities)
        joint = log_densities(X, fit.means, fit.covariances) + np.log(fit.weights)
        values.append(logsumexp(joint, axis=1).mean())
        responsibilities = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    # the first steps start from principal components, not from responsibilities
    assert (np.diff(values) > -1e-5).all()
    assert values[-1] > values[0] + 0.5


def test_weights_are_copies():
    X, _ = rows_of_factors(50, 20, 2)
    counts, labels = RANDOM.randint(1, 4, size=50), RANDOM.randint(2, size=50)
    weighted = fit_mixtures([Start(X, labels, counts.astype(float))], 2, "low-rank-2", 1e-3)[0]
    start = Start(np.repeat(X, counts, axis=0), np.repeat(labels, counts))
    repeated = fit_mixtures([start], 2, "low-rank-2", 1e-3)[0]
    np.testing.assert_allclose(weighted.means, repeated.means, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(
        dense(weighted.covariances), dense(repeated.covariances), rtol=1e-6, atol=1e-8
    )
    assert weighted.covariance_type == "low-rank"


def test_more_directions_than_rows_and_equal_rows_are_no_error():
    few = RANDOM.normal(size=(4, 30))
    found = fit_mixtures([Start(few, np.zeros(4, dtype=int))], 1, "low-rank-8", 1e-3)[0]
    assert np.isfinite(found.score_samples(few)).all()
    same = np.zeros((10, 30))
    found = fit_mixtures([Start(same, np.zeros(10, dtype=int))], 1, "low-rank-2", 1e-3)[0]
    assert np.isfinite(found.score_samples(same)).all()


def test_kinds_and_their_parameters():
    assert [rank_of(kind) for kind in ("full", "tied", "low-rank-16")] == [None, None, 16]
    wide, long = np.zeros((60, 100)), np.zeros((600, 100))
    assert "low-rank-1" in DEFAULT_POLICY.kinds(wide)
    assert DEFAULT_POLICY.kinds(long) == ["full", "tied", "diag"]
    assert DEFAULT_POLICY.kinds(np.zeros((20, 10))) == ["full", "tied", "diag"]
    # weights, means, loadings without a rotation, variances
    assert n_parameters(3, "low-rank-2", 10) == 2 + 30 + 3 * (20 - 1) + 30


@pytest.mark.parametrize(("n_rows", "n_features"), [(60, 150), (40, 300)])
def test_a_wide_table_of_few_factors_is_recognised(n_rows, n_features):
    """The stack is nearer to the truth than the best of variances alone, by most of their gap."""
    X, covariance = rows_of_factors(n_rows + 300, n_features, 3)
    fitted, new = X[:n_rows], X[n_rows:]
    truth = multivariate_normal(np.zeros(n_features), covariance).logpdf(new).mean()
    stack = MixtureStack(random_state=0).fit(fitted)
    plain = MixtureStack(covariance_types=("full", "tied", "diag"), random_state=0).fit(fitted)
    assert {member.covariance_type for member in stack.members_} == {"low-rank"}
    assert truth - stack.score(new) < 0.5 * (truth - plain.score(new))


def test_members_are_in_the_units_of_the_rows():
    X, _ = rows_of_factors(50, 24, 2)
    X = 10.0 * X + 3.0
    stack = MixtureStack(covariance_types=["low-rank"], margins="none", random_state=0).fit(X)
    parts = [
        np.log(weight) + member.score_samples(X)
        for weight, member in zip(stack.weights_, stack.members_, strict=True)
    ]
    np.testing.assert_allclose(logsumexp(parts, axis=0), stack.score_samples(X), atol=0.05)
    again = MixtureStack(covariance_types=["low-rank"], random_state=0)
    holes = np.where(RANDOM.uniform(size=X.shape) < 0.1, np.nan, X)
    assert np.isfinite(again.fit(holes).score_samples(holes)).all()


def test_two_columns_can_have_low_rank_where_nothing_else_is_allowed():
    X = RANDOM.normal(size=(60, 2)) @ np.array([[1.0, 0.9], [0.0, 0.3]])
    stack = MixtureStack(covariance_types=["low-rank"], random_state=0).fit(X)
    full = MixtureStack(covariance_types=["full"], random_state=0).fit(X)
    assert stack.score(X) == pytest.approx(full.score(X), abs=0.2)
