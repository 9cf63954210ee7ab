"""Diagnostics, both bounds and the variational families of `ParticleLVEBM`."""

import math
import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning

from sklvebm import ParticleLVEBM
from sklvebm.estimators._ebm.diagnostics import Diagnostics

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def moons():
    return make_moons(400, noise=0.1, random_state=0)[0]


@pytest.fixture(scope="module")
def fitted(moons):
    model = ParticleLVEBM(
        1, reference="gaussian", n_temperatures=8, max_iter=15, random_state=0
    ).fit(moons)
    assert model.improved_
    return model


def sound(**changes):
    """Return diagnostics of a good fit, with some fields changed."""
    fields = {
        "acceptance": [1.0, 0.9, 0.8],
        "swap_rates": [0.9, 0.8],
        "round_trips": 30,
        "rhat": 1.01,
        "split_rhat": 1.2,
        "pool_sample_size": 900.0,
        "n_pool_draws": 1000,
        "log_z_lower": 0.1,
        "log_z_lower_error": 0.01,
        "log_z_upper": 0.11,
        "log_z_upper_error": 0.01,
        "missed_mass": 0.0,
        "log_z_importance": 1.0,
        "importance_shape": 0.3,
        "log_z_defended": 1.0,
        "log_z_from_model": 1.0,
        "from_model_shape": 0.3,
        "excess_density": 0.0,
        "distinct_draws": 1.0,
        "bracket_width": 0.01,
        "tolerance": 0.02,
        "walker_sample_size": 400.0,
        "n_walkers": 512,
        "n_annealing_steps": 16,
        "posterior_sample_size": 60.0,
        "n_posterior_particles": 64,
    }
    return Diagnostics(**{**fields, **changes})


def test_a_good_fit_is_called_sound():
    assert sound().problems() == []
    assert sound().verdict == "sound"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bracket_width": 0.7}, ["0.7 nats wide", "400 of 512 walkers", "n_chains"]),
        ({"walker_sample_size": 3.0}, ["3 of 512 walkers", "alpha"]),
        ({"rhat": 1.4}, ["R-hat 1.40", "n_temperatures"]),
        ({"swap_rates": [0.9, 0.01]}, ["1.0%", "n_temperatures"]),
        ({"posterior_sample_size": 5.0}, ["5 of 64", "n_components"]),
    ],
)
def test_each_problem_is_named_with_its_numbers_and_the_parameter_to_change(changes, words):
    diagnostics = sound(**changes)
    (problem,) = diagnostics.problems()
    assert all(word in problem for word in words)
    assert diagnostics.verdict == f"check: {problem}"
    assert problem in diagnostics.report()


def test_a_problem_is_a_convergence_warning(moons, monkeypatch):
    monkeypatch.setattr(
        Diagnostics, "problems", lambda self: ["the bracket of log Z is 9 nats wide"]
    )
    model = ParticleLVEBM(n_components=1, max_iter=1, random_state=0)
    with pytest.warns(ConvergenceWarning, match="9 nats wide.*report"):
        model.fit(moons)


def test_measurements_of_a_fit_are_plain_numbers_in_range(fitted):
    diagnostics = fitted.diagnostics_
    assert len(diagnostics.acceptance) == 8
    assert len(diagnostics.swap_rates) == 7
    for value in diagnostics.acceptance + diagnostics.swap_rates:
        assert isinstance(value, float)
        assert 0.0 < value <= 1.0 + 1e-6
    assert diagnostics.round_trips > 0
    assert 1.0 <= diagnostics.rhat < 1.05
    assert 0.9 < diagnostics.split_rhat < 1.1
    assert 0.0 < diagnostics.pool_sample_size <= diagnostics.n_pool_draws
    assert diagnostics.n_pool_draws in {2 * 128 * n for n in (10, 20, 40, 80)}
    estimate = fitted.log_partition_
    assert diagnostics.bracket_width == estimate.upper - estimate.lower
    assert estimate.lower <= diagnostics.log_z_lower
    assert estimate.upper >= diagnostics.log_z_upper
    assert diagnostics.posterior_sample_size <= diagnostics.n_posterior_particles == 64
    assert diagnostics.verdict in diagnostics.report()
    assert pickle.loads(pickle.dumps(fitted)).diagnostics_ == diagnostics


def test_an_untrained_model_is_exact_and_sound(moons):
    model = ParticleLVEBM(n_components=1, max_iter=0, random_state=0).fit(moons)
    assert model.diagnostics_.bracket_width < 1e-9
    assert model.diagnostics_.verdict == "sound"
    assert model.diagnostics_.posterior_sample_size == pytest.approx(64.0)


def test_the_upper_bound_lies_above_the_lower_one_by_little(fitted, moons):
    lower = fitted.score_samples(moons)
    upper = fitted.score_samples(moons, bound="upper")
    gap = upper - lower
    assert gap.mean() > 0.0
    # the bracket of log Z is common to all rows, the rest is annealing of single rows
    assert gap.mean() < fitted.diagnostics_.bracket_width + 0.02
    # a row is its own whatever its companions; products of other sizes round differently
    alone = fitted.score_samples(moons[:3], bound="upper")
    np.testing.assert_allclose(upper[:3], alone, rtol=1e-9)


def test_a_bound_is_lower_or_upper(fitted, moons):
    with pytest.raises(ValueError, match=r"bound must be one of 'lower', 'upper', got 'middle'"):
        fitted.score_samples(moons, bound="middle")


@pytest.mark.parametrize("posterior", ["gaussian", "amortized"])
def test_variational_training_runs_continues_and_scores_beside_particles(posterior, moons, fitted):
    model = clone(fitted).set_params(posterior=posterior, warm_start=True).fit(moons)
    assert abs(model.score(moons) - fitted.score(moons)) < 0.1
    assert math.isfinite(pickle.loads(pickle.dumps(model)).partial_fit(moons).score(moons))
    n_before = model.n_iter_
    assert model.fit(moons).n_iter_ > n_before
    repeated = ParticleLVEBM(n_components=1, posterior=posterior, max_iter=3, random_state=0)
    first, second = repeated.fit(moons).score(moons), repeated.fit(moons).score(moons)
    assert first == second


def test_training_with_a_changed_posterior_family_starts_that_family_anew(moons):
    options = {"n_components": 1, "init": "reference", "random_state": 0}
    model = ParticleLVEBM(max_iter=2, warm_start=True, **options).fit(moons)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model.set_params(posterior="gaussian").fit(moons)
    assert model.n_iter_ == 4
