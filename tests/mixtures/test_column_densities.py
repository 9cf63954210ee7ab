"""Densities of all columns: their choice, and that of the fit between none, some and all."""

import pickle

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm, spearmanr

from sklvebm import MixtureStack, ParticleLVEBM
from sklvebm.mixtures import column_densities
from sklvebm.mixtures.column_densities import margins_of_option
from sklvebm.mixtures.expectation_maximization import Start, fit_mixtures
from sklvebm.preprocessing.margins import Bins, SmoothMargin

SCALE = 0.8  # of the logarithms
CORRELATIONS = np.full((4, 4), 0.6) + 0.4 * np.eye(4)


def columns(n, seed):
    """Return a normal, a log-normal, a two-humped and a uniform column."""
    random = np.random.default_rng(seed)
    z = random.standard_normal((n, 3))
    humps = 0.3 * z[:, 2] + np.where(random.uniform(size=n) < 0.4, -1.0, 1.0)
    return np.stack([z[:, 0], np.exp(SCALE * z[:, 1]), humps, random.uniform(size=n)], 1)


def log_normal_rows(n, seed):
    z = np.random.default_rng(seed).multivariate_normal(np.zeros(4), CORRELATIONS, n)
    return np.exp(SCALE * z)


def log_normal_density(X):
    z = np.log(X) / SCALE
    return multivariate_normal(np.zeros(4), CORRELATIONS).logpdf(z) - np.log(SCALE * X).sum(1)


@pytest.fixture(scope="module")
def stack():
    return MixtureStack(random_state=0).fit(log_normal_rows(2000, 0))


def test_each_column_has_the_density_that_it_needs():
    normal, skewed, humps, uniform = margins_of_option("all", columns(4000, 0))
    assert normal is None
    assert isinstance(skewed, SmoothMargin)
    assert isinstance(humps, SmoothMargin)
    assert isinstance(uniform, Bins)
    new = columns(20_000, 1)
    truths = {
        1: norm.logpdf(np.log(new[:, 1]) / SCALE) - np.log(SCALE * new[:, 1]),
        2: np.logaddexp(
            np.log(0.4) + norm.logpdf(new[:, 2], -1.0, 0.3),
            np.log(0.6) + norm.logpdf(new[:, 2], 1.0, 0.3),
        ),
    }
    for j, truth in truths.items():
        lost = truth - (skewed, humps)[j - 1].log_density(new[:, j])
        # parameters of a mixture of 16 components cost at most 0.006 nats; four standard errors
        assert lost.mean() < 0.02 + 4.0 * lost.std() / np.sqrt(len(lost))


def test_densities_do_not_depend_on_units_copies_or_missing_cells():
    X = columns(1500, 2)
    plain, scaled = margins_of_option("all", X), margins_of_option("all", 1e4 * X - 3e5)
    z = np.linspace(-2.0, 2.0, 9)
    np.testing.assert_allclose(
        1e4 * plain[1].from_normal(z) - 3e5, scaled[1].from_normal(z), rtol=1e-6
    )
    weights = np.r_[np.ones(1500), np.zeros(0)]
    weighted = margins_of_option("all", X, row_weights=weights)
    np.testing.assert_allclose(plain[1].from_normal(z), weighted[1].from_normal(z), rtol=1e-6)
    holes = np.concatenate([X, np.full((500, 4), np.nan)])
    np.testing.assert_array_equal(plain[1].means, margins_of_option("all", holes)[1].means)


def test_rounded_values_have_no_component_narrower_than_a_step():
    X = np.round(4.0 * columns(2000, 3)[:, [1, 1, 1, 1]]) / 4.0
    for margin in margins_of_option("all", X):
        assert margin is None or margin.scales.min() > 0.2


def test_few_rows_and_few_columns_have_histograms_only():
    assert all(not isinstance(m, SmoothMargin) for m in margins_of_option("all", columns(900, 0)))
    margins = margins_of_option("all", columns(4000, 0)[:, :3])
    assert margins is None or all(not isinstance(m, SmoothMargin) for m in margins)


def test_auto_finds_the_density_of_skewed_columns(stack):
    new = log_normal_rows(10_000, 1)
    lost = log_normal_density(new) - stack.score_samples(new)
    assert stack.margins_ == "all"
    assert not stack.n_bins_.any()
    # 10 parameters of the copula and 100 of the margins cost 0.03 nats by their number; normal
    # components approximate the least values badly: 0.06 to 0.13 over five other tables
    assert lost.mean() < 0.1 + 4.0 * lost.std() / np.sqrt(len(lost))
    plain = MixtureStack(margins="none", random_state=0).fit(log_normal_rows(2000, 0))
    gain = stack.score_samples(new) - plain.score_samples(new)
    assert gain.mean() > 4.0 * gain.std() / np.sqrt(len(gain))


def test_auto_leaves_clusters_alone():
    random = np.random.default_rng(0)
    centres = random.uniform(-4.0, 4.0, (8, 4))
    X = centres[random.integers(8, size=2000)] + 0.2 * random.standard_normal((2000, 4))
    assert MixtureStack(margins="all", random_state=0).fit(X).margins_ == "all"
    assert MixtureStack(random_state=0).fit(X).margins_ == "none"


def test_answers_are_in_the_units_of_the_rows(stack):
    draws = stack.sample(20_000, random_state=0)
    # four standard errors of the 2,000 rows that were fitted, which are larger than those of draws
    np.testing.assert_allclose(np.median(draws, axis=0), 1.0, atol=4.0 * 1.25 * SCALE / 2000**0.5)
    ranks = 6.0 / np.pi * np.arcsin(0.5 * CORRELATIONS)
    np.testing.assert_allclose(spearmanr(draws)[0], ranks, atol=4.0 / 2000**0.5)
    again = pickle.loads(pickle.dumps(stack))
    X = log_normal_rows(50, 2)
    np.testing.assert_array_equal(again.score_samples(X), stack.score_samples(X))
    X = log_normal_rows(5000, 2)
    X[:, 1:] = np.nan
    truth = norm.logpdf(np.log(X[:, 0]) / SCALE) - np.log(SCALE * X[:, 0])
    lost = truth - stack.score_samples(X)
    # 23 parameters of 2,000 rows, and the copula: 0.01 nats
    assert lost.mean() < 0.02 + 4.0 * lost.std() / np.sqrt(len(lost))


def test_conditional_means_are_those_of_the_copula(stack):
    X = log_normal_rows(300, 3)
    holes = X.copy()
    holes[:, 3] = np.nan
    z = np.log(X[:, :3]) / SCALE
    weights = np.linalg.solve(CORRELATIONS[:3, :3], CORRELATIONS[:3, 3])
    variance = 1.0 - CORRELATIONS[3, :3] @ weights
    truth = np.exp(SCALE * (z @ weights) + 0.5 * SCALE**2 * variance)
    found = stack.conditional_mean(holes)[:, 3]
    # the estimate of the copula and of the margin's tail: 5 % on most rows
    assert np.median(np.abs(found / truth - 1.0)) < 0.05


def test_energies_are_trained_on_mapped_rows_and_answer_in_the_units_of_x():
    X = log_normal_rows(1500, 4)
    model = ParticleLVEBM(1, max_iter=2, n_chains=64, hidden_layer_sizes=(8,), random_state=0)
    model.fit(X)
    assert model.margins_ == "all"
    new = log_normal_rows(4000, 5)
    # mixtures of these rows lose 0.06 to 0.13 nats
    assert model.score(new) == pytest.approx(log_normal_density(new).mean(), abs=0.15)
    # normal components have a little mass below zero
    assert (model.sample(500) > 0.0).mean() > 0.99


@pytest.mark.parametrize("weighted", [False, True])
def test_the_normal_rival_of_a_histogram_is_the_mixture_of_one_component(weighted):
    random = np.random.RandomState(0)
    values, weights = random.exponential(size=300), random.uniform(0.5, 2.0, 300)
    fold = column_densities._Places(np.arange(200), np.arange(200, 300))
    unit = [values[:200].mean(), values[:200].std()]
    part = column_densities._part(values, fold, unit, weights if weighted else None)
    start = Start(part.known[:, None], np.zeros(200, dtype=int), part.known_weights)
    (mixture,) = fit_mixtures([start], 1, "full", column_densities._RIVAL_RIDGE)
    (found,) = column_densities._rivals([part], 1)
    np.testing.assert_allclose(found, mixture.score_samples(part.new[:, None]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_columns_together_have_the_histograms_that_each_has_alone(weighted):
    X = np.column_stack([columns(200, 0), 1e3 * columns(200, 1) ** 2])
    row_weights = np.random.default_rng(2).uniform(0.5, 2.0, 200) if weighted else None
    together = column_densities.column_margins(X, row_weights=row_weights)
    alone = [column_densities.bins_or_none(x, column_densities.MAX_BINS, row_weights) for x in X.T]
    assert 0 < sum(bins is None for bins in together) < X.shape[1]
    for first, second in zip(together, alone, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            np.testing.assert_array_equal(first.edges, second.edges)
            np.testing.assert_array_equal(first.cumulative, second.cumulative)


def test_a_histogram_with_its_tails_has_mass_one():
    bins = Bins(np.array([-1.0, 0.0, 1.0]), np.array([0.1, 0.4, 0.9]), 0.5)
    grid = np.linspace(-15.0, 15.0, 300_000, endpoint=False) + 0.5e-4
    density = np.exp(bins.log_density(grid))
    assert density.sum() * 1e-4 == pytest.approx(1.0, abs=1e-6)
    for x, below in [(-1.0, 0.1), (0.5, 0.65), (2.0, 1.0 - 0.1 * np.exp(-2.0))]:
        assert density[grid < x].sum() * 1e-4 == pytest.approx(below, abs=1e-6)
