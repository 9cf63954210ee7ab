"""The density ratio against closed forms: Gaussians, whose ratio and normaliser are known."""

import copy
import math

import pytest
import torch

from sklvebm.confidence import lower_confidence_limit, upper_confidence_limit
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, Energy, MLPEnergy
from sklvebm.models.ensembles import EnsembleEnergy
from sklvebm.objectives.density_ratio import (
    Classification,
    contrast,
    log_mean_weight,
    resampled,
    resampled_pool,
    start_from_ratio,
)
from sklvebm.objectives.ratio_course import RatioRecipe, ratio_recipe
from sklvebm.objectives.tempered_pool import TemperedPool

SIGMAS = 5.0  # of Monte Carlo errors, with fixed seeds


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def standard_normal(n_features=1, n_latents=1):
    return MixtureReference(
        torch.ones(1),
        torch.zeros(1, n_features),
        torch.eye(n_features)[None],
        latent_map=torch.full((n_latents, n_features), 0.5),
        latent_variance=torch.full((n_latents,), 0.75),
        location=torch.zeros(n_features),
    )


class Tilt(Energy):
    """The correction `slope * x`, which turns N(0, 1) into N(-slope, 1) with log Z slope^2 / 2."""

    def __init__(self, slope):
        super().__init__()
        self.n_features, self.n_latents = 1, 1
        self.slope = torch.nn.Parameter(torch.tensor(slope, dtype=torch.float64))

    def forward(self, x, z):
        return self.slope * x[:, 0]


def tilted(slope):
    return AnchoredEnergy(standard_normal(), Tilt(slope), bound=1e6)


def untrained(n_features=1, n_latents=1, dtype=torch.float32):
    network = MLPEnergy(n_features, n_latents, (32, 32), "silu", generator())
    return AnchoredEnergy(standard_normal(n_features, n_latents), network).to(dtype)


def recipe(max_epochs, **changes):
    given = ratio_recipe(4000, max_epochs=max_epochs, tol=0.001, patience=10)
    return given._replace(**changes)


def started(energy, x, held_out, how, seed=0):
    epochs = []
    start = start_from_ratio(
        energy, x, held_out, how, generator=generator(seed), callback=epochs.append
    )
    assert epochs == start.epochs
    return start


def test_an_untrained_energy_has_the_loss_of_a_coin_that_knows_the_shares():
    energy, g = untrained(), generator()
    loss = contrast(
        energy, torch.randn(20, 1, generator=g), torch.zeros(()), energy.reference.sample(60, g), g
    )
    assert float(loss.detach()) == pytest.approx(
        math.log(4.0) + 3.0 * math.log(4.0 / 3.0), rel=1e-6
    )


@pytest.mark.parametrize("slope", [0.3, -0.8])
def test_the_gradient_vanishes_at_the_true_ratio_and_normaliser_alone(slope):
    # rows are N(-slope, 1), so that f = slope x and c = log Z make the loss stationary
    energy, g = tilted(slope).double(), generator(3)
    errors = []
    for right in (True, False):
        slopes = []
        for _ in range(200):
            x = torch.randn(100, 1, generator=g, dtype=torch.float64) - slope
            draws = energy.reference.sample(300, g)
            constant = torch.tensor(slope**2 / 2.0 + (0.0 if right else 0.3), dtype=torch.float64)
            loss = contrast(energy, x, constant.requires_grad_(), draws, g)
            slopes.append(torch.stack(torch.autograd.grad(loss, [energy.network.slope, constant])))
        slopes = torch.stack(slopes)
        error = slopes.std(0) / math.sqrt(len(slopes))
        errors.append((slopes.mean(0).abs() / error).max())
    assert errors[0] < SIGMAS < errors[1]


@pytest.mark.parametrize("n_networks", [1, 2])
def test_the_trained_ratio_is_that_of_two_gaussians_and_its_gain_their_divergence(n_networks):
    mean, sd, g = 0.7, 0.6, generator(1)
    x, held_out = (mean + sd * torch.randn(n, 1, generator=g) for n in (4000, 4000))
    start = started(untrained() if n_networks == 1 else two_networks(), x, held_out, recipe(30))
    divergence = math.log(1.0 / sd) + (sd**2 + mean**2) / 2.0 - 0.5
    error = math.hypot(float(start.gains.std()) / math.sqrt(4000), start.standard_error)
    # above by chance alone; below also by what 4,000 rows cannot teach some 1,200 weights
    assert -0.01 - SIGMAS * error < float(start.gains.mean()) - divergence < SIGMAS * error
    at = torch.linspace(mean - 1.5 * sd, mean + 1.5 * sd, 31)[:, None]
    exact = 0.5 * ((at - mean) / sd).square() + math.log(sd) - 0.5 * at.square()
    own = start.energy.correction(at, torch.zeros(31, 1)).detach() + start.log_partition
    torch.testing.assert_close(own, exact[:, 0], rtol=0, atol=0.15)


def two_networks():
    networks = [MLPEnergy(1, 1, (32, 32), "silu", generator(seed)) for seed in (0, 1)]
    return AnchoredEnergy(standard_normal(), EnsembleEnergy(networks)).float()


def test_the_loss_of_an_ensemble_is_the_mean_of_the_losses_of_its_networks():
    energy = two_networks()
    with torch.no_grad():
        energy.network.networks[0].output.normal_(0.0, 1.0, generator=generator(7))
    x, draws = torch.randn(20, 1, generator=generator(4)), energy.reference.sample(60, generator(2))
    constant = torch.tensor([0.2, -0.4])
    losses = [
        contrast(AnchoredEnergy(energy.reference, own), x, c[None], draws, generator(3))
        for own, c in zip(energy.network.networks, constant, strict=True)
    ]
    together = contrast(energy, x, constant, draws, generator(3))
    torch.testing.assert_close(together, sum(losses) / 2.0)
    assert float((losses[0] - losses[1]).abs().detach()) > 0.01


def test_networks_of_an_ensemble_learn_as_if_alone():
    x = 0.6 * torch.randn(400, 1, generator=generator(1)).double() + 0.7
    energy = two_networks().double()
    networks = copy.deepcopy(energy.network.networks)
    alone = [AnchoredEnergy(energy.reference, own) for own in networks]
    runs = [Classification(own, x, recipe(5), generator(2)) for own in (energy, *alone)]
    for run in runs:
        for _ in range(5):
            run.epoch(0.003)
    together, *others = runs
    for k, other in enumerate(others):
        own = together.energy.network.networks[k].parameters()
        for first, second in zip(own, other.energy.network.parameters(), strict=True):
            # the small constant in Adam's denominator is not scaled with the gradients
            torch.testing.assert_close(first, second, rtol=0, atol=2e-4)
    torch.testing.assert_close(
        together.constant, torch.cat([run.constant for run in others]), rtol=0, atol=2e-4
    )


def test_without_a_difference_the_reference_stays_and_no_gain_is_expected():
    g = generator(5)
    x, held_out = torch.randn(300, 1, generator=g), torch.randn(100, 1, generator=g)
    start = started(untrained(), x, held_out, recipe(12))
    assert float(start.gains.mean()) < 0.02
    zero = start_from_ratio(
        untrained(), x, held_out, recipe(0), generator=generator(), callback=print
    )
    assert zero.energy.is_zero
    assert zero.upper_limit(torch.full((100,), 0.1, dtype=torch.float64)) == pytest.approx(-0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_is_reproducible_and_modifies_neither_energy_nor_global_state(dtype):
    energy, g = untrained(2, 0, dtype), generator(2)
    x, held_out = (0.5 * torch.randn(n, 2, generator=g).to(dtype) for n in (200, 50))
    before = torch.random.get_rng_state()
    starts = [started(energy, x, held_out, recipe(3)) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert energy.is_zero
    assert not starts[0].energy.is_zero
    for first, second in zip(*(start.energy.parameters() for start in starts), strict=True):
        assert first.dtype == dtype
        assert torch.equal(first, second)
    assert starts[0].gains.dtype == torch.float64


def test_a_learning_rate_that_explodes_ends_the_start_at_the_last_sound_epoch():
    g = generator()
    x = torch.randn(200, 1, generator=g) * 0.5
    how = RatioRecipe(math.nan, 0.0, 64, 5, 0.0, 10, 50)
    start = started(untrained(), x, x, how)
    assert len(start.epochs) == 1
    assert start.energy.is_zero
    assert start.epochs[0].progress(0.0).problem


def test_patience_and_tolerance_end_the_start():
    g = generator()
    x = torch.randn(100, 1, generator=g) * 0.5
    start = started(untrained(), x, x, recipe(50, tol=1e9, patience=2))
    # the first counts as an improvement, then come three plateaus of two
    assert len(start.epochs) == 7
    assert start.epochs[-1].learning_rate < start.epochs[0].learning_rate


@pytest.mark.parametrize(
    ("needed", "n_epochs"),
    [(-math.inf, 10), (0.0, 10), (0.1, 10), (10.0, 4)],
    ids=["no limit", "nothing", "reached", "out of reach"],
)
def test_epochs_that_will_not_reach_what_is_needed_end(needed, n_epochs):
    """Rows of half the spread gain `log 2 - 3 / 8`, 0.32 nats, in the end."""
    g = generator()
    x = torch.randn(400, 1, generator=g) * 0.5
    how = recipe(40, patience=3, tol=1e9, batch_size=64, needed=needed)
    start = started(untrained(), x, x, how)
    assert len(start.epochs) == n_epochs


def test_a_plateau_asks_for_half_of_what_is_needed():
    how = recipe(40, patience=5, needed=1.0)
    assert not how.is_hopeless(0.0, n_plateaus=0)
    assert how.is_hopeless(0.49, n_plateaus=1)
    assert not how.is_hopeless(0.51, n_plateaus=1)


def test_log_mean_weight_is_the_normaliser_of_a_tilted_gaussian():
    energy = tilted(0.9).double()
    log_z, error = log_mean_weight(energy, energy.reference.sample(20_000, generator()))
    # the weights are log-normal: their variance is known as well
    assert float(error) == pytest.approx(math.sqrt(math.expm1(0.81) / 20_000), rel=0.2)
    assert abs(float(log_z) - 0.405) < SIGMAS * float(error)


def pool_of(n_chains, n_temperatures=4):
    return TemperedPool(
        dynamics="crank-nicolson",
        n_chains=n_chains,
        n_temperatures=n_temperatures,
        n_langevin_steps=2,
        step_size=None,
    )


@pytest.mark.parametrize("n_temperatures", [1, 4])
@pytest.mark.parametrize("moves", [False, True])
def test_a_resampled_pool_has_the_distribution_of_every_rung(moves, n_temperatures):
    slope, n_chains, g = 1.2, 2000, generator(1)
    energy, pool = tilted(slope), pool_of(n_chains, n_temperatures)
    state = pool.init(energy, g)
    state = resampled_pool(pool, energy, state, g) if moves else resampled(energy, state, g)
    x = energy.reference.to_features(state.pool[:, :, :1].reshape(-1, 1)).reshape(-1, n_chains)
    # the weighted draws are fewer than 2^15 by the mean square of their weights
    error = math.sqrt(1.0 / n_chains + math.exp(slope**2) / 2**15)
    assert ((x.mean(1) + slope * state.betas).abs() < SIGMAS * error).all()
    assert ((x.var(1) - 1.0).abs() < SIGMAS * math.sqrt(2.0) * error).all()
    even = torch.linspace(0.0, 1.0, 4) if n_temperatures == 4 else torch.ones(1)
    log_z = 0.5 * (slope * even.double()).square()
    error = math.sqrt(math.expm1(slope**2) / 2**15)
    torch.testing.assert_close(state.log_partitions, log_z, rtol=0, atol=SIGMAS * error)
    # the variance of the correction; that of the moved pool is a running mean over ten sweeps
    variance = torch.full_like(log_z, slope**2)
    torch.testing.assert_close(state.spread, variance, rtol=0.3 if moves else 0.2, atol=0)
    n_different = len(torch.unique(state.pool[-1], dim=0))
    assert (n_different == n_chains) == moves


def test_the_upper_confidence_limit_mirrors_the_lower_one_without_a_cap():
    gains = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64) + 0.3
    error = float(gains.std()) / math.sqrt(41)
    factor = (upper_confidence_limit(gains) - 0.3) / error
    assert 2.0 < factor < 2.1  # Student's t of forty degrees of freedom
    assert lower_confidence_limit(gains) < 0.3 < upper_confidence_limit(gains)
    wider = upper_confidence_limit(gains, 2.0 * error)
    assert wider - 0.3 == pytest.approx(math.sqrt(5.0) * factor * error, rel=1e-9)
    assert upper_confidence_limit(gains[:1]) == math.inf
