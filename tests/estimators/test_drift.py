"""Rows of a continued fit outside of the reference: named, and learnt by `partial_fit`."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM
from sklvebm.estimators._ebm.diagnostics import Diagnostics
from sklvebm.inference import drift


def first_rows(n=400, seed=0):
    return 0.3 * np.random.RandomState(seed).standard_normal((n, 2))


def later_rows(n, share, seed):
    random = np.random.RandomState(seed)
    k = int(n * share)
    ordinary, far = random.standard_normal((n - k, 2)), random.standard_normal((k, 2))
    return np.concatenate([0.3 * ordinary, 2.5 + 0.1 * far])


POOLED = [
    lambda **options: ParticleLVEBM(1, **options),
    lambda **options: WassersteinFlowEBM(**options),
]


@pytest.mark.parametrize("make", POOLED, ids=["latent", "features"])
def test_a_chunk_that_drifts_is_named_and_learnt(make):
    model = make(random_state=0).partial_fit(first_rows())
    chunk = later_rows(600, 0.05, 1)
    with pytest.warns(UserWarning, match=r"3[0-3] of 600 rows \(.*outside.*components there"):
        model.partial_fit(chunk)
    grid = np.linspace(-2.0, 4.0, 241)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(model.score_samples(points)) * (grid[1] - grid[0]) ** 2
    # a lower bound: at most one, but for the grid's error
    assert density.sum() < 1.0 + 1e-3
    # the new rows' place has about their share now, and had nothing before
    near = (points > 1.5).all(1)
    assert density[near].sum() == pytest.approx(0.05, abs=0.02)
    # the next chunk of the same rows is nothing new
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.partial_fit(later_rows(600, 0.05, 2))


@pytest.mark.parametrize("make", [*POOLED, lambda **options: PotentialFlowEBM(**options)])
def test_a_continued_fit_keeps_reference_and_units_and_says_which_rows_are_outside(make):
    model = make(max_iter=2, hidden_layer_sizes=(8,), warm_start=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(first_rows())
    reference, mean = model.reference_, model.mean_.copy()
    before = model.score(first_rows(seed=3))
    with pytest.warns(UserWarning, match=r"100 of 100 rows .*outside.*which stays"):
        model.fit(first_rows(100) + 20.0)
    np.testing.assert_array_equal(model.mean_, mean)
    x = torch.from_numpy(first_rows(50, seed=4))
    torch.testing.assert_close(model.reference_.log_marginal(x), reference.log_marginal(x))
    assert abs(model.score(first_rows(seed=3)) - before) < 0.2


def test_rows_like_the_first_ones_are_not_called_outside():
    # heavy tails: the reference's own draws are where its tails are as often as these rows
    def rows(seed):
        return stats.t(2).rvs((500, 2), random_state=np.random.RandomState(seed))

    model = ParticleLVEBM(1, max_iter=0, random_state=0).fit(rows(0))
    for seed in range(1, 6):
        standardised = model._model.standardisation.apply(rows(seed))
        assert len(drift.rows_outside(standardised, model.reference_)) == 0


def test_partial_fit_warns_of_doubts_as_fit_does(monkeypatch):
    model = ParticleLVEBM(1, random_state=0).partial_fit(first_rows())
    monkeypatch.setattr(Diagnostics, "problems", lambda self: ["something is off"])
    with pytest.warns(ConvergenceWarning, match="Scores may not be trusted: something is off"):
        model.partial_fit(first_rows(seed=1))
