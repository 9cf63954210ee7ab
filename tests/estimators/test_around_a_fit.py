"""What surrounds a fit: processes, threads, global generators, damaged files, memory."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.base import clone

from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM, baselines

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROOT = Path(__file__).parents[2]
SMALL = {"hidden_layer_sizes": (8,), "max_iter": 1, "random_state": 0}
CHAINS = {"n_chains": 64, "n_temperatures": 2}
MODELS = [
    ParticleLVEBM(1, reference="gaussian", **CHAINS, **SMALL),
    PotentialFlowEBM(reference="gaussian", **SMALL),
    WassersteinFlowEBM(reference="gaussian", **CHAINS, **SMALL),
]
BASELINES = [
    baselines.VAE(1, **SMALL),
    baselines.LatentEBM(1, n_chains=16, **SMALL),
]


def name_of(model):
    return type(model).__name__


def run_in_a_process(script, seconds=240):
    """Run Python with two threads and return what it prints; one that hangs is ended."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        timeout=seconds,
        capture_output=True,
        text=True,
    )


# Processes and threads ---------------------------------------------------------------------------

# a few rows more than one chunk of scores; parts go side by side however small they are
PREPARED = """
import os, signal, threading
import numpy as np, torch
from sklearn.cluster import KMeans
from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM, threads
threads._MIN_SPLIT_MULTIPLY_ADDS, threads._MIN_PART_MULTIPLY_ADDS = 1e2, 2e2
torch.set_num_threads(2)
X = np.random.default_rng(0).normal(size=(400, 3)) * [1.0, 0.5, 2.0]
small = dict(hidden_layer_sizes=(16,), max_iter=1, random_state=0)
models = [
    ParticleLVEBM(1, latent_map="manifold", **small),
    PotentialFlowEBM(reference="gaussian", **small),
    WassersteinFlowEBM(reference="gaussian", **small),
]
def work():
    for model in models:
        print(type(model).__name__, np.isfinite(model.fit(X).score_samples(X)).all(), flush=True)
"""
ANSWERED = "".join(f"{name_of(model)} True\n" for model in MODELS)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_of_a_process_that_used_two_threads_fits_and_scores():
    done = run_in_a_process(
        PREPARED
        + """
A = torch.randn(1500, 1500)
for _ in range(3):
    (A @ A).exp().sum()
    A.numpy() @ A.numpy()
KMeans(8, n_init=1).fit(A.numpy()[:, :16])
child = os.fork()
if child == 0:
    signal.alarm(200)  # one that hangs must not stay behind
    work()
    os._exit(0)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout == ANSWERED


@pytest.mark.slow
def test_a_thread_that_outlives_the_main_one_fits_and_scores():
    done = run_in_a_process(
        PREPARED
        + """
def later():
    threading.main_thread().join()
    work()
threading.Thread(target=later).start()
"""
    )
    assert done.stdout == ANSWERED, done.stdout + done.stderr[-2000:]


# Global generators -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=name_of)
def test_a_fit_leaves_the_generator_of_numpy_alone_and_does_not_depend_on_it(model):
    X = np.random.default_rng(0).normal(size=(60, 3))
    if isinstance(model, ParticleLVEBM):
        X = np.random.default_rng(0).normal(size=(300, 3))  # of few rows, Isomap draws nothing
        model = clone(model).set_params(latent_map="manifold")
    said, before = [], np.random.get_state()
    try:
        for seed in (1, 2):
            np.random.seed(seed)
            state = np.random.get_state()
            model.fit(X)
            said.append([model.score_samples(X), *model.sample(5, random_state=0)])
            if hasattr(model, "transform"):
                said[-1].append(model.transform(X))
            after = np.random.get_state()
            assert all(np.array_equal(a, b) for a, b in zip(state, after, strict=True))
    finally:
        np.random.set_state(before)
    for first, second in zip(*said, strict=True):
        np.testing.assert_array_equal(first, second)


# Damaged files -----------------------------------------------------------------------------------


def numbers_of(state):
    """Yield the bytes of every array and number in nested state, as pickle writes them."""
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        for part in state:
            yield from numbers_of(part)
    elif isinstance(state, np.ndarray) and state.nbytes >= 8:
        yield state.tobytes()
    elif isinstance(state, float):
        yield np.array(state, dtype=">f8").tobytes()


@pytest.mark.parametrize("model", [*MODELS, *BASELINES], ids=name_of)
def test_damaged_numbers_of_a_pickle_are_refused(model):
    X = np.random.default_rng(0).normal(size=(60, 2))
    stored = pickle.dumps(model.fit(X))
    expected = pickle.loads(stored).score_samples(X)
    np.testing.assert_array_equal(model.score_samples(X), expected)
    source = random.Random(0)
    # bytes that are found once are those numbers, not a piece of other things
    numbers = numbers_of(model.__getstate__()["_plain"])
    found = sorted({b for b in numbers if stored.count(b) == 1})
    assert len(found) > 5
    for part in source.sample(found, min(len(found), 40)):
        damaged = bytearray(stored)
        place = stored.index(part) + source.randrange(len(part))
        damaged[place] ^= 1 << source.randrange(8)
        with pytest.raises(ValueError, match="stored model is damaged"):
            pickle.loads(bytes(damaged))


def through_joblib(model, folder):
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


def through_skops(model, folder):
    data = skops.io.dumps(model)
    return skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))


@pytest.mark.parametrize("round_trip", [through_joblib, through_skops])
@pytest.mark.parametrize("model", [*MODELS, *BASELINES], ids=name_of)
def test_what_is_not_damaged_is_read_however_it_was_stored(model, round_trip, tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 2))
    expected = model.fit(X).score_samples(X)
    twice = round_trip(round_trip(model, tmp_path), tmp_path)
    np.testing.assert_array_equal(twice.score_samples(X), expected)


# Memory ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="units of ru_maxrss differ")
def test_a_reference_of_many_columns_takes_little_more_than_what_it_keeps():
    script = """
import resource, torch
from sklvebm import MixtureReference
n, width = 40, 400
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def reference(n, width):
    A = torch.randn(n, width, width, dtype=torch.float64) / width**0.5
    covariances = torch.baddbmm(torch.eye(width).double().expand_as(A), A, A.mT)
    del A
    before = peak()
    MixtureReference(
        torch.full((n,), 1 / n), torch.zeros(n, width), covariances,
        latent_map=torch.zeros(0, width), latent_variance=torch.zeros(0),
        location=torch.zeros(width), defensive_weight=0.1, defensive_covariance=torch.eye(width),
    )
    return peak() - before
reference(2, 10)
print(reference(n, width) / (8 * n * width**2 / 2**20))
"""
    done = run_in_a_process(script)
    assert done.returncode == 0, done.stderr
    # the factors and the roots, of which one takes the place of the products that are freed
    assert float(done.stdout) < 2.5
