"""Particles of the rows in memory or in a file, pools in blocks, answers in chunks: one model."""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone

from sklvebm import ParticleLVEBM, WassersteinFlowEBM, runtime
from sklvebm.estimators._ebm import normalization
from sklvebm.objectives import pool as pool_module
from sklvebm.objectives import row_particles

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def made(monkeypatch):
    """A list of what was mapped: the shapes, in the order in which files were made."""
    shapes, mapped = [], row_particles._mapped

    def recorded(shape, dtype, n_bytes):
        shapes.append(shape)
        return mapped(shape, dtype, n_bytes)

    monkeypatch.setattr(row_particles, "_mapped", recorded)
    return shapes


def history_of_fits(X):
    """Fit, go on with the same rows, store, go on with others; return every parameter's numbers."""
    model = ParticleLVEBM(
        1, reference="gaussian", n_chains=16, max_iter=3, warm_start=True, random_state=0
    )
    seen = []
    for rows in (X, X, X[:150], "stored", "chunk"):
        if isinstance(rows, str):
            model = pickle.loads(pickle.dumps(model))
            (model.partial_fit if rows == "chunk" else model.fit)(X)
        else:
            model.fit(rows)
        training = model._training
        seen += [p.detach().clone() for p in training.optimisation.energy.parameters()]
        seen += [training.state.pool, training.state.latents.values.clone()]
    return model, seen


def test_mapped_particles_give_the_model_of_those_in_memory(moons, made, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, seen = history_of_fits(moons)
    assert made == []
    with sklearn.config_context(working_memory=0):
        other, mapped = history_of_fits(moons)
        assert other._training.state.latents.is_mapped
        assert os.name != "posix" or list(tmp_path.glob("sklvebm-*")) == []
    assert {shape[0] for shape in made} == {180, 135, 200}
    assert len(mapped) == len(seen)
    assert all(torch.equal(a, b) for a, b in zip(seen, mapped, strict=True))
    np.testing.assert_array_equal(model.score_samples(moons), other.score_samples(moons))


def test_nothing_is_left_of_the_file_where_a_fit_fails(moons, made, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sklvebm.estimators._ebm.training.normalise", interrupt)
    monkeypatch.setattr("sklvebm.estimators._ebm.training.estimated_gain", lambda *_, **__: 1.0)
    model = ParticleLVEBM(1, reference="gaussian", n_chains=16, max_iter=1, random_state=0)
    with sklearn.config_context(working_memory=0), pytest.raises(KeyboardInterrupt):
        model.fit(moons)
    assert len(made) > 0
    assert list(tmp_path.glob("sklvebm-*")) == []
    assert not hasattr(model, "_training")


@pytest.mark.parametrize("kind", [ParticleLVEBM, WassersteinFlowEBM])
def test_a_continued_fit_does_not_write_into_the_pool_that_it_goes_on_from(
    kind, moons, monkeypatch
):
    """Large pools are moved in place, in a copy: where the fit fails, the model is what it was."""
    monkeypatch.setattr(pool_module, "_BLOCK_PARTICLES", 16)
    options = {"n_components": 1} if kind is ParticleLVEBM else {}
    model = kind(
        **options, reference="gaussian", n_chains=16, max_iter=2, warm_start=True, random_state=0
    ).fit(moons)
    state = model._training.state
    before = pickle.dumps(state.pool.numpy())

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sklvebm.estimators._ebm.training.estimated_gain", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(moons)
    assert model._training.state is state
    assert pickle.dumps(state.pool.numpy()) == before


def test_the_normaliser_watches_so_many_chains_at_most(moons, monkeypatch):
    model = ParticleLVEBM(1, reference="gaussian", n_chains=32, max_iter=8, random_state=0)
    draws = clone(model).fit(moons).diagnostics_.n_pool_draws
    monkeypatch.setattr(normalization, "_MAX_CHAINS", 16)
    limited = model.fit(moons)
    assert limited.diagnostics_.n_pool_draws * 2 == draws
    assert limited._training.state.pool.shape[1] == 32


def test_chunks_follow_the_working_memory():
    sizes = lambda *arguments: {s.stop - s.start for s in runtime.chunks(*arguments)}  # noqa: E731
    assert sizes(1000, 64) == {128}
    assert sizes(1000, 64, 1000) == {128}
    with sklearn.config_context(working_memory=1):
        assert sizes(1000, 64, 1000) == {2}  # 131 particles
        assert sizes(10, 64, 10**6) == {1}


def test_scores_do_not_depend_on_the_working_memory(fitted, moons):
    expected = fitted.score_samples(moons[:5])
    with sklearn.config_context(working_memory=0):
        np.testing.assert_allclose(fitted.score_samples(moons[:5]), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        "MixtureStack(max_components=2, random_state=0)",
        "WassersteinFlowEBM(reference='gaussian', max_iter=0, random_state=0)",
    ],
)
def test_a_million_draws_take_little_more_than_themselves(make):
    code = (
        "import resource, numpy as np\n"
        "from sklvebm import *\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "X = np.random.RandomState(0).normal(size=(60, 2))\n"
        f"model = {make}.fit(X)\n"
        "model.sample(1000, random_state=0)\n"
        "before = peak()\n"
        "drawn = model.sample(1_000_000, random_state=0)\n"
        "assert drawn.shape == (1_000_000, 2) and np.isfinite(drawn).all()\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert float(done.stdout) < 400.0, done.stderr  # MB; the draws are 16
