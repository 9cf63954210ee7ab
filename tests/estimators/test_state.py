"""Fitted state stored and copied, and the global state of torch and NumPy left alone."""

import copy
import pickle
import threading
import warnings
from contextlib import contextmanager
from typing import NamedTuple

import joblib
import numpy as np
import pytest
import skops.io
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import nn

import sklvebm.training
from sklvebm import LinearGaussianEnergy, ParticleLVEBM
from sklvebm.estimators._ebm import fitted_model as ebm_model
from sklvebm.estimators._flow import fitted_model as flow_model

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# Storage -----------------------------------------------------------------------------------------


def through_pickle(model, folder):
    return pickle.loads(pickle.dumps(model))


def through_joblib(model, folder):
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


def through_memory_map(model, folder):
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib", mmap_mode="r")


def through_deepcopy(model, folder):
    return copy.deepcopy(model)


def through_skops(model, folder):
    data = skops.io.dumps(model)
    untrusted = skops.io.get_untrusted_types(data=data)
    assert all(name.startswith("sklvebm.") for name in untrusted), untrusted
    return skops.io.loads(data, trusted=untrusted)


ROUND_TRIPS = [through_pickle, through_joblib, through_memory_map, through_deepcopy, through_skops]


FEW = 4  # latents that rows are asked for, by annealing: of two hundred, it takes seconds


def answers(model, X):
    """Return what a model says of rows X, its draws and how it was trained."""
    Z = model.transform(X)
    return {
        "score_samples": model.score_samples(X),
        "transform": Z,
        "inverse_transform": model.inverse_transform(Z[:FEW]),
        "sample": model.sample(5, random_state=0),
        "sample_posterior": model.sample_posterior(X, random_state=0),
        "lower_bounds": np.array(model.lower_bounds_),
    }


def assert_equal(found, expected):
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def assert_same_answers(model, other, X):
    assert_equal(answers(other, X), answers(model, X))


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
def test_a_stored_model_answers_bit_for_bit(fitted, moons, round_trip, tmp_path):
    other = round_trip(fitted, tmp_path)
    assert_same_answers(fitted, other, moons)
    assert set(vars(other)) == set(vars(fitted))
    assert other.get_params() == fitted.get_params()
    assert other.log_partition_ == fitted.log_partition_
    assert other.lower_bounds_ == fitted.lower_bounds_
    assert other.history_ == fitted.history_


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_stored_model_continues_training(small, moons, round_trip, method, tmp_path):
    model = small(warm_start=True, max_iter=2).fit(moons)
    other = round_trip(model, tmp_path)
    getattr(other, method)(moons)
    assert other.n_iter_ == (4 if method == "fit" else 3)
    assert np.isfinite(other.score(moons))
    # the optimiser is carried on with: Adam's moments have seen all updates
    assert other._training.optimisation.n_updates > model._training.optimisation.n_updates
    assert model.n_iter_ == 2


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
def test_an_unfitted_model_is_stored_by_its_parameters(small, round_trip, tmp_path):
    model = small(hidden_layer_sizes=[3, 4])
    assert round_trip(model, tmp_path).get_params() == model.get_params()


@pytest.mark.parametrize("round_trip", [through_pickle, through_joblib, through_deepcopy])
def test_a_model_with_a_user_energy_is_stored(small, round_trip, tmp_path):
    X = np.random.RandomState(0).normal(size=(40, 2))
    model = small(energy=LinearGaussianEnergy(2, 1), reference="gaussian").fit(X)
    assert_same_answers(model, round_trip(model, tmp_path), X)


def test_storing_a_model_changes_nothing_in_it(fitted, moons):
    before, scores = dict(vars(fitted)), fitted.score_samples(moons)
    pickle.dumps(fitted)
    copy.deepcopy(fitted)
    after = vars(fitted)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    np.testing.assert_array_equal(fitted.score_samples(moons), scores)


def test_a_deep_copy_shares_nothing(small, moons):
    model = small().fit(moons)
    scores = model.score_samples(moons)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.energy_.parameters():
            parameter.add_(1.0)
    other.mean_[:] = 7.0
    other.lower_bounds_.clear()
    np.testing.assert_array_equal(model.score_samples(moons), scores)
    assert len(model.lower_bounds_) == 3


def test_a_stored_model_of_the_default_network_is_small(moons):
    model = ParticleLVEBM(max_iter=2, random_state=0).fit(moons)
    assert len(pickle.dumps(model)) < 1.5e6


def test_a_stored_model_holds_no_training_rows(small, moons):
    many = np.random.RandomState(0).normal(size=(4000, 2))
    # one Gaussian, because the number of mixture components grows with the rows
    sizes = [
        len(pickle.dumps(small(reference="gaussian", embedding="none", max_iter=1).fit(X)))
        for X in (many[:100], many)
    ]
    assert sizes[1] < 1.1 * sizes[0]
    model = small().fit(moons)
    stored = pickle.dumps(model)
    standardised = (moons - model.mean_) / model.scale_
    for X in (moons, standardised, standardised.astype(np.float32)):
        assert not [row for row in X if row.tobytes() in stored]


def test_stored_state_consists_of_arrays_and_plain_types(fitted):
    def types_in(value):
        yield type(value)
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        for part in value if isinstance(value, list | tuple) else ():
            yield from types_in(part)

    allowed = {bool, dict, float, int, list, np.ndarray, str, tuple, type(None)}
    assert set(types_in(fitted.__getstate__())) <= allowed


# Global state ------------------------------------------------------------------------------------


def global_state():
    kind, keys, position, *gauss = np.random.get_state()
    return {
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "NumPy generator": (kind, keys.tobytes(), position, *gauss),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "floating-point errors": np.geterr(),
    }


@contextmanager
def unchanged_global_state():
    before = global_state()
    yield
    assert global_state() == before


@pytest.fixture
def _two_threads():
    """Let torch use two threads, so that a limit which is not lifted can be seen."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_no_method_touches_global_state(small, moons):
    model = small()
    calls = {
        "fit": lambda: model.fit(moons),
        "fit_transform": lambda: model.fit_transform(moons),
        "partial_fit": lambda: model.partial_fit(moons),
        "score_samples": lambda: model.score_samples(moons),
        "score": lambda: model.score(moons),
        "transform": lambda: model.transform(moons),
        "inverse_transform": lambda: model.inverse_transform(moons[:, :1]),
        "sample": lambda: model.sample(3, random_state=0),
        "sample_posterior": lambda: model.sample_posterior(moons, random_state=0),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
    }
    for name, call in calls.items():
        before = global_state()
        call()
        assert global_state() == before, name


@pytest.mark.usefixtures("_two_threads")
def test_unseeded_calls_leave_global_generators_alone(small, moons):
    model = small(random_state=None)
    with unchanged_global_state():
        model.fit(moons)
    with unchanged_global_state():
        model.sample(3)
    with unchanged_global_state():
        model.sample_posterior(moons)


def noisy_energy(n_features, n_latents):
    """A factory whose weights come from torch's global generator."""
    energy = LinearGaussianEnergy(n_features, n_latents)
    nn.init.normal_(energy.mean, std=0.1)
    return energy


@pytest.mark.usefixtures("_two_threads")
def test_an_energy_factory_draws_repeatably_without_touching_the_global_generator(small):
    X = np.random.RandomState(0).normal(size=(40, 2))
    with unchanged_global_state():
        first = small(energy=noisy_energy, max_iter=1).fit(X)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        second = small(energy=noisy_energy, max_iter=1).fit(X)
    np.testing.assert_array_equal(first.score_samples(X), second.score_samples(X))


def failing_energy(n_features, n_latents):
    torch.randn(3)
    raise RuntimeError("no energy")


@pytest.mark.usefixtures("_two_threads")
def test_an_exception_leaves_global_state_alone(small, fitted, moons, monkeypatch):
    calls = [
        lambda: small().fit(moons[:1]),
        lambda: small(n_chains=0).fit(moons),
        lambda: small(energy=failing_energy).fit(moons),
        lambda: fitted.score_samples(moons[:, :1]),
        lambda: fitted.sample(0),
    ]
    for call in calls:
        with unchanged_global_state(), pytest.raises((RuntimeError, ValueError)):
            call()
    interrupt_update(monkeypatch, 5)
    with unchanged_global_state(), pytest.raises(KeyboardInterrupt):
        small().fit(moons)


# Surroundings ------------------------------------------------------------------------------------


@contextmanager
def default_dtype_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Training stopped at max_iter")
        before = torch.is_warn_always_enabled()
        torch.set_warn_always(True)
        try:
            yield
        finally:
            torch.set_warn_always(before)


SURROUNDINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "seterr": lambda: np.errstate(all="raise"),
    "default dtype": default_dtype_float64,
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "warnings": warnings_as_errors,
}


class Undisturbed(NamedTuple):
    """Parameters and rows, and what a model says of them after one and two continued fits."""

    parameters: dict
    X: np.ndarray
    once: dict
    twice: dict


@pytest.fixture(scope="module", params=["network", "user energy"])
def undisturbed(request, small, moons):
    parameters, X = {}, moons
    if request.param == "user energy":
        parameters = {"energy": LinearGaussianEnergy(2, 1), "max_iter": 1}
        # annealing to a Gaussian energy is quick where the rows are Gaussian
        X = np.random.RandomState(0).normal(size=(40, 2))
    model = small(**parameters).fit(X).partial_fit(X)
    return Undisturbed(parameters, X, answers(model, X), answers(model.partial_fit(X), X))


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_surroundings_change_no_number(small, undisturbed, surroundings):
    model, X = small(**undisturbed.parameters), undisturbed.X
    with SURROUNDINGS[surroundings]():
        model.fit(X).partial_fit(X)
        copied = pickle.loads(pickle.dumps(model))
    assert_equal(answers(model, X), undisturbed.once)
    assert_equal(answers(copied, X), undisturbed.once)
    # the models made there are models like any other
    copied.partial_fit(X)
    assert_equal(answers(model.partial_fit(X), X), undisturbed.twice)


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_surroundings_change_no_answer_of_a_model_made_elsewhere(fitted, moons, surroundings):
    expected = copy.deepcopy(fitted)
    with SURROUNDINGS[surroundings]():
        scores, Z = fitted.score_samples(moons), fitted.transform(moons)
        X, draws = fitted.inverse_transform(Z[:FEW]), fitted.sample(5, random_state=0)
    np.testing.assert_array_equal(scores, expected.score_samples(moons))
    np.testing.assert_array_equal(Z, expected.transform(moons))
    np.testing.assert_array_equal(X, expected.inverse_transform(Z[:FEW]))
    np.testing.assert_array_equal(draws, expected.sample(5, random_state=0))


def test_asking_changes_no_attribute(small, moons):
    model = small().fit(moons)
    before = dict(vars(model))
    assert_same_answers(model, model, moons)
    assert vars(model).keys() == before.keys()
    assert all(value is before[name] for name, value in vars(model).items())


@pytest.mark.usefixtures("_two_threads")
def test_two_fits_in_two_threads_equal_their_serial_results(small, moons):
    data = [moons, moons[:, ::-1] * 2.0]
    serial = [small(random_state=i, max_iter=8).fit(X).score_samples(X) for i, X in enumerate(data)]
    results = {}

    def work(i, X):
        model = small(random_state=i, max_iter=8).fit(X)
        results[i] = model.score_samples(X)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(data)]
    with unchanged_global_state():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    np.testing.assert_array_equal(results[0], serial[0])
    np.testing.assert_array_equal(results[1], serial[1])


# Interruption ------------------------------------------------------------------------------------


def interrupt_update(monkeypatch, number):
    """Let the given parameter update of the following training end in Ctrl-C."""
    original, n_calls = sklvebm.training.move_average, 0

    def update(*arguments):
        nonlocal n_calls
        n_calls += 1
        if n_calls == number:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(sklvebm.training, "move_average", update)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_an_interrupted_first_fit_leaves_an_unfitted_model(small, moons, method, monkeypatch):
    model = small()
    interrupt_update(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        getattr(model, method)(moons)
    assert set(vars(model)) == set(model.get_params())
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    monkeypatch.undo()
    assert_same_answers(model.fit(moons), small().fit(moons), moons)


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_an_interrupted_later_fit_leaves_the_former_model(
    small, moons, method, warm_start, monkeypatch
):
    model, twin = (small(warm_start=warm_start).fit(moons) for _ in range(2))
    with monkeypatch.context() as patch:
        interrupt_update(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            getattr(model, method)(moons[:, ::-1] if not warm_start else moons)
    assert model.n_iter_ == 3
    assert len(model.lower_bounds_) == len(model.history_) == 3
    assert_same_answers(model, twin, moons)
    # nor has the interrupted training moved what a continued one starts from
    assert_same_answers(model.partial_fit(moons), twin.partial_fit(moons), moons)


def test_answers_do_not_depend_on_the_number_of_threads(small, moons):
    # 200 rows of 64 particles are two chunks, which run side by side on two threads
    model = small().fit(moons)
    before = torch.get_num_threads()
    try:
        answers = []
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            answers.append([model.score_samples(moons), model.transform(moons)])
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("kind", ["particles", "flow"])
def test_chunks_keep_to_one_thread_whatever_other_threads_set(kind, fitted, fitted_flow, moons):
    room, model = (ebm_model, fitted) if kind == "particles" else (flow_model, fitted_flow)
    both_in, seen = threading.Barrier(2, timeout=20.0), []

    def answer(_, x, *__):
        # what another thread does that leaves a limit of its own
        other = threading.Thread(target=torch.set_num_threads, args=(2,))
        other.start()
        other.join()
        both_in.wait()
        seen.append(torch.get_num_threads())
        return x[:, 0]

    rows = np.resize(moons, (2**12, 2))
    many = {"particles_per_row": 4} if kind == "particles" else {"n_directions": 8}
    room._answer_rows(model._model, rows, torch.device("cpu"), answer, **many)
    assert set(seen) == {1}
