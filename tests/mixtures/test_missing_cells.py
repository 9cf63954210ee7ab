"""Marginals and conditionals of mixtures: against SciPy, quadrature, and draws."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from sklvebm.mixtures import missing_cells
from sklvebm.mixtures.expectation_maximization import Mixture
from sklvebm.mixtures.missing_cells import (
    blocks,
    components_of,
    components_of_mixture,
    conditional_mean,
    conditional_quantiles,
    draw_missing,
    log_components,
    log_marginal,
    reference_log_marginal,
    score_observed,
)
from sklvebm.mixtures.reference import MixtureReference

NAN = math.nan
N_DRAWS = 4000


def a_mixture(kind="full", n_components=3, n_features=4, seed=0):
    """Return a mixture whose covariances are far from diagonal where the kind allows it."""
    random = np.random.RandomState(seed)
    roots = random.normal(size=(n_components, n_features, n_features))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(n_features)
    if kind == "tied":
        covariances = covariances[0]
    elif kind == "diag":
        covariances = np.diagonal(covariances, axis1=1, axis2=2).copy()
    weights = random.dirichlet(np.ones(n_components))
    return Mixture(weights, 2.0 * random.normal(size=(n_components, n_features)), covariances, kind)


def rows_with_missing(n_rows=40, n_features=4, seed=1):
    """Return rows with every number of missing cells, the first without an observed one."""
    random = np.random.RandomState(seed)
    rows = 2.0 * random.normal(size=(n_rows, n_features))
    rows[random.uniform(size=rows.shape) < 0.4] = NAN
    rows[0], rows[1] = NAN, 0.5
    return rows


def marginal_by_scipy(mixture, row):
    """Return log weights plus log densities of the observed cells of a row, (M,)."""
    seen = ~np.isnan(row)
    covariances, which = mixture.covariance_matrices()
    logs = np.log(mixture.weights)
    if not seen.any():
        return logs
    return logs + [
        multivariate_normal(mean[seen], covariances[k][np.ix_(seen, seen)]).logpdf(row[seen])
        for mean, k in zip(mixture.means, which, strict=True)
    ]


def conditional_by_scipy(mixture, row):
    """Return shares (M,), conditional means (M, U) and covariances (M, U, U) of missing cells."""
    seen = ~np.isnan(row)
    covariances, which = mixture.covariance_matrices()
    logs = marginal_by_scipy(mixture, row)
    shares = np.exp(logs - np.logaddexp.reduce(logs))
    means, lefts = [], []
    for mean, k in zip(mixture.means, which, strict=True):
        cross = covariances[k][np.ix_(~seen, seen)]
        gain = np.linalg.solve(covariances[k][np.ix_(seen, seen)], cross.T).T
        means.append(mean[~seen] + gain @ (row[seen] - mean[seen]))
        lefts.append(covariances[k][np.ix_(~seen, ~seen)] - gain @ cross.T)
    return shares, np.array(means), np.array(lefts)


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_the_density_of_observed_cells_is_the_marginal(kind):
    mixture, rows = a_mixture(kind), rows_with_missing()
    found = log_components(torch.from_numpy(rows), components_of_mixture(mixture)).numpy()
    expected = np.array([marginal_by_scipy(mixture, row) for row in rows])
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-10)
    totals = np.logaddexp.reduce(expected, axis=1)
    np.testing.assert_allclose(score_observed(mixture, rows), totals, rtol=0.0, atol=1e-10)
    assert score_observed(mixture, rows)[0] == pytest.approx(0.0, abs=1e-14)


def test_complete_rows_keep_their_score():
    mixture, rows = a_mixture(), rows_with_missing()
    rows = rows[~np.isnan(rows).any(1)]
    np.testing.assert_array_equal(score_observed(mixture, rows), mixture.score_samples(rows))


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_conditional_means_are_those_of_the_closed_form(kind):
    mixture, rows = a_mixture(kind), rows_with_missing()
    found = conditional_mean(torch.from_numpy(rows), components_of_mixture(mixture)).numpy()
    for row, filled in zip(rows, found, strict=True):
        seen = ~np.isnan(row)
        np.testing.assert_array_equal(filled[seen], row[seen])
        if not seen.all():
            shares, means, _ = conditional_by_scipy(mixture, row)
            np.testing.assert_allclose(filled[~seen], shares @ means, rtol=0.0, atol=1e-9)


def test_quantiles_are_those_of_each_cells_own_mixture():
    mixture, rows = a_mixture(), rows_with_missing()
    levels = torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64)
    components = components_of_mixture(mixture)
    found = conditional_quantiles(torch.from_numpy(rows), components, levels).numpy()
    for row, filled in zip(rows, found, strict=True):
        seen = ~np.isnan(row)
        np.testing.assert_array_equal(filled[:, seen], np.tile(row[seen], (3, 1)))
        if seen.all():
            continue
        shares, means, lefts = conditional_by_scipy(mixture, row)
        spread = np.sqrt(np.diagonal(lefts, axis1=1, axis2=2))
        scaled = torch.from_numpy((filled[:, None, ~seen] - means) / spread)
        below = np.einsum("m,qmu->qu", shares, torch.special.ndtr(scaled).numpy())
        np.testing.assert_allclose(below, np.tile(levels[:, None], below.shape[1]), atol=1e-10)


def test_draws_have_the_conditional_moments():
    mixture, rows = a_mixture(), rows_with_missing(12)
    generator = torch.Generator().manual_seed(0)
    found = draw_missing(
        torch.from_numpy(rows), components_of_mixture(mixture), N_DRAWS, generator
    ).numpy()
    for row, draws in zip(rows, found, strict=True):
        seen = ~np.isnan(row)
        np.testing.assert_array_equal(draws[:, seen], np.tile(row[seen], (N_DRAWS, 1)))
        if seen.all():
            continue
        shares, means, lefts = conditional_by_scipy(mixture, row)
        mean = shares @ means
        second = np.einsum("m,mu,mv->uv", shares, means, means) + np.tensordot(shares, lefts, 1)
        drawn = draws[:, ~seen]
        # 4.5 standard errors of 4,000 independent draws, for some 60 numbers
        error = drawn.std(0) / math.sqrt(N_DRAWS)
        assert (abs(drawn.mean(0) - mean) < 4.5 * error).all()
        products = drawn[:, :, None] * drawn[:, None]
        error = products.std(0) / math.sqrt(N_DRAWS)
        assert (abs(products.mean(0) - second) < 4.5 * error).all()


def test_scales_of_defensive_components_enter_marginals_and_conditionals():
    reference = MixtureReference(
        torch.tensor([0.7, 0.3]),
        torch.tensor([[0.0, 0.0, 1.0], [2.0, 1.0, 0.0]]),
        torch.stack([torch.eye(3), 0.5 * torch.eye(3) + 0.3]),
        latent_map=torch.zeros(0, 3),
        latent_variance=torch.zeros(0),
        location=torch.tensor([0.5, 0.0, 0.2]),
        defensive_weight=torch.tensor([0.1, 0.02], dtype=torch.float64),
        defensive_covariance=torch.eye(3) + 0.8,
        defensive_scales=torch.tensor([1.0, 10.0], dtype=torch.float64),
    )
    x = torch.tensor([[0.3, NAN, 1.0], [NAN, NAN, -9.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    found = reference_log_marginal(reference, x)
    assert found[2] == reference.log_marginal(x[2:])[0]
    # by quadrature over the second cell of the first row
    grid = torch.linspace(-400.0, 400.0, 400_001, dtype=torch.float64)
    rows = torch.stack([torch.full_like(grid, 0.3), grid, torch.full_like(grid, 1.0)], 1)
    density = torch.exp(reference.log_marginal(rows))
    step = float(grid[1] - grid[0])
    assert float(found[0]) == pytest.approx(math.log(float(density.sum()) * step), abs=1e-6)
    mean = float((density * grid).sum() / density.sum())
    filled = conditional_mean(x, components_of(reference))
    assert float(filled[0, 1]) == pytest.approx(mean, abs=1e-5)


def test_a_row_does_not_depend_on_the_others(monkeypatch):
    mixture, rows = a_mixture(), torch.from_numpy(rows_with_missing(60))
    components = components_of_mixture(mixture)

    def answers(some):
        return log_marginal(some, components), conditional_mean(some, components)

    together, alone = answers(rows), [answers(row[None]) for row in rows]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(missing_cells, "_BLOCK_NUMBERS", 1)  # one pattern, one row at a time
    assert all(len(b.index) == b.index.shape[1] == 1 for b in blocks(rows, components))
    torch.testing.assert_close(log_marginal(rows, components), together[0], rtol=1e-12, atol=1e-12)


def test_blocks_hold_every_row_once():
    rows = torch.from_numpy(rows_with_missing(300, 3))
    components = components_of_mixture(a_mixture(n_features=3))
    found = torch.cat([block.index[block.is_row] for block in blocks(rows, components)])
    assert sorted(found.tolist()) == list(range(300))
