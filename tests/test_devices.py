"""Everything on a device that is pretended, beside the same on the CPU: same noise, same numbers.

The list of options is built from the tables that check the parameters. An option that is added to
a table is run here; a parameter whose kind cannot be varied, or one without a table, fails until it
is given values below.
"""

import pickle
import sys
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.mixture import GaussianMixture

import sklvebm
from sklvebm import (
    MixtureReference,
    ParticleLVEBM,
    PotentialFlowEBM,
    TransformedDensity,
    WassersteinFlowEBM,
    baselines,
    checkpoints,
    compose,
    interpolate,
    load_model,
    save_model,
)
from sklvebm.baselines import _inference, _prior, non_amortized_vi
from sklvebm.baselines._contract import LayerSizes, PowerOfTwo
from sklvebm.estimators._common.parameters import Cache, Flag, Number, OneOf, Seed, Widths
from sklvebm.estimators._common.transactional_fit import Reporter
from sklvebm.estimators._ebm import normalization
from sklvebm.estimators._ebm import training as ebm_training
from sklvebm.estimators._flow import normalization as flow_normalization
from sklvebm.flows import explicit_energy
from sklvebm.inference import equilibration, posterior, sampling
from sklvebm.objectives import tempered_pool
from sklvebm.objectives.density_ratio import RatioStart

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NORMAL = np.random.default_rng(0).normal(size=(32, 16))
X = NORMAL[:, :2] @ np.array([[1.0, 0.5], [0.0, 0.7]])
FEW = 6  # rows that are asked about


def _public(module):
    kinds = [getattr(module, name) for name in module.__all__]
    return [k for k in kinds if isinstance(k, type) and issubclass(k, BaseEstimator)]


EVERY_KIND = _public(sklvebm) + _public(baselines)
KINDS = [k for k in EVERY_KIND if "device" in signature(k).parameters]
NO_DEVICE = {
    "DensityOutlierDetector": "leaves devices to its estimator",
    "GaussianMargins": "NumPy alone",
    "MixtureStack": "exact mixtures, on the CPU",
    "ParticleImputer": "leaves devices to its estimator",
    "TransformedDensity": "leaves devices to its estimator; a test of its own is below",
}

# Models that train in a moment, from a reference so wrong that what they learn is kept ----------


def reference(n_latents=1, device="cpu", n_features=2):
    """Return a mixture that is wider than the rows and elsewhere."""
    eye = torch.eye(n_features, device=device)
    return MixtureReference(
        torch.tensor([0.5, 0.5], device=device),
        1.5 * torch.stack([eye[0], -eye[0]]),
        torch.stack([1.5 * eye, 2.5 * eye]),
        latent_map=0.5 * eye[:n_latents],
        latent_variance=torch.full((n_latents,), 0.75, device=device),
        location=torch.zeros(n_features, device=device),
    )


class Own(torch.nn.Module):
    """A user's energy of two features and one latent."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, z):
        return self.scale * (x.square().sum(1) + (z - x[:, :1]).square().sum(1))


SMALL = {
    "n_components": 1,
    "hidden_layer_sizes": (4,),
    "prior_layer_sizes": (4,),
    "n_chains": 64,
    "n_temperatures": 2,
    "n_steps": 4,
    "n_importance_samples": 16,
    "early_stopping": False,
    "learning_rate_init": 0.1,
    "batch_size": 8,
    "max_iter": 2,
    "dtype": "float64",
    "random_state": 0,
}

# what it takes for what is learned to be kept, where it is not yet: too long for every option,
# which is seen in what is learned whether that is kept or not
KEPT = {"ParticleLVEBM": {"max_iter": 3, "batch_size": 4}}


class Made(NamedTuple):
    """A value that is made anew for every estimator."""

    name: str
    make: Callable[[], Any]


def small(kind, **options):
    """Return an estimator that trains in a moment, with some options changed."""
    known = signature(kind).parameters
    values = {**{name: value for name, value in SMALL.items() if name in known}, **options}
    if "reference" in known and "reference" not in options:
        n_latents = values.get("n_components", int(kind is not WassersteinFlowEBM))
        n_features = 16 if values.get("image_shape") else 2
        values["reference"] = reference(n_latents, n_features=n_features)
    made = {k: v.make() if isinstance(v, Made) else v for k, v in values.items()}
    return kind(**made)


# Every option ------------------------------------------------------------------------------------


class Alternatives(NamedTuple):
    """Values of a parameter beside the usual one."""

    paths: list = []  # may take another path
    words: list = []  # stand for numbers, which are chosen before there is any tensor
    zeros: list = []  # switch a term off
    sizes: list = []  # change a size or a number


mixture = Made("GaussianMixture", lambda: GaussianMixture(2, random_state=0))
module, factory = Made("module", Own), Made("factory", lambda: lambda n_features, n_latents: Own())
# parameters that no table has, and values where the rows or the time they take leave no choice
VALUES = {
    "reference": Alternatives(["mixture", "gaussian", mixture]),
    "energy": Alternatives([module, factory]),
    "image_shape": Alternatives([(4, 4)]),
    # of very few chains, the normaliser waits for many sweeps
    "n_chains": Alternatives(sizes=[48]),
}
BESIDE = {  # what a value cannot do without
    ("negatives", "contrastive"): {"n_temperatures": 1},
    ("init", "ratio"): {"early_stopping": True, "max_iter": 4, "n_networks": 2},
    # less to anneal than from a reference that is wrong
    ("energy", "module"): {"reference": "gaussian"},
    ("energy", "factory"): {"reference": "gaussian"},
}


def usual(kind, name):
    """Return the value that a parameter has while others are varied."""
    return SMALL.get(name, signature(kind).parameters[name].default)


def rules_of(kind):
    """Return the table that an estimator checks its parameters by."""
    return kind._rules if hasattr(kind, "_rules") else sys.modules[kind.__module__]._RULES


def alternatives(rule, usual):
    """Return all values of a parameter that can matter to a device."""
    none = [None] if getattr(rule, "none", False) else []
    words = [rule.word] if getattr(rule, "word", "") else []
    if isinstance(rule, OneOf):
        return Alternatives(paths=list(rule.options))
    if isinstance(rule, Flag):
        return Alternatives(paths=[True, False])
    if isinstance(rule, Widths):
        return Alternatives([*none, (3, 2)], words, sizes=[(3,)])
    if isinstance(rule, LayerSizes):
        return Alternatives([(), (3, 2)], sizes=[(3,)])
    if isinstance(rule, PowerOfTwo):
        return Alternatives(sizes=[rule.low, 2 * rule.low])
    if isinstance(rule, Cache):
        return Alternatives()
    if isinstance(rule, Seed):
        return Alternatives(sizes=[Made("RandomState", lambda: np.random.RandomState(1))])
    if not isinstance(rule, Number):
        raise TypeError(f"{rule!r} is of a kind that this suite cannot vary yet: teach it here.")
    is_number = isinstance(usual, int | float)
    if rule.integer:
        numbers = [int(rule.low), int(rule.low) + 1]
    else:
        within = usual / 2 if is_number and usual > rule.low else rule.low + 0.1
        numbers = [within] if rule.open_low else [rule.low, within]
    if usual is None or usual == 0:  # a number switches something on
        return Alternatives([*none, *numbers], words)
    zeros, sizes = [n for n in numbers if n == 0], [n for n in numbers if n != 0]
    if rule.integer:  # no epochs, no steps: little else would happen
        return Alternatives([*none, *zeros], words, sizes=sizes + [True] * rule.flag)
    return Alternatives(none, words, zeros, sizes)


class Case(NamedTuple):
    """An estimator with options."""

    kind: type
    options: dict[str, Any]
    name: str = ""

    def __str__(self):
        pairs = [f"{k}={getattr(v, 'name', v)}" for k, v in self.options.items()]
        return f"{self.kind.__name__}-{self.name or ','.join(pairs)}"


def alternatives_of(kind, name):
    """Return all values of a parameter but the usual one."""
    own = usual(kind, name)
    found = VALUES[name] if name in VALUES else alternatives(rules_of(kind)[name], own)
    return Alternatives(*([v for v in values if v != own] for values in found))


def cases_of(kind):
    """Return a case for each value that may take another path, and four for all that may not."""
    together = {"words": {}, "zeros": {}, "least": {}, "other": {}}
    alone = []
    for name in signature(kind).parameters:
        if name == "device":
            continue
        found = alternatives_of(kind, name)
        places = {"words": found.words, "zeros": found.zeros, "least": found.sizes[:1]}
        for place, values in {**places, "other": found.sizes[-1:]}.items():
            together[place].update((name, value) for value in values)
        for value in found.paths:
            word = getattr(value, "name", value)
            beside = BESIDE.get((name, word), {}) if isinstance(word, str) else {}
            alone.append(Case(kind, {name: value, **beside}))
    pools = [Case(kind, options, name) for name, options in together.items() if options]
    return [Case(kind, KEPT.get(kind.__name__, {}), "kept"), *alone, *pools]


CASES = [case for kind in KINDS for case in cases_of(kind)]


# Every method ------------------------------------------------------------------------------------

ARGUMENTS = {"n_samples": 3, "n_draws": 2, "random_state": 0}
CHOICES = {
    "bound": "upper",
    "method": "energy",
    "return_latents": True,
    "quantiles": [0.2, 0.7],
}


def methods_of(kind):
    """Return names of the public methods that this package defines and that answer."""
    own = [vars(c) for c in kind.__mro__ if c.__module__.startswith("sklvebm")]
    names = {name for members in own for name, member in members.items() if callable(member)}
    return sorted(n for n in names if not n.startswith(("_", "set_", "get_")))


# most likely latents, where a posterior is flat and its maximum loose
LOOSE = {"LatentEBM", "ParticleGradientDescent"}


def answers(model, rows):
    """Return what a fitted model says, by every method and choice, and what it has learned."""
    said = {"state": learned(model)}
    for name in methods_of(type(model)):
        # scores are means of what `score_samples` says
        if name in {"fit", "partial_fit", "score"} or not hasattr(model, name):
            continue
        method = getattr(model, name)
        parameters = [p for p in signature(method).parameters if p != "y"]
        given = [rows] if parameters[0] in {"X", "Z"} else []
        if name == "inverse_transform":
            given = [rows[:, : len(model.get_feature_names_out())]]
        fixed = {p: ARGUMENTS[p] for p in parameters if p in ARGUMENTS}
        said[name] = method(*given, **fixed)
        for choice in parameters[len(given) :]:
            if choice not in fixed:  # one that is not known here fails
                said[f"{name}, {choice}"] = method(*given, **fixed, **{choice: CHOICES[choice]})
    if type(model).__name__ in LOOSE:
        said["transform, loose"] = said.pop("transform")
    return said


def learned(model):
    """Return what a model keeps, as it is pickled, without what it was told."""
    left_out = {*model.get_params(deep=False), "device_", "_sklearn_version", "_checksum"}
    return {k: v for k, v in model.__getstate__().items() if k not in left_out}


def leaves(value, path=""):
    """Yield the numbers, words and arrays in nested state, with their places."""
    if isinstance(value, torch.nn.Module):
        value = dict(value.named_parameters())
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{path}/{key}")
    else:
        yield path, value.detach().numpy() if isinstance(value, torch.Tensor) else value


def assert_same(here, there, tolerance=1e-5):
    """Check that two nests of results are equal up to rounding.

    Most are equal to the last bit. Others are not, because a layer's product is followed by a sum
    where the CPU has one operation for both, and chains of moves let rounding grow: to 2e-6 of the
    largest number in double precision, to 1e-5 where draws or training are in single.
    """
    here, there = dict(leaves(here)), dict(leaves(there))
    assert list(here) == list(there)
    for path, value in here.items():
        if isinstance(value, np.ndarray | np.generic | float):
            largest = float(np.abs(np.nan_to_num(value)).max(initial=0.0))
            is_single = path.startswith("/sample") or getattr(value, "dtype", None) == np.float32
            is_loose = path == "/transform, loose"
            allowed = max(tolerance, 1e-4 * is_single, 1e-3 * is_loose) * largest + 1e-30
            np.testing.assert_allclose(there[path], value, rtol=0, atol=allowed, err_msg=path)
        else:
            assert there[path] == value, path


# how often things are done that are the same each time: what a fit says is not trusted here
FEWER = {
    normalization: {
        "_EQUILIBRATION_SWEEPS": 3,
        "_MAX_SWEEPS": 3,
        "_DIAGNOSTIC_ROUNDS": (2, 4),
        "_MAX_STEPS": 8,
    },
    tempered_pool: {"_BURN_IN_SWEEPS": 4},
    equilibration: {"_FIRST_STEPS": 4, "_MAX_STEPS": 8, "_N_MOVES": 3},
    flow_normalization: {"_STEP_COUNTS": (4, 8)},
    explicit_energy: {"_N_BURN_IN": 3},
    _prior: {
        "_MAX_STEPS": 8,
        "_SAMPLE_STEPS": 4,
        "_POLISH_STEPS": 2,
        "_EQUILIBRATION_STEPS": 4,
        "_QUICK_STEPS": 3,
    },
    _inference: {"_THOROUGH_STEPS": 5, "_THOROUGH_CLIMBS": 2},
    non_amortized_vi: {"_THOROUGH_STEPS": 8},
    sampling: {"LATENT_STAGES": ((2, 0.9), (4, 0.9), (8, 0.7))},
    posterior: {
        "_REVERSE_STEPS": 4,
        "LATENT_STAGES": ((2, 0.9), (4, 0.9), (8, 0.7)),
    },
}


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Fewer sweeps and annealing steps on both sides: every launch is made in Python here."""
    for module, counts in FEWER.items():
        for name, count in counts.items():
            monkeypatch.setattr(module, name, count)


@pytest.fixture(autouse=True)
def single_thread():
    """One thread on both sides: parts are added in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(case):
    """Return the rows that a case is fitted to."""
    return NORMAL if "image_shape" in case.options else X


def fitted(case, device):
    """Fit, and go on where the option says so."""
    model = small(case.kind, device=device, **case.options)
    for _ in range(2 if case.options.get("warm_start") else 1):
        model.fit(rows_of(case))
    return model


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_device_gives_what_the_cpu_gives(case, pretended):
    few = rows_of(case)[:FEW]
    expected = answers(fitted(case, "cpu"), few)
    with pretended() as trace:
        model = fitted(case, "pretended")
        assert model.device_ == "pretended:0" or model.device_ == "pretended"
        found = answers(model, few)
    assert trace.launches > 100
    is_single = case.options.get("dtype") == "float32"
    assert_same(expected, found, 1e-4 if is_single else 1e-5)


def test_every_parameter_of_every_estimator_is_varied():
    for kind in EVERY_KIND:
        parameters = set(signature(kind).parameters)
        if kind not in KINDS:
            assert kind.__name__ in NO_DEVICE
            continue
        varied = {name for case in CASES if case.kind is kind for name in case.options}
        # where references are kept is no matter of devices
        assert varied == parameters - {"device", "memory"}


def test_a_rule_of_an_unknown_kind_fails():
    with pytest.raises(TypeError, match="teach it here"):
        alternatives("a rule", 1.0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_learned_is_kept_so_that_answers_are_of_a_trained_model(kind):
    model = fitted(cases_of(kind)[0], "cpu")
    assert getattr(model, "improved_", True)


# Going on, moving, storing -----------------------------------------------------------------------

GO_ON = [k for k in KINDS if hasattr(k, "partial_fit")]
WARM = [k for k in KINDS if "warm_start" in signature(k).parameters]


def through_a_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("kind", GO_ON, ids=lambda kind: kind.__name__)
def test_partial_fit_gives_what_the_cpu_gives(kind, pretended):
    def run(device):
        model = small(kind, device=device).partial_fit(X)
        return answers(through_a_pickle(model.partial_fit(X[:20])).partial_fit(X), X[:FEW])

    expected = run("cpu")
    with pretended():
        assert_same(expected, run("pretended"))


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if hasattr(k, "conditional_mean")], ids=lambda kind: kind.__name__
)
def test_missing_cells_give_what_the_cpu_gives(kind, pretended):
    holes = np.where(np.random.default_rng(1).uniform(size=X.shape) < 0.15, np.nan, X)

    def run(device):
        # so many epochs that every one of five seeds gives an energy that is kept
        n_epochs = 10 if kind is ParticleLVEBM else 6
        model, rows = small(kind, device=device, max_iter=n_epochs).fit(holes), holes[:FEW]
        assert model.improved_  # answers are those of particles
        said = {
            "score_samples": model.score_samples(rows),
            "conditional_mean": model.conditional_mean(rows),
            "conditional_quantiles": model.conditional_quantiles(rows),
            "sample_conditional": model.sample_conditional(rows, 2, random_state=0),
            "state": learned(model),
        }
        if hasattr(model, "transform"):
            said["transform"] = model.transform(rows)
        return said

    expected = run("cpu")
    assert np.isnan(holes[:FEW]).any()
    with pretended() as trace:
        assert_same(expected, run("pretended"))
    assert trace.launches > 100


@pytest.mark.parametrize("kind", WARM, ids=lambda kind: kind.__name__)
def test_a_fit_goes_on_where_the_parameter_says(kind, pretended):
    def run(*devices):
        model = small(kind, device=devices[0], warm_start=True).fit(X)
        for device in devices[1:]:
            model = through_a_pickle(model).set_params(device=device).fit(X)
            assert model.device_.split(":")[0] == device
        return answers(model, X[:FEW])

    expected = run("cpu", "cpu", "cpu")
    with pretended() as trace:
        found = run("cpu", "pretended", "cpu")
        assert trace.launches > 100
    assert_same(expected, found)


@pytest.mark.parametrize("kind", GO_ON, ids=lambda kind: kind.__name__)
def test_a_fit_that_was_not_pickled_moves_to_another_device(kind, pretended):
    with pretended() as trace:
        model = small(kind, device="pretended", warm_start=True, max_iter=1).fit(X)
        model.set_params(device="cpu").fit(X)
        before = trace.launches
        model.set_params(device="pretended").fit(X)
        assert trace.launches > before + 100
        model.set_params(device="cpu").fit(X)
    assert model.device_ == "cpu"
    assert np.isfinite(model.score_samples(X[:FEW])).all()


@pytest.mark.parametrize("kind", [ParticleLVEBM, WassersteinFlowEBM])
def test_the_energy_of_the_ratio_is_judged_where_the_trained_one_is_rejected(
    kind, pretended, monkeypatch
):
    descended, judged = ebm_training._descended, []

    def gone_astray(*arguments):
        result, particles = descended(*arguments)
        with torch.no_grad():
            for parameter in result.best.network.parameters():
                parameter.mul_(-3.0)
        return result, particles

    def noted(pool, energy, state, generator):
        judged.append(str(state.pool.device))
        return resampled(pool, energy, state, generator)

    resampled = ebm_training.resampled_pool
    monkeypatch.setattr(ebm_training, "_descended", gone_astray)
    monkeypatch.setattr(ebm_training, "resampled_pool", noted)
    options = {"init": "ratio", "early_stopping": True, "max_iter": 4, "tol": None}
    case = Case(kind, options)
    expected = answers(fitted(case, "cpu"), X[:FEW])
    with pretended():
        found = answers(fitted(case, "pretended"), X[:FEW])
    # at the start of the particles, and again after the rejection
    assert [device.split(":")[0] for device in judged] == ["cpu"] * 2 + ["pretended"] * 2
    assert_same(expected, found)


def test_a_density_ratio_ends_the_fit_of_a_potential_flow(pretended, monkeypatch):
    monkeypatch.setattr(RatioStart, "mean_gain", lambda self, *_: -0.1)
    options = {"early_stopping": True, "max_iter": 100, "tol": 10.0, "n_iter_no_change": 1}
    case = Case(PotentialFlowEBM, options)
    on_cpu = fitted(case, "cpu")
    expected = answers(on_cpu, X[:FEW])
    with pretended():
        model = fitted(case, "pretended")
        found = answers(model, X[:FEW])
    assert {"ratio_loss"} <= set(model.history_[-1])
    assert len(model.history_) == len(on_cpu.history_)
    assert_same(expected, found)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_pickle_made_on_a_device_is_read_without_it(kind, pretended):
    expected = answers(fitted(Case(kind, {}), "cpu"), X[:FEW])
    with pretended():
        stored = pickle.dumps(fitted(Case(kind, {}), "pretended"))
    model = pickle.loads(stored)
    with pytest.raises(ValueError, match="device='pretended' is not available"):
        model.score_samples(X[:FEW])
    assert_same(expected, answers(model.set_params(device="auto"), X[:FEW]))


@pytest.mark.parametrize("kind", [ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM])
def test_a_folder_made_on_a_device_is_read_with_and_without_it(kind, pretended, tmp_path):
    pytest.importorskip("safetensors")
    with pretended():
        model = fitted(Case(kind, {}), "pretended")
        folder = save_model(model, tmp_path)
        assert_same(answers(model, X[:FEW]), answers(load_model(folder), X[:FEW]))
    expected = answers(pickle.loads(pickle.dumps(model)).set_params(device="cpu"), X[:FEW])
    assert_same(expected, answers(load_model(folder).set_params(device="cpu"), X[:FEW]))


@pytest.mark.parametrize("kind", [ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM])
def test_a_fit_that_was_interrupted_on_a_device_is_continued(
    kind, pretended, tmp_path, monkeypatch
):
    def make(device):
        return small(kind, device=device, max_iter=3)

    def stop(self, progress, value):
        if progress.epoch == 3:
            raise KeyboardInterrupt
        return original(self, progress, value)

    original = Reporter.__call__
    with pretended(), checkpoints(tmp_path, every=0):
        monkeypatch.setattr(Reporter, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            make("pretended").fit(X)
        monkeypatch.setattr(Reporter, "__call__", original)
        with pytest.raises(ValueError, match="type of device was .* and is cpu"):
            make("cpu").fit(X)
        again = make("pretended").fit(X)
        whole = make("pretended").fit(X)
    assert whole.__getstate__()["_checksum"] == again.__getstate__()["_checksum"]
    assert whole.history_ == again.history_


def test_modules_that_were_given_on_a_device_are_taken_and_stored_without_it(pretended):
    with pretended():
        energy = Own().to("pretended")
        model = small(ParticleLVEBM, device="pretended", energy=energy, reference="gaussian")
        anchored = small(ParticleLVEBM, device="pretended", reference=reference(1, "pretended"))
        stored = [pickle.dumps(m) for m in (model.fit(X), anchored.fit(X), clone(anchored))]
    expected = small(ParticleLVEBM, device="cpu", energy=Own(), reference="gaussian").fit(X)
    given, anchored, not_fitted = (pickle.loads(s).set_params(device="cpu") for s in stored)
    assert_same(learned(expected), learned(given))
    assert_same(expected.transform(X[:FEW]), given.transform(X[:FEW]))
    assert_same(learned(anchored), learned(not_fitted.fit(X)))


# What takes models or rows -----------------------------------------------------------------------


def test_rows_on_a_device_are_rows(pretended):
    expected = {kind: answers(fitted(Case(kind, {}), "cpu"), X[:FEW]) for kind in KINDS}
    with pretended():
        rows = torch.as_tensor(X, device="pretended")
        for kind in KINDS:
            model = small(kind, device="pretended").fit(rows)
            assert_same(expected[kind], answers(model, rows[:FEW]))


def test_compositions_and_paths_between_rows_give_what_the_cpu_gives(pretended):
    def run(device):
        latent, flow, plain = (fitted(Case(k, {}), device) for k in WARM)
        composed = compose([(latent, 1.0), (flow, 0.5), (plain, -0.1)])
        said = {
            "log_partition": composed.log_partition(n_walkers=32, tolerance=50.0, random_state=0)
        }
        said |= {"energy": composed.energy(X[:FEW]), "sample": composed.sample(3, random_state=0)}
        said |= {"score_samples": composed.score_samples(X[:FEW])}
        return said | {k: interpolate(m, X[0], X[1]) for k, m in enumerate((latent, flow))}

    expected = run("cpu")
    with pretended():
        assert_same(expected, run("pretended"))


def test_a_transformed_density_gives_what_the_cpu_gives(pretended):
    def run(device, rows):
        model = TransformedDensity(small(ParticleLVEBM, device=device)).fit(rows)
        return [model.score_samples(rows[:FEW]), model.transform(rows[:FEW]), model.sample(3, 0)]

    expected = run("cpu", X)
    with pretended():
        assert_same(expected, run("pretended", torch.as_tensor(X, device="pretended")))
