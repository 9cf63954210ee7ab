"""`WassersteinFlowEBM`: a normalised energy, draws, and scikit-learn's habits."""

import copy
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import ParticleDivergenceError, ParticleLVEBM, WassersteinFlowEBM
from sklvebm.estimators._ebm import training as ebm_training
from sklvebm.objectives.proximal import WassersteinFlow

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def small(**parameters):
    """Return a model that trains in a fraction of a second."""
    defaults = {
        "hidden_layer_sizes": (8,),
        "n_chains": 16,
        "n_temperatures": 3,
        "max_iter": 3,
        "reference": "gaussian",
        "init": "reference",
    }
    return WassersteinFlowEBM(**{**defaults, "random_state": 0, **parameters})


@pytest.fixture(scope="module")
def test_rows():
    return make_moons(2000, noise=0.1, random_state=7)[0]


@pytest.fixture(scope="module")
def kept_reference(moons):
    """A model without training, which is its mixture."""
    return WassersteinFlowEBM(max_iter=0, random_state=0).fit(moons)


# Densities ---------------------------------------------------------------------------------------


def grid(model, n=150):
    """Return a grid in the units of the data with the area of its cells."""
    centre, scale = model.mean_, model.scale_
    axes = [np.linspace(c - 5.0 * s, c + 5.0 * s, n) for c, s in zip(centre, scale, strict=True)]
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    return points, np.prod([axis[1] - axis[0] for axis in axes])


def test_log_z_is_bracketed(fitted_wasserstein):
    """By quadrature: the lower score integrates to at most one, the upper to at least one."""
    points, area = grid(fitted_wasserstein)
    lower = np.log(np.exp(fitted_wasserstein.score_samples(points)).sum() * area)
    upper = np.log(np.exp(fitted_wasserstein.score_samples(points, bound="upper")).sum() * area)
    assert lower <= 1e-4
    assert upper >= -1e-4
    estimate = fitted_wasserstein.log_partition_
    assert upper - lower == pytest.approx(estimate.upper - estimate.lower, abs=1e-9)
    assert upper - lower < 0.1


def test_training_leaves_the_gaussian_behind(fitted_wasserstein, test_rows):
    score = fitted_wasserstein.score(test_rows)
    assert score > -1.3  # a Gaussian has -1.9, kernel density -1.05
    assert fitted_wasserstein.diagnostics_.verdict == "sound"
    assert "posterior" not in fitted_wasserstein.diagnostics_.report()


def test_score_is_minus_the_energy_less_the_upper_end_of_log_z(fitted_wasserstein, test_rows):
    model = fitted_wasserstein
    x = torch.from_numpy((test_rows - model.mean_) / model.scale_)
    wanted = -model.energy_(x).numpy() - model.log_partition_.upper - np.log(model.scale_).sum()
    np.testing.assert_allclose(model.score_samples(test_rows), wanted, atol=1e-9)
    assert model.energy_.correction(x).shape == (2000,)


def test_moments_of_draws_are_those_of_the_density(fitted_wasserstein):
    """Five standard errors, by quadrature of the normalised density."""
    points, area = grid(fitted_wasserstein)
    weights = np.exp(fitted_wasserstein.score_samples(points))
    weights /= weights.sum()
    draws = fitted_wasserstein.sample(4000, random_state=0)
    for power in (1, 2):
        wanted = weights @ points**power
        error = (draws**power).std(0) / np.sqrt(len(draws))
        assert (np.abs((draws**power).mean(0) - wanted) < 5.0 * error).all()


def test_kept_reference_is_the_mixture(kept_reference, test_rows):
    model = kept_reference
    assert not model.improved_
    assert model.reference_.n_latents == 0
    x = torch.from_numpy((test_rows - model.mean_) / model.scale_)
    wanted = model.reference_.log_marginal(x).numpy() - np.log(model.scale_).sum()
    for bound in ("lower", "upper"):
        np.testing.assert_allclose(model.score_samples(test_rows, bound), wanted, atol=1e-9)
    assert model.diagnostics_.verdict == "sound"
    draws = model.score_samples(model.sample(4000, random_state=0))
    again = model.score_samples(model.sample(4000, random_state=1))
    error = np.sqrt((draws.var() + again.var()) / 4000)
    assert abs(draws.mean() - again.mean()) < 5.0 * error


def test_score_is_in_the_units_of_the_data(moons):
    """Columns measured in other units shift the score by the log of the units."""
    factor = np.array([1000.0, 0.01])
    here = WassersteinFlowEBM(max_iter=0, random_state=0).fit(moons).score(moons)
    there = WassersteinFlowEBM(max_iter=0, random_state=0).fit(moons * factor).score(moons * factor)
    assert there == pytest.approx(here - np.log(factor).sum(), abs=1e-6)


def test_rows_are_answered_independently(fitted_wasserstein, test_rows):
    together = fitted_wasserstein.score_samples(test_rows[:20])
    alone = [fitted_wasserstein.score_samples(row[None])[0] for row in test_rows[:20]]
    np.testing.assert_allclose(together, alone, atol=1e-9)


def test_random_state_of_draws(fitted_wasserstein):
    first = fitted_wasserstein.sample(3, random_state=1)
    assert np.array_equal(first, fitted_wasserstein.sample(3, 1))
    assert not np.array_equal(fitted_wasserstein.sample(3), fitted_wasserstein.sample(3))


# Fitting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {"proximal": "jko"},
        {"proximal": "gradient-penalty"},
        {"proximal": "gradient-penalty", "penalty_half_life": None},
        {"proximal": "none", "n_inner_steps": 1},
        {"dynamics": "heun"},
        {"dynamics": "mala", "n_temperatures": 1},
        {"dynamics": "leimkuhler-matthews", "n_temperatures": 1},
        {"dynamics": "ula", "n_temperatures": 1, "n_inner_steps": 5},
        {"activation": "silu", "dtype": "float64", "early_stopping": False},
    ],
)
def test_every_option_fits_and_is_repeatable(parameters, moons):
    first, second = (small(**parameters).fit(moons) for _ in range(2))
    assert np.isfinite(first.score(moons))
    assert first.score(moons) == second.score(moons)
    assert [entry["problem"] for entry in first.history_] == ["", "", ""]
    held_back = [entry["movement"] for entry in first.history_]
    assert all(value > 0.0 for value in held_back) == (parameters.get("proximal") != "none")


def test_one_inner_step_is_contrastive_divergence(moons):
    jko = small(n_inner_steps=1, early_stopping=False, alpha=0.0).fit(moons)
    plain = small(n_inner_steps=1, proximal="none", early_stopping=False, alpha=0.0).fit(moons)
    assert jko.log_likelihoods_ == pytest.approx(plain.log_likelihoods_, abs=1e-4)


def test_held_out_rows_decide_whether_training_is_kept():
    """In normal rows there is nothing to learn beyond a Gaussian."""
    X = np.random.RandomState(0).randn(300, 2)
    model = small(max_iter=20).fit(X)
    assert not model.improved_
    assert model.log_partition_.upper == pytest.approx(0.0, abs=1e-9)


def test_a_gaussian_reference_has_the_covariance_of_the_rows():
    X = np.random.RandomState(0).randn(500, 3) @ np.random.RandomState(1).randn(3, 3)
    model = small(max_iter=0, early_stopping=False).fit(X)
    gaussian = GaussianMixture(1, reg_covar=1e-9).fit(X)
    assert model.score(X) == pytest.approx(gaussian.score(X), abs=0.01)


def test_warm_start_continues(moons):
    model = small(warm_start=True).fit(moons)
    reference, before = model._training.reference, model.n_iter_
    model.fit(moons)
    assert model.n_iter_ == before + 3
    assert [entry["epoch"] for entry in model.history_] == list(range(1, 7))
    assert model._training.reference.means is reference.means
    for name, value in [("hidden_layer_sizes", (4,)), ("n_chains", 8), ("dtype", "float64")]:
        with pytest.raises(ValueError, match=f"{name} must stay"):
            copy.deepcopy(model).set_params(**{name: value}).fit(moons)


def test_partial_fit_passes_over_chunks(moons):
    model = small()
    for chunk in np.array_split(moons, 4):
        model.partial_fit(chunk)
    assert model.n_iter_ == 4
    assert len(model.log_likelihoods_) == 4
    assert np.isfinite(model.score(moons))


def test_divergence_leaves_no_model_behind(moons, monkeypatch):
    model = small().fit(moons)
    monkeypatch.setattr(WassersteinFlow, "lower_bound", lambda *_, **__: float("nan"))
    with pytest.raises(ParticleDivergenceError):
        model.fit(moons)
    with pytest.raises(NotFittedError):
        model.score(moons)
    assert not [name for name in vars(model) if name.endswith("_")]


def test_a_bad_epoch_is_undone_and_recorded(moons, monkeypatch):
    seen = []

    def problem(self, state, metrics):
        seen.append(None)
        return "swaps stopped" if len(seen) == 2 else None

    monkeypatch.setattr(WassersteinFlow, "problem", problem)
    model = small(max_iter=4).fit(moons)
    assert [entry["problem"] for entry in model.history_] == ["", "swaps stopped", "", ""]
    rates = [entry["learning_rate"] for entry in model.history_]
    assert rates == pytest.approx([0.01, 0.01, 0.003, 0.003])
    assert np.isnan(model.log_likelihoods_[1])


def test_a_continued_fit_that_diverges_keeps_what_there_was(moons, monkeypatch):
    model = small(warm_start=True).fit(moons)
    score = model.score(moons)

    def diverge(*_, **__):
        raise ParticleDivergenceError("on purpose")

    monkeypatch.setattr(ebm_training, "train", diverge)
    with pytest.raises(ParticleDivergenceError):
        model.fit(moons)
    assert model.score(moons) == score


def test_where_annealing_does_not_confirm_the_model_is_its_reference(moons, monkeypatch):
    monkeypatch.setattr(ebm_training, "gain_over_reference", lambda *_: -0.1)
    model = small(max_iter=10).fit(moons)
    assert not model.improved_
    x = torch.from_numpy((moons - model.mean_) / model.scale_)
    wanted = model.reference_.log_marginal(x).numpy() - np.log(model.scale_).sum()
    np.testing.assert_allclose(model.score_samples(moons), wanted, atol=1e-9)
    assert np.isfinite(pickle.loads(pickle.dumps(model)).score(moons))


BAD_PARAMETERS = [
    ("hidden_layer_sizes", (), ValueError),
    ("hidden_layer_sizes", 8, TypeError),
    ("image_shape", (4, 4), ValueError),
    ("image_shape", 16, TypeError),
    ("embedding", "linear", ValueError),
    ("n_networks", 0, ValueError),
    ("init", None, TypeError),
    ("activation", "relu", ValueError),
    ("reference", "kernel", ValueError),
    ("reference", None, TypeError),
    ("margins", "bins", ValueError),
    ("effort", "slow", ValueError),
    ("memory", 3, TypeError),
    ("proximal", "trust-region", ValueError),
    ("proximal_weight", -0.1, ValueError),
    ("penalty_half_life", 0.0, ValueError),
    ("n_inner_steps", 0, ValueError),
    ("dynamics", "hmc", ValueError),
    ("step_size", 0.0, ValueError),
    ("n_chains", 1, ValueError),
    ("n_temperatures", 0, ValueError),
    ("n_langevin_steps", 2.5, TypeError),
    ("learning_rate_init", 0.0, ValueError),
    ("alpha", -1.0, ValueError),
    ("batch_size", 0, ValueError),
    ("max_iter", -1, ValueError),
    ("tol", -1.0, ValueError),
    ("early_stopping", "yes", TypeError),
    ("validation_fraction", 1.0, ValueError),
    ("n_iter_no_change", 0, ValueError),
    ("warm_start", 1, TypeError),
    ("device", "tpu", ValueError),
    ("dtype", "float16", ValueError),
    ("verbose", -1, ValueError),
    ("random_state", "seed", TypeError),
]


def test_bad_values_are_listed_for_every_parameter():
    assert {name for name, *_ in BAD_PARAMETERS} == set(WassersteinFlowEBM().get_params())


@pytest.mark.parametrize(("name", "value", "error"), BAD_PARAMETERS)
def test_bad_parameters_raise_in_fit_with_their_name(name, value, error, moons):
    model = small().set_params(**{name: value})
    with pytest.raises(error, match=name):
        model.fit(moons)
    assert not [attribute for attribute in vars(model) if attribute.endswith("_")]


def test_bad_rows_and_questions_leave_the_model_as_it_was(moons):
    model = small().fit(moons)
    before = model.score(moons)
    for bad in (np.full((5, 2), np.inf), np.zeros((0, 2)), np.zeros(3)):
        for ask in (model.fit, model.partial_fit, model.score_samples):
            with pytest.raises(ValueError, match=r"infinity|0 sample|1D array"):
                ask(bad)
    with pytest.raises(ValueError, match="bound"):
        model.score_samples(moons, bound="middle")
    with pytest.raises(ValueError, match="n_samples"):
        model.sample(0)
    with pytest.raises(ValueError, match="features"):
        model.score_samples(moons[:, :1])
    assert model.score(moons) == before


def test_mixtures_and_references_of_ones_own_are_taken(moons):
    model = small(reference=GaussianMixture(2, random_state=0), max_iter=0).fit(moons)
    assert model.reference_.means.shape[0] == 2 + 10  # and the defensive components
    again = small(reference=model.reference_, max_iter=0).fit(moons)
    assert again.score(moons) == pytest.approx(model.score(moons))
    # of a reference with latents, the marginal of the features
    other = ParticleLVEBM(1, max_iter=0, random_state=0).fit(moons)
    marginal = small(reference=other.reference_, max_iter=0).fit(moons)
    assert marginal.reference_.n_latents == 0
    assert marginal.score(moons) == pytest.approx(other.score(moons))


def test_warnings_say_what_to_change(moons):
    options = {"reference": "gaussian", "init": "reference", "random_state": 0}
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        kept = WassersteinFlowEBM(max_iter=20, **options).fit(moons)
    assert kept.improved_
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        # where the reference is kept, no training was cut short
        for max_iter in (0, 3):
            model = small(reference="mixture", max_iter=max_iter).fit(moons)
            assert not model.improved_


def test_global_state_is_left_alone(moons):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    small().fit(moons).sample(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == torch.get_num_threads()


def test_surroundings_change_nothing(moons):
    wanted = small().fit(moons).score_samples(moons)
    for surroundings in (torch.inference_mode(), torch.no_grad(), torch.device("meta")):
        with surroundings:
            found = small().fit(moons).score_samples(moons)
        np.testing.assert_array_equal(found, wanted)


def test_verbose_prints(moons, capsys):
    small(verbose=1).fit(moons)
    assert capsys.readouterr().out.count("[WassersteinFlowEBM] epoch") == 3


# scikit-learn ------------------------------------------------------------------------------------


def through_skops(model):
    data = skops.io.dumps(model)
    untrusted = skops.io.get_untrusted_types(data=data)
    assert all(name.startswith("sklvebm.") for name in untrusted), untrusted
    return skops.io.loads(data, trusted=untrusted)


@pytest.mark.parametrize("way", ["pickle", "joblib", "skops", "deepcopy"])
def test_stored_models_answer_alike(way, fitted_wasserstein, test_rows, tmp_path):
    model = fitted_wasserstein
    if way == "pickle":
        again = pickle.loads(pickle.dumps(model))
    elif way == "joblib":
        joblib.dump(model, tmp_path / "model")
        again = joblib.load(tmp_path / "model")
    else:
        again = through_skops(model) if way == "skops" else copy.deepcopy(model)
    np.testing.assert_array_equal(
        again.score_samples(test_rows[:50]), model.score_samples(test_rows[:50])
    )
    assert np.array_equal(again.sample(3, 0), model.sample(3, 0))
    assert again.diagnostics_ == model.diagnostics_


def test_stored_state_holds_plain_types_only(fitted_wasserstein):
    def leaves(value):
        if isinstance(value, dict):
            for part in value.values():
                yield from leaves(part)
        elif isinstance(value, list | tuple):
            for part in value:
                yield from leaves(part)
        else:
            yield value

    state = fitted_wasserstein.__getstate__()
    kinds = (np.ndarray, np.generic, str, int, float, bool, type(None))
    assert all(isinstance(leaf, kinds) for leaf in leaves(state))


def test_a_stored_model_can_be_continued(moons):
    model = pickle.loads(pickle.dumps(small(warm_start=True).fit(moons)))
    assert model.fit(moons).n_iter_ == 6


def test_names_of_features_are_checked(moons):
    frame = pd.DataFrame(moons, columns=["left", "up"])
    model = small().fit(frame)
    assert list(model.feature_names_in_) == ["left", "up"]
    with pytest.raises(ValueError, match="feature names"):
        model.score(frame[["up", "left"]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_type_of_the_rows(dtype, fitted_wasserstein, test_rows):
    X = test_rows[:5].astype(dtype)
    assert fitted_wasserstein.score_samples(X).dtype == dtype
    assert isinstance(fitted_wasserstein.score(X), float)
    torch_rows = torch.from_numpy(X)
    np.testing.assert_array_equal(
        fitted_wasserstein.score_samples(torch_rows), fitted_wasserstein.score_samples(X)
    )


def test_pipeline_search_and_cross_validation(moons):
    pipeline = make_pipeline(StandardScaler(), small(max_iter=1))
    parameters = {"wassersteinflowebm__proximal": ["jko", "none"]}
    search = GridSearchCV(pipeline, parameters, cv=2).fit(moons)
    assert np.isfinite(search.best_score_)
    assert search.best_estimator_.score_samples(moons).shape == (200,)
    assert np.isfinite(cross_val_score(small(), moons, cv=2)).all()
    assert clone(small(proximal_weight=0.3)).proximal_weight == 0.3


@pytest.mark.parametrize("n_features", [1, 5])
def test_other_widths(n_features):
    X = np.random.RandomState(0).randn(60, n_features) ** 3
    model = WassersteinFlowEBM(max_iter=2, random_state=0).fit(X)
    assert model.sample(4).shape == (4, n_features)
    assert np.isfinite(model.score(X))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "X",
    [
        np.array([[0.0, 1.0], [1.0, 0.0]]),
        np.column_stack([np.arange(30.0), np.zeros(30)]),
        np.repeat(np.arange(3.0), 20)[:, None],
        1e6 * np.random.RandomState(0).standard_cauchy((40, 2)),
    ],
)
def test_degenerate_rows_give_finite_answers(X):
    for parameters in ({}, {"reference": "mixture"}):
        model = small(**parameters).fit(X)
        assert np.isfinite(model.score_samples(X)).all()
        assert np.isfinite(model.sample(5, random_state=0)).all()
