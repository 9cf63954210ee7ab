"""Missing cells under an energy: evidence, means, quantiles and draws against a known mixture."""

import math

import numpy as np
import pytest
import torch

from sklvebm.inference.missing_cells import (
    missing_draws,
    missing_particles,
    moved_cells,
    observed_evidence,
    weighted_mean,
    weighted_quantiles,
)
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.missing_cells import (
    components_of,
    conditional_mean,
    conditional_quantiles,
    log_marginal,
)
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import BridgedEnergy, Energy

N_ROWS, N_PARTICLES, N_DRAWS = 24, 512, 1000


def a_reference(n_components, width, seed):
    generator = torch.Generator().manual_seed(seed)
    roots = 0.4 * width * torch.randn(n_components, 3, 3, generator=generator).double()
    return MixtureReference(
        torch.full((n_components,), 1.0 / n_components),
        0.8 * torch.randn(n_components, 3, generator=generator),
        roots @ roots.mT + 0.1 * width * torch.eye(3),
        latent_map=torch.tensor([[0.5, 0.1, 0.0]]),
        latent_variance=torch.tensor([0.6]),
        location=torch.zeros(3),
        defensive_weight=0.05,
        defensive_covariance=4.0 * torch.eye(3),
    )


class Known(Energy):
    """Another mixture of the features, with latents that bend; its log Z is zero."""

    n_features, n_latents = 3, 1

    def __init__(self):
        super().__init__()
        self.mixture = a_reference(3, 1.0, seed=2)
        self.constant = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, z):
        e = (z[:, 0] - latent_mean(x)) / 0.5
        log_normal = -0.5 * e.square() - math.log(0.5) - 0.5 * math.log(2.0 * math.pi)
        return -self.mixture.log_marginal(x) - log_normal + self.constant


def latent_mean(x):
    return 0.3 * x[:, 0] * x[:, 1]


@pytest.fixture(scope="module")
def known():
    """An energy on another reference, rows with missing cells, and the mixture that it is."""
    energy = BridgedEnergy(a_reference(2, 1.3, seed=1), Known()).double()
    mixture = energy.network.mixture
    generator = torch.Generator().manual_seed(0)
    x = mixture.split(mixture.sample(N_ROWS, generator))[0].double()
    x[torch.rand(x.shape, generator=generator) < 0.5] = math.nan
    x[0] = math.nan
    return energy, x, components_of(mixture)


@pytest.fixture(scope="module")
def particles(known):
    energy, x, _ = known
    with torch.no_grad():
        return missing_particles(energy, x, step_size=0.5, seed=0, n_particles=N_PARTICLES)


def effective(particles):
    weights = torch.softmax(particles.log_weights, 1)
    return 1.0 / weights.square().sum(1)


def test_the_evidence_of_observed_cells(known, particles):
    energy, x, mixture = known
    base = log_marginal(x, components_of(energy.reference))
    found = base + particles[1].log_total_weight()
    # weights of 1,024 particles: 5 standard errors of a mean with their effective number
    error = 5.0 / effective(particles[1]).sqrt()
    assert ((found - log_marginal(x, mixture)).abs() < error).all()


@torch.no_grad()
def test_both_sides_of_the_evidence(known):
    energy, x, mixture = known
    expected = log_marginal(x, mixture) - log_marginal(x, components_of(energy.reference))
    _, few = missing_particles(energy, x, step_size=0.5, seed=1)
    lower = observed_evidence(energy, x, step_size=0.5, seed=1)
    torch.testing.assert_close(lower, few.log_total_weight())
    upper = observed_evidence(energy, x, step_size=0.5, seed=1, from_above=True)
    # 5 standard errors of 64 weighted particles; those annealed back are as many
    error = 5.0 / effective(few).sqrt()
    assert ((lower - expected).abs() < error).all()
    assert ((upper - expected).abs() < 2.0 * error).all()
    assert (lower != upper).any()


def test_means_and_quantiles_of_missing_cells(known, particles):
    _, x, mixture = known
    cells, weighted = particles
    values, hidden = cells.complete(weighted.position), torch.isnan(x)
    mean = weighted_mean(values, weighted.log_weights)[:, 0]
    spread = weighted_mean((values - mean[:, None]).square(), weighted.log_weights)[:, 0].sqrt()
    error = 5.0 * spread / effective(weighted).sqrt()[:, None]
    assert ((mean - conditional_mean(x, mixture)).abs() <= error)[hidden].all()
    torch.testing.assert_close(mean[~hidden], x[~hidden])
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    exact = conditional_quantiles(x, mixture, levels)
    found = weighted_quantiles(values, weighted.log_weights, levels)
    # the share of weight below the exact quantile, and back
    below = (values[:, None] <= exact[:, :, None]).double()
    shares = (torch.softmax(weighted.log_weights, 1)[:, None, :, None] * below).sum(2)
    error = 5.0 * (levels * (1.0 - levels)).sqrt()[None] / effective(weighted).sqrt()[:, None]
    far = (shares - levels[None, :, None]).abs() > error[:, :, None]
    assert not (far & hidden[:, None]).any()
    own = (values[:, None] <= found[:, :, None]).double()
    shares = (torch.softmax(weighted.log_weights, 1)[:, None, :, None] * own).sum(2)
    largest = torch.softmax(weighted.log_weights, 1).amax(1)[:, None, None]
    far = (shares - levels[None, :, None]).abs() > largest + 1e-9
    assert not (far & hidden[:, None]).any()


def test_weighted_quantiles_of_equal_weights_are_those_of_numpy():
    values = torch.randn(2, 101, 3, generator=torch.Generator().manual_seed(0)).double()
    levels = torch.tensor([0.1, 0.5, 0.75], dtype=torch.float64)
    found = weighted_quantiles(values, torch.zeros(2, 101, dtype=torch.float64), levels)
    expected = np.quantile(values.numpy(), levels.numpy(), axis=1, method="hazen")
    np.testing.assert_allclose(found.numpy(), expected.transpose(1, 0, 2), atol=1e-12)


@torch.no_grad()
def test_draws_follow_the_conditional_distribution(known, particles):
    energy, x, mixture = known
    x = x[:8]
    generator = torch.Generator().manual_seed(3)
    draws, _ = missing_draws(energy, x, N_DRAWS, step_size=0.5, generator=generator)
    full, hidden = draws[:, :, :3], torch.isnan(x)
    # resampled from twice as many weighted particles, of which a share is effective
    share = effective(particles[1])[: len(x), None] / N_PARTICLES
    error = 5.0 * full.std(1) * (1.0 / N_DRAWS + 1.0 / (2.0 * N_DRAWS * share)).sqrt()
    assert ((full.mean(1) - conditional_mean(x, mixture)).abs() < error)[hidden].all()
    rows = torch.where(hidden[:, None], full, x[:, None]).flatten(0, 1)
    z = energy.reference.to_latents(rows, draws[:, :, 3:].flatten(0, 1))[:, 0]
    e = ((z - latent_mean(rows)) / 0.5).reshape(len(x), N_DRAWS)
    assert float(e.mean().abs()) < 5.0 / math.sqrt(0.4 * N_DRAWS * len(x))
    assert abs(float(e.var()) - 1.0) < 5.0 * math.sqrt(2.0 / (0.4 * N_DRAWS * len(x)))


@torch.no_grad()
def test_moving_cells_and_latents_leaves_their_distribution(known):
    energy, _, _ = known
    mixture, generator = energy.network.mixture, torch.Generator().manual_seed(4)
    noise = IndependentNoise(generator)
    rows = mixture.split(mixture.sample(2000, generator))[0].double()
    z = latent_mean(rows)[:, None] + 0.5 * noise.normal(rows[:, :1])
    position = torch.cat([rows, energy.reference.from_latents(rows, z)], 1)
    observed = rows.clone()
    observed[:, 1:] = math.nan
    moved = moved_cells(energy, observed, position, rows.new_tensor(0.5), noise)
    torch.testing.assert_close(moved[:, 0], rows[:, 0])
    assert float((moved[:, 1] != rows[:, 1]).double().mean()) > 0.5

    def moments(u):
        pairs = torch.triu_indices(4, 4)
        return torch.cat([u, u[:, pairs[0]] * u[:, pairs[1]]], 1)

    change = moments(moved) - moments(position)  # paired
    error = change.std(0).clamp(min=1e-9) / math.sqrt(len(rows))
    assert (change.mean(0).abs() < 4.5 * error).all()


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others(known):
    energy, x, _ = known
    together = observed_evidence(energy, x[:6], step_size=0.5, seed=0)
    alone = [observed_evidence(energy, row[None], step_size=0.5, seed=0) for row in x[:6]]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0.0, atol=1e-6)


@torch.no_grad()
def test_frames_and_base_belong_together(known):
    """In white coordinates the base of a path is standard normal, up to the component's choice."""
    energy, x, _ = known
    cells, _ = missing_particles(energy, x[:5], step_size=0.5, seed=0, n_particles=64)
    target = cells.target(torch.arange(5))
    noise = IndependentNoise(torch.Generator().manual_seed(0))
    position = cells.draws(noise.normal(x.new_empty(5, 64, cells.n_nodes))).flatten(0, 1)
    frame = target.frames(position, noise)
    torch.testing.assert_close(frame.colour(frame.whiten(position)), position)
    # the gradient of the base by differences
    direction = noise.normal(position)
    above, below = (target.base(position + s * direction)[0] for s in (1e-5, -1e-5))
    slope = (target.base(position)[1] * direction).sum(1)
    torch.testing.assert_close((above - below) / 2e-5, slope, rtol=1e-5, atol=1e-5)
