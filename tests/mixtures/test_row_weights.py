"""Mixtures of weighted rows are those of repeated rows."""

import numpy as np
import pytest
import torch

from sklvebm.mixtures.column_densities import _best_bins, _left_out, _weighted_left_out
from sklvebm.mixtures.expectation_maximization import Start, fit_mixtures
from sklvebm.mixtures.missing_cells import score_observed
from sklvebm.mixtures.missing_fit import fit_with_missing, likeliest_gaussian
from sklvebm.mixtures.policy import DEFAULT_POLICY
from sklvebm.mixtures.reference_selection import probabilistic_pca
from sklvebm.mixtures.search import Candidate, HeldOutLosses, column_scales, split_folds
from sklvebm.mixtures.stacking import (
    fitted_defensive_shares,
    fitted_defensive_weight,
    likeliest_weights,
)
from sklvebm.preprocessing.scaling import fit_standardisation

RANDOM = np.random.RandomState(0)
X = np.concatenate([RANDOM.normal(size=(60, 3)), 4.0 + 0.5 * RANDOM.normal(size=(40, 3))])
COUNTS = RANDOM.randint(1, 5, size=100)
REPEATED = np.repeat(X, COUNTS, axis=0)
LABELS = RANDOM.randint(3, size=100)


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_expectation_maximisation_counts_rows(kind):
    weighted, single = fit_mixtures(
        [Start(X, LABELS, COUNTS.astype(float)), Start(X[:50], LABELS[:50])], 3, kind, 1e-3
    )
    alone = fit_mixtures([Start(X, LABELS, COUNTS.astype(float))], 3, kind, 1e-3)[0]
    start = Start(REPEATED, np.repeat(LABELS, COUNTS))
    repeated = fit_mixtures([start], 3, kind, 1e-3)[0]
    for fit in (weighted, alone):
        for own, other in zip(fit[:3], repeated[:3], strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-9, atol=1e-11)
    plain = fit_mixtures([Start(X[:50], LABELS[:50])], 3, kind, 1e-3)[0]
    np.testing.assert_allclose(single.means, plain.means, rtol=1e-9, atol=1e-11)
    assert (
        np.abs(weighted.means - fit_mixtures([Start(X, LABELS)], 3, kind, 1e-3)[0].means).max()
        > 0.01
    )


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_expectation_maximisation_with_missing_cells_counts_rows(kind):
    holes = np.where(RANDOM.uniform(size=X.shape) < 0.2, np.nan, X)
    first = fit_mixtures([Start(X, LABELS)], 3, kind, 1e-3)[0]
    how = {"max_iter": 20}
    weighted = fit_with_missing(holes, first, 1e-3, row_weights=COUNTS.astype(float), **how)
    repeated = fit_with_missing(np.repeat(holes, COUNTS, axis=0), first, 1e-3, **how)
    for own, other in zip(weighted[:3], repeated[:3], strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-9, atol=1e-11)
    gaussian = likeliest_gaussian(holes, 1e-3, COUNTS.astype(float))
    other = likeliest_gaussian(np.repeat(holes, COUNTS, axis=0), 1e-3)
    assert np.abs(score_observed(gaussian, holes) - score_observed(other, holes)).max() < 0.02


def test_weights_of_a_stack_and_of_tails_count_rows():
    log_densities = RANDOM.normal(size=(100, 4))
    repeated = np.repeat(log_densities, COUNTS, axis=0)
    np.testing.assert_allclose(
        likeliest_weights(log_densities, COUNTS), likeliest_weights(repeated), atol=1e-12
    )
    main, wide = log_densities[:, 0], log_densities[:, 1:] - 0.4
    # the limits and the prior count rows, so that these weights are not relative ones
    how = {"row_weights": COUNTS.astype(float)}
    weight = fitted_defensive_weight(main, wide[:, 0], **how)
    assert 0.01 < weight < 0.29
    assert weight == pytest.approx(
        fitted_defensive_weight(np.repeat(main, COUNTS), np.repeat(wide[:, 0], COUNTS)), abs=1e-12
    )
    wide = RANDOM.normal(size=(100, 10)) - 2.0
    np.testing.assert_allclose(
        fitted_defensive_shares(main, wide, 0.1, **how),
        fitted_defensive_shares(np.repeat(main, COUNTS), np.repeat(wide, COUNTS, axis=0), 0.1),
        atol=1e-12,
    )


def test_held_out_losses_are_weighted_means():
    weights = COUNTS.astype(float)
    folds, _ = split_folds(X, DEFAULT_POLICY, X, weights)
    losses = HeldOutLosses(folds, 0, column_scales(X), DEFAULT_POLICY)
    candidate = Candidate(2, "diag", 1e-3)
    of_rows = losses.of_rows(candidate)
    assert losses.mean(candidate) == pytest.approx(np.average(of_rows, weights=weights), abs=1e-12)
    assert losses.mean(candidate) != pytest.approx(of_rows.mean(), abs=1e-6)
    plain, _ = split_folds(X, DEFAULT_POLICY, X)
    unweighted = HeldOutLosses(plain, 0, column_scales(X), DEFAULT_POLICY).of_rows(candidate)
    assert np.abs(unweighted - of_rows).max() > 1e-3  # fits are weighted, too


def test_principal_components_count_rows():
    weighted = probabilistic_pca(X, 2, COUNTS / COUNTS.mean())
    repeated = probabilistic_pca(REPEATED, 2)
    np.testing.assert_allclose(weighted.mean, repeated.mean, atol=1e-12)
    # the divisors n - 1 differ
    np.testing.assert_allclose(weighted.covariance, repeated.covariance, rtol=0.01, atol=0.002)
    np.testing.assert_allclose(np.abs(weighted.matrix), np.abs(repeated.matrix), atol=0.01)


def test_mean_and_scale_count_rows():
    weighted = fit_standardisation(X, COUNTS / COUNTS.mean())
    repeated = fit_standardisation(REPEATED)
    np.testing.assert_allclose(weighted.mean, repeated.mean, atol=1e-12)
    np.testing.assert_allclose(weighted.scale, repeated.scale, atol=1e-12)
    holes = np.where(RANDOM.uniform(size=X.shape) < 0.2, np.nan, X)
    weighted = fit_standardisation(holes, COUNTS / COUNTS.mean())
    repeated = fit_standardisation(np.repeat(holes, COUNTS, axis=0))
    np.testing.assert_allclose(weighted.mean, repeated.mean, atol=1e-12)
    np.testing.assert_allclose(weighted.scale, repeated.scale, atol=1e-12)


def test_bins_count_rows():
    x = RANDOM.uniform(size=300)
    np.testing.assert_allclose(
        _weighted_left_out(x, 20, np.ones(300)), _left_out(x, 20), rtol=1e-12
    )
    weights = np.where(x < 0.5, 3.0, 1.0)
    bins = _best_bins(x, 20, weights)
    shares = np.diff(bins.cumulative) / np.diff(bins.cumulative).sum()
    expected = np.histogram(x, bins.edges, weights=weights)[0] + 0.5
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-12)
    # each row left out by itself: a direct count
    row, others = x[0], np.delete(np.arange(300), 0)
    counts = np.histogram(x[others], bins.edges, weights=weights[others])[0] + 0.5
    place = np.searchsorted(bins.edges, row, side="right") - 1
    direct = np.log(counts[place] / counts.sum()) - np.log(expected[place] / expected.sum())
    assert -bins.left_out(x[:1], weights[:1])[0] == pytest.approx(direct, abs=1e-12)


def test_weights_stay_on_their_rows_in_blocks_of_patterns():
    """Rows of one pattern are repeated to fill a block; repeats have no weight."""
    holes = X.copy()
    holes[:7, 0] = holes[7:10, 1] = np.nan
    first = fit_mixtures([Start(X, LABELS)], 2 + 1, "full", 1e-3)[0]
    heavy = np.where(np.arange(100) < 10, 5.0, 1.0)
    weighted = fit_with_missing(holes, first, 1e-3, max_iter=5, row_weights=heavy)
    repeated = fit_with_missing(
        np.repeat(holes, heavy.astype(int), axis=0), first, 1e-3, max_iter=5
    )
    np.testing.assert_allclose(weighted.means, repeated.means, rtol=1e-9, atol=1e-11)
    assert torch.get_default_dtype() == torch.float32
