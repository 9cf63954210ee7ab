"""Both steps of expectation maximisation against scikit-learn's."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from sklvebm.mixtures.expectation_maximization import (
    PRIOR_ROWS,
    Mixture,
    Start,
    Statistics,
    fit_mixture,
    fit_mixtures,
    from_scikit_learn,
    log_joint,
    maximise,
)
from sklvebm.mixtures.starts import Starts

TYPES = ("full", "tied", "diag")
RIDGE = 1e-3


def rows(n=300, n_features=3, seed=0):
    random = np.random.RandomState(seed)
    X = random.standard_normal((n, n_features)) @ random.standard_normal((n_features, n_features))
    X[: n // 2] += 3.0
    return (X - X.mean(0)) / X.std(0)


def scikit_learn(X, kind, n_iterations, **start):
    mixture = GaussianMixture(
        3, covariance_type=kind, reg_covar=RIDGE, max_iter=n_iterations, random_state=0, **start
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(X)


# thirty features: more than are worth their products
@pytest.mark.parametrize("n_features", [1, 3, 30])
@pytest.mark.parametrize("kind", [*TYPES, "spherical"])
def test_densities_are_those_of_scikit_learn(kind, n_features):
    X = rows(n_features=n_features)
    theirs = scikit_learn(X, kind, 3)
    ours = from_scikit_learn(theirs)
    for some in (X, X[:20]):  # few rows and many of them are whitened in different ways
        np.testing.assert_allclose(ours.score_samples(some), theirs.score_samples(some), rtol=1e-9)
    covariances, covariance_of = ours.covariance_matrices()
    full = Mixture(ours.weights, ours.means, covariances[covariance_of], "full")
    np.testing.assert_allclose(full.score_samples(X), theirs.score_samples(X), rtol=1e-9)


@pytest.mark.parametrize("n_features", [1, 3, 30])
@pytest.mark.parametrize("kind", TYPES)
def test_an_iteration_is_that_of_scikit_learn(kind, n_features):
    X = rows(n_features=n_features)
    start = scikit_learn(X, kind, 2)
    theirs = scikit_learn(
        X,
        kind,
        1,
        weights_init=start.weights_,
        means_init=start.means_,
        precisions_init=start.precisions_,
    )
    statistics = Statistics(X, kind)
    joint = log_joint(statistics, from_scikit_learn(start))
    responsibilities = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    np.testing.assert_allclose(responsibilities, start.predict_proba(X), atol=1e-10)
    ours = maximise(statistics, responsibilities, kind, RIDGE)
    np.testing.assert_allclose(ours.weights, theirs.weights_, rtol=1e-8)
    np.testing.assert_allclose(ours.means, theirs.means_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.covariances, theirs.covariances_, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", TYPES)
def test_iterations_climb_until_they_gain_nothing(kind):
    X = rows()
    mixture = fit_mixture(X, 4, kind, RIDGE, seed=0)
    again = fit_mixture(X, 4, kind, RIDGE, seed=0)
    np.testing.assert_array_equal(mixture.means, again.means)
    statistics = Statistics(X, kind)
    joint = log_joint(statistics, mixture)
    before = np.logaddexp.reduce(joint, axis=1)
    next_one = maximise(statistics, np.exp(joint - before[:, None]), kind, RIDGE, PRIOR_ROWS)
    # the ridge is no part of the likelihood: an iteration may lose what it adds
    assert abs(next_one.score_samples(X).mean() - before.mean()) < 2e-3
    start = fit_mixture(X, 1, kind, RIDGE, seed=0)
    assert before.mean() > start.score_samples(X).mean() + 0.1


def test_narrow_components_far_from_the_origin_keep_their_digits():
    # variances of 1e-6, ten standard deviations out: products of features cancel eight digits
    random = np.random.RandomState(0)
    X = np.concatenate([c + 1e-3 * random.standard_normal((200, 2)) for c in (-10.0, 10.0)])
    mixture = fit_mixture(X, 2, "full", 1e-9, seed=0)
    own = [X[:200], X[200:]] if mixture.means[0, 0] < 0 else [X[200:], X[:200]]
    for covariance, part in zip(mixture.covariances, own, strict=True):
        expected = np.cov(part.T, bias=True) + 1e-9 * np.eye(2)
        np.testing.assert_allclose(covariance, expected, rtol=1e-4, atol=1e-10)


def test_the_ridge_bounds_densities_where_rows_coincide():
    X = np.repeat([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]], 20, axis=0)
    for kind in TYPES:
        mixture = fit_mixture(X, 3, kind, RIDGE, seed=0)
        assert np.isfinite(mixture.score_samples(X)).all()
        covariances, _ = mixture.covariance_matrices()
        assert covariances.min() > -RIDGE
        assert np.linalg.eigvalsh(covariances).min() >= 0.99 * RIDGE


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_component_of_one_row_has_a_share_of_the_common_spread(kind):
    X = rows()
    responsibilities = np.zeros((len(X), 2))
    responsibilities[0, 0] = responsibilities[1:, 1] = 1.0
    found = maximise(Statistics(X, kind), responsibilities, kind, 0.0, PRIOR_ROWS)
    own = np.cov(X[1:].T, bias=True)
    pooled = own * (len(X) - 1) / len(X)
    share = PRIOR_ROWS / (1.0 + PRIOR_ROWS)
    expected = share * pooled if kind == "full" else share * np.diag(pooled)
    np.testing.assert_allclose(found.covariances[0], expected, atol=1e-12)
    # many rows hardly notice
    covariances, _ = found.covariance_matrices()
    np.testing.assert_allclose(covariances[1].diagonal(), own.diagonal(), rtol=0.01)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_small_rows_keep_their_spread_beside_large_ones(kind):
    # half a row of the common covariance would make these three hundred twice as wide
    random = np.random.RandomState(0)
    small = random.standard_normal((300, 2))
    X = np.concatenate([small, 1e5 * random.standard_normal((300, 2))])
    responsibilities = np.repeat(np.eye(2), 300, axis=0)
    found = maximise(Statistics(X, kind), responsibilities, kind, 0.0, PRIOR_ROWS)
    covariances, _ = found.covariance_matrices()
    own = np.cov(small.T, bias=True)
    np.testing.assert_allclose(covariances[0].diagonal(), own.diagonal(), rtol=0.02)


@pytest.mark.parametrize("kind", TYPES)
def test_far_rows_are_handled_as_near_ones(kind):
    # the same rows, of which one cluster lies where squares have lost all digits of the others
    random = np.random.RandomState(0)
    near = random.standard_normal((200, 2))
    X = np.concatenate([near, 1e9 + random.standard_normal((20, 2))])
    statistics = Statistics(X, kind, RIDGE)
    assert statistics.is_large
    responsibilities = np.zeros((220, 2))
    responsibilities[:200, 0] = responsibilities[200:, 1] = 1.0
    found = maximise(statistics, responsibilities, kind, RIDGE, 0.0)
    moved = np.concatenate([near, X[200:] - 1e9])
    expected = maximise(Statistics(moved, kind), responsibilities, kind, RIDGE, 0.0)
    for ours, theirs in zip(
        found.covariance_matrices()[0], expected.covariance_matrices()[0], strict=True
    ):
        # numbers of 1e9 are rounded to 1e-7
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(
        found.score_samples(X)[:200],
        expected._replace(means=found.means).score_samples(X)[:200],
        atol=1e-4,
    )


def test_rows_that_no_covariance_can_hold_together_are_an_error():
    X = np.random.RandomState(0).standard_normal((50, 2))
    X[0] = 1e12
    with pytest.raises(np.linalg.LinAlgError):
        fit_mixture(X, 1, "full", 1e-6, seed=0)


@pytest.mark.parametrize("kind", TYPES)
def test_a_ridge_may_be_one_for_each_column(kind):
    X = rows(n_features=2)
    plain = fit_mixture(X, 2, kind, 1e-3, seed=0)
    same = fit_mixture(X, 2, kind, np.full(2, 1e-3), seed=0)
    np.testing.assert_allclose(plain.score_samples(X), same.score_samples(X), rtol=1e-10)
    other = fit_mixture(X, 1, kind, np.array([0.0, 1.0]), seed=0)
    covariances, _ = other.covariance_matrices()
    assert covariances[0, 1, 1] - X.var(0)[1] == pytest.approx(1.0)
    assert covariances[0, 0, 0] == pytest.approx(X.var(0)[0])


@pytest.mark.parametrize("n_features", [1, 3, 30, 200])
@pytest.mark.parametrize("kind", TYPES)
def test_fits_side_by_side_are_those_of_one_at_a_time(kind, n_features):
    # of different lengths, so that the shorter ones end with rows of weight zero
    parts = [rows(n, n_features, seed) for seed, n in enumerate((300, 299, 250))]
    starts = [Start(X, Starts(X, seed).labels(3)) for X in parts for seed in (0, 1)]
    together = fit_mixtures(starts, 3, kind, RIDGE)
    for start, ours in zip(starts, together, strict=True):
        (alone,) = fit_mixtures([start], 3, kind, RIDGE)
        np.testing.assert_allclose(
            ours.score_samples(start.X), alone.score_samples(start.X), rtol=1e-8, atol=1e-8
        )
    assert np.ptp([mixture.score_samples(parts[0]).mean() for mixture in together]) > 1e-3


@pytest.mark.parametrize("kind", TYPES)
def test_a_singular_fit_is_none_and_spoils_no_other(kind):
    X = rows(100, 2)
    broken = X.copy()
    broken[0] = 1e12
    starts = [Start(part, Starts(part, 0).labels(1)) for part in (X, broken, X)]
    first, second, third = fit_mixtures(starts, 1, kind, 1e-6)
    (alone,) = fit_mixtures(starts[:1], 1, kind, 1e-6)
    for ours in (first, third):
        np.testing.assert_allclose(ours.covariances, alone.covariances, rtol=1e-10)
    assert second is None or np.isfinite(second.score_samples(broken)).all()


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_of_weight_two_is_two_rows(kind):
    X = rows(120)
    row_weights = np.random.RandomState(0).randint(0, 4, len(X)).astype(float)
    responsibilities = np.random.RandomState(1).dirichlet(np.ones(3), len(X))
    weighted = Statistics(X, kind, RIDGE, row_weights)
    repeats = row_weights.astype(int)
    repeated = Statistics(np.repeat(X, repeats, axis=0), kind, RIDGE)
    ours = maximise(weighted, responsibilities, kind, RIDGE, PRIOR_ROWS)
    theirs = maximise(repeated, np.repeat(responsibilities, repeats, 0), kind, RIDGE, PRIOR_ROWS)
    for own, expected in zip(ours[:3], theirs[:3], strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-10, atol=1e-12)
    values = np.arange(len(X), dtype=float)
    assert weighted.mean(values) == pytest.approx(repeated.mean(np.repeat(values, repeats)))
