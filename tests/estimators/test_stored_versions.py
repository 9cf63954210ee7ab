"""States that other versions stored: read with the same scores, or an error that says what to do.

`stored/` holds states that version 0.1 wrote: what `__getstate__` returned, with arrays as bytes in
base 64, and scores of five rows. "late" states are those of the last month of 0.1; "early" ones
come from before its internal names settled.
"""

import base64
import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.preprocessing import StandardScaler

import sklvebm
import sklvebm.baselines
from sklvebm import (
    DensityOutlierDetector,
    GaussianMargins,
    MixtureStack,
    ParticleImputer,
    ParticleLVEBM,
    TransformedDensity,
)
from sklvebm.exceptions import DamagedStateError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

STORED = Path(__file__).parent / "stored"
LATE = sorted(path.name for path in STORED.glob("late_*"))
EARLY = sorted(path.name for path in STORED.glob("early_*"))
KEY = "_sklvebm_version"
READ_BY = "was stored by sklvebm {} and is read by"


def decoded(value):
    if isinstance(value, list):
        return [decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {name: decoded(part) for name, part in value["dict"].items()}
    if "tuple" in value:
        return tuple(decoded(part) for part in value["tuple"])
    numbers = np.frombuffer(base64.b64decode(value["bytes"]), value["dtype"])
    return numbers.reshape(value["shape"]).copy()


def stored(name):
    """Return an estimator to restore, its state, rows and the scores that the writer gave them."""
    data = json.loads((STORED / name).read_text())
    kind = getattr(sklvebm, data["class"])
    return kind.__new__(kind), *(decoded(data[key]) for key in ("state", "X", "score_samples"))


def small_stack():
    X = np.random.RandomState(0).normal(size=(30, 2))
    return MixtureStack(covariance_types=["diag"], max_components=1, random_state=0).fit(X), X


@pytest.mark.parametrize("name", LATE)
def test_a_state_of_0_1_gives_the_scores_that_0_1_gave(name):
    model, state, X, scores = stored(name)
    with pytest.warns(UserWarning, match=READ_BY.format("0.1")):
        model.__setstate__(state)
    np.testing.assert_array_equal(model.score_samples(X), scores)
    assert np.isfinite(model.sample(3, random_state=0)).all()
    # parameters of today are there: what the fit did without them
    assert model.get_params()["margins"] == model.margins_ == "none"
    assert "margins='none'" in repr(model)


@pytest.mark.parametrize("name", LATE)
def test_a_state_of_0_1_has_every_attribute_of_today(name):
    model, state, X, _ = stored(name)
    with pytest.warns(UserWarning, match="0.1"):
        model.__setstate__(state)
    today = copy.deepcopy(model).set_params(random_state=0).fit(X)
    public = {name for name in vars(today) if name[0] != "_"}
    assert public == {name for name in vars(model) if name[0] != "_"}


@pytest.mark.parametrize("name", [name for name in LATE if "mixture" not in name])
def test_training_goes_on_from_a_state_of_0_1(name):
    model, state, X, _ = stored(name)
    with pytest.warns(UserWarning, match="0.1"):
        model.__setstate__(state)
    n_before = model.n_iter_
    if hasattr(model, "partial_fit"):
        model.partial_fit(X)
    else:
        model.set_params(max_iter=1).fit(X)
    assert model.n_iter_ == n_before + hasattr(model, "partial_fit")


@pytest.mark.parametrize("name", EARLY)
def test_an_early_state_names_both_versions_and_the_remedy(name):
    model, state, _, _ = stored(name)
    with pytest.raises(ValueError, match="stored by sklvebm 0.1, and sklvebm 0.2") as error:
        model.__setstate__(state)
    assert "Fit the model again" in str(error.value)
    assert 'pip install "sklvebm==0.1.*"' in str(error.value)
    assert error.value.__cause__ is not None


def test_a_state_of_a_later_version_that_is_read_warns(recwarn):
    model, X = small_stack()
    state = {**model.__getstate__(), KEY: "9.3.1"}
    other = MixtureStack.__new__(MixtureStack)
    other.__setstate__(state)
    assert READ_BY.format("9.3.1") in str(recwarn.pop(UserWarning).message)
    np.testing.assert_array_equal(other.score_samples(X), model.score_samples(X))


def test_a_state_of_a_later_version_that_cannot_be_read_names_it():
    model, _ = small_stack()
    state = {**model.__getstate__(), KEY: "9.3.1"}
    state.pop("_checksum")
    state["_plain"] = {"reference": state["_plain"]["reference"]}
    with pytest.raises(ValueError, match=r'by sklvebm 9\.3\.1, .*"sklvebm==9\.3\.1"'):
        MixtureStack.__new__(MixtureStack).__setstate__(state)


def test_damage_is_named_as_damage_whichever_version_wrote_it():
    model, state, _, _ = stored(LATE[0])
    state["mean_"] = state["mean_"] + 1.0
    with pytest.raises(DamagedStateError, match="damaged"):
        model.__setstate__(state)


def test_an_error_in_a_state_of_this_version_stays_what_it_is():
    model, _ = small_stack()
    state = model.__getstate__()
    state.pop("_checksum")
    state["_plain"] = {}
    with pytest.raises(KeyError, match="reference"):
        MixtureStack.__new__(MixtureStack).__setstate__(state)


@pytest.mark.parametrize(
    "estimator",
    [
        MixtureStack(),
        ParticleLVEBM(),
        GaussianMargins(),
        ParticleImputer(),
        DensityOutlierDetector(),
        TransformedDensity(MixtureStack(), transformer=StandardScaler()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_every_stored_estimator_carries_the_version(estimator, recwarn):
    assert estimator.__getstate__()[KEY] == sklvebm.__version__
    other = pickle.loads(pickle.dumps(estimator))
    assert set(vars(other)) == set(vars(estimator))
    assert not recwarn


def test_every_public_estimator_carries_the_version():
    owners = [getattr(m, name) for m in (sklvebm, sklvebm.baselines) for name in m.__all__]
    kinds = [kind for kind in owners if isinstance(kind, type) and issubclass(kind, BaseEstimator)]
    assert len(kinds) > 10
    for kind in kinds:
        assert KEY in kind.__new__(kind).__getstate__(), kind


def test_parameters_alone_are_read_without_a_warning(recwarn):
    state = MixtureStack(max_components=3).__getstate__()
    del state[KEY], state["margins"]
    model = MixtureStack.__new__(MixtureStack)
    model.__setstate__(state)
    assert (model.max_components, model.margins) == (3, "none")
    assert not recwarn
