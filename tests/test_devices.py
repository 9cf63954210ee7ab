"""Everything on a device that is pretended, beside the same on the CPU: same noise, same numbers.

The list of options is built from the tables that check the parameters. An option that is added to
a table is run here; a parameter whose kind cannot be varied, or one without a table, fails until it
is given values below.
"""

import sys
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.mixture import GaussianMixture

import sklvebm
from sklvebm import MixtureReference, ParticleLVEBM, WassersteinFlowEBM, baselines
from sklvebm.baselines._contract import LayerSizes, PowerOfTwo
from sklvebm.estimators._parameters import Flag, Number, OneOf, Seed, Widths

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.default_rng(0).normal(size=(32, 2)) @ np.array([[1.0, 0.5], [0.0, 0.7]])
FEW = X[:6]


def _public(module):
    kinds = [getattr(module, name) for name in module.__all__]
    return [k for k in kinds if isinstance(k, type) and issubclass(k, BaseEstimator)]


EVERY_KIND = _public(sklvebm) + _public(baselines)
KINDS = [k for k in EVERY_KIND if "device" in signature(k).parameters]
NO_DEVICE = {
    "GaussianMargins": "NumPy alone",
    "TransformedDensity": "leaves devices to its estimator; a test of its own is below",
}

# Models that train in a moment, from a reference so wrong that what they learn is kept ----------


def reference(n_latents=1, device="cpu"):
    """Return a mixture that is wider than the rows and elsewhere."""
    eye = torch.eye(2, device=device)
    return MixtureReference(
        torch.tensor([0.5, 0.5], device=device),
        torch.tensor([[1.5, 0.0], [-1.5, 0.0]], device=device),
        torch.stack([1.5 * eye, 2.5 * eye]),
        latent_map=0.5 * eye[:n_latents],
        latent_variance=torch.full((n_latents,), 0.75, device=device),
        location=torch.zeros(2, device=device),
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
        values["reference"] = reference(n_latents)
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
    "image_shape": Alternatives([(1, 2)]),
    # of very few chains, the normaliser waits for many sweeps
    "n_chains": Alternatives(sizes=[48]),
}
BESIDE = {  # what a value cannot do without
    ("negatives", "contrastive"): {"n_temperatures": 1},
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
            beside = BESIDE.get((name, value), {}) if isinstance(value, str) else {}
            alone.append(Case(kind, {name: value, **beside}))
    pools = [Case(kind, options, name) for name, options in together.items() if options]
    return [Case(kind, {}, "usual"), *alone, *pools]


CASES = [case for kind in KINDS for case in cases_of(kind)]


# Every method ------------------------------------------------------------------------------------

ARGUMENTS = {"n_samples": 3, "n_draws": 2, "random_state": 0}
CHOICES = {"bound": "upper", "method": "energy", "return_latents": True}


def methods_of(kind):
    """Return names of the public methods that this package defines and that answer."""
    own = [vars(c) for c in kind.__mro__ if c.__module__.startswith("sklvebm")]
    names = {name for members in own for name, member in members.items() if callable(member)}
    return sorted(n for n in names if not n.startswith(("_", "set_", "get_")))


def answers(model, rows=FEW):
    """Return what a fitted model says, by every method and choice, and what it has learned."""
    said = {"state": learned(model)}
    for name in methods_of(type(model)):
        if name in {"fit", "partial_fit"} or not hasattr(model, name):
            continue
        method = getattr(model, name)
        parameters = [p for p in signature(method).parameters if p != "y"]
        given = [model.transform(rows)] if name == "inverse_transform" else [rows]
        given = given if parameters[0] in {"X", "Z"} else []
        fixed = {p: ARGUMENTS[p] for p in parameters if p in ARGUMENTS}
        said[name] = method(*given, **fixed)
        for choice in parameters[len(given) :]:
            if choice not in fixed:  # one that is not known here fails
                said[f"{name}, {choice}"] = method(*given, **fixed, **{choice: CHOICES[choice]})
    return said


def learned(model):
    """Return what a model keeps, as it is pickled, without what it was told."""
    told = model.get_params(deep=False)
    state = model.__getstate__()
    return {
        k: v for k, v in state.items() if k not in told and k not in {"device_", "_sklearn_version"}
    }


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


def assert_same(here, there):
    """Check that two nests of results are equal up to rounding."""
    here, there = dict(leaves(here)), dict(leaves(there))
    assert list(here) == list(there)
    bad = {}
    for path, value in here.items():
        if isinstance(value, np.ndarray | np.generic | float):
            a, b = np.asarray(value, float), np.asarray(there[path], float)
            e = np.abs(np.nan_to_num(a - b)).max(initial=0) / (1e-300 + np.abs(a).max(initial=0))
            if e > 0: bad[path] = float(e)
        else:
            assert there[path] == value, path
    if bad:
        w = sorted(bad.items(), key=lambda t: -t[1])[:4]
        print("ERR", " ".join(f"{k.replace('/state/','')}:{v:.1e}" for k, v in w))
        assert max(bad.values())<1e-9


@pytest.fixture(autouse=True)
def single_thread():
    """One thread on both sides: parts are added in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fitted(case, device, rows=X):
    """Fit, and go on where the option says so."""
    model = small(case.kind, device=device, **case.options)
    for _ in range(2 if case.options.get("warm_start") else 1):
        model.fit(rows)
    return model


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_device_gives_what_the_cpu_gives(case, pretended):
    expected = answers(fitted(case, "cpu"))
    with pretended() as trace:
        model = fitted(case, "pretended")
        assert model.device_.startswith("pretended")
        assert_same(expected, answers(model))
    assert trace.launches > 100
