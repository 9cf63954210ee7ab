"""Expectation maximisation with missing cells: closed forms, likelihoods, completed rows."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklvebm.mixtures.expectation_maximization import (
    PRIOR_ROWS,
    Mixture,
    Statistics,
    fit_mixture,
    log_joint,
    maximise,
)
from sklvebm.mixtures.missing_cells import blocks, components_of_mixture, score_observed
from sklvebm.mixtures.missing_fit import (
    complete_rows,
    diagonal_moments,
    expected_moments,
    fit_with_missing,
    likeliest_gaussian,
)

KINDS = ["full", "tied", "diag"]


def correlated_rows(n_rows=400, seed=0):
    random = np.random.RandomState(seed)
    first = random.normal(size=n_rows)
    second = 0.8 * first + 0.6 * random.normal(size=n_rows)
    return np.stack([first, second], 1)


def two_groups(n_rows=600, seed=0):
    random = np.random.RandomState(seed)
    rows = random.normal(size=(n_rows, 3)) @ random.normal(size=(3, 3))
    rows[: n_rows // 3] += 4.0
    return (rows - rows.mean(0)) / rows.std(0)


def with_holes(rows, share, seed=0):
    holes = np.random.RandomState(seed).uniform(size=rows.shape) < share
    return np.where(holes, np.nan, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_without_missing_cells_a_step_is_the_ordinary_one(kind):
    rows = two_groups()
    first = fit_mixture(rows, 2, kind, 1e-4, seed=0)
    statistics = Statistics(rows, kind)
    logs = log_joint(statistics, first)
    shares = np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
    expected = maximise(statistics, shares, kind, 1e-4, PRIOR_ROWS)
    found = fit_with_missing(rows, first, 1e-4, max_iter=1)
    for part, other in zip(found[:3], expected[:3], strict=True):
        assert_allclose(part, other, rtol=0.0, atol=1e-12)


def test_a_gaussian_with_one_incomplete_column_has_the_closed_form():
    """Of a monotone pattern: the second column's regression on the first, over complete rows."""
    rows = correlated_rows()
    rows[150:, 1] = np.nan
    first, both = rows[:, 0], rows[:150]
    slope, offset = np.polyfit(both[:, 0], both[:, 1], 1)
    residual = (both[:, 1] - offset - slope * both[:, 0]).var()
    found = likeliest_gaussian(rows, 0.0)
    # the iterations end at a gain of 1e-3 nats a row: the closed form's own is not far
    mean, variance = first.mean(), first.var()
    expected_mean = [mean, offset + slope * mean]
    expected = [[variance, slope * variance], [slope * variance, residual + slope**2 * variance]]
    closed = Mixture(np.ones(1), np.array([expected_mean]), np.array([expected]), "full")
    gap = score_observed(closed, rows).mean() - score_observed(found, rows).mean()
    assert 0.0 <= gap < 5e-3
    steps = fit_with_missing(rows, closed, 0.0, max_iter=1)
    # the prior covariance is the pooled one, which is the component's own
    assert_allclose(steps.means[0], expected_mean, rtol=0.0, atol=1e-9)
    assert_allclose(steps.covariances[0], expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_raises_the_likelihood_of_the_observed_cells(kind):
    rows = with_holes(two_groups(), 0.4)
    mixture = Mixture(*fit_mixture(np.nan_to_num(rows), 2, kind, 1e-6, seed=1))
    found = list(blocks(torch.from_numpy(rows), components_of_mixture(mixture)))
    scores = []
    for _ in range(8):
        scores.append(float(expected_moments(found, mixture).log_likelihood))
        mixture = fit_with_missing(rows, mixture, 0.0, max_iter=1)
    # the prior covariance, which counts as half a row, may cost a little near the maximum
    assert min(np.diff(scores)) > -1.0
    assert scores[-1] > scores[0] + 50.0


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_a_mixture_of_variances_are_those_of_its_matrices(weighted):
    rows = with_holes(two_groups(200), 0.4)
    rows[0] = np.nan
    weights = torch.from_numpy(np.random.RandomState(1).uniform(0.5, 3.0, 200))
    weights = weights if weighted else None
    mixture = fit_mixture(np.nan_to_num(rows), 4, "diag", 1e-4, seed=0)
    X = torch.from_numpy(rows)
    expected = expected_moments(list(blocks(X, components_of_mixture(mixture))), mixture, weights)
    found = diagonal_moments(X, mixture, weights)
    expected = expected._replace(second=torch.diagonal(expected.second, dim1=1, dim2=2))
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-12, atol=1e-10)


def test_completed_rows_have_the_moments_of_complete_ones():
    """Missing at random: whether the second cell is missing depends on the first."""
    rows = correlated_rows(4000)
    holes = rows.copy()
    holes[rows[:, 0] > 0.3, 1] = np.nan
    completed = complete_rows(holes, seed=0)
    observed = ~np.isnan(holes)
    np.testing.assert_array_equal(completed[observed], holes[observed])
    # a regression on 2,470 rows, extrapolated: 6 of its standard errors
    error = 6.0 * 0.6 / np.sqrt(2470.0)
    assert_allclose(completed.mean(0), rows.mean(0), rtol=0.0, atol=2.0 * error)
    assert_allclose(np.cov(completed.T), np.cov(rows.T), rtol=0.0, atol=3.0 * error)
    # listwise deletion would be far off
    assert holes[observed.all(1)].mean(0)[0] < rows.mean(0)[0] - 0.4


def test_a_column_may_be_observed_in_a_single_row():
    rows = correlated_rows(60)
    rows[1:, 1] = np.nan
    for seed in range(5):  # the row is held out, or not
        completed = complete_rows(rows, seed)
        assert np.isfinite(completed).all()
        assert completed[0, 1] == rows[0, 1]


def test_complete_rows_are_returned_as_they_are():
    rows = correlated_rows()
    assert complete_rows(rows, seed=0) is rows


def test_far_values_do_not_carry_drawn_cells_along():
    rows = with_holes(correlated_rows(), 0.2)
    rows[0] = [1e6, np.nan]
    assert abs(complete_rows(rows, seed=0)[0, 1]) < 100.0
