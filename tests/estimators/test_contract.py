"""Small promises that every estimator keeps: messages, attributes, settings, surroundings."""

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning

import sklvebm.training
from sklvebm import (
    GaussianMargins,
    LinearGaussianEnergy,
    ParticleLVEBM,
    PotentialFlowEBM,
    TransformedDensity,
    WassersteinFlowEBM,
    compose,
    datasets,
    dequantize,
    interpolate,
    metrics,
    resolution,
)
from sklvebm.baselines import VAE, HardEM, LatentEBM, NonAmortizedVI, ParticleGradientDescent
from sklvebm.estimators._ebm import fitted_model as ebm_model
from sklvebm.estimators._flow import fitted_model as flow_model

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

THREE = [ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM]
BASELINES = [VAE, NonAmortizedVI, HardEM, ParticleGradientDescent, LatentEBM]
three = pytest.mark.parametrize("make", THREE)
every = pytest.mark.parametrize("make", [*THREE, *BASELINES])


def brief(make, **parameters):
    """Return a model that trains in a moment, of one Gaussian where no mixture is asked for."""
    small = {"max_iter": 2, "hidden_layer_sizes": (8,), "random_state": 0}
    small |= {"n_importance_samples": 16} if make in BASELINES else {"reference": "gaussian"}
    return make(**{**small, **parameters})


def with_mixture(make, **parameters):
    """Return the same with a mixture that is chosen by cross-validation, where there is one."""
    return brief(make, **({"reference": "mixture"} if make in THREE else {}), **parameters)


def rows(n=80):
    return np.random.default_rng(0).normal(size=(n, 2))


# Continued fits ----------------------------------------------------------------------------------


@three
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_continued_fit_keeps_units_and_reference(make, shift):
    X = rows(200)
    model = brief(make, max_iter=5, tol=0.1, warm_start=True).fit(X)
    grid = torch.from_numpy(np.random.default_rng(1).normal(size=(20, 2)))
    before, mean = model.reference_.log_marginal(grid), model.mean_.copy()
    model.fit(X[:50] + shift)
    np.testing.assert_array_equal(model.mean_, mean)
    np.testing.assert_array_equal(model.reference_.log_marginal(grid), before)


# Numbers -----------------------------------------------------------------------------------------


def answers(model, X):
    """Call every method of a fitted model."""
    for name in ("score", "score_samples", "transform", "log_abs_det_jacobian"):
        if hasattr(model, name):
            getattr(model, name)(X)
    if hasattr(model, "transform"):
        model.inverse_transform(model.transform(X))
        interpolate(model, X[0], X[1], 3)
    if hasattr(model, "sample"):
        model.sample(3)
    if hasattr(model, "sample_posterior"):
        model.sample_posterior(X, 2)


MODELS = [
    *[with_mixture(make) for make in (*THREE, *BASELINES)],
    GaussianMargins(),
    TransformedDensity(with_mixture(ParticleLVEBM)),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("kind", ["normal", "blocks", "far"])
def test_no_estimator_minds_numpy_s_errors(model, kind):
    X = rows()
    if kind == "blocks":
        X = np.floor(X) + np.random.default_rng(1).uniform(size=X.shape)
    far = np.vstack([X[:3], [[1e5, -1e5], [40.0, 0.0]]])
    if kind == "far":
        X = np.vstack([X, [[1e5, 0.0]]])
    with np.errstate(all="raise"):
        model.fit(X)
        answers(model, X)
        answers(model, far)
        if hasattr(model, "_expert"):
            composition = compose([(model, 2.0)])
            composition.log_partition(n_walkers=32, tolerance=1.0, random_state=0)
            composition.score_samples(far)
            composition.sample(3, random_state=0)


def test_no_function_minds_numpy_s_errors():
    X = np.vstack([np.round(rows(), 1), [[1e200, 1e-200]]])
    Y, labels = rows() + 0.5, (rows()[:, 0] > 0.0).astype(int)
    with np.errstate(all="raise"):
        resolution(X)
        dequantize(X, random_state=0)
        for name in datasets.__all__:
            function = getattr(datasets, name)
            if name.startswith("make_"):
                drawn = function(20, random_state=0)
                drawn = drawn[0] if isinstance(drawn, tuple) else drawn
                density = name.removeprefix("make_") + "_log_density"
                if density in datasets.__all__:
                    getattr(datasets, density)(np.vstack([drawn, 1e3 * drawn]))
            elif name.endswith("_entropy"):
                function()
        metrics.energy_distance(X[:-1], Y)
        metrics.maximum_mean_discrepancy(1e3 * X[:-1], Y)
        metrics.sinkhorn_divergence(X[:-1], 100.0 * Y)
        metrics.sliced_wasserstein_distance(X[:-1], Y, random_state=0)
        metrics.mode_coverage(X[:-1], labels, Y)
        metrics.mutual_information_gap(X[:-1], np.column_stack([labels, Y[:, 0]]))


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: type(model).__name__)
def fitted_to_normal_rows(request):
    return clone(request.param).fit(rows())


@pytest.mark.parametrize("size", [1e100, 1e160, 1e300])
def test_far_rows_and_latents_have_no_missing_answers(fitted_to_normal_rows, size):
    model = fitted_to_normal_rows
    if not hasattr(model, "transform"):
        return
    far = size * np.array([[1.0, 0.0], [1.0, -1.0], [0.5, 1.0]])
    Z = model.transform(far)
    assert np.isfinite(Z).all()
    assert np.isfinite(model.inverse_transform(Z)).all()
    assert np.isfinite(model.inverse_transform(np.full((1, Z.shape[1]), size))).all()
    if isinstance(model, PotentialFlowEBM):
        # a round trip comes back, as it does nearer
        there = model.inverse_transform(Z[1:])
        np.testing.assert_allclose(there, far[1:], rtol=0.01)


# Parameters --------------------------------------------------------------------------------------


@every
def test_every_auto_has_the_value_that_was_used(make):
    # what images need is "auto" of hidden_layer_sizes as well, and tested with them
    model = make(max_iter=0, random_state=0).fit(rows())
    autos = [name for name, value in model.get_params().items() if value == "auto"]
    assert autos
    for name in autos:
        value = getattr(model, f"{name}_")
        assert value != "auto"
        if name == "hidden_layer_sizes":
            assert isinstance(value, tuple)
    if make in THREE:
        given = brief(make, learning_rate_init=0.5, batch_size=7, max_iter=0).fit(rows())
        assert given.hidden_layer_sizes_ == (8,)
        assert given.learning_rate_init_ == 0.5
        assert given.batch_size_ == 7


def test_the_latent_map_that_was_taken_is_an_attribute():
    angle = np.random.default_rng(0).uniform(0.0, 2.0 * np.pi, 100)
    X = np.column_stack([np.cos(angle), np.sin(angle)])
    X += 0.01 * np.random.default_rng(1).normal(size=X.shape)
    assert brief(ParticleLVEBM, latent_map="linear", max_iter=0).fit(X).latent_map_ == "linear"
    assert brief(ParticleLVEBM, latent_map="manifold", max_iter=0).fit(X).latent_map_ == "manifold"


@every
def test_without_a_tolerance_training_goes_on_to_max_iter(make):
    options = {"n_iter_no_change": 1, "max_iter": 12}
    assert brief(make, tol=1e9, **options).fit(rows()).n_iter_ < 12
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = brief(make, tol=None, **options).fit(rows())
    assert model.n_iter_ == 12
    # the density ratio has a rate of its own
    rates = {(epoch["learning_rate"], "ratio_loss" in epoch) for epoch in model.history_}
    assert len(rates) == len({is_ratio for _, is_ratio in rates})
    assert not [w for w in caught if "max_iter" in str(w.message)]


@three
def test_a_fit_that_returns_its_reference_was_not_cut_short(make, monkeypatch):
    def messages(model):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(rows())
        return [str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning)]

    model = brief(make, learning_rate_init=1e-9)
    assert not [text for text in messages(model) if "max_iter" in text]
    assert not model.improved_
    if make is ParticleLVEBM:
        own = brief(make, energy=LinearGaussianEnergy(2, 2), n_chains=16, n_temperatures=3)
        assert [text for text in messages(own) if "max_iter=2" in text]


@every
def test_a_numpy_generator_is_a_source_of_randomness(make):
    # several mixtures, whose starts are random
    X = make_moons(120, noise=0.1, random_state=0)[0]
    models = [
        with_mixture(make, random_state=np.random.default_rng(seed))
        .fit(X)
        .sample(3, random_state=np.random.default_rng(5))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(models[0], models[1])
    assert not np.array_equal(models[0], models[2])
    generator = np.random.default_rng(0)
    first = dequantize(np.round(X, 1), random_state=generator)
    assert not np.array_equal(first, dequantize(np.round(X, 1), random_state=generator))
    assert datasets.make_double_well(5, random_state=generator).shape == (5, 2)


@every
def test_another_source_of_randomness_is_named(make):
    with pytest.raises(TypeError, match="random_state must be None, a RandomState, a Generator"):
        brief(make, random_state="zero").fit(rows())


# Messages ----------------------------------------------------------------------------------------

NOT_NUMERIC = {
    "pandas": (lambda X: pd.DataFrame({"a": X[:, 0], "b": "x", "c": X[:, 1]}), "Column 'b' of X"),
    "polars": (lambda X: pl.DataFrame({"a": X[:, 0], "b": ["x"] * len(X)}), "Column 'b' of X"),
    "dates": (
        lambda X: pd.DataFrame({"a": X[:, 0], "day": pd.Timestamp("2020-01-01")}),
        "Column 'day' of X",
    ),
    "categories": (
        lambda X: pd.DataFrame({"a": X[:, 0], "b": pd.Categorical(["u"] * len(X))}),
        "Column 'b' of X",
    ),
    "objects": (lambda X: np.column_stack([X.astype(object), ["x"] * len(X)]), "Column 2 of X"),
    "lists": (lambda X: [[1.0, "x", "y"]] * 5, "Columns 1, 2 of X are"),
}
TAKERS = {
    **{make.__name__: brief(make).fit for make in (*THREE, VAE)},
    "GaussianMargins": GaussianMargins().fit,
    "TransformedDensity": TransformedDensity().fit,
    "resolution": resolution,
    "dequantize": dequantize,
}


@pytest.mark.parametrize("kind", NOT_NUMERIC)
@pytest.mark.parametrize("taker", TAKERS)
def test_columns_that_are_not_numeric_are_named(taker, kind):
    make, message = NOT_NUMERIC[kind]
    with pytest.raises((TypeError, ValueError), match=message):
        TAKERS[taker](make(rows()))


def test_infinite_values_keep_their_message():
    X = rows()
    X[3, 1] = np.inf
    for bad in (X, pd.DataFrame(X), X.astype(object)):
        with pytest.raises(ValueError, match="contains infinity"):
            brief(ParticleLVEBM).fit(bad)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
        ),
    ],
    ids=["python", "cuda", "cpu"],
)
@every
def test_a_fit_without_memory_names_what_to_decrease(make, error, monkeypatch):
    def exhausted(*arguments, **options):
        raise error

    monkeypatch.setattr(sklvebm.training, "move_average", exhausted)
    with pytest.raises(MemoryError, match=r"decrease .*batch_size \(now 16\)"):
        brief(make, batch_size=16).fit(rows())


def test_answers_without_memory_say_what_helps(monkeypatch):
    def exhausted(*arguments, **options):
        raise MemoryError

    # scores of a kept reference need no particles; `partial_fit` always keeps the energy
    particles, flow = brief(ParticleLVEBM).partial_fit(rows()), brief(PotentialFlowEBM).fit(rows())
    monkeypatch.setattr(ebm_model, "posterior_particles", exhausted)
    monkeypatch.setattr(ebm_model, "joint_draws", exhausted)
    monkeypatch.setattr(flow_model, "transport", exhausted)
    for call in (particles.score_samples, particles.transform, flow.transform):
        with pytest.raises(MemoryError, match="pass fewer rows"):
            call(rows())
    with pytest.raises(MemoryError, match="decrease n_samples"):
        particles.sample(3)


def test_other_runtime_errors_are_left_alone(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(sklvebm.training, "move_average", broken)
    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        brief(ParticleLVEBM).fit(rows())


# Interface ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_methods_ask_for_weights_only_and_nothing_links_elsewhere(model):
    routing = model.get_metadata_routing()
    for name in ("fit", "partial_fit", "score"):
        assert set(getattr(routing, name).requests) <= {"sample_weight"}
    asking = [name for name in dir(model) if re.fullmatch(r"set_\w+_request", name)]
    assert set(asking) <= {f"set_{name}_request" for name in ("fit", "partial_fit", "score")}
    assert model._get_doc_link() == ""
    assert 'href="https://scikit-learn' not in model._repr_html_()


@every
def test_verbose_covers_the_whole_of_fit(make, capsys):
    brief(make, verbose=0).fit(rows())
    assert capsys.readouterr().out == ""
    with_mixture(make, verbose=1, max_iter=4).fit(rows())
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(rf"\[{make.__name__}\] .*, \d+\.\d s", line) for line in lines)
    if make in THREE:
        assert "choosing and fitting the reference to 72 rows" in lines[0]
        assert "reference: " in lines[1]
    assert any("training on 72 rows, monitoring 8" in line for line in lines)
    assert [line for line in lines if "epoch 2" in line]
    assert re.search(r"kept the (trained model|reference|parameters of the best)", lines[-1])


def test_verbose_says_that_an_energy_of_one_s_own_has_nothing_to_fall_back_to(capsys):
    own = LinearGaussianEnergy(2, 2)
    brief(ParticleLVEBM, energy=own, n_chains=16, n_temperatures=3, verbose=2).fit(rows())
    assert "kept the trained model, which has no reference" in capsys.readouterr().out
