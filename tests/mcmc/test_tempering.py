"""Replica exchange, the spacing of the ladder, and what tempering is for: two deep wells."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mcmc.tempering import (
    interpolate,
    respaced_ladder,
    swap_replicas,
    thermodynamic_length,
)
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood

SIGMAS = 5.0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed=0):
    return IndependentNoise(generator(seed))


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("n_temperatures", [1, 2, 3, 6])
def test_swaps_are_permutations_of_neighbours_within_each_chain(n_temperatures, parity):
    n_chains = 50
    correction = 3.0 * torch.randn(n_temperatures, n_chains, generator=generator())
    betas = torch.linspace(0.0, 1.0, n_temperatures)
    index, rate = swap_replicas(correction, betas, parity=parity, noise=noise())
    assert torch.equal(index.sort().values, torch.arange(n_temperatures * n_chains))
    came_from = index.reshape(n_temperatures, n_chains)
    assert torch.equal(came_from % n_chains, torch.arange(n_chains).expand(n_temperatures, -1))
    for place, origin in zip(range(n_temperatures), came_from // n_chains, strict=True):
        partner = place + 1 if (place - parity) % 2 == 0 else place - 1
        if not (parity <= min(place, partner) and max(place, partner) < n_temperatures):
            partner = place
        assert set(origin.tolist()) <= {place, partner}
    tried = torch.arange(n_temperatures - 1) % 2 == parity
    assert torch.equal(rate.isnan(), ~tried)
    assert bool(((rate[tried] >= 0.0) & (rate[tried] <= 1.0)).all())


def test_every_swap_is_accepted_between_equal_temperatures():
    correction = 10.0 * torch.randn(4, 20, generator=generator())
    index, rate = swap_replicas(correction, torch.full((4,), 0.4), parity=0, noise=noise())
    expected = torch.arange(80).reshape(4, 20)[[1, 0, 3, 2]].reshape(-1)
    assert torch.equal(index, expected)
    assert rate[[0, 2]].tolist() == [1.0, 1.0]
    assert bool(rate[1].isnan())


def test_swaps_that_lower_the_energy_at_the_cold_end_are_always_accepted():
    correction = torch.tensor([[-5.0], [5.0]])
    index, _ = swap_replicas(correction, torch.tensor([0.0, 1.0]), parity=0, noise=noise())
    assert index.tolist() == [1, 0]


def test_replicas_with_not_finite_corrections_stay():
    correction = torch.tensor([[0.0], [math.nan]])
    index, rate = swap_replicas(correction, torch.tensor([0.0, 1.0]), parity=0, noise=noise())
    assert index.tolist() == [0, 1]
    assert float(rate) == 0.0


@pytest.mark.parametrize("parity", [0, 1])
def test_swaps_preserve_the_joint_law_of_a_discrete_ladder(parity):
    """The transition matrix on all 27 states of three rungs leaves the product law invariant."""
    correction = np.array([0.3, -1.2, 2.0])
    base = np.array([0.5, 0.2, 0.3])
    betas = np.array([0.0, 0.35, 1.0])
    states = list(itertools.product(range(3), repeat=3))
    log_law = [np.log(base[list(state)]) - betas * correction[list(state)] for state in states]
    law = np.exp(np.sum(log_law, axis=1))
    law /= law.sum()
    transition = np.zeros((27, 27))
    for row, state in enumerate(states):
        energies = torch.from_numpy(correction[list(state)])[:, None]
        # one pair, so that the rate is the acceptance of this very swap
        _, rate = swap_replicas(energies, torch.from_numpy(betas), parity=parity, noise=noise())
        swapped = list(state)
        swapped[parity], swapped[parity + 1] = swapped[parity + 1], swapped[parity]
        transition[row, states.index(tuple(swapped))] += float(rate[parity])
        transition[row, row] += 1.0 - float(rate[parity])
    np.testing.assert_allclose(law @ transition, law, rtol=1e-12)


def test_swaps_happen_as_often_as_their_rate_says():
    n = 20_000
    correction = torch.tensor([[0.4], [-0.6]], dtype=torch.float64).expand(2, n)
    index, rate = swap_replicas(correction, torch.tensor([0.2, 0.9]), parity=0, noise=noise())
    expected = math.exp((0.9 - 0.2) * (-0.6 - 0.4))
    assert float(rate) == pytest.approx(expected, rel=1e-6)
    frequency = float((index[:n] >= n).double().mean())
    error = math.sqrt(expected * (1.0 - expected) / n)
    assert abs(frequency - expected) < SIGMAS * error


@pytest.mark.parametrize("n_temperatures", [2, 5, 16])
def test_the_ladder_of_a_constant_variance_is_uniform(n_temperatures):
    betas = torch.tensor([0.0, 0.1, 0.7, 1.0], dtype=torch.float64)
    ladder = respaced_ladder(betas, torch.full((4,), 2.5), n_temperatures)
    uniform = torch.linspace(0.0, 1.0, n_temperatures, dtype=torch.float64)
    torch.testing.assert_close(ladder, uniform, rtol=1e-12, atol=1e-12)


def test_the_ladder_without_any_variance_is_uniform():
    betas = torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)
    ladder = respaced_ladder(betas, torch.zeros(3), 6)
    torch.testing.assert_close(ladder, torch.linspace(0.0, 1.0, 6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ladders_ascend_strictly_from_zero_to_one(dtype):
    variance = torch.tensor([400.0, 30.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    ladder = respaced_ladder(torch.linspace(0.0, 1.0, 5, dtype=dtype), variance, 24)
    assert ladder.dtype == dtype
    assert float(ladder[0]) == 0.0
    assert float(ladder[-1]) == 1.0
    assert bool((ladder.diff() > 0.0).all())


def test_rungs_of_the_ladder_are_at_equal_thermodynamic_length():
    # a standard normal base and f = (k - 1) u^2 / 2: Var_b[f] is known at every b
    k = 30.0

    def speed(b):
        return np.sqrt(0.5) * (k - 1.0) / (1.0 + b * (k - 1.0))

    betas = np.linspace(0.0, 1.0, 2001)
    ladder = respaced_ladder(
        torch.from_numpy(betas), torch.from_numpy(speed(betas) ** 2), 9
    ).numpy()
    # a tenth of the mean speed is added, so that no region is left without rungs
    floor = 0.1 * speed(betas).mean()

    def length(b):
        return np.sqrt(0.5) * np.log1p(b * (k - 1.0)) + floor * b

    steps = np.diff(length(ladder))
    np.testing.assert_allclose(steps, length(1.0) / 8.0, rtol=1e-4)
    assert ladder[1] < 0.25 / 8.0  # far from uniform


def test_thermodynamic_length_is_the_integral_of_the_standard_deviation():
    betas = torch.linspace(0.0, 1.0, 4001, dtype=torch.float64)
    variance = (1.0 + 3.0 * betas.square()).square()
    assert thermodynamic_length(betas, variance) == pytest.approx(2.0, rel=1e-6)


def test_interpolation_is_that_of_numpy():
    random = np.random.RandomState(0)
    grid, values = np.sort(random.uniform(size=7)), random.standard_normal(7)
    at = np.concatenate([random.uniform(-0.5, 1.5, size=40), grid])
    actual = interpolate(*(torch.from_numpy(part) for part in (at, grid, values)))
    np.testing.assert_allclose(actual.numpy(), np.interp(at, grid, values), rtol=1e-12, atol=1e-12)


class Wells(nn.Module):
    """Two wells 0.3 wide at -2 and 2, about eleven nats deep under a standard normal."""

    def forward(self, x, z):
        left = torch.exp(-((x[:, 0] + 2.0) / 0.3).square() / 2.0)
        right = torch.exp(-((x[:, 0] - 2.0) / 0.3).square() / 2.0)
        return -12.0 * left - 12.4 * right + 0.3 * torch.sin(z[:, 0]) * right


def two_wells():
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 1),
        torch.ones(1, 1, 1),
        latent_map=torch.full((1, 1), 0.3),
        latent_variance=torch.ones(1),
        location=torch.zeros(1),
    )
    # a bound far above the wells keeps them as they are written
    return AnchoredEnergy(reference, Wells(), bound=1000.0)


def profile():
    """Return x, its energy up to a constant, and the probability of the right well."""
    energy = two_wells()
    x = torch.linspace(-6.0, 6.0, 1200, dtype=torch.float64)  # even: no node at zero
    e = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)
    nodes = torch.cartesian_prod(x, e)
    log_density = -energy(*energy.reference.split(nodes)).reshape(1200, 161)
    marginal = torch.logsumexp(log_density, 1)
    return x, -marginal, float(torch.softmax(marginal, 0)[x > 0].sum())


def likelihood(n_temperatures, step_size):
    return ParticleLikelihood(
        dynamics="crank-nicolson",
        n_particles=1,
        n_chains=64,
        n_temperatures=n_temperatures,
        n_langevin_steps=5,
        step_size=step_size,
    )


def all_in_the_left_well(objective, energy):
    state = objective.init(energy, 0, generator=generator(1))
    pool = torch.cat([torch.full_like(state.pool[..., :1], -2.0), state.pool[..., 1:]], 2)
    return state._replace(pool=pool)


def test_the_barrier_between_the_wells_is_higher_than_eight_nats():
    x, energy, weight = profile()
    top = float(energy[(x.abs() < 1.5)].max())
    assert top - float(energy[x > 0].min()) > 8.0
    assert top - float(energy[x < 0].min()) > 8.0
    assert 0.2 < weight < 0.8


def test_a_single_temperature_never_leaves_its_well():
    energy, objective = two_wells(), likelihood(1, step_size=0.01)
    state, random = all_in_the_left_well(objective, energy), noise(2)
    for _ in range(300):
        pool, step_size, *_ = objective.tempered.move(energy, state, random)
        state = state._replace(pool=pool, pool_step_size=step_size)
    assert float(state.pool[0, :, 0].max()) < -1.0
    # they do move: it is the barrier that keeps them
    assert float(state.pool[0, :, 0].std()) > 0.03


def test_a_tempered_pool_populates_both_wells_by_their_weight():
    energy, objective = two_wells(), likelihood(8, step_size=0.2)
    state = all_in_the_left_well(objective, energy)
    state, _ = objective.tempered.equilibrate(energy, state, 400, 1, generator(3))
    # what follows is a plain Markov chain: ladder and step sizes stay as they are now
    random, n_sweeps = noise(4), 400
    visits = torch.zeros(64, dtype=torch.float64)
    for _ in range(n_sweeps):
        pool, *_ = objective.tempered.move(energy, state, random)
        state = state._replace(pool=pool, n_updates=state.n_updates + 1)
        visits += (pool[-1, :, 0] > 0.0).double() / n_sweeps
    # particles are exchanged within columns only, hence 64 independent ladders
    error = float(visits.std()) / math.sqrt(64)
    assert error < 0.05
    assert abs(float(visits.mean()) - profile()[2]) < SIGMAS * error
