"""The energy prior: its normaliser and its draws against quadrature."""

import math

import pytest
import torch

from sklvebm.baselines._decoder import Architecture, LatentModel
from sklvebm.baselines._prior import (
    normal_draws,
    prior_draws,
    prior_log_partition,
    quick_log_partition,
)


def make_model(n_latents, seed=0):
    architecture = Architecture(2, n_latents, (), "tanh", 0.1, 1e-4, prior_layer_sizes=(8,))
    model = LatentModel(architecture, torch.Generator().manual_seed(seed)).double()
    # steep and far from zero: log Z is then not close to zero
    model.prior.network.weights[-1].data.normal_(
        0.0, 1.0, generator=torch.Generator().manual_seed(seed + 1)
    )
    model.prior.network.biases[-1].data.fill_(1.5)
    return model.requires_grad_(False)


def quadrature(model):
    """Return log Z and the mean of the first latent by the trapezoidal rule."""
    axis = torch.linspace(-7.0, 7.0, 561, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * model.n_latents).reshape(-1, model.n_latents)
    log_density = model.log_prior(grid)
    log_z = torch.logsumexp(log_density, 0) + model.n_latents * math.log(14.0 / 560.0)
    weights = torch.softmax(log_density, 0)
    mean = weights @ grid[:, 0]
    return float(log_z), float(mean), float(weights @ (grid[:, 0] - mean) ** 2)


@pytest.mark.parametrize("n_latents", [1, 2])
@pytest.mark.parametrize("seed", [0, 10])
def test_log_partition_brackets_quadrature(n_latents, seed):
    model = make_model(n_latents, seed)
    log_z, _, _ = quadrature(model)
    assert abs(log_z) > 0.3
    estimate = prior_log_partition(model, torch.Generator().manual_seed(2))
    # the bracket holds three standard errors on either side of the Bennett estimate
    assert estimate.lower <= log_z <= estimate.upper
    assert estimate.upper - estimate.lower < 0.05
    assert abs(estimate.value - log_z) < 4.0 * estimate.standard_error


def test_the_quick_estimate_is_close():
    model = make_model(2)
    values = torch.tensor(
        [quick_log_partition(model, torch.Generator().manual_seed(s)) for s in range(10)]
    )
    error = float(values.std()) / math.sqrt(10)
    assert 0.0 < error < 0.02
    assert abs(float(values.mean()) - quadrature(model)[0]) < 4.0 * error


def test_draws_have_the_mean_of_quadrature():
    model = make_model(2)
    _, mean, variance = quadrature(model)
    z = prior_draws(model, 4000, torch.Generator().manual_seed(3))
    # resampling copies particles: a quarter of the draws counts as independent
    error = math.sqrt(variance / 1000)
    assert abs(mean) > 5.0 * error
    assert abs(float(z[:, 0].mean()) - mean) < 4.0 * error


def test_without_an_energy_draws_are_standard_normal():
    architecture = Architecture(2, 3, (), "tanh", 0.1, 1e-4)
    model = LatentModel(architecture, torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(prior_draws(model, 5, generators[0]), normal_draws(model, 5, generators[1]))


def test_an_untrained_energy_is_zero():
    architecture = Architecture(2, 2, (), "tanh", 0.1, 1e-4, prior_layer_sizes=(8,))
    model = LatentModel(architecture, torch.Generator().manual_seed(0))
    assert (model.prior(torch.ones(3, 2)) == 0.0).all()
