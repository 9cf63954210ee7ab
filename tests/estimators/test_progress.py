"""Callbacks of scikit-learn follow a fit, and change nothing in it."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sklvebm
from sklvebm import (
    MixtureStack,
    ParticleDivergenceError,
    ParticleLVEBM,
    PotentialFlowEBM,
    WassersteinFlowEBM,
)
from sklvebm.baselines import VAE

callbacks = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has callbacks")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).normal(size=(60, 2))
X[:30] += 4.0
SHORT = {"max_iter": 3, "random_state": 0}
MODELS = [
    ParticleLVEBM(n_components=1, **SHORT),
    ParticleLVEBM(n_components=1, init="ratio", **SHORT),
    WassersteinFlowEBM(**SHORT),
    PotentialFlowEBM(**SHORT),
    MixtureStack(max_components=2, random_state=0),
    VAE(**SHORT),
]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)


class Recorder:
    """Remembers the calls of its hooks; asks to stop after some epochs."""

    def __init__(self, stop_after=None):
        self.calls, self.stop_after = [], stop_after

    def setup(self, estimator, context):
        self.calls.append(("setup", context.task_name))

    def teardown(self, estimator, context):
        self.calls.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator, context):
        self.calls.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.calls.append(("end", context.task_name))
        if context.task_name == "fit":
            self.n_tasks, self.most = len(context._children_map), context.max_subtasks
            self.score = fitted_estimator.score(X)
        return len(self.ends("epoch")) == self.stop_after

    def ends(self, *names):
        return [name for hook, name in self.calls if hook == "end" and name in names]


def answers(model):
    return {
        "scores": model.score_samples(X),
        "draws": model.sample(5, random_state=0),
        **{name: getattr(model, name) for name in ("n_iter_", "history_") if hasattr(model, name)},
    }


@every_model
def test_a_fit_with_callbacks_is_the_same_to_the_last_bit(model):
    alone, recorder = clone(model).fit(X), Recorder()
    followed = clone(model).set_callbacks(recorder).fit(X)
    np.testing.assert_equal(answers(followed), answers(alone))
    assert recorder.score == alone.score(X)
    assert set(vars(followed)) - set(vars(alone)) == {"_skl_callbacks"}


@every_model
def test_the_parts_of_a_fit_are_begun_and_ended_in_turn(model):
    recorder = Recorder()
    fitted = clone(model).set_callbacks(recorder).fit(X)
    calls = recorder.calls
    assert calls[:2] == [("setup", "fit"), ("begin", "fit")]
    assert calls[-2:] == [("end", "fit"), ("teardown", "fit")]
    parts = calls[2:-2]
    assert [hook for hook, _ in parts] == ["begin", "end"] * (len(parts) // 2)
    assert all(begun[1] == ended[1] for begun, ended in zip(parts[::2], parts[1::2], strict=True))
    names = [name for _, name in parts[::2]]
    if isinstance(model, MixtureStack):
        assert names == ["choosing", "fitting"]
    else:
        first = [] if isinstance(model, VAE) else ["reference"]
        assert names == [*first, *["epoch"] * fitted.n_iter_, "normalising"]
    assert recorder.n_tasks == len(names) <= recorder.most


def test_the_parts_never_exceed_their_number():
    # half of the epochs are those of the ratio, and a fit may add nothing to what it announced
    for max_iter in (0, 1, 2):
        recorder = Recorder()
        model = ParticleLVEBM(n_components=1, init="ratio", max_iter=max_iter, random_state=0)
        model.set_callbacks(recorder).fit(X)
        assert recorder.most == max_iter + 2
        assert recorder.ends("normalising") == ["normalising"]


def test_a_continued_fit_has_epochs_alone():
    model, recorder = ParticleLVEBM(n_components=1, **SHORT).fit(X), Recorder()
    model.set_callbacks(recorder).partial_fit(X)
    assert recorder.ends("reference", "epoch", "normalising") == ["epoch", "normalising"]


@pytest.mark.parametrize("model", [MODELS[0], MODELS[2], MODELS[3]], ids=lambda m: type(m).__name__)
def test_a_callback_can_stop_training(model):
    model = clone(model).set_params(max_iter=20, tol=0.0, n_iter_no_change=50)
    model.set_callbacks(Recorder(stop_after=2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Training stopped at max_iter", ConvergenceWarning)
        model.fit(X)
    assert model.n_iter_ == 2
    assert not model.converged_
    assert np.isfinite(model.score(X))


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, ParticleDivergenceError])
@pytest.mark.parametrize("model", [MODELS[0], MODELS[4]], ids=lambda m: type(m).__name__)
def test_callbacks_are_taken_down_after_a_failure(model, problem, monkeypatch):
    class Failing(Recorder):
        def on_fit_task_end(self, estimator, context):
            raise problem("in a callback")

    recorder = Failing()
    model = clone(model).set_callbacks(recorder)
    with pytest.raises(problem, match="in a callback"):
        model.fit(X)
    assert recorder.calls[-1] == ("teardown", "fit")
    assert set(vars(model)) == {*model.get_params(), "_skl_callbacks"}


def test_wrong_parameters_are_reported_as_without_callbacks():
    model = ParticleLVEBM(max_iter="many").set_callbacks(Recorder())
    with pytest.raises((TypeError, ValueError), match="max_iter must be"):
        model.fit(X)


def test_callbacks_are_no_parameters_and_survive_clone_and_pickle():
    recorder = Recorder()
    model = MixtureStack(max_components=2).set_callbacks(recorder)
    assert model.get_params() == MixtureStack(max_components=2).get_params()
    assert clone(model)._skl_callbacks == [recorder]
    assert len(pickle.loads(pickle.dumps(model))._skl_callbacks) == 1
    assert repr(model) == repr(MixtureStack(max_components=2))


@pytest.mark.parametrize("model", [MODELS[0], MODELS[4]], ids=lambda m: type(m).__name__)
def test_warnings_point_to_the_same_line_as_without_callbacks(model):
    constant = np.column_stack([X, np.ones(len(X))])
    places = []
    for followed in (clone(model), clone(model).set_callbacks(Recorder())):
        with pytest.warns(UserWarning, match="constant") as seen:
            followed.fit(constant)
        places.append([(warning.filename, warning.lineno) for warning in seen])
    assert places[0] == places[1]


def test_the_fit_is_a_part_of_its_pipeline():
    class Propagated(Recorder):
        max_propagation_depth = None

        def on_fit_task_end(self, estimator, context):
            self.calls.append(("end", context.task_name))

    recorder = Propagated()
    pipeline = make_pipeline(StandardScaler(), MODELS[0]).set_callbacks(recorder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The estimator StandardScaler does not support")
        pipeline.fit(X)
    assert recorder.ends("reference", "epoch", "normalising")
    assert recorder.calls.count(("setup", "fit")) == 1
    assert not hasattr(pipeline[-1], "_skl_callbacks")


def test_one_bar_shows_the_whole_fit(capsys):
    pytest.importorskip("rich")
    model = clone(MODELS[0]).set_callbacks(callbacks.ProgressBar()).fit(X)
    shown = capsys.readouterr().out
    assert "ParticleLVEBM - fit" in shown
    assert "100%" in shown
    assert "epoch" not in shown
    np.testing.assert_array_equal(model.score_samples(X), clone(MODELS[0]).fit(X).score_samples(X))


@pytest.mark.parametrize("y", [None, np.zeros(len(X))], ids=["without y", "with y"])
def test_a_scoring_monitor_logs_the_fit(y):
    monitor = callbacks.ScoringMonitor(scoring=None)
    clone(MODELS[4]).set_callbacks(monitor).fit(X, y)
    (entry,) = monitor.get_logs().data
    assert entry["task_name"] == "fit"


def test_verbose_prints_the_same_parts_without_callbacks(capsys):
    clone(MODELS[0]).set_params(verbose=1, tol=None).fit(X)
    printed = capsys.readouterr().out
    parts = ["choosing and fitting the reference", "training on", "epoch 1,", "normalising|keeping"]
    places = [min(printed.find(w) % (1 << 30) for w in part.split("|")) for part in parts]
    assert places == sorted(places)
    assert all(place < len(printed) for place in places)


def test_older_scikit_learn_versions_fit_without_callbacks():
    code = (
        "import sys, numpy as np, sklearn.impute, sklearn.manifold, sklearn.pipeline\n"
        "found = sys.modules['sklearn.callback']\n"
        "sys.modules['sklearn.callback'] = None\n"
        "import sklvebm\n"
        "sys.modules['sklearn.callback'] = found\n"
        "X = np.random.RandomState(0).normal(size=(60, 2)); X[:30] += 4.0\n"
        "model = sklvebm.MixtureStack(max_components=2, random_state=0)\n"
        "assert not hasattr(model, 'set_callbacks')\n"
        "print(model.fit(X).score(X).hex())\n"
    )
    here = str(Path(sklvebm.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.stdout.strip() == clone(MODELS[4]).fit(X).score(X).hex(), done.stderr
