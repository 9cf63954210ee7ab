"""Fits that were interrupted and continued equal those that were not, to the last bit."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sklearn

import sklvebm
from sklvebm import (
    LinearGaussianEnergy,
    ParticleDivergenceError,
    ParticleImputer,
    ParticleLVEBM,
    PotentialFlowEBM,
    WassersteinFlowEBM,
    checkpoints,
)
from sklvebm.estimators._common import reference
from sklvebm.estimators._common.transactional_fit import Reporter
from sklvebm.mixtures import reference_selection
from sklvebm.objectives import density_ratio
from sklvebm.objectives.density_ratio import Classification

random = np.random.RandomState(0)
X = np.concatenate([random.normal(0, 1, (60, 2)), random.normal(4, 0.5, (40, 2))])
X[:, 1] += X[:, 0] ** 2
WITH_HOLES = np.where(random.uniform(size=X.shape) < 0.1, np.nan, X)
COPIES = np.concatenate([np.round(X, 1), np.round(X[:30], 1)])
GAUSSIAN = random.normal(size=(60, 2))
N_EPOCHS = 5


class Stopped(Exception):
    """Stands for the end of the process."""


def lvebm(**parameters):
    settings = {"max_iter": N_EPOCHS, "n_chains": 64, "tol": None, "random_state": 0}
    return ParticleLVEBM(**{**settings, **parameters})


FITS = {
    "default": (lvebm, X),
    "one temperature": (lambda: lvebm(n_temperatures=1, dynamics="ula"), X),
    "gaussian": (lambda: lvebm(posterior="gaussian"), X),
    "amortized": (lambda: lvebm(posterior="amortized"), X),
    "ratio": (lambda: lvebm(init="ratio", max_iter=12), X),
    "missing cells": (lvebm, WITH_HOLES),
    "copies": (lvebm, COPIES),
    "double": (lambda: lvebm(dtype="float64", early_stopping=False), X),
    "own energy": (
        lambda: lvebm(n_components=1, energy=LinearGaussianEnergy(2, 1), reference="gaussian"),
        GAUSSIAN,  # which such an energy fits, so that annealing is short
    ),
    "wasserstein": (
        lambda: WassersteinFlowEBM(max_iter=N_EPOCHS, n_chains=64, tol=None, random_state=0),
        X,
    ),
    "potential": (
        lambda: PotentialFlowEBM(max_iter=N_EPOCHS, batch_size=50, tol=None, random_state=0),
        X,
    ),
}


def stopped_at(monkeypatch, epoch, name="__call__"):
    """Let the process end, so to say, when a fit reports an epoch, or any phase with a name."""
    original = getattr(Reporter, name)

    def stop(self, first, value):
        if epoch in (getattr(first, "epoch", None), first):
            raise Stopped
        return original(self, first, value)

    monkeypatch.setattr(Reporter, name, stop)


def continued(monkeypatch, folder, make, rows, *places):
    """Fit, stop at the first place, and so on; return the estimator that is not stopped.

    A place is an epoch, or what `stopped_at` takes.
    """
    with checkpoints(folder, every=0):
        for place in places:
            with monkeypatch.context() as patch:
                stopped_at(patch, *(place if isinstance(place, tuple) else (place,)))
                with pytest.raises(Stopped):
                    make().fit(rows)
        assert (folder / "checkpoint.npz").exists()
        model = make().fit(rows)
    assert not list(folder.iterdir())
    return model


def assert_equal(model, other, rows):
    np.testing.assert_array_equal(model.score_samples(rows), other.score_samples(rows))
    np.testing.assert_equal(model.history_, other.history_)
    # of all numbers: parameters, moments, particles, diagnostics
    assert model.__getstate__()["_checksum"] == other.__getstate__()["_checksum"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:.*repeat:UserWarning")
@pytest.mark.parametrize("name", FITS)
def test_a_continued_fit_equals_one_without_interruption(name, tmp_path, monkeypatch):
    make, rows = FITS[name]
    whole = make().fit(rows)
    last = len(whole.history_)
    again = continued(monkeypatch, tmp_path, make, rows, last - N_EPOCHS + 2, last)
    assert_equal(again, whole, rows)
    if hasattr(getattr(whole._training, "state", None), "pool"):
        ours, theirs = (m._training.state.latents for m in (again, whole))
        if hasattr(theirs, "values"):  # particles of rows are no part of a stored model
            np.testing.assert_array_equal(ours.values, theirs.values)


RATIOS = {
    "start": lambda: lvebm(init="ratio", max_iter=6),
    "screen": lambda: lvebm(max_iter=100, tol=1.0, n_iter_no_change=5),
    "screen of a flow": lambda: PotentialFlowEBM(
        max_iter=100, batch_size=50, tol=1.0, n_iter_no_change=5, random_state=0
    ),
}


class Calls:
    """Counts the epochs of density ratios, and ends the process, so to say, at a measurement.

    log Z is measured after every epoch, and once more after the last.
    """

    def __init__(self, monkeypatch, last=None):
        self.n_epochs = self.n_measured = 0
        epoch, measure = Classification.epoch, density_ratio.log_mean_weight

        def counted(run, learning_rate):
            self.n_epochs += 1
            return epoch(run, learning_rate)

        def measured(*arguments):
            self.n_measured += 1
            if self.n_measured == last:
                raise Stopped
            return measure(*arguments)

        monkeypatch.setattr(Classification, "epoch", counted)
        monkeypatch.setattr(density_ratio, "log_mean_weight", measured)


def stop(*arguments):
    raise Stopped


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", RATIOS)
def test_a_density_ratio_is_continued_and_never_trained_again(name, tmp_path, monkeypatch):
    make = RATIOS[name]
    with monkeypatch.context() as patch:
        calls = Calls(patch)
        whole = make().fit(X)
        n_epochs = calls.n_epochs
    assert n_epochs > 2
    # after its third epoch, which is not kept, between its last epoch and its end, after its end
    attempts = (3, 3), (n_epochs - 1, n_epochs - 2), (None, 0)
    with checkpoints(tmp_path, every=0):
        for last, n_made in attempts:
            with monkeypatch.context() as patch:
                calls = Calls(patch, last)
                if last is None:
                    patch.setattr(density_ratio.RatioStart, "mean_gain", stop)
                with pytest.raises(Stopped):
                    make().fit(X)
            assert calls.n_epochs == n_made
        calls = Calls(monkeypatch)
        again = make().fit(X)
    assert calls.n_epochs == 0
    assert_equal(again, whole, X)


@pytest.mark.parametrize("where", ["reference", "training", "normalising"])
def test_every_phase_can_be_interrupted(where, tmp_path, monkeypatch):
    whole = lvebm().fit(X)
    assert_equal(continued(monkeypatch, tmp_path, lvebm, X, (where, "phase")), whole, X)


def test_the_reference_is_not_chosen_again(tmp_path, monkeypatch):
    def choose_again(*args, **kwargs):
        raise AssertionError("the reference was chosen again")

    with checkpoints(tmp_path):
        with monkeypatch.context() as patch:
            stopped_at(patch, "training", "phase")
            with pytest.raises(Stopped):
                lvebm().fit(X)
        monkeypatch.setattr(reference, "choose_mixture", choose_again)
        monkeypatch.setattr(reference, "fit_reference", choose_again)
        monkeypatch.setattr(reference_selection, "fit_anchor", choose_again)
        with monkeypatch.context() as patch:
            stopped_at(patch, 1)
            with pytest.raises(Stopped):
                lvebm().fit(X)


def test_the_end_of_training_is_stored_at_any_rate(tmp_path, monkeypatch):
    calls = []
    with checkpoints(tmp_path, every=1e6):
        with monkeypatch.context() as patch:
            stopped_at(patch, "normalising", "phase")
            with pytest.raises(Stopped):
                lvebm().fit(X)
        original = Reporter.__call__
        monkeypatch.setattr(Reporter, "__call__", lambda *a: (calls.append(a), original(*a))[1])
        model = lvebm().fit(X)
    assert not calls
    assert len(model.history_) == N_EPOCHS


@pytest.mark.parametrize("kind", [type(None), np.random.RandomState, np.random.default_rng])
def test_random_numbers_of_the_first_attempt_are_used(kind, tmp_path, monkeypatch):
    def make():
        return lvebm(random_state=None if kind is type(None) else kind(3))

    seen, splits = [], set()
    original = Reporter.__call__

    def note(self, progress, value):
        seen.append((progress.epoch, value))
        splits.add(self.tasks.estimator._split_seed)
        return original(self, progress, value)

    monkeypatch.setattr(Reporter, "__call__", note)
    model = continued(monkeypatch, tmp_path, make, X, 4)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5]
    assert len(splits) == 1
    assert [value for _, value in seen] == model.lower_bounds_


def test_particles_in_a_file_are_stored(tmp_path, monkeypatch):
    def make():
        return lvebm(n_particles=32)

    with sklearn.config_context(working_memory=0.01):
        whole = make().fit(X)
        assert whole._training.state.latents.is_mapped
        assert_equal(continued(monkeypatch, tmp_path, make, X, 4), whole, X)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": X + 1.0}, "X was float64 of shape"),
        ({"rows": X[1:]}, "X was float64 of shape"),
        ({"sample_weight": np.arange(1.0, 101.0)}, "sample_weight was None and is float64"),
        ({"alpha": 0.25}, "alpha was .* and is 0.25"),
        ({"random_state": 1}, "random_state was 0 and is 1"),
        ({"hidden_layer_sizes": (8,)}, "hidden_layer_sizes was"),
        ({"version": "0.9.9"}, "version of sklvebm was .* and is 0.9.9"),
        ({"make": WassersteinFlowEBM}, "the estimator was ParticleLVEBM and is WassersteinFlowEBM"),
    ],
    ids=["rows", "fewer rows", "weights", "number", "seed", "tuple", "version", "estimator"],
)
def test_the_checkpoint_of_another_fit_is_refused(change, words, tmp_path, monkeypatch):
    rows, weights = change.pop("rows", X), change.pop("sample_weight", None)
    version, make = change.pop("version", None), change.pop("make", lvebm)
    with checkpoints(tmp_path, every=0):
        with monkeypatch.context() as patch:
            stopped_at(patch, 2)
            with pytest.raises(Stopped):
                lvebm().fit(X)
        before = (tmp_path / "checkpoint.npz").read_bytes()
        if version is not None:
            monkeypatch.setattr(sklvebm, "__version__", version)
        with pytest.raises(ValueError, match=rf"(?s){words}.*[Dd]elete .*checkpoint.npz"):
            make(**change).fit(rows, sample_weight=weights)
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_what_has_no_effect_may_change(tmp_path, monkeypatch):
    with checkpoints(tmp_path, every=0):
        with monkeypatch.context() as patch:
            stopped_at(patch, 3)
            with pytest.raises(Stopped):
                lvebm().fit(X)
        lvebm(verbose=2, memory=str(tmp_path / "memory")).fit(X)


def test_a_message_tells_of_the_continuation(tmp_path, monkeypatch, capsys):
    continued(monkeypatch, tmp_path, lambda: lvebm(verbose=1), X, 3)
    text = f"continuing an interrupted fit after epoch 2 of training, from {tmp_path}"
    assert text in capsys.readouterr().out


def test_continued_fits_are_refused(tmp_path):
    model = lvebm(warm_start=True, max_iter=2)
    with checkpoints(tmp_path):
        model.fit(X)
        with pytest.raises(ValueError, match="checkpoints are for first fits"):
            model.fit(X)
        with pytest.raises(ValueError, match="checkpoints are for first fits"):
            lvebm().partial_fit(X)


def test_a_fit_that_diverges_leaves_no_checkpoint(tmp_path, monkeypatch):
    original = Reporter.__call__

    def diverge(self, progress, value):
        if progress.epoch == 2:
            raise ParticleDivergenceError("as training does")
        return original(self, progress, value)

    monkeypatch.setattr(Reporter, "__call__", diverge)
    with checkpoints(tmp_path, every=0), pytest.raises(ParticleDivergenceError):
        lvebm().fit(X)
    assert not list(tmp_path.iterdir())


def test_an_estimator_within_another_is_continued(tmp_path, monkeypatch):
    def make():
        return ParticleImputer(lvebm(), random_state=0)

    whole = make().fit(WITH_HOLES).transform(WITH_HOLES)
    with checkpoints(tmp_path, every=0):
        with monkeypatch.context() as patch:
            stopped_at(patch, 3)
            with pytest.raises(Stopped):
                make().fit(WITH_HOLES)
        again = make().fit(WITH_HOLES).transform(WITH_HOLES)
    np.testing.assert_array_equal(again, whole)


# 15 epochs of the density ratio, 15 of particles
SETTINGS = {"init": "ratio", "max_iter": 30, "n_chains": 64, "tol": None, "random_state": 0}
SCRIPT = f"""
import sys
import numpy as np
from sklvebm import ParticleLVEBM, checkpoints
X, settings = np.load(sys.argv[1]), {SETTINGS}
print("begin", flush=True)
with checkpoints(sys.argv[2], every=0):
    model = ParticleLVEBM(**settings).fit(X)
np.save(sys.argv[3], model.score_samples(X))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no kill")
def test_a_process_may_be_killed_at_any_moment(tmp_path):
    rows, folder, scores = tmp_path / "rows.npy", tmp_path / "folder", tmp_path / "scores.npy"
    np.save(rows, X)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, rows, folder, scores]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    moments = np.random.RandomState(os.getpid())
    n_kills = 0
    while not scores.exists():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        process.stdout.readline()
        if n_kills < 3:
            time.sleep(moments.uniform(0.05, 1.0))
            process.send_signal(signal.SIGKILL)
            n_kills += 1
        process.communicate()
    whole = ParticleLVEBM(**SETTINGS).fit(X)
    np.testing.assert_array_equal(np.load(scores), whole.score_samples(X))
    assert not list(folder.iterdir())
