"""Models in folders: equal to the last bit, replaced in one step, clear about what is wrong."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.impute import MissingIndicator
from sklearn.tree import DecisionTreeRegressor

import sklvebm
from sklvebm import (
    DensityOutlierDetector,
    GaussianMargins,
    LinearGaussianEnergy,
    MixtureReference,
    MixtureStack,
    ParticleImputer,
    ParticleLVEBM,
    PotentialFlowEBM,
    TransformedDensity,
    WassersteinFlowEBM,
    load_model,
    save_model,
)
from sklvebm.baselines import VAE, HardEM, LatentEBM, NonAmortizedVI, ParticleGradientDescent
from sklvebm.exceptions import DamagedStateError
from sklvebm.persistence import folders
from sklvebm.persistence.trees import decoded, encoded

safetensors = pytest.importorskip("safetensors.numpy")

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore:Fewer than"
)

RANDOM = np.random.RandomState(0)
X = RANDOM.normal(size=(60, 3))
ROUNDED = np.round(RANDOM.uniform(size=(300, 2)), 2)
PIXELS = RANDOM.normal(size=(40, 16))
MISSING = np.where(RANDOM.uniform(size=X.shape) < 0.1, np.nan, X)
STACK = MixtureStack(covariance_types=["diag"], max_components=1, random_state=0)
ONE = torch.eye(2, dtype=torch.float64)
REFERENCE = MixtureReference(
    torch.ones(1),
    torch.zeros(1, 2),
    ONE[None],
    latent_map=ONE,
    latent_variance=torch.ones(2),
    location=torch.zeros(2),
)
SHORT = {"max_iter": 1, "random_state": 0}
CASES = [
    (STACK, X),
    (MixtureStack(margins="histogram", max_components=1, random_state=0), ROUNDED),
    (ParticleLVEBM(n_components=1, latent_map="manifold", **SHORT), X),
    (ParticleLVEBM(embedding="periodic", init="ratio", **SHORT), X),
    (ParticleLVEBM(embedding="periodic", init="ratio", n_networks=2, **SHORT), X),
    (ParticleLVEBM(image_shape=(4, 4), n_components=1, reference="gaussian", **SHORT), PIXELS),
    (WassersteinFlowEBM(**SHORT), X),
    (PotentialFlowEBM(**SHORT), X),
    (GaussianMargins(), ROUNDED),
    (TransformedDensity(STACK, transformer=GaussianMargins()), ROUNDED),
    (ParticleImputer(STACK, add_indicator=True), MISSING),
    (DensityOutlierDetector(STACK), X),
    *((kind(**SHORT), X) for kind in (VAE, HardEM, LatentEBM, NonAmortizedVI)),
    (ParticleGradientDescent(**SHORT), X),
]


def answers(model, rows):
    """Return what a model says of rows."""
    asked = ("score_samples", "transform", "predict", "explain_outlier")
    found = {name: getattr(model, name)(rows) for name in asked if hasattr(model, name)}
    if hasattr(model, "sample"):
        found["sample"] = model.sample(4, random_state=0)
    return found


@pytest.mark.parametrize(("model", "rows"), CASES, ids=lambda v: type(v).__name__)
def test_a_model_from_a_folder_answers_bit_for_bit(model, rows, tmp_path):
    fitted = model.fit(rows)
    loaded = load_model(save_model(fitted, tmp_path / "model"))
    expected, found = answers(fitted, rows[:6]), answers(loaded, rows[:6])
    assert expected
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert set(vars(loaded)) == set(vars(fitted))
    assert repr(loaded) == repr(fitted)
    # every number of the state, not only of the answers
    assert loaded.__getstate__().get("_checksum") == fitted.__getstate__().get("_checksum")


def test_training_goes_on_after_a_round_trip_as_without_it(tmp_path):
    model = ParticleLVEBM(n_components=1, hidden_layer_sizes=(4,), **SHORT).fit(X)
    loaded = load_model(save_model(model, tmp_path))
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        loaded.partial_fit(X).score_samples(X[:5]), other.partial_fit(X).score_samples(X[:5])
    )


def test_a_model_is_read_in_a_process_of_its_own(tmp_path):
    save_model(STACK.fit(X), tmp_path)
    np.save(tmp_path / "X.npy", X)
    code = (
        "import sys, numpy as np; from sklvebm import load_model;"
        "print(load_model(sys.argv[1]).score(np.load(sys.argv[1] + '/X.npy')).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(sklvebm.__file__).parents[1])},
    )
    assert done.stdout.strip() == STACK.score(X).hex(), done.stderr


def test_other_programs_can_read_the_network(tmp_path):
    model = ParticleLVEBM(n_components=1, hidden_layer_sizes=(4,), embedding="none", **SHORT)
    folder = save_model(model.fit(X), tmp_path)
    (file,) = folder.glob("*.safetensors")
    arrays = safetensors.load_file(file)
    names = [name for name in arrays if name.startswith("_plain/energy/arrays/")]
    assert any(arrays[name].shape == (4, 4) for name in names)  # from three features, one latent
    description = json.loads((folder / "model.json").read_text())
    assert description["versions"]["sklvebm"] == sklvebm.__version__
    assert {"torch", "numpy", "scikit-learn"} < set(description["versions"])
    assert description["model"]["estimator"] == "sklvebm.ParticleLVEBM"


def test_an_unfitted_model_and_its_parameters_are_stored(tmp_path):
    seed = np.random.default_rng(3)
    model = ParticleLVEBM(
        hidden_layer_sizes=[3, 4], random_state=seed, memory=tmp_path / "kept", tol=None
    )
    loaded = load_model(save_model(model, tmp_path))
    assert loaded.random_state.normal() == np.random.default_rng(3).normal()
    assert loaded.memory == str(tmp_path / "kept")
    for name in ("hidden_layer_sizes", "tol", "reference"):
        assert getattr(loaded, name) == getattr(model, name)


# Trees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        (1, 2.5, None, True, "word", b"\x00\xff"),
        [float("inf"), -float("inf"), 1e-320, 0.1, -0.0],
        {"a": {1: [2], (3, 4): "five"}, "number": 6},
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array(["a", "b"], dtype=object),
        np.array([["c"], ["d"]]),
        np.zeros((0, 3)),
        np.array(7.0),
        np.array([True, False]),
        np.float32(0.1),
        np.int64(3),
        np.bool_(True),
        {"array": "not an array"},
        {"a": {"b": np.ones(1)}, "a/b": np.zeros(2)},
    ],
    ids=repr,
)
def test_values_come_back_as_they_were(value):
    arrays = {}
    tree = json.loads(json.dumps(encoded(value, arrays), allow_nan=False))
    found = decoded(tree, safetensors.load(safetensors.save(arrays)))
    np.testing.assert_equal(found, value)
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
    assert repr(found) == repr(value)


def test_nan_comes_back():
    (found,) = decoded(json.loads(json.dumps(encoded([np.nan], {}), allow_nan=False)), {})
    assert np.isnan(found)


def test_the_order_in_memory_is_kept():
    arrays = {}
    value = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    found = decoded(encoded(value, arrays), arrays)
    np.testing.assert_array_equal(found, value)
    assert found.flags.f_contiguous
    assert not found.flags.c_contiguous


@pytest.mark.parametrize("kind", [np.random.RandomState, np.random.default_rng])
def test_sources_of_random_numbers_go_on(kind):
    source, arrays = kind(5), {}
    source.normal(size=3)
    other = decoded(json.loads(json.dumps(encoded(source, arrays))), arrays)
    np.testing.assert_array_equal(other.normal(size=4), source.normal(size=4))


def test_estimators_of_scikit_learn_are_stored_within_ours():
    rows, arrays = MISSING[:20], {}
    indicator = MissingIndicator().fit(rows)
    found = decoded(encoded(indicator, arrays), arrays)
    np.testing.assert_array_equal(found.transform(rows), indicator.transform(rows))


class Subclass(MixtureStack):
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ParticleLVEBM(energy=LinearGaussianEnergy(2, 1)), "energy is a LinearGaussianEnergy"),
        (ParticleLVEBM(memory=joblib.Memory(None)), "memory is a Memory"),
        (Subclass(), "a class of neither sklvebm nor scikit-learn"),
        (DecisionTreeRegressor().fit(X, X[:, 0]), "tree_ is a Tree"),
        (np.ones(3), "estimator must be an estimator, got a ndarray"),
    ],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_written(model, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_only_classes_that_are_stored_are_made():
    for name in ("os.PathLike", "builtins.dict", "sklvebm.compose", "joblib.Memory"):
        with pytest.raises(ValueError, match="not one of the classes stored"):
            decoded({"estimator": name, "state": {"mapping": {}}}, {})
    with pytest.raises(ValueError, match="unknown kind"):
        decoded({"call": "print"}, {})


# Files -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return save_model(STACK.fit(X), tmp_path)


def edit(folder, change):
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


def test_storing_again_replaces_both_files(folder):
    (first,) = folder.glob("arrays-*")
    (folder / "notes.txt").write_text("mine")
    other = MixtureStack(covariance_types=["full"], max_components=1, random_state=0).fit(X)
    save_model(other, folder)
    assert not first.exists()
    assert len(list(folder.iterdir())) == 3
    assert load_model(folder).score(X) == other.score(X)


@pytest.mark.parametrize("n_written", [0, 1])
def test_an_interrupted_replacement_leaves_the_earlier_model(folder, monkeypatch, n_written):
    score, written = STACK.score(X), []

    def interrupted(source, target):
        if len(written) == n_written:
            raise KeyboardInterrupt
        written.append(target)
        os.rename(source, target)

    monkeypatch.setattr(folders.os, "replace", interrupted)
    other = MixtureStack(covariance_types=["full"], max_components=1, random_state=0).fit(X)
    with pytest.raises(KeyboardInterrupt):
        save_model(other, folder)
    assert load_model(folder).score(X) == score
    assert not list(folder.glob(".*"))


def test_a_missing_file_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.json"):
        load_model(tmp_path / "nowhere")
    next(folder.glob("arrays-*")).unlink()
    with pytest.raises(FileNotFoundError, match="has no arrays-.*copy all files"):
        load_model(folder)


def test_damage_of_either_file_is_named(folder):
    arrays = next(folder.glob("arrays-*"))
    data = bytearray(arrays.read_bytes())
    data[-1] ^= 1
    arrays.write_bytes(data)
    with pytest.raises(DamagedStateError, match="its digest does not match"):
        load_model(folder)
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text[: len(text) // 2])
    with pytest.raises(DamagedStateError, match=r"model\.json is damaged"):
        load_model(folder)


def test_a_number_changed_in_the_description_is_damage(folder):
    def change(description):
        description["model"]["state"]["mapping"]["tail_weight_"] = 0.5

    edit(folder, change)
    with pytest.raises(DamagedStateError, match="checksum"):
        load_model(folder)


def test_arrays_outside_of_the_folder_are_not_read(folder):
    edit(folder, lambda description: description.update(arrays="../other.safetensors"))
    with pytest.raises(DamagedStateError, match="outside of its folder"):
        load_model(folder)


def test_another_shape_is_named(folder):
    def change(description):
        description["model"]["state"]["mapping"]["mean_"]["shape"] = [7]

    edit(folder, change)
    with pytest.raises(ValueError, match=r"mean_ must have shape \(7,\) and dtype float64, got"):
        load_model(folder)


def test_models_of_other_versions_say_so(folder):
    def another(description):
        description["model"]["state"]["mapping"]["_sklvebm_version"] = "0.9.0"

    edit(folder, another)
    with pytest.warns(UserWarning, match=r"stored by sklvebm 0\.9\.0 and is read by"):
        load_model(folder)

    def of_the_future(description):
        description["format"], description["versions"]["sklvebm"] = 2, "0.9.0"

    edit(folder, of_the_future)
    with pytest.raises(ValueError, match=r"0\.9\.0, and .* cannot read it \(the format is 2"):
        load_model(folder)


def test_a_class_that_is_gone_names_the_version(folder):
    edit(folder, lambda d: d["model"].update(estimator="sklvebm.gone.Model"))
    with pytest.raises(ValueError, match="cannot read it .*sklvebm.gone.*Fit it again"):
        load_model(folder)


def test_without_safetensors_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: save_model(STACK, tmp_path), lambda: load_model(tmp_path)):
        with pytest.raises(ImportError, match=r"pip install \"sklvebm\[safetensors\]\""):
            call()


def test_a_reference_that_was_given_is_stored(tmp_path):
    model = ParticleLVEBM(reference=REFERENCE, **SHORT).fit(X[:, :2])
    loaded = load_model(save_model(model, tmp_path))
    rows = torch.as_tensor(X[:, :2])
    assert torch.equal(loaded.reference.log_marginal(rows), REFERENCE.log_marginal(rows))
    assert loaded.score(X[:, :2]) == model.score(X[:, :2])


def test_callbacks_are_not_stored(tmp_path):
    model = MixtureStack()
    model._skl_callbacks = [object()]
    assert "_skl_callbacks" not in vars(load_model(save_model(model, tmp_path)))
    assert model._skl_callbacks
