"""Work in parts: cut by its size, side by side or in turn with the same numbers."""

import contextlib
from unittest import mock

import pytest
import torch

from sklvebm import threads
from sklvebm.mcmc.langevin import KERNELS
from sklvebm.mcmc.state import Batch, IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy, multiply_adds
from sklvebm.objectives import maximum_likelihood, parts
from sklvebm.objectives import pool as pool_module
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.objectives.parts import JoinedRows, in_parts, noises_of_parts, parts_of_work
from sklvebm.objectives.pool import sweep_pool
from sklvebm.objectives.posteriors import ParticlePosterior
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.threads import team

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trained():
    reference = MixtureReference(
        torch.tensor([0.4, 0.6]),
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]]),
        torch.stack([torch.eye(2), 0.5 * torch.eye(2)]),
        latent_map=torch.tensor([[0.5, 0.0]]),
        latent_variance=torch.tensor([0.75]),
        location=torch.zeros(2),
    )
    energy = AnchoredEnergy(reference, MLPEnergy(2, 1, (8,), generator=generator()).double())
    with torch.no_grad():
        energy.network.output.normal_(generator=generator(1))
    return energy


@pytest.fixture
def dear(monkeypatch):
    """Ten rows are a part."""
    monkeypatch.setattr(threads, "_MIN_PART_MULTIPLY_ADDS", 10.0 * multiply_adds(trained()))
    monkeypatch.setattr(threads, "_MIN_SPLIT_MULTIPLY_ADDS", 20.0 * multiply_adds(trained()))


def values_and_gradients(energy, rows):
    values = in_parts(energy, energy.correction, *rows)
    slopes = torch.linspace(0.0, 1.0, len(values), dtype=values.dtype)
    return values, torch.autograd.grad((slopes * values).sum(), list(energy.parameters()))


def test_large_work_is_cut_by_its_size_alone(dear):
    energy = trained()
    assert [parts_of_work(energy, n, CPU) for n in (1, 19, 20, 45, 10_000)] == [1, 1, 2, 4, 8]
    assert parts_of_work(energy, 10_000, torch.device("cuda")) == 1
    with team(4):
        assert parts_of_work(energy, 45, CPU) == 4


@pytest.mark.parametrize("n_threads", [None, 3])
@pytest.mark.parametrize("keeps_graphs", [True, False])
def test_values_and_gradients_in_parts_are_those_of_the_whole(
    keeps_graphs, n_threads, dear, monkeypatch
):
    energy = trained()
    rows = (
        torch.randn(45, 2, generator=generator(2), dtype=torch.float64),
        torch.randn(45, 1, generator=generator(3), dtype=torch.float64),
    )
    seen = []
    correction = energy.correction
    with monkeypatch.context() as patch:
        patch.setattr(threads, "_MIN_SPLIT_MULTIPLY_ADDS", 1e9)
        whole = values_and_gradients(energy, rows)
    if not keeps_graphs:
        monkeypatch.setattr(parts, "_MOST_IN_GRAPH", 44)
        monkeypatch.setattr(parts, "_PART", 12)
    monkeypatch.setattr(energy, "correction", lambda x, z: seen.append(len(x)) or correction(x, z))
    with contextlib.nullcontext() if n_threads is None else team(n_threads):
        found = values_and_gradients(energy, rows)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    # computed again on the way back where nothing was kept
    assert sorted(seen) == [9, 12, 12, 12] if keeps_graphs else [9, 9, *[12] * 6]


def test_parts_without_gradients_keep_no_graph(dear):
    energy = trained()
    rows = torch.randn(45, 2).double(), torch.randn(45, 1).double()
    with torch.no_grad(), team(2):
        assert in_parts(energy, energy.correction, *rows).grad_fn is None


def test_parts_have_noise_of_their_own_that_the_source_decides():
    first, again = (noises_of_parts(IndependentNoise(generator(5)), 3) for _ in range(2))
    draws = [noise.normal(torch.empty(4)) for noise in first]
    assert not any(torch.equal(draws[0], other) for other in draws[1:])
    for noise, expected in zip(again, draws, strict=True):
        assert torch.equal(noise.normal(torch.empty(4)), expected)
    source = IndependentNoise(generator(5))
    assert noises_of_parts(source, 1) == [source]


def moved_pool(energy):
    pool = TemperedPool(
        dynamics="crank-nicolson",
        n_chains=12,
        n_temperatures=4,
        n_langevin_steps=2,
        step_size=None,
    )
    state = pool.init(energy, generator(1))
    return sweep_pool(energy, state, KERNELS["mala"], 2, IndependentNoise(generator(2)))


def moved_posteriors(energy, n_particles=2):
    posterior = ParticlePosterior(KERNELS["mala"], n_particles, 2, proposes_independently=True)
    pool = TemperedPool(
        dynamics="mala", n_chains=4, n_temperatures=2, n_langevin_steps=1, step_size=None
    )
    state = pool.init(energy, generator(1), posterior.init(energy, 30, generator(3)))
    x = torch.randn(25, 2, generator=generator(4), dtype=torch.float64)
    batch = Batch(x=x, index=torch.arange(3, 28))
    return posterior.move(energy, batch, state, IndependentNoise(generator(2)))


def test_moves_side_by_side_are_those_in_turn(dear):
    energy = trained()
    with torch.no_grad():
        alone = moved_pool(energy), moved_posteriors(energy)
        with team(3):
            together = moved_pool(energy), moved_posteriors(energy)
    for name in ("pool", "step_size", "acceptance", "swap_acceptance", "source"):
        ours, theirs = (getattr(sweep, name) for sweep in (together[0], alone[0]))
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)
    for name in ("rows", "step_size", "acceptance"):
        assert torch.equal(*(getattr(move, name) for move in (together[1], alone[1])))
    assert torch.equal(*(move.latents.values for move in (together[1], alone[1])))


def test_posterior_particles_in_parts_stay_with_their_rows(dear):
    """Exact draws of an untrained posterior stay so, in five parts: mean and variance by row."""
    energy = trained()
    with torch.no_grad():
        energy.network.output.zero_()
        move = moved_posteriors(energy, n_particles=400)
    e = energy.reference.from_latents(*energy.reference.parts(move.rows)).reshape(25, 400)
    assert ((e.mean(1) * 20.0).abs() < 5.0).all()
    assert ((e.var(1) - 1.0).abs() < 5.0 * (2.0 / 399.0) ** 0.5).all()
    assert not torch.equal(e[0], e[5])


def test_slices_of_joined_rows_are_those_of_all_together():
    reference = trained().reference.double()
    first, particles = torch.randn(2, 7, 3, generator=generator(), dtype=torch.float64)
    joined = JoinedRows(reference, first, particles)
    whole = torch.cat([first, reference.rows(particles)])
    assert len(joined) == 14
    for part in (slice(None), slice(0, 5), slice(5, 10), slice(7, 9), slice(10, 20)):
        torch.testing.assert_close(joined[part], whole[part], rtol=0, atol=1e-15)


def test_the_rows_of_a_large_pool_are_not_made_all_at_once(monkeypatch):
    """The loss and its gradient stay as they are."""
    monkeypatch.setattr(pool_module, "_BLOCK_PARTICLES", 40)
    monkeypatch.setattr(parts, "_MOST_IN_GRAPH", 40)
    monkeypatch.setattr(parts, "_PART", 30)
    energy, found = trained(), []
    x = torch.randn(8, 2, generator=generator(), dtype=torch.float64)
    monkeypatch.setattr(ParticleLikelihood, "_moves_together", lambda *_: False)
    how = {"dynamics": "crank-nicolson", "n_langevin_steps": 1, "step_size": 0.1}
    for large in (40, 10**6):
        monkeypatch.setattr(maximum_likelihood, "_LARGE", large)
        objective = ParticleLikelihood(n_particles=2, n_chains=30, n_temperatures=3, **how)
        state = objective.init(energy, 8, generator=generator())
        with mock.patch.object(
            maximum_likelihood, "JoinedRows", side_effect=maximum_likelihood.JoinedRows
        ) as joined:
            loss = objective.step(energy, Batch(x, torch.arange(8)), state, generator(1))[0]
        assert joined.called == (large == 40)
        slopes = torch.autograd.grad(loss, list(energy.parameters()))
        found.append([loss.detach(), *slopes])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
