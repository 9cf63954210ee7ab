"""The short part of the suite: what is also run with the lowest versions of the dependencies.

The environment variable `SKLVEBM_FLOORS` adds scikit-learn's checks, of which the suite has more
elsewhere.
"""

import importlib.metadata
import os
import pickle
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from sklearn.base import BaseEstimator
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks

import sklvebm
from sklvebm import (
    DensityOutlierDetector,
    GaussianMargins,
    MixtureStack,
    ParticleImputer,
    ParticleLVEBM,
    PotentialFlowEBM,
    TransformedDensity,
    WassersteinFlowEBM,
    baselines,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROOT = Path(__file__).parents[1]
X = np.random.default_rng(0).normal(size=(60, 2)) @ np.array([[1.0, 0.5], [0.0, 0.7]])
SMALL = {"hidden_layer_sizes": (4,), "max_iter": 1, "random_state": 0}
CHAINS = {"n_chains": 64, "n_temperatures": 2}
OWN = [
    ParticleLVEBM(1, reference="gaussian", **CHAINS, **SMALL),
    PotentialFlowEBM(reference="gaussian", **SMALL),
    WassersteinFlowEBM(reference="gaussian", **CHAINS, **SMALL),
]
FEW = {"LatentEBM": {"n_chains": 16}}
BASELINES = [
    getattr(baselines, name)(1, **FEW.get(name, {}), **SMALL) for name in baselines.__all__
]
GAUSSIAN = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)
AROUND = [
    DensityOutlierDetector(GaussianMixture(random_state=0), random_state=0),
    GaussianMargins(),
    MixtureStack(random_state=0),
    ParticleImputer(GAUSSIAN),
    TransformedDensity(GaussianMixture(2, random_state=0)),
]
EVERY = [*OWN, *BASELINES, *AROUND]
# the other options that change which functions of the dependencies are called
OPTIONS = [
    ParticleLVEBM(1, latent_map="manifold", **CHAINS, **SMALL),
    ParticleLVEBM(1, posterior="amortized", early_stopping=False, **CHAINS, **SMALL),
    ParticleLVEBM(1, negatives="contrastive", n_temperatures=1, dynamics="mala", **SMALL),
    ParticleLVEBM(1, dynamics="heun", dtype="float64", warm_start=True, **CHAINS, **SMALL),
    TransformedDensity(PotentialFlowEBM(**SMALL)),
    WassersteinFlowEBM(proximal="gradient-penalty", **CHAINS, **SMALL),
]


def name_of(model):
    return type(model).__name__


def answers(model, rows):
    """Return what a fitted model says of rows, by every method it has."""
    said = {}
    for name in ("transform", "score_samples", "score"):
        if hasattr(model, name):
            said[name] = getattr(model, name)(rows)
    if hasattr(model, "sample"):
        of_mixture = isinstance(getattr(model, "estimator", None), GaussianMixture)
        said["sample"] = model.sample(5, random_state=None if of_mixture else 0)
    if hasattr(model, "inverse_transform"):
        said["inverse_transform"] = model.inverse_transform(said["transform"])
    return said


@pytest.mark.parametrize("model", [*EVERY, *OPTIONS], ids=name_of)
def test_every_estimator_fits_answers_and_is_stored(model):
    said = answers(model.fit(X), X[:7])
    assert said
    again = answers(pickle.loads(pickle.dumps(model)), X[:7])
    assert said.keys() == again.keys()
    for name, value in said.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_array_equal(again[name], value)


def test_no_estimator_is_left_out():
    public = [getattr(m, name) for m in (sklvebm, baselines) for name in m.__all__]
    kinds = {k for k in public if isinstance(k, type) and issubclass(k, BaseEstimator)}
    assert {type(model) for model in EVERY} == kinds


def test_what_is_tested_is_what_is_claimed():
    claims = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = claims["optional-dependencies"]["test"]
    floors = dict(claim.split(";")[0].split(">=") for claim in [*claims["dependencies"], *optional])
    lines = (ROOT / ".ci" / "constraints-floors.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {claim.split(">=")[0] for claim in claims["dependencies"]} <= pins.keys()
    for name, pin in pins.items():
        assert Version(pin) == Version(floors[name]), name


@pytest.mark.skipif("SKLVEBM_FLOORS" not in os.environ, reason="with the lowest versions only")
def test_the_lowest_versions_are_those_that_run():
    lines = (ROOT / ".ci" / "constraints-floors.txt").read_text().splitlines()
    for line in lines:
        if not line.startswith("#"):
            name, pin = line.split("==")
            # torch's is named by what runs the tests: its lowest version is large
            wanted = os.environ["SKLVEBM_FLOORS"] if name == "torch" else pin
            assert Version(importlib.metadata.version(name)).public == wanted


def test_fitted_models_are_composed_and_joined_by_paths():
    first, second = (
        WassersteinFlowEBM(reference="gaussian", **CHAINS, **{**SMALL, "max_iter": n}).fit(X)
        for n in (2, 3)
    )
    composed = sklvebm.compose([(first, 1.0), (second, 0.5)])
    assert np.isfinite(composed.energy(X[:5])).all()
    assert np.isfinite(composed.sample(3, random_state=0)).all()
    path = sklvebm.interpolate(OWN[0].fit(X), X[0], X[1])
    assert np.isfinite(path).all()


def test_values_with_a_step_are_seen():
    rounded = np.round(X, 1)
    np.testing.assert_allclose(sklvebm.resolution(rounded), 0.1)
    assert (sklvebm.dequantize(rounded, random_state=0) != rounded).all()


def test_versions_are_shown(capsys):
    sklvebm.show_versions()
    assert f"torch {torch.__version__.split('+')[0]}" in capsys.readouterr().out


@parametrize_with_checks(EVERY if "SKLVEBM_FLOORS" in os.environ else [])
def test_every_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    takes_none = isinstance(getattr(estimator, "estimator", None), GaussianMixture)
    equivalence = "check_sample_weight_equivalence_on_dense_data"
    if takes_none and check.func.__name__ in {"check_sample_weights_not_overwritten", equivalence}:
        with pytest.raises(TypeError, match=r"GaussianMixture.fit takes no sample_weight"):
            check(estimator)
    else:
        check(estimator)
