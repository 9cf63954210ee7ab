"""`PotentialFlowEBM`: two likelihoods that agree, draws, transforms and scikit-learn's habits."""

import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import MLPEnergy, ParticleDivergenceError, PotentialFlowEBM
from sklvebm.estimators._flow import training as flow_training
from sklvebm.flows.potentials import AnchoredPotential, flow_density, trace_directions
from sklvebm.objectives.flow_matching import PotentialFlow

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def small(**parameters):
    """Return a model that trains in a fraction of a second."""
    defaults = {"hidden_layer_sizes": (8,), "max_iter": 3, "reference": "gaussian"}
    return PotentialFlowEBM(**{**defaults, "random_state": 0, **parameters})


@pytest.fixture(scope="module")
def test_rows():
    return make_moons(2000, noise=0.1, random_state=7)[0]


@pytest.fixture(scope="module")
def kept_reference(moons):
    """A model without training, which is its mixture."""
    return PotentialFlowEBM(max_iter=0, random_state=0).fit(moons)


# Likelihoods -------------------------------------------------------------------------------------


def grid(model, n=100):
    """Return a grid in the units of the data with the area of its cells."""
    centre, scale = model.mean_, model.scale_
    axes = [np.linspace(c - 4.0 * s, c + 4.0 * s, n) for c, s in zip(centre, scale, strict=True)]
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    return points, np.prod([axis[1] - axis[0] for axis in axes])


@pytest.mark.parametrize("method", ["flow", "energy"])
def test_density_integrates_to_one(method, fitted_flow):
    points, area = grid(fitted_flow)
    total = float(np.exp(fitted_flow.score_samples(points, method=method)).sum() * area)
    # the energy's normaliser is an estimate, the flow's is one but for the integrator
    tolerance = 5.0 * fitted_flow.log_partition_.standard_error if method == "energy" else 2e-3
    assert abs(np.log(total)) < tolerance


def test_both_likelihoods_agree_on_rows_that_were_not_seen(fitted_flow, test_rows):
    flow = fitted_flow.score_samples(test_rows)
    energy = fitted_flow.score_samples(test_rows, method="energy")
    assert abs(float((flow - energy).mean())) < 0.05
    assert abs(fitted_flow.diagnostics_.flow_minus_energy) < 0.05
    assert flow.mean() > -1.25  # a Gaussian has -1.9, kernel density -1.05


def test_flow_likelihood_does_not_depend_on_the_integrator(fitted_flow, test_rows):
    model = pickle.loads(pickle.dumps(fitted_flow))
    before = model.score_samples(test_rows)
    model._model = model._model._replace(n_steps=4 * model._model.n_steps)
    error = np.sqrt(np.square(model.score_samples(test_rows) - before).mean())
    assert error < 2.0 * 1e-3


def test_earlier_energy_agrees_with_the_flow_stopped_there(test_rows):
    X, _ = make_moons(1000, noise=0.1, random_state=1)
    model = PotentialFlowEBM(
        reference="gaussian", energy_time=0.9, max_iter=60, random_state=0
    ).fit(X)
    assert model.diagnostics_.energy_time == 0.9
    assert abs(model.diagnostics_.flow_minus_energy) < 0.05
    assert model.score(test_rows) > model.score_samples(test_rows, method="energy").mean()
    # the density of noised rows in the units of the data integrates to one as well
    points, area = grid(model)
    total = float(np.exp(model.score_samples(points, method="energy")).sum() * area)
    assert abs(np.log(total)) < 5.0 * model.log_partition_.standard_error


def test_kept_reference_is_the_mixture(kept_reference, test_rows):
    assert not kept_reference.improved_
    x = torch.from_numpy((test_rows - kept_reference.mean_) / kept_reference.scale_)
    wanted = kept_reference.reference_.log_marginal(x).numpy()
    wanted = wanted - np.log(kept_reference.scale_).sum()
    for method in ("flow", "energy"):
        np.testing.assert_allclose(kept_reference.score_samples(test_rows, method), wanted)
    assert kept_reference.diagnostics_.verdict == "sound"
    # the flow of the mixture's potential says the same: a zero correction is integrated here
    network = MLPEnergy(2, 1, (4,), generator=torch.Generator().manual_seed(0)).double()
    flow = AnchoredPotential(kept_reference.potential_.mixture, network)
    density = flow_density(flow, x, 16, trace_directions(2, 2, None)).log_density.detach().numpy()
    np.testing.assert_allclose(density - np.log(kept_reference.scale_).sum(), wanted)


def test_score_is_in_the_units_of_the_data(moons):
    """Columns measured in other units shift the score by the log of the units."""
    factor = np.array([1000.0, 0.01])
    here = PotentialFlowEBM(max_iter=0, random_state=0).fit(moons).score(moons)
    there = PotentialFlowEBM(max_iter=0, random_state=0).fit(moons * factor).score(moons * factor)
    assert there == pytest.approx(here - np.log(factor).sum(), abs=1e-6)


def test_estimated_trace_agrees_with_the_exact_one(test_rows):
    """One probe in two dimensions: the mean difference is within five of the stated errors."""
    X, _ = make_moons(600, noise=0.1, random_state=1)
    shape = {"reference": "gaussian", "max_iter": 30, "hidden_layer_sizes": (16, 16)}
    exact = PotentialFlowEBM(**shape, random_state=0).fit(X)
    rough = PotentialFlowEBM(**shape, n_probes=1, random_state=0).fit(X)
    assert exact.improved_
    assert exact.diagnostics_.mean_trace_error == 0.0
    assert rough.diagnostics_.mean_trace_error > 0.0
    apart = rough.score(test_rows) - exact.score(test_rows)
    assert abs(apart) < 5.0 * rough.diagnostics_.mean_trace_error


# Draws and transforms ----------------------------------------------------------------------------


@pytest.mark.parametrize("moves", [0, 30])
def test_moments_of_draws_are_those_of_the_density(moves, fitted_flow):
    """Five standard errors, by quadrature of the flow's density or of the energy's."""
    model = pickle.loads(pickle.dumps(fitted_flow)).set_params(n_langevin_steps=moves)
    points, area = grid(model)
    weights = np.exp(model.score_samples(points, "energy" if moves else "flow")) * area
    draws = model.sample(4000, random_state=0)
    for power in (1, 2):
        wanted = weights @ points**power
        error = (draws**power).std(0) / np.sqrt(len(draws))
        assert (np.abs((draws**power).mean(0) - wanted) < 5.0 * error).all()


def test_moves_that_are_no_number_of_steps_are_refused(fitted_flow):
    model = pickle.loads(pickle.dumps(fitted_flow)).set_params(n_langevin_steps=-1)
    with pytest.raises(ValueError, match="n_langevin_steps must be .* got -1"):
        model.sample(2)


def test_draws_of_a_kept_reference_follow_the_mixture(kept_reference):
    """The mean log-density of draws is minus the entropy, estimated by other draws."""
    first, second = (
        kept_reference.score_samples(kept_reference.sample(4000, random_state=seed))
        for seed in (0, 1)
    )
    error = np.sqrt((first.var() + second.var()) / 4000)
    assert abs(first.mean() - second.mean()) < 5.0 * error


def test_round_trip_returns_to_the_rows(fitted_flow, test_rows):
    back = fitted_flow.inverse_transform(fitted_flow.transform(test_rows))
    distance = np.linalg.norm((back - test_rows) / fitted_flow.scale_, axis=1)
    assert np.median(distance) < 1e-3
    assert fitted_flow.diagnostics_.round_trip_error < 1e-3


def test_rows_in_the_tails_come_back_and_have_the_density_of_the_mixture():
    X = np.random.default_rng(0).normal(size=(80, 2))
    model = small(reference="mixture", max_iter=0).fit(X)
    sizes = np.array([6.0, 10.0, 20.0, 50.0, 100.0, 1e3, 1e6, 1e10])
    far = (sizes[:, None, None] * np.array([[1.0, 1.0], [1.0, -1.0], [0.5, 1.0]])).reshape(-1, 2)
    x = torch.from_numpy((far - model.mean_) / model.scale_)
    wanted = model.reference_.log_marginal(x).numpy() - np.log(model.scale_).sum()
    for method in ("flow", "energy"):
        np.testing.assert_allclose(model.score_samples(far, method), wanted, rtol=1e-6)
    Z = model.transform(far)
    # steps of five percent in time, whose errors grow with the slope of the map
    np.testing.assert_allclose(model.inverse_transform(Z), far, rtol=0.01)
    # components of one centre that are round: as many rows are farther out as there is noise
    weights, means, covariances = (
        part.numpy() for part in model._model.potential.mixture.moments(1.0)
    )
    np.testing.assert_allclose(means, np.tile(means[:1], (len(means), 1)), atol=1e-12)
    variances = covariances[:, 0, 0]
    np.testing.assert_allclose(
        covariances, variances[:, None, None] * np.eye(2), rtol=1e-9, atol=1e-9 * variances[0]
    )
    squares = np.square(x.numpy() - means[0]).sum(1)
    beyond = np.exp(-0.5 * squares[:, None] / variances) @ weights
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), np.sqrt(-2.0 * np.log(beyond)), rtol=1e-3)


def test_latents_of_new_rows_are_standard_normal(fitted_flow):
    """Moments of the latents of the model's own draws; five standard errors."""
    Z = fitted_flow.transform(fitted_flow.sample(4000, random_state=0))
    assert (np.abs(Z.mean(0)) < 5.0 / np.sqrt(4000)).all()
    error = np.sqrt(2.0 / 4000)
    assert (np.abs(Z.var(0) - 1.0) < 5.0 * error + 0.02).all()


def test_rows_are_answered_independently(fitted_flow, test_rows):
    for answer in (fitted_flow.score_samples, fitted_flow.transform):
        together = answer(test_rows[:20])
        alone = np.concatenate([answer(row[None]) for row in test_rows[:20]])
        np.testing.assert_allclose(together, alone, atol=1e-9)


def test_random_state_of_draws(fitted_flow):
    assert np.array_equal(fitted_flow.sample(3, random_state=1), fitted_flow.sample(3, 1))
    assert not np.array_equal(fitted_flow.sample(3), fitted_flow.sample(3))


# Fitting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["flow-matching", "covariance", "vapo"])
def test_every_loss_fits_and_is_repeatable(loss, moons):
    first, second = (small(loss=loss).fit(moons) for _ in range(2))
    assert np.isfinite(first.score(moons))
    assert first.score(moons) == second.score(moons)
    assert [entry["problem"] for entry in first.history_] == ["", "", ""]


def test_held_out_rows_decide_whether_training_is_kept(moons):
    """In normal rows there is nothing to learn beyond a Gaussian."""
    X = np.random.RandomState(0).randn(300, 2)
    model = small(max_iter=20).fit(X)
    assert not model.improved_
    assert model.potential_.network is None
    assert model.score(X) == pytest.approx(model.score_samples(X, method="energy").mean())


def test_warm_start_continues(moons):
    model = small(warm_start=True).fit(moons)
    reference, before = model._training.reference, model.n_iter_
    model.fit(moons)
    assert model.n_iter_ == before + 3
    assert [entry["epoch"] for entry in model.history_] == list(range(1, 7))
    assert model._training.reference is reference
    with pytest.raises(ValueError, match="hidden_layer_sizes must stay"):
        model.set_params(hidden_layer_sizes=(4,)).fit(moons)


def test_divergence_leaves_no_model_behind(moons, monkeypatch):
    model = small().fit(moons)
    monkeypatch.setattr(PotentialFlow, "lower_bound", lambda *_, **__: float("nan"))
    with pytest.raises(ParticleDivergenceError):
        model.fit(moons)
    with pytest.raises(NotFittedError):
        model.score(moons)


def test_bad_parameters_leave_the_model_as_it_was(moons):
    model = small().fit(moons)
    before = model.score(moons)
    for name, value, error in [
        ("loss", "likelihood", ValueError),
        ("consistency", -1.0, ValueError),
        ("energy_time", 0.0, ValueError),
        ("energy_time", 1.5, ValueError),
        ("n_probes", 0, ValueError),
        ("n_steps", 2.5, TypeError),
        ("reference", "kernel", ValueError),
        ("reference", None, TypeError),
        ("validation_fraction", 1.0, ValueError),
    ]:
        with pytest.raises(error, match=name):
            clone(model).set_params(**{name: value}).fit(moons)
    with pytest.raises(ValueError, match="method"):
        model.score_samples(moons, method="ratio")
    with pytest.raises(ValueError, match="columns"):
        model.inverse_transform(moons[:, :1])
    assert model.score(moons) == before


def test_a_mixture_of_ones_own_and_a_complete_reference_are_taken(moons):
    model = small(reference=GaussianMixture(2, random_state=0), max_iter=0).fit(moons)
    assert model.reference_.means.shape[0] == 2 + 10  # and the defensive components
    again = small(reference=model.reference_, max_iter=0).fit(moons)
    np.testing.assert_allclose(again.score(moons), model.score(moons))


def test_warnings_say_what_to_change(moons):
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        kept = small(max_iter=20, early_stopping=False).fit(moons)
    assert kept.improved_
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        small(max_iter=0).fit(moons)


def test_global_state_is_left_alone(moons):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    small().fit(moons).sample(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == torch.get_num_threads()


def test_verbose_prints(moons, capsys):
    small(verbose=1).fit(moons)
    assert capsys.readouterr().out.count("[PotentialFlowEBM] epoch") == 3


# scikit-learn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [pickle, joblib])
def test_stored_models_answer_alike(store, fitted_flow, test_rows, tmp_path):
    path = tmp_path / "model"
    with open(path, "wb") as file:
        store.dump(fitted_flow, file)
    with open(path, "rb") as file:
        again = store.load(file)
    for method in ("flow", "energy"):
        wanted = fitted_flow.score_samples(test_rows[:50], method)
        np.testing.assert_allclose(again.score_samples(test_rows[:50], method), wanted, rtol=1e-12)
    assert np.array_equal(again.sample(3, 0), fitted_flow.sample(3, 0))
    assert again.diagnostics_ == fitted_flow.diagnostics_


def test_stored_state_holds_plain_types_only(fitted_flow):
    def leaves(value):
        if isinstance(value, dict):
            for part in value.values():
                yield from leaves(part)
        elif isinstance(value, list | tuple):
            for part in value:
                yield from leaves(part)
        else:
            yield value

    state = fitted_flow.__getstate__()
    kinds = (np.ndarray, np.generic, str, int, float, bool, type(None))
    assert all(isinstance(leaf, kinds) for leaf in leaves(state))


def test_a_stored_model_can_be_continued(moons):
    model = pickle.loads(pickle.dumps(small(warm_start=True).fit(moons)))
    assert model.fit(moons).n_iter_ == 6


def test_names_of_features_and_pandas_output(moons):
    frame = pd.DataFrame(moons, columns=["left", "up"])
    model = small().fit(frame).set_output(transform="pandas")
    assert list(model.feature_names_in_) == ["left", "up"]
    assert list(model.transform(frame).columns) == ["potentialflowebm0", "potentialflowebm1"]
    with pytest.raises(ValueError, match="feature names"):
        model.score(frame[["up", "left"]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_type_of_the_rows(dtype, fitted_flow, test_rows):
    X = test_rows[:5].astype(dtype)
    assert fitted_flow.score_samples(X).dtype == dtype
    assert fitted_flow.transform(X).dtype == dtype
    assert fitted_flow.inverse_transform(fitted_flow.transform(X)).dtype == dtype


def test_pipeline_search_and_cross_validation(moons):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), small(max_iter=1)),
        {"potentialflowebm__loss": ["flow-matching", "vapo"]},
        cv=2,
    ).fit(moons)
    assert np.isfinite(search.best_score_)
    assert search.best_estimator_.transform(moons).shape == moons.shape
    assert np.isfinite(cross_val_score(small(), moons, cv=2)).all()


@pytest.mark.parametrize("n_features", [1, 5])
def test_other_widths(n_features):
    X = np.random.RandomState(0).randn(60, n_features) ** 3
    model = PotentialFlowEBM(max_iter=2, random_state=0).fit(X)
    Z = model.transform(X)
    assert Z.shape == X.shape
    assert model.sample(4).shape == (4, n_features)
    assert np.isfinite(model.score(X))


def test_divergence_keeps_the_wanted_output_format(monkeypatch):
    X = np.random.RandomState(0).standard_normal((60, 2))
    model = PotentialFlowEBM(max_iter=1, reference="gaussian", random_state=0).fit(X)
    model.set_output(transform="pandas")

    def diverge(*_, **__):
        raise ParticleDivergenceError("on purpose")

    monkeypatch.setattr(flow_training, "train", diverge)
    with pytest.raises(ParticleDivergenceError):
        model.fit(X)
    assert not hasattr(model, "potential_")
    assert model._sklearn_output_config == {"transform": "pandas"}
