"""Independent estimates of log Z against closed forms, and what they leave of a wrong claim."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sklvebm.backends import select_correction_and_grad
from sklvebm.inference.independent_check import (
    IndependentCheck,
    IndependentEstimate,
    check_independently,
    pareto_shape,
    widened,
)
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.targets import joint_target
from sklvebm.smc.annealing import Ladder
from sklvebm.smc.log_partition import LogPartition

SIGMAS = 5.0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def standard_reference():
    """Return N(0, I) in the plane with a defensive component of hardly any weight."""
    return MixtureReference(
        torch.ones(1),
        torch.zeros(1, 2),
        torch.eye(2)[None],
        latent_map=torch.zeros(0, 2),
        latent_variance=torch.zeros(0),
        location=torch.zeros(2),
        defensive_weight=1e-200,
        defensive_covariance=4.0 * torch.eye(2),
    )


class Tilt(torch.nn.Module):
    """f = -a x_0, whose log Z on N(0, I) is a^2 / 2."""

    n_features, n_latents = 2, 0

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x, z):
        return -self.a * x[:, 0]


class Well(torch.nn.Module):
    """A disc of radius 0.3 at (0, 4.5), where the energy is 16 nats lower."""

    n_features, n_latents = 2, 0

    def forward(self, x, z):
        away = (x - torch.tensor([0.0, 4.5], dtype=x.dtype)).square().sum(1)
        return -16.0 * torch.sigmoid(40.0 * (0.09 - away))


LADDER = Ladder(
    torch.linspace(0.0, 1.0, 4, dtype=torch.float64),
    torch.full((4,), 1.0, dtype=torch.float64),
    torch.ones(4, dtype=torch.float64),
)


def checked(network, model_draws, seed=0):
    energy = AnchoredEnergy(standard_reference(), network, bound=1e6)
    target = joint_target(energy, select_correction_and_grad(energy))
    noise = IndependentNoise(generator(seed))
    return check_independently(energy, target, LADDER, model_draws, n_steps=16, noise=noise)


@pytest.mark.parametrize("a", [0.5, 1.0])
def test_all_estimates_agree_with_a_closed_form(a):
    draws = torch.randn(4096, 2, generator=generator(1), dtype=torch.float64)
    draws[:, 0] += a
    for estimate in checked(Tilt(a), draws):
        assert 0.0 < estimate.standard_error < 0.1
        assert abs(estimate.value - 0.5 * a**2) < SIGMAS * estimate.standard_error
        assert estimate.shape < 0.7


def test_a_well_that_no_walker_starts_in_is_found():
    well = Well()
    grid = torch.linspace(-8.0, 8.0, 1601, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    log_density = -0.5 * x.square().sum(1) - math.log(2.0 * math.pi) - well(x, None)
    truth = float(torch.logsumexp(log_density, 0)) + 2.0 * math.log(0.01)
    assert truth > 1.0
    # chains that know nothing of it, as annealing that starts from the reference does not
    blind = torch.randn(512, 2, generator=generator(1), dtype=torch.float64)
    check = checked(well, blind)
    assert abs(check.importance.value - truth) < SIGMAS * check.importance.standard_error
    claimed = LogPartition(0.0, -0.01, 0.01, 0.003, 400.0)
    estimate = widened(claimed, check, 0.02)
    assert estimate.upper > truth - 0.1
    assert estimate.value == claimed.value


def estimates(importance, annealed=(0.0, 0.01, 0.1), reverse=(0.0, 0.01, 0.1)):
    return IndependentCheck(*(IndependentEstimate(*e) for e in (importance, annealed, reverse)))


CLAIM = LogPartition(0.0, -0.01, 0.01, 0.003, 400.0)


@pytest.mark.parametrize(
    ("importance", "contradicts"),
    [
        ((0.02, 0.01, 0.2), False),  # within three of its errors
        ((0.5, 0.02, 0.2), True),
        ((-0.5, 0.02, 0.2), True),
        ((-3.0, 1.0, 1.1), False),  # a low mean of heavy-tailed weights says nothing
        ((1.0, 0.05, 1.1), True),  # a high one is hardly ever too high
        ((1.0, 1.0, 1.1), False),
        ((6.0, 6.0, 1.1), True),  # e^6 times Z: a quarter of a per cent of all times
    ],
)
def test_what_contradicts_widens_the_bracket(importance, contradicts):
    estimate = widened(CLAIM, estimates(importance), 0.02)
    if contradicts:
        assert estimate.lower <= min(importance[0], CLAIM.lower)
        assert estimate.upper >= max(importance[0], CLAIM.upper)
        assert estimate.upper - estimate.lower > 0.4
    else:
        assert estimate == CLAIM


def test_draws_of_the_model_contradict_where_their_weights_can_be_relied_on():
    off = (0.5, 0.02, 0.2)
    good = (0.0, 0.01, 0.1)
    assert widened(CLAIM, estimates(good, good, off), 0.02).upper > 0.5
    heavy = (0.5, 0.02, 0.9)
    assert widened(CLAIM, estimates(good, good, heavy), 0.02) == CLAIM


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_the_shape_of_a_generalised_pareto_is_found(shape):
    weights = stats.genpareto(shape).rvs(20_000, random_state=np.random.RandomState(0))
    # the largest 424: the estimate's standard error is (1 + k) / sqrt(424), the prior's pull less
    found = pareto_shape(np.log(weights))
    assert abs(found - shape) < 4.0 * (1.0 + shape) / math.sqrt(424)


def test_constant_weights_have_no_tail_and_few_have_an_unknown_one():
    assert pareto_shape(np.zeros(1000)) == -math.inf
    assert pareto_shape(np.zeros(10)) == math.inf
    assert pareto_shape(np.full(1000, -np.inf)) == math.inf
