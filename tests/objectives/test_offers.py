"""Chains of the pool find components that were lifted from a weight where no chain would look."""

import functools
import math

import pytest
import torch

from sklvebm.mcmc.state import IndependentNoise
from sklvebm.objectives import parts, tempered_pool
from sklvebm.objectives import pool as pool_module
from sklvebm.objectives.pool import with_independence_proposals
from sklvebm.objectives.tempered_pool import TemperedPool

RARE, LIFT = 1e-5, 11.0  # weight of the component far out; what it is lifted by, nats
N_CHAINS = 4000
BETAS = torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=torch.float64)


@pytest.fixture
def energy_with(lifted_component):
    """A function from the lift, nats, to the energy."""
    return functools.partial(lifted_component, RARE)


def first_pool(energy):
    """Return draws of the reference, exact at every rung but for the missed component."""
    generator = torch.Generator().manual_seed(0)
    draws = energy.reference.sample(2 * len(BETAS) * N_CHAINS, generator).double()
    near = energy.reference.split(draws)[0][:, 0] < 20.0
    return draws[near][: len(BETAS) * N_CHAINS].reshape(len(BETAS), N_CHAINS, -1)


def noise(seed=1):
    return IndependentNoise(torch.Generator().manual_seed(seed))


def test_every_rung_gets_its_share_of_a_lifted_component_and_keeps_the_rest(energy_with):
    energy = energy_with(LIFT)
    pool, source = first_pool(energy), noise()
    log_z = torch.tensor(math.log(1.0 - RARE + RARE * math.exp(LIFT)))
    for _ in range(4):
        pool = with_independence_proposals(energy, pool, BETAS, log_z, source)
    x, z = energy.reference.split(pool.reshape(-1, 3))
    x, z = x.reshape(len(BETAS), N_CHAINS, 2), z.reshape(len(BETAS), N_CHAINS)
    far = x[..., 0] > 20.0
    for beta, share, rows, latents in zip(BETAS.tolist(), far, x, z, strict=True):
        mass = RARE * math.exp(LIFT * beta)
        exact = mass / (1.0 - RARE + mass)
        # four standard errors of a share, and one chain where there should be none
        tolerance = 4.0 * math.sqrt(exact * (1.0 - exact) / N_CHAINS) + 1.0 / N_CHAINS
        assert float(share.double().mean()) == pytest.approx(exact, abs=tolerance)
        near = rows[~share][:, 0]
        # the other two components: mean -0.2, variance 0.6 * 1 + 0.4 * 0.3 + 0.96
        error = math.sqrt(1.68 / len(near))
        assert float(near.mean()) == pytest.approx(-0.2, abs=4.0 * error)
        residual = latents[~share] - 0.5 * near  # latents given x are the reference's
        assert float(residual.var()) == pytest.approx(0.75, rel=4.0 * math.sqrt(2.0 / len(near)))
    # at the model's temperature the component holds more than a third
    assert float(far[-1].double().mean()) > 0.3


@pytest.mark.parametrize("lift", [0.0, -5.0, 2.0])
def test_nothing_is_offered_where_no_chain_would_live(energy_with, lift):
    energy = energy_with(lift)
    pool = first_pool(energy)
    after = with_independence_proposals(energy, pool, BETAS, torch.zeros(()), noise())
    assert torch.equal(after, pool)


def test_wrong_shares_slow_offers_down_but_change_no_law(energy_with):
    # log Z is believed to be a nat too low: shares of the draws are too high
    energy = energy_with(LIFT)
    pool, source = first_pool(energy), noise()
    log_z = torch.tensor(math.log(1.0 - RARE + RARE * math.exp(LIFT)) - 1.0)
    for _ in range(12):
        pool = with_independence_proposals(energy, pool, BETAS, log_z, source)
    mass = RARE * math.exp(LIFT)
    exact = mass / (1.0 - RARE + mass)
    share = float((energy.reference.split(pool[-1])[0][:, 0] > 20.0).double().mean())
    assert share == pytest.approx(exact, abs=4.0 * math.sqrt(exact * (1.0 - exact) / N_CHAINS))


def test_a_large_pool_is_offered_draws_in_parts_and_in_place(energy_with, monkeypatch):
    energy, rows = energy_with(LIFT), []
    pool, correction = first_pool(energy)[:, :500], type(energy).correction
    how = {"betas": BETAS, "log_partition": torch.zeros((), dtype=torch.float64)}
    whole = with_independence_proposals(energy, pool.clone(), noise=noise(), **how)
    assert not torch.equal(whole, pool)

    def noted(self, x, z):
        rows.append(len(x))
        return correction(self, x, z)

    monkeypatch.setattr(pool_module, "_BLOCK_PARTICLES", 400)
    monkeypatch.setattr(parts, "_MOST_IN_GRAPH", 400)
    monkeypatch.setattr(parts, "_PART", 300)
    monkeypatch.setattr(type(energy), "correction", noted)
    in_parts = with_independence_proposals(energy, pool.clone(), noise=noise(), **how)
    in_place = pool.clone()
    with_independence_proposals(energy, in_place, noise=noise(), overwrite=True, **how)
    assert torch.equal(in_parts, whole)
    assert torch.equal(in_place, whole)
    assert max(rows) <= 300


@pytest.mark.parametrize(("n_temperatures", "expected"), [(4, [0, 16, 32]), (1, [])])
def test_ladders_are_offered_draws_every_sixteen_updates(
    monkeypatch, energy_with, n_temperatures, expected
):
    offered = []

    def spy(energy, pool, betas, log_partition, noise, **how):
        offered.append(number)
        return pool

    monkeypatch.setattr(tempered_pool, "with_independence_proposals", spy)
    energy = energy_with(0.0)
    pool = TemperedPool(
        dynamics="crank-nicolson",
        n_chains=4,
        n_temperatures=n_temperatures,
        n_langevin_steps=1,
        step_size=None,
    )
    state = pool.init(energy, torch.Generator().manual_seed(0))
    for number in range(34):
        pool.move(energy, state._replace(n_updates=number), noise())
    assert offered == expected
