"""Work that is recorded once and replayed, where a device can do that.

What replays of updates give is tested on the pretended device, in `test_launches.py`.
"""

import warnings

import pytest
import torch
from sklearn.datasets import make_moons

from sklvebm import ParticleLVEBM, WassersteinFlowEBM, recordings
from sklvebm.backends import select_correction_and_grad
from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.targets import joint_target
from sklvebm.recordings import Recordings
from sklvebm.smc import annealing
from sklvebm.smc.annealing import anneal


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
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ParticleLVEBM, {}),
        (ParticleLVEBM, {"posterior": "gaussian"}),
        (WassersteinFlowEBM, {}),
    ],
)
def test_graphs_give_what_plain_updates_give(kind, options, monkeypatch):
    X, _ = make_moons(400, noise=0.1, random_state=0)
    fixed = {"reference": "gaussian", "init": "reference", "max_iter": 60, "random_state": 0}
    bounds = []
    for recorder in (recordings.recorder_of, lambda device: None):
        monkeypatch.setattr(recordings, "recorder_of", recorder)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            model = kind(device="cuda", early_stopping=False, **fixed, **options).fit(X)
        name = "lower_bound" if kind is ParticleLVEBM else "log_likelihood"
        bounds.append(torch.as_tensor([epoch[name] for epoch in model.history_[:30]]))
    torch.testing.assert_close(*bounds, rtol=1e-4, atol=1e-4)


def annealed(device, n_steps):
    """Return log weights and walkers of annealing to a random energy, on a device."""
    generator = torch.Generator().manual_seed(0)
    reference = MixtureReference(
        torch.ones(2) / 2.0,
        torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        torch.eye(2).expand(2, 2, 2),
        latent_map=torch.zeros(0, 2),
        latent_variance=torch.zeros(0),
        location=torch.zeros(2),
    )
    network = MLPEnergy(2, 0, (16, 16), "tanh", generator)
    with torch.no_grad():
        network.output.normal_(generator=generator)
    energy = AnchoredEnergy(reference.float(), network).to(device)
    path = joint_target(energy, select_correction_and_grad(energy))
    source = torch.Generator(device).manual_seed(1)
    chains = start(energy.reference.sample(200, source), path)
    betas = torch.linspace(0.0, 1.0, n_steps + 1, device=device)
    how = {"step_sizes": torch.full_like(betas, 0.3), "noise": IndependentNoise(source)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", RuntimeWarning)
        log_weights, chains = anneal(chains, path, betas, **how)
    return log_weights, chains.position


def test_annealing_in_place_is_annealing(monkeypatch):
    expected = annealed("cpu", 30)
    monkeypatch.setattr(annealing, "can_record", lambda device: True)
    monkeypatch.setattr(annealing, "_FEWEST_RECORDED", 30)
    found = annealed("cpu", 30)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_give_what_plain_annealing_gives(monkeypatch):
    found = annealed("cuda", 300)
    monkeypatch.setattr(recordings, "recorder_of", lambda device: None)
    for own, plain in zip(found, annealed("cuda", 300), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-3)
