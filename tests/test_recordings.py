"""Work that is recorded once and replayed, where a device can do that.

What replays of updates give is tested on the pretended device, in `test_launches.py`.
"""

import warnings

import pytest
import torch
from sklearn.datasets import make_moons

from sklvebm import ParticleLVEBM, recordings
from sklvebm.recordings import Recordings


def test_work_is_recorded_after_a_few_calls_and_once_for_each_kind(monkeypatch):
    done, recorded = [], []

    def record(work, generator):
        work()
        recorded.append(None)
        return lambda: done.append("replay")

    monkeypatch.setattr(recordings, "recorder_of", lambda device: record)
    repeated = Recordings(lambda: done.append("work"), torch.Generator())
    for _ in range(6):
        repeated("a")
    repeated("b")
    assert done == ["work"] * 4 + ["replay"] * 2 + ["work"]
    assert len(recorded) == 1
    for kind in range(2 * recordings._MOST_KEPT):
        for _ in range(5):
            repeated(kind)
    assert len(repeated._replays) <= recordings._MOST_KEPT


def test_work_that_cannot_be_recorded_is_done_plainly(monkeypatch):
    def record(work, generator):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recordings, "recorder_of", lambda device: record)
    done = []
    repeated = Recordings(lambda: done.append(None), torch.Generator())
    for _ in range(recordings._WARM_UP):
        repeated("a")
    with pytest.warns(RuntimeWarning, match="not permitted"):
        repeated("a")
    assert len(done) == recordings._WARM_UP + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            repeated("b")
    assert len(done) == recordings._WARM_UP + 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_give_what_plain_updates_give(monkeypatch):
    X, _ = make_moons(400, noise=0.1, random_state=0)
    options = {"reference": "gaussian", "init": "reference", "max_iter": 60, "random_state": 0}
    scores = []
    for recorder in (recordings.recorder_of, lambda device: None):
        monkeypatch.setattr(recordings, "recorder_of", recorder)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            model = ParticleLVEBM(1, device="cuda", early_stopping=False, **options).fit(X)
        scores.append(torch.as_tensor(model.lower_bounds_[:30]))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)
