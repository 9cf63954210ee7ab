"""Components that walkers miss: their mass, starts that find them, draws that hold their share."""

import math

import pytest
import torch

from sklvebm.backends import select_correction_and_grad
from sklvebm.inference.missed_components import (
    MissedComponents,
    Rebased,
    missed_components,
    missed_share,
    tilted_draws,
    tilted_reference,
    with_missed_mass,
)
from sklvebm.inference.sampling import joint_draws
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.models.targets import joint_target
from sklvebm.smc.annealing import Ladder
from sklvebm.smc.log_partition import LogPartition, estimate_log_partition

N_WALKERS = 512
RARE = 1e-5  # weight of the component far out
LIFT = 11.0  # nats
HELD = RARE * math.exp(LIFT) / (1.0 - RARE + RARE * math.exp(LIFT))  # its share of the model
LADDER = Ladder(
    *(torch.tensor(part, dtype=torch.float64) for part in ([0.0, 1.0], [1.0, 0.5], [4.0, 1.0]))
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def lifted(lifted_component):
    """An energy of which a component of weight 1e-5 holds 0.37, and its log Z in closed form."""
    return lifted_component(RARE, LIFT), math.log(1.0 - RARE + RARE * math.exp(LIFT))


def test_the_mass_of_a_narrow_rare_component_is_known(lifted):
    energy, _ = lifted
    rare = missed_components(energy, N_WALKERS, generator())
    assert rare.index.tolist() == [2]
    # the correction is constant there, up to the tail of a sigmoid
    assert float(rare.log_means) == pytest.approx(LIFT, abs=1e-6)
    assert float(rare.log_weights) == pytest.approx(math.log(RARE))
    assert len(missed_components(energy, 10**6, generator()).index) == 0


def test_a_component_on_which_the_correction_varies_is_left_to_the_walkers(lifted):
    energy, _ = lifted
    energy.network.forward = lambda x, z: 40.0 * x[:, 1]  # four nats per standard deviation
    assert len(missed_components(energy, N_WALKERS, generator()).index) == 0


def test_the_bracket_holds_log_z_only_with_rare_components(lifted):
    energy, log_z = lifted
    noise = IndependentNoise(generator(1))
    target = joint_target(energy, select_correction_and_grad(energy))
    draws = energy.reference.sample(N_WALKERS, noise.generator)  # the model's, but for the rare
    found = estimate_log_partition(
        target,
        lambda: energy.reference.sample(N_WALKERS, noise.generator, stratified=True),
        draws,
        LADDER,
        noise=noise,
        tolerance=0.05,
        max_steps=32,
    ).estimate
    assert found.upper < log_z - 0.4
    whole = with_missed_mass(found, missed_components(energy, N_WALKERS, noise.generator))
    assert whole.lower <= log_z <= whole.upper + 1e-6
    # all but the missed component has no correction: the walkers are exact, up to a sigmoid's tail
    assert whole.value == pytest.approx(log_z, abs=1e-6)


def test_components_like_the_others_add_nothing():
    estimate = LogPartition(-1.0, -1.1, -0.9, 0.03, 300.0)
    none = MissedComponents(torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0))
    lowered = MissedComponents(torch.tensor([2]), torch.tensor([-9.0]), torch.tensor([-1.5]))
    assert with_missed_mass(estimate, none) == estimate
    assert with_missed_mass(estimate, lowered) == estimate


def test_chunks_hold_whole_components(lifted):
    energy, _ = lifted
    sizes = []
    correction = energy.correction
    energy.correction = lambda x, z: sizes.append(len(x)) or correction(x, z)
    missed_components(
        energy, 1, generator()
    )  # all three are rare for a single walker but the first
    missed_components(energy, 1, generator(), chunk=1)
    assert sizes == [128, 64, 64]


def test_a_tilted_reference_has_rare_components_as_often_as_the_model(lifted):
    energy, log_z = lifted
    rare = missed_components(energy, N_WALKERS, generator())
    tilted = tilted_reference(energy.reference, rare, log_z)
    weights = tilted.log_weights.exp()
    assert float(weights[2]) == pytest.approx(HELD, rel=1e-5)
    assert float(weights[0] / weights[1]) == pytest.approx(0.6 / (0.4 - RARE))
    assert float(weights.sum()) == pytest.approx(1.0)
    assert missed_share(energy.reference, tilted) == pytest.approx(HELD, rel=1e-5)
    # once they are, there is nothing left to do
    again = tilted_reference(tilted, rare, log_z)
    torch.testing.assert_close(again.log_weights, tilted.log_weights)
    assert missed_share(tilted, again) == 0.0
    # where log Z is far too low, half of the walkers still start elsewhere
    blind = tilted_reference(energy.reference, rare, log_z - 20.0)
    assert float(blind.log_weights[2].exp()) == pytest.approx(0.5)


def test_where_all_components_are_rare_and_lifted_weights_stay(lifted):
    energy, _ = lifted
    everything = MissedComponents(
        torch.arange(3), energy.reference.log_weights, torch.ones(3, dtype=torch.float64)
    )
    tilted = tilted_reference(energy.reference, everything, 0.0)
    torch.testing.assert_close(tilted.log_weights, energy.reference.log_weights)


def test_another_base_of_the_path_is_the_same_density(lifted):
    energy, log_z = lifted
    rare = missed_components(energy, N_WALKERS, generator())
    rebased = Rebased(energy, tilted_reference(energy.reference, rare, log_z))
    y = torch.cat(
        [energy.reference.sample(20, generator(4)), rebased.reference.sample(20, generator(4))]
    )
    paths = joint_target(energy, select_correction_and_grad(energy)), rebased.target()
    ends = [(path.base(y), path.evaluate(y)) for path in paths]
    energies, slopes = ([base[part] + value[part] for base, value in ends] for part in range(2))
    change = energies[0] - energies[1]  # a constant: both leave out the same normaliser
    torch.testing.assert_close(change, torch.zeros_like(change), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-5)


def test_tilted_draws_have_the_weights_of_the_reference(lifted):
    energy, log_z = lifted
    rare = missed_components(energy, N_WALKERS, generator())
    n = 20_000
    y, log_weights = tilted_draws(energy.reference, rare, log_z, n, generator(2))
    weights = torch.exp(log_weights)
    x, _ = energy.reference.split(y)
    far = (x[:, 0] > 20.0).double()
    # five standard errors
    assert abs(float(far.mean()) - HELD) < 5.0 * math.sqrt(HELD * (1.0 - HELD) / n)
    error = float(weights.std()) / math.sqrt(n)
    assert abs(float(weights.mean()) - 1.0) < 5.0 * error
    rare_share = weights * far
    assert abs(float(rare_share.mean()) - RARE) < 5.0 * float(rare_share.std()) / math.sqrt(n)
    moment = weights * x[:, 0].clamp(max=20.0)
    expected = 0.6 * -1.0 + (0.4 - RARE) * 1.0
    assert abs(float(moment.mean()) - expected) < 5.0 * float(moment.std()) / math.sqrt(n)


def test_without_rare_components_draws_are_the_references(lifted):
    energy, _ = lifted
    rare = missed_components(energy, 10**6, generator())
    _, log_weights = tilted_draws(energy.reference, rare, 0.0, 50, generator(3))
    torch.testing.assert_close(log_weights, torch.zeros_like(log_weights))


def test_draws_of_the_model_hold_the_share_of_a_rare_component(lifted):
    energy, log_z = lifted
    shares = []
    for seed in range(20):
        x, _ = joint_draws(
            energy, 500, LADDER, n_steps=8, log_partition=log_z, generator=generator(seed)
        )
        shares.append(float((x[:, 0] > 20.0).double().mean()))
    shares = torch.tensor(shares)
    # five standard errors over independent runs
    assert abs(float(shares.mean()) - HELD) < 5.0 * float(shares.std()) / math.sqrt(20)
    # independent draws have 0.022, resampled walkers more; started by weight, a run has none or all
    assert float(shares.std()) < 0.05
