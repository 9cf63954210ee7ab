"""What `fit` does when training goes wrong, or leads nowhere."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from sklvebm import MixtureReference, ParticleDivergenceError, ParticleLVEBM, PotentialFlowEBM
from sklvebm.confidence import lower_confidence_limit
from sklvebm.estimators._ebm import training as ebm_training
from sklvebm.estimators._ebm.config import likelihood_config
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.preprocessing.prepared import prepare
from sklvebm.row_weights import distinct_rows
from sklvebm.training import read_together

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def troubled(monkeypatch):
    """A switch that makes the particles of every objective look unsound in the given epochs."""

    def switch(epochs):
        seen = []

        def problem(self, state, metrics):
            seen.append(None)
            return "swaps stopped" if len(seen) in epochs else None

        monkeypatch.setattr(ParticleLikelihood, "problem", problem)

    return switch


def test_a_bad_epoch_is_undone_and_recorded(small, moons, troubled):
    troubled({2})
    model = small(max_iter=4).fit(moons)
    assert [entry["problem"] for entry in model.history_] == ["", "swaps stopped", "", ""]
    rates = [entry["learning_rate"] for entry in model.history_]
    assert rates == pytest.approx([0.01, 0.01, 0.003, 0.003])
    assert np.isnan(model.lower_bounds_[1])
    assert np.isfinite(np.delete(model.lower_bounds_, 1)).all()
    assert np.isfinite(model.score(moons))


def test_a_fit_that_diverges_leaves_the_estimator_unfitted(small, moons, troubled):
    model = small(max_iter=10).fit(moons)
    parameters = model.get_params()
    troubled(range(1, 100))
    with pytest.raises(ParticleDivergenceError, match="rolled back 5 times"):
        model.fit(moons)
    with pytest.raises(NotFittedError):
        model.score(moons)
    assert model.get_params() == parameters
    assert not [name for name in vars(model) if name.endswith("_")]


def test_a_continued_fit_that_diverges_keeps_what_there_was(small, moons, troubled):
    model = small(warm_start=True, max_iter=10).fit(moons)
    score = model.score(moons)
    troubled(range(1, 100))
    with pytest.raises(ParticleDivergenceError):
        model.fit(moons)
    assert model.score(moons) == score


class Sound:
    """Metrics and particles that nothing is wrong with."""

    metrics = {"least_swap_rate": 0.9}
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 1),
        torch.eye(1)[None],
        latent_map=torch.ones(1, 1),
        latent_variance=torch.ones(1),
        location=torch.zeros(1),
    )

    @staticmethod
    def state(pool):
        return type("State", (), {"pool": pool})()


@pytest.mark.parametrize(
    ("change", "metrics", "expected"),
    [
        (lambda pool: pool, {}, None),
        (lambda pool: pool, {"least_swap_rate": 0.001}, "swap rate fell to 0.001"),
        (lambda pool: pool.index_fill(0, torch.tensor([1]), torch.nan), {}, "not finite"),
        (lambda pool: pool.index_fill(0, torch.tensor([1]), 1e5), {}, "from the centre"),
    ],
)
def test_problems_of_the_particles_are_named(change, metrics, expected):
    pool = change(torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0)))
    objective = likelihood_config(ParticleLVEBM().get_params(), 100, 2).objective()
    state = Sound.state(pool)
    measures = read_together(objective.measures(Sound, state))
    problem = objective.problem(state, {**Sound.metrics, **metrics, **measures})
    assert problem is None if expected is None else expected in problem


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("n_temperatures", [1, 4])
def test_draws_of_a_far_component_have_not_run_away(n_temperatures, diagonal):
    """The first rung seldom has one when another rung has."""
    covariances = torch.stack([torch.eye(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])])
    reference = MixtureReference(
        torch.tensor([0.995, 0.005]),
        torch.tensor([[0.0, 0.0], [1e6, 0.0]]),
        covariances[[0, 0]] if diagonal else covariances,
        latent_map=torch.zeros(1, 2),
        latent_variance=torch.ones(1),
        location=torch.zeros(2),
    )
    energy = AnchoredEnergy(reference, MLPEnergy(2, 1, (4,)))
    parameters = {"n_temperatures": n_temperatures, "n_chains": 64}
    objective = likelihood_config(ParticleLVEBM(**parameters).get_params(), 100, 2).objective()
    n_far = 0
    for seed in range(10):
        state = objective.init(energy, 1, generator=torch.Generator().manual_seed(seed))
        has_far = bool((state.pool.abs() > 1e5).any())
        n_far += has_far
        measures = read_together(objective.measures(energy, state))
        assert objective.problem(state, {**Sound.metrics, **measures}) is None
        runaway = state._replace(pool=1e6 * state.pool)
        measures = read_together(objective.measures(energy, runaway))
        if has_far:
            assert "from the centre" in objective.problem(runaway, {**Sound.metrics, **measures})
    assert n_far > 2


def test_where_training_is_not_confirmed_the_model_is_its_reference(monkeypatch, moons):
    monkeypatch.setattr(ebm_training, "gain_over_reference", lambda *_: -0.1)
    model = ParticleLVEBM(1, reference="gaussian", max_iter=10, random_state=0).fit(moons)
    assert not model.improved_
    assert model.n_iter_ == 10
    x = torch.from_numpy((moons - model.mean_) / model.scale_)
    expected = model.reference_.log_marginal(x).numpy() - np.log(model.scale_).sum()
    np.testing.assert_allclose(model.score_samples(moons), expected, atol=1e-9)
    # what is reported as monitored is the reference's, too
    rows = prepare(
        distinct_rows(moons, None), model.validation_fraction, model._split_seed
    ).split.monitor
    assert model.lower_bound_ == pytest.approx(expected[rows].mean())


@pytest.mark.parametrize("seed", range(3))
def test_default_fits_are_never_far_below_their_reference_on_new_rows(seed):
    X, _ = make_moons(1200, noise=0.1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = ParticleLVEBM(max_iter=40, random_state=seed).fit(X)
    new, _ = make_moons(4000, noise=0.1, random_state=100 + seed)
    x = torch.from_numpy((new - model.mean_) / model.scale_)
    reference = model.reference_.log_marginal(x).mean().item() - np.log(model.scale_).sum()
    assert model.score(new) > reference - 0.02


def test_a_model_that_is_its_reference_is_stored_with_what_it_trained_on(monkeypatch, moons):
    monkeypatch.setattr(ebm_training, "gain_over_reference", lambda *_: -0.1)
    model = ParticleLVEBM(1, max_iter=3, random_state=0).fit(moons)
    # the model's reference has seen the held-out rows, that of the training has not
    assert not torch.equal(model.reference_.means, model._training.reference.means)
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.score_samples(moons), model.score_samples(moons))
    copied._training = copied._training._replace(
        state=copied._training.state._replace(latents=None)
    )
    np.testing.assert_allclose(
        copied.partial_fit(moons).score_samples(moons),
        model.partial_fit(moons).score_samples(moons),
        rtol=1e-9,
    )


@pytest.mark.parametrize(("n", "quantile"), [(3, 4.526), (8, 2.429), (1000, 2.003)])
def test_a_gain_on_few_rows_is_doubted_as_students_law_has_it(n, quantile):
    # quantiles of probability 0.97725 from scipy.stats.t, which another formula computes
    gains = torch.cat([torch.zeros(1), torch.ones(n - 1)])  # the luckiest are no exception
    assert stats.t.ppf(stats.norm.cdf(2.0), n - 1) == pytest.approx(quantile, abs=1e-3)
    expected = gains.mean().item() - quantile * gains.std().item() / n**0.5
    assert lower_confidence_limit(gains) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_one_lucky_row_proves_no_gain_and_the_worst_rows_count_in_full():
    gains = torch.linspace(-0.1, 0.1, 100, dtype=torch.float64)
    usual = lower_confidence_limit(gains)
    lucky, unlucky = gains.clone(), gains.clone()
    lucky[-1], unlucky[0] = 1e3, -1e3
    assert lower_confidence_limit(lucky) == pytest.approx(usual, abs=1e-12)
    # a thousand nats on one of a hundred rows are ten in the mean
    assert lower_confidence_limit(unlucky) < usual - 9.9


def test_one_row_proves_no_gain():
    assert lower_confidence_limit(torch.ones(1)) == -math.inf
    X, _ = make_moons(10, noise=0.1, random_state=0)
    for kind in (ParticleLVEBM, PotentialFlowEBM):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            assert not kind(max_iter=5, random_state=0).fit(X).improved_
