"""What is seen while a pool is watched."""

import pytest
import torch

from sklvebm.mcmc.langevin import KERNELS
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.objectives import parts as parts_module
from sklvebm.objectives import pool as pool_module
from sklvebm.objectives import tempered_pool
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.objectives.parts import noises_of_parts
from sklvebm.objectives.pool import pool_corrections, run_diagnostic_chains, sweep_pool


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def untrained():
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 2),
        torch.eye(2)[None],
        latent_map=torch.tensor([[0.5, 0.0]]),
        latent_variance=torch.tensor([0.75]),
        location=torch.zeros(2),
    )
    return AnchoredEnergy(reference, MLPEnergy(2, 1, (8,), generator=generator()).double())


def two_wells():
    """Return an untrained energy on two unequal, overlapping components, and their moments."""
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[-1.5, 0.0], [1.0, 0.5]])
    covariances = torch.stack([torch.eye(2), 0.5 * torch.eye(2)])
    reference = MixtureReference(
        weights,
        means,
        covariances,
        latent_map=torch.tensor([[0.5, 0.0]]),
        latent_variance=torch.tensor([0.75]),
        location=torch.zeros(2),
    )
    energy = AnchoredEnergy(reference, MLPEnergy(2, 1, (8,), generator=generator()).double())
    mean = weights @ means
    second = torch.einsum("m,mij->ij", weights, covariances + means[:, :, None] * means[:, None])
    return energy, mean, second - mean[:, None] * mean


def pool_of(energy, n_temperatures=4):
    objective = ParticleLikelihood(
        dynamics="crank-nicolson",
        n_particles=1,
        n_chains=10,
        n_temperatures=n_temperatures,
        n_langevin_steps=1,
        step_size=None,
    )
    return objective.init(energy, 0, generator=generator())


def test_every_replica_climbs_a_rung_per_sweep_where_all_swaps_are_accepted():
    energy = untrained()
    kernel, noise = KERNELS["crank-nicolson"], IndependentNoise(generator(1))
    # four rungs: every particle walks down the ladder deterministically, three sweeps from the top
    seen = run_diagnostic_chains(energy, pool_of(energy), kernel, 1, noise, n_sweeps=12)
    assert seen.swap_acceptance.tolist() == [1.0, 1.0, 1.0]
    assert seen.acceptance.tolist() == [1.0] * 4
    assert seen.n_round_trips == 10 * 4
    assert seen.traces.shape == (2, 10, 12)
    assert bool((seen.traces[0] == 0.0).all())
    assert bool((seen.traces[1].std(1) > 0.0).all())


def test_a_single_rung_has_no_swaps_and_no_round_trips():
    energy = untrained()
    state = pool_of(energy, n_temperatures=1)
    noise = IndependentNoise(generator(1))
    seen = run_diagnostic_chains(energy, state, KERNELS["mala"], 2, noise, n_sweeps=5)
    assert seen.n_round_trips == 0
    assert seen.swap_acceptance.shape == (0,)
    assert seen.state.pool.shape == state.pool.shape


def test_a_sweep_redraws_the_reference_rung_and_leaves_its_input_alone():
    energy = untrained()
    state = pool_of(energy)
    before = state.pool.clone()
    sweep = sweep_pool(energy, state, KERNELS["crank-nicolson"], 1, IndependentNoise(generator(2)))
    assert torch.equal(state.pool, before)
    assert not bool((sweep.pool == before).any())


@pytest.mark.parametrize("n_steps", [1, 5])
def test_chains_cross_between_components_that_are_drawn_once_a_sweep(n_steps):
    """From a single component, the pool comes to the whole mixture: mean and covariance."""
    energy, mean, covariance = two_wells()
    state = pool_of(energy, n_temperatures=1)
    n_chains = 4000
    start = torch.randn(1, n_chains, 3, generator=generator(1), dtype=torch.float64)
    start[..., :2] = energy.reference.from_features(start[0, :, :2] + torch.tensor([-1.5, 0.0]))
    state = state._replace(pool=start)
    noise = IndependentNoise(generator(2))
    for _ in range(60):
        sweep = sweep_pool(energy, state, KERNELS["crank-nicolson"], n_steps, noise)
        state = state._replace(pool=sweep.pool, pool_step_size=sweep.step_size)
    x = energy.reference.to_features(state.pool[0, :, :2])
    error = torch.sqrt(torch.diagonal(covariance) / n_chains)
    assert bool(((x.mean(0) - mean).abs() < 5.0 * error).all())
    # variances of the sample covariance, from its own fourth moments
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    error = products.std(0) / n_chains**0.5
    assert bool(((products.mean(0) - covariance).abs() < 5.0 * error).all())


def test_frames_are_drawn_once_a_sweep():
    energy, _, _ = two_wells()
    state = pool_of(energy)
    drawn = []
    frame = energy.reference.frame
    energy.reference.frame = lambda *arguments: drawn.append(1) or frame(*arguments)
    sweep_pool(energy, state, KERNELS["crank-nicolson"], 3, IndependentNoise(generator()))
    assert len(drawn) == 1


@pytest.fixture
def small_blocks(monkeypatch):
    """Have pools of more than 12 particles swept in blocks."""
    monkeypatch.setattr(pool_module, "_BLOCK_PARTICLES", 12)


@pytest.mark.parametrize("n_particles", [12, 10**6])
def test_origins_are_rungs_in_one_piece_and_in_blocks(n_particles, monkeypatch):
    """Where all swaps are accepted, rungs 0 and 1 change places, and 2 and 3."""
    monkeypatch.setattr(pool_module, "_BLOCK_PARTICLES", n_particles)
    energy = untrained()
    sweep = sweep_pool(energy, pool_of(energy), KERNELS["mala"], 1, IndependentNoise(generator()))
    assert sweep.origin().tolist() == [[rung] * 10 for rung in (1, 0, 3, 2)]


def test_a_pool_in_blocks_climbs_as_one_piece_does(small_blocks):
    """Ten chains of four rungs in four blocks: every one goes its round."""
    energy = untrained()
    kernel, noise = KERNELS["crank-nicolson"], IndependentNoise(generator(1))
    seen = run_diagnostic_chains(energy, pool_of(energy), kernel, 1, noise, n_sweeps=12)
    assert seen.swap_acceptance.tolist() == [1.0, 1.0, 1.0]
    assert seen.n_round_trips == 10 * 4
    assert seen.traces.shape == (2, 10, 12)


def test_a_sweep_in_blocks_is_a_sweep_of_each(small_blocks):
    """Every block with noise of its own; steps adapt by the mean of the blocks."""
    energy, _, _ = two_wells()
    with torch.no_grad():
        energy.network.output.normal_(generator=generator(1))
    state, kernel = pool_of(energy), KERNELS["crank-nicolson"]
    before = state.pool.clone()
    sweep = sweep_pool(energy, state, kernel, 2, IndependentNoise(generator(2)))
    assert torch.equal(state.pool, before)
    noises = noises_of_parts(IndependentNoise(generator(2)), 4)
    blocks = [
        sweep_pool(energy, state._replace(pool=part), kernel, 2, noise)
        for part, noise in zip(before.tensor_split(4, 1), noises, strict=True)
    ]
    assert torch.equal(sweep.pool, torch.cat([b.pool for b in blocks], 1))
    assert torch.equal(sweep.origin(), torch.cat([b.origin() for b in blocks], 1))
    for name in ("step_size", "acceptance"):
        mean = torch.stack([getattr(b, name) for b in blocks]).mean(0)
        torch.testing.assert_close(getattr(sweep, name), mean)
    assert not torch.equal(sweep.step_size, state.pool_step_size)
    # a pool that may be overwritten is
    noise = IndependentNoise(generator(2))
    again = sweep_pool(energy, state, kernel, 2, noise, overwrite=True)
    assert again.pool is state.pool
    assert torch.equal(again.pool, sweep.pool)


def test_a_first_pool_in_parts_is_drawn_from_one_stream(monkeypatch):
    monkeypatch.setattr(tempered_pool, "_DRAWN_AT_A_TIME", 16)  # of 40
    energy, g = untrained(), generator()
    expected = torch.cat([energy.reference.sample(n, g) for n in (16, 16, 8)])
    assert torch.equal(pool_of(energy).pool.reshape(40, 3), expected)


def test_a_bound_on_many_rows_goes_through_them_in_parts(monkeypatch):
    energy, _, _ = two_wells()
    with torch.no_grad():
        energy.network.output.normal_(generator=generator(1))
    x = torch.randn(9, 2, generator=generator(2), dtype=torch.float64)
    nodes = torch.randn(5, 1, generator=generator(3), dtype=torch.float64)
    whole = tempered_pool.free_energy_bound(energy, x, nodes)
    seen = []
    correction = energy.correction
    monkeypatch.setattr(energy, "correction", lambda x, z: seen.append(len(x)) or correction(x, z))
    monkeypatch.setattr(tempered_pool, "_NUMBERS_AT_A_TIME", 60)  # four rows of five nodes
    parts = tempered_pool.free_energy_bound(energy, x, nodes)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert seen == [20, 20, 5]


def test_many_components_make_small_blocks(monkeypatch):
    energy, _, _ = two_wells()
    pool = pool_of(energy).pool  # (4, 10, 3)
    assert pool_module._blocks_for_memory(energy, pool) == 1
    monkeypatch.setattr(pool_module, "_BLOCK_NUMBERS", 60)  # 20 particles of three numbers
    assert pool_module._blocks_for_memory(energy, pool) == 2
    energy.reference.log_weights = torch.zeros(30)
    assert pool_module._blocks_for_memory(energy, pool) == 10


def test_a_large_pool_has_the_same_gradient_and_keeps_fewer_activations(monkeypatch):
    energy, pool = untrained(), pool_of(untrained()).pool.repeat(1, 20, 1)
    with torch.no_grad():
        energy.network.output.normal_(generator=generator(1))

    def values_gradients_and_bytes():
        kept = []

        def keep(tensor):
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            values = pool_corrections(energy, pool)
        n_bytes = sum(kept)
        gradients = torch.autograd.grad((values * torch.linspace(0, 1, 200)).sum(), parameters)
        return values, gradients, n_bytes

    parameters = list(energy.parameters())
    values, gradients, n_bytes = values_gradients_and_bytes()
    monkeypatch.setattr(parts_module, "_MOST_IN_GRAPH", 199)
    monkeypatch.setattr(parts_module, "_PART", 96)  # nine parts, the last one smaller
    in_parts = values_gradients_and_bytes()
    torch.testing.assert_close(in_parts[0], values)
    torch.testing.assert_close(in_parts[1], gradients)
    assert any(bool((g != 0.0).any()) for g in gradients)
    # the particles, and nothing that the network makes of them
    assert in_parts[2] == pool.numel() * pool.element_size() < 0.3 * n_bytes
