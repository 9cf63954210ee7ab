"""Fits that start from the density ratio: when they do, what they keep, what they say."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.mixture import GaussianMixture

from sklvebm import (
    LinearGaussianEnergy,
    MLPEnergy,
    ParticleLVEBM,
    PeriodicEnergy,
    PotentialFlowEBM,
    WassersteinFlowEBM,
)
from sklvebm.estimators._ebm import training as training_module
from sklvebm.estimators._ebm.config import likelihood_config
from sklvebm.objectives.density_ratio import RatioStart

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
BOTH = pytest.mark.parametrize("estimator", [ParticleLVEBM, WassersteinFlowEBM])


def brief(estimator=ParticleLVEBM, **changes):
    own = {"n_components": 1} if estimator is ParticleLVEBM else {}
    given = {"reference": "gaussian", "max_iter": 6, "n_chains": 16, "random_state": 0}
    given["init"] = "ratio"
    return estimator(**own, **{**given, **changes})


@pytest.fixture(scope="module")
def curved():
    """Six hundred moons, which one Gaussian does not fit."""
    return make_moons(600, noise=0.1, random_state=1)[0]


def gaussian_rows(n=300):
    return np.random.RandomState(0).randn(n, 2)


def ratio_epochs(model):
    return [entry["epoch"] for entry in model.history_ if "ratio_loss" in entry]


@BOTH
def test_a_first_fit_begins_with_the_ratio_and_shares_its_epochs(estimator, curved):
    model = brief(estimator).fit(curved)
    assert ratio_epochs(model) == [1, 2, 3]
    assert [entry["epoch"] for entry in model.history_] == list(range(1, 7))
    assert model.n_iter_ == 6
    # the monitored value rises from that of the reference, and particles go on from there
    values = [entry[model._family.value] for entry in model.history_]
    reference = clone(model).set_params(max_iter=0).fit(curved)
    assert values[2] > values[0]
    assert min(values[2:]) > reference.score(curved) - 0.05


@BOTH
def test_a_ratio_without_gain_ends_a_fit_that_starts_at_the_reference(
    estimator, curved, monkeypatch
):
    rows = gaussian_rows(150)
    with monkeypatch.context() as patch:
        patch.setattr(RatioStart, "mean_gain", lambda self, *_: -0.1)
        model = brief(estimator, init="auto", max_iter=100).fit(rows)
    assert model.init_ == "reference"
    assert not model.improved_
    # the history is that of the ratio: no epoch of particles
    assert ratio_epochs(model) == [entry["epoch"] for entry in model.history_]
    assert 0 < model.n_iter_ <= 50
    # the same parameters train particles where the ratio has a gain, or where it was not asked
    options = {"init": "auto", "max_iter": 100, "tol": 10.0, "n_iter_no_change": 1}
    assert ratio_epochs(brief(estimator, **options).fit(curved)) == []
    options["init"] = "reference"
    assert ratio_epochs(brief(estimator, **options).fit(rows)) == []
    assert ratio_epochs(brief(estimator, init="auto", max_iter=4).fit(rows)) == []


@pytest.mark.parametrize(
    ("effort", "asked"),
    [("fast", "lower_limit"), ("default", "mean_gain"), ("thorough", "upper_limit")],
)
def test_effort_says_how_certain_a_gain_must_be(effort, asked, monkeypatch):
    for name in ("lower_limit", "mean_gain", "upper_limit"):
        found = -0.1 if name == asked else 0.1
        monkeypatch.setattr(RatioStart, name, lambda self, *_, found=found: found)
    options = {"init": "auto", "max_iter": 400, "n_iter_no_change": 2, "effort": effort}
    model = brief(**options).fit(gaussian_rows(150))
    assert ratio_epochs(model) == [entry["epoch"] for entry in model.history_]


def test_a_ratio_without_gain_ends_the_fit_of_a_potential_flow(curved, monkeypatch):
    rows, options = gaussian_rows(150), {"reference": "gaussian", "random_state": 0}
    untrained = PotentialFlowEBM(**options, max_iter=0).fit(rows)
    with monkeypatch.context() as patch:
        patch.setattr(RatioStart, "mean_gain", lambda self, *_: -0.1)
        model = PotentialFlowEBM(**options, max_iter=100).fit(rows)
        # without held-out rows, without a tolerance, and with few epochs, it is not asked
        for changes in ({"early_stopping": False}, {"tol": None}, {"max_iter": 99}):
            asked = {"max_iter": 100, **options, **changes}
            flow = PotentialFlowEBM(hidden_layer_sizes=(4,), **asked).fit(rows)
            assert ratio_epochs(flow) == []
    assert not model.improved_
    assert ratio_epochs(model) == [entry["epoch"] for entry in model.history_]
    assert 0 < model.n_iter_ <= 50
    np.testing.assert_array_equal(model.score_samples(rows), untrained.score_samples(rows))
    trained = PotentialFlowEBM(**options, max_iter=100, tol=10.0, n_iter_no_change=1).fit(curved)
    assert ratio_epochs(trained) == []
    assert trained.n_iter_ > 0


@BOTH
def test_the_ratio_alone_is_kept_where_it_is_better(estimator, curved, monkeypatch):
    model = brief(estimator, max_iter=40).fit(curved)
    assert model.improved_
    new = make_moons(2000, noise=0.1, random_state=2)[0]
    reference = clone(model).set_params(max_iter=0).fit(curved)
    gain = model.score_samples(new) - reference.score_samples(new)
    assert gain.mean() > 5.0 * gain.std() / np.sqrt(len(new))


@BOTH
def test_without_an_expected_gain_particles_are_not_trained(estimator, monkeypatch, capsys):
    monkeypatch.setattr(training_module, "train", None)  # nobody may call it
    # the stack of mixtures is as good as the rows allow, and better with all of them
    X = make_moons(300, noise=0.1, random_state=3)[0]
    model = brief(estimator, reference="mixture", verbose=1, max_iter=20).fit(X)
    output = capsys.readouterr().out
    assert "density ratio: gain over the reference" in output
    assert "training by particles is skipped" in output
    assert not model.improved_
    assert model.converged_
    assert len(ratio_epochs(model)) == model.n_iter_ == len(model.history_)
    x = torch.from_numpy((X - model.mean_) / model.scale_)
    base = model.reference_.log_marginal(x).numpy() - np.log(model.scale_).sum()
    np.testing.assert_allclose(model.score_samples(X), base, rtol=0, atol=1e-10)


def test_without_a_tolerance_training_is_never_skipped():
    model = brief(tol=None).fit(gaussian_rows())
    assert model.n_iter_ == 6
    assert ratio_epochs(model) == [1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"init": "reference"},
        {"early_stopping": False},
        {"n_temperatures": 1},
        {"negatives": "contrastive"},
        {"energy": LinearGaussianEnergy},
        {"max_iter": 1},
        {"embedding": "none"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_fits_begin_at_the_reference(changes, curved):
    auto = {"init": "auto", "embedding": "periodic", "max_iter": 2}
    model = brief(**{**auto, **changes}).fit(curved[:200])
    assert ratio_epochs(model) == []
    assert model.n_iter_ == len(model.history_) == changes.get("max_iter", 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"early_stopping": False},
        {"n_temperatures": 1},
        {"negatives": "contrastive"},
        {"energy": LinearGaussianEnergy},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_ratio_that_cannot_be_is_refused_when_asked_for(changes, curved):
    with pytest.raises(ValueError, match="init must be 'auto' or 'reference'"):
        brief(**changes).fit(curved)


def test_only_the_first_fit_begins_with_the_ratio(curved):
    model = brief(warm_start=True).fit(curved)
    model.fit(curved)
    assert ratio_epochs(model) == [1, 2, 3]
    assert model.n_iter_ == 12
    chunks = brief(init="auto", embedding="periodic").partial_fit(curved[:300])
    assert ratio_epochs(chunks.partial_fit(curved[300:])) == []
    assert chunks.n_iter_ == 2


@BOTH
def test_fixed_seeds_give_equal_fits_and_global_generators_stay(estimator, curved):
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (brief(estimator).fit(curved) for _ in range(2))
    np.testing.assert_array_equal(first.score_samples(curved), second.score_samples(curved))
    assert torch.equal(torch.random.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])


def test_an_interrupted_ratio_leaves_the_estimator_as_it_was(curved, monkeypatch):
    model = brief().fit(curved)
    before = model.score_samples(curved[:20])

    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_module, "start_from_ratio", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(curved)
    np.testing.assert_array_equal(model.score_samples(curved[:20]), before)


# Embeddings --------------------------------------------------------------------------------------


def table(n=1000, d=4, seed=0):
    return np.random.RandomState(seed).randn(n, d)


@BOTH
def test_the_embedding_is_chosen_by_rows_and_columns(estimator):
    shapes = [(1000, 4), (999, 4), (1000, 3), (1200, 12), (1199, 12)]
    # in few columns, a mixture leaves nothing to learn that needs them, and one Gaussian much
    for reference, least in ((GaussianMixture(1, random_state=0), 4), ("gaussian", 1)):
        fitted = [
            brief(estimator, max_iter=0, reference=reference).fit(table(*shape)) for shape in shapes
        ]
        periodic = [
            shape
            for shape, model in zip(shapes, fitted, strict=True)
            if model.embedding_ == "periodic"
        ]
        assert periodic == [(n, d) for n, d in shapes if n >= max(1000, 100 * d) and d >= least]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (4, (64, 64))),
        ({"effort": "fast"}, (1, (128, 128))),
        ({"effort": "thorough"}, (8, (64, 64))),
        ({"embedding": "none"}, (1, (64, 64))),
        ({"init": "reference"}, (1, (128, 128))),
        ({"n_networks": 2}, (2, (64, 64))),
        ({"n_networks": 1}, (1, (128, 128))),
        ({"n_networks": 3, "hidden_layer_sizes": (5,)}, (3, (5,))),
    ],
)
@BOTH
def test_the_number_of_networks_follows_embedding_start_and_effort(estimator, changes, expected):
    model = brief(estimator, max_iter=0, **changes).fit(table())
    assert (model.n_networks_, model.hidden_layer_sizes_) == expected


@pytest.mark.parametrize(
    ("n_samples", "effort", "expected"),
    [
        (25_000, "default", 4),
        (25_001, "default", 3),
        (50_000, "default", 2),
        (50_001, "default", 1),
        (10**6, "default", 1),
        (25_000, "thorough", 8),
        (10**6, "thorough", 1),
        (1000, "fast", 1),
    ],
)
def test_many_rows_have_fewer_networks(n_samples, effort, expected):
    parameters = ParticleLVEBM(effort=effort).get_params()
    assert likelihood_config(parameters, n_samples, 10).n_networks == expected


@BOTH
def test_an_ensemble_is_trained_and_stays_as_large_as_it_is(estimator, curved):
    model = brief(estimator, embedding="periodic", n_networks=2, max_iter=4).fit(curved)
    network = model._training.optimisation.energy.network
    assert [type(own) for own in network.networks] == [PeriodicEnergy, PeriodicEnergy]
    assert model.partial_fit(curved).n_networks_ == 2
    with pytest.raises(ValueError, match="n_networks must stay 2"):
        model.set_params(n_networks=3).partial_fit(curved)


@pytest.mark.parametrize(("embedding", "kind"), [("periodic", PeriodicEnergy), ("none", MLPEnergy)])
def test_the_embedding_decides_the_network(embedding, kind, curved):
    model = brief(embedding=embedding, n_networks=1, max_iter=2).fit(curved)
    assert type(model._training.optimisation.energy.network) is kind
    assert model.embedding_ == embedding


def test_images_have_no_embedding():
    X = table(1000, 16)
    assert brief(image_shape=(4, 4), max_iter=0).fit(X).embedding_ == "none"
    with pytest.raises(ValueError, match="embedding must be 'auto' or 'none' with image_shape"):
        brief(image_shape=(4, 4), embedding="periodic").fit(X)


def test_auto_stays_what_the_first_rows_made_of_it():
    X = table()
    model = brief(init="auto", max_iter=2).partial_fit(X)
    assert model.partial_fit(X[:50]).embedding_ == "periodic"
    with pytest.raises(ValueError, match="embedding must stay periodic"):
        model.set_params(embedding="none").partial_fit(X)


@BOTH
def test_a_pickle_with_embeddings_scores_and_continues_alike(estimator, curved):
    import pickle

    X = curved[:400]
    options = {"embedding": "periodic", "n_networks": 2, "warm_start": True, "max_iter": 6}
    model = brief(estimator, **options).fit(X)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.score_samples(X[:50]), model.score_samples(X[:50]))
    again.fit(X)
    assert again.n_iter_ == model.n_iter_ + 6


@BOTH
def test_the_ratio_is_kept_where_particles_lead_astray(estimator, curved, monkeypatch):
    """The last updates are made harmful; what the classification found before is not lost."""
    descended = training_module._descended

    def gone_astray(*arguments):
        result, particles = descended(*arguments)
        with torch.no_grad():
            for parameter in result.best.network.parameters():
                parameter.mul_(-3.0)
        return result, particles

    monkeypatch.setattr(training_module, "_descended", gone_astray)
    options = {"max_iter": 40, "learning_rate_init": 0.003, "n_chains": 64}
    model = brief(estimator, **options).fit(curved)
    new = make_moons(2000, noise=0.1, random_state=2)[0]
    reference = brief(estimator, max_iter=0).fit(curved)
    gains = model.score_samples(new) - reference.score_samples(new)
    assert model.improved_
    assert gains.mean() > 4.0 * gains.std() / np.sqrt(len(gains))
    assert model.diagnostics_.verdict == "sound"
