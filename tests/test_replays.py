"""Updates of fits: replayed, as CUDA graphs replay them, and operation by operation.

On the pretended device, in a process that `test_pretended_device.py` starts.
"""

import warnings

import numpy as np
import pytest
from sklearn.datasets import make_moons

from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM, recordings, updates

ONE_GAUSSIAN = {"reference": "gaussian", "init": "reference"}
FITS = {
    "default": (ParticleLVEBM, {"init": "reference"}),
    "gaussian posterior": (ParticleLVEBM, {**ONE_GAUSSIAN, "posterior": "gaussian"}),
    "amortized posterior": (ParticleLVEBM, {**ONE_GAUSSIAN, "posterior": "amortized"}),
    "contrastive": (
        ParticleLVEBM,
        {**ONE_GAUSSIAN, "negatives": "contrastive", "n_temperatures": 1},
    ),
    "proximal": (WassersteinFlowEBM, ONE_GAUSSIAN),
    "gradient penalty": (
        WassersteinFlowEBM,
        {**ONE_GAUSSIAN, "proximal": "gradient-penalty", "n_inner_steps": 3},
    ),
    "no penalty": (WassersteinFlowEBM, {**ONE_GAUSSIAN, "proximal": "none"}),
    "flow": (PotentialFlowEBM, {"reference": "gaussian"}),
    "flow, probes": (PotentialFlowEBM, {"reference": "gaussian"}),  # of the Laplacian
    "missing cells": (ParticleLVEBM, ONE_GAUSSIAN),
    "missing cells, proximal": (WassersteinFlowEBM, ONE_GAUSSIAN),
}


def rows_of(name):
    X, _ = make_moons(140, noise=0.1, random_state=0)
    if "missing" in name:
        X[::5, 0] = np.nan
    if "probes" in name:
        X = X @ np.random.default_rng(0).normal(size=(2, 4)) + 0.1 * X[:, [0, 1, 0, 1]] ** 2
    return X


def fitted(name):
    """Return a fit on the device, in epochs of six updates with 21 rows each."""
    kind, options = FITS[name]
    # where independence proposals are recorded, they are replayed in the eleventh
    n_epochs = 12 if "posterior" in name else 4 if "flow" in name else 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = kind(
            device="pretended", random_state=0, batch_size=21, max_iter=n_epochs, **options
        )
        return model.fit(rows_of(name))


@pytest.mark.parametrize("name", FITS)
def test_replays_give_what_plain_updates_give(pretended, name, monkeypatch):
    replay_tape = pretended.__wrapped__.__globals__["replay"]
    n_replays, waits = [], []
    # their rates change at each of the first updates, and each rate has a recording
    monkeypatch.setattr(updates, "WARM_UP", 1)
    monkeypatch.setattr(updates, "AVERAGE_OVER", 1)
    monkeypatch.setattr(recordings, "_WARM_UP", 1)
    with pretended() as trace:

        def record(work, generator):
            before = trace.synchronisations, trace.copies_in
            trace.tape = []
            work()
            tape, trace.tape = trace.tape, None
            waits.append((trace.synchronisations, trace.copies_in) != before)

            def replay():
                n_replays.append(None)
                replay_tape(tape)

            return replay

        found = []
        for recorder in (None, record):
            monkeypatch.setattr(recordings, "recorder_of", lambda device, own=recorder: own)
            found.append(repr(fitted(name).history_))
    assert not any(waits)
    assert len(n_replays) >= 20
    assert found[0] == found[1]
