"""The energies against dense Gaussian algebra, finite differences and their own bounds."""

import math

import pytest
import torch

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import (
    ACTIVATIONS,
    AnchoredEnergy,
    BridgedEnergy,
    FeatureEnergy,
    LinearGaussianEnergy,
    MLPEnergy,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_gaussian(n_features, n_latents, seed=0):
    energy = LinearGaussianEnergy(n_features, n_latents).double()
    g = generator(seed)
    width = n_features + n_latents
    with torch.no_grad():
        energy.factor.copy_(torch.randn(width, width, generator=g) + torch.eye(width))
        energy.mean.copy_(torch.randn(width, generator=g))
    return energy


def mlp(n_features, n_latents, activation="silu", scale=1.0):
    network = MLPEnergy(n_features, n_latents, (8, 6), activation, generator()).double()
    with torch.no_grad():
        network.output.normal_(0.0, scale, generator=generator(1))
    return network


def gaussian_reference(n_features, n_latents):
    return MixtureReference(
        torch.ones(1),
        torch.zeros(1, n_features),
        torch.eye(n_features)[None],
        latent_map=torch.ones(n_latents, n_features),
        latent_variance=torch.full((n_latents,), 0.5),
        location=torch.zeros(n_features),
    )


def every_energy():
    reference = gaussian_reference(2, 2)
    return {
        "linear-gaussian": linear_gaussian(2, 2),
        **{name: mlp(2, 2, name) for name in ACTIVATIONS},
        "anchored": AnchoredEnergy(reference, mlp(2, 2)),
        "bridged": BridgedEnergy(reference, linear_gaussian(2, 2)),
    }


@pytest.mark.parametrize("name", every_energy())
def test_energies_are_one_number_per_row_and_follow_a_permutation_of_rows(name):
    energy, g = every_energy()[name], generator()
    x, z = torch.randn(7, 2, generator=g).double(), torch.randn(7, 2, generator=g).double()
    order = torch.randperm(7, generator=g)
    values = energy(x, z)
    assert values.shape == (7,)
    torch.testing.assert_close(energy(x[order], z[order]), values[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", every_energy())
def test_energies_pass_gradcheck_in_double_precision(name):
    energy, g = every_energy()[name], generator()
    x = torch.randn(3, 2, generator=g).double().requires_grad_()
    z = torch.randn(3, 2, generator=g).double().requires_grad_()
    assert torch.autograd.gradcheck(energy, (x, z))


def test_log_partition_equals_the_integral_on_a_grid():
    energy = linear_gaussian(1, 1)
    axis = torch.linspace(-30.0, 30.0, 2001, dtype=torch.float64)
    x, z = torch.cartesian_prod(axis, axis).split(1, 1)
    log_integral = torch.logsumexp(-energy(x, z), 0) + 2.0 * torch.log(axis[1] - axis[0])
    torch.testing.assert_close(energy.log_partition(), log_integral, rtol=1e-9, atol=1e-9)


def test_energy_minus_log_partition_is_the_dense_gaussian_density():
    energy, g = linear_gaussian(3, 2), generator(1)
    x, z = torch.randn(5, 3, generator=g).double(), torch.randn(5, 2, generator=g).double()
    precision = energy.factor @ energy.factor.T + 0.05 * torch.eye(5).double()
    law = torch.distributions.MultivariateNormal(energy.mean, precision_matrix=precision)
    density = -energy(x, z) - energy.log_partition()
    torch.testing.assert_close(density, law.log_prob(torch.cat([x, z], 1)))


def test_free_energy_is_the_dense_marginal():
    energy = linear_gaussian(3, 2)
    x = torch.randn(5, 3, generator=generator(1)).double()
    covariance = torch.linalg.inv(energy.precision())[:3, :3]
    law = torch.distributions.MultivariateNormal(energy.mean[:3], covariance)
    torch.testing.assert_close(-energy.free_energy(x) - energy.log_partition(), law.log_prob(x))


def test_free_energy_is_the_integral_over_the_latent():
    energy = linear_gaussian(2, 1)
    x = torch.randn(4, 2, generator=generator(1)).double()
    z = torch.linspace(-30.0, 30.0, 6001, dtype=torch.float64)
    joint = energy(x.repeat_interleave(len(z), 0), z.repeat(4)[:, None]).reshape(4, -1)
    integral = -torch.logsumexp(-joint, 1) - torch.log(z[1] - z[0])
    torch.testing.assert_close(energy.free_energy(x), integral, rtol=1e-9, atol=1e-9)


def test_posterior_is_the_dense_conditional():
    energy = linear_gaussian(3, 2)
    x = torch.randn(5, 3, generator=generator(1)).double()
    covariance = torch.linalg.inv(energy.precision())
    gain = covariance[3:, :3] @ torch.linalg.inv(covariance[:3, :3])
    mean, posterior_covariance = energy.posterior(x)
    torch.testing.assert_close(mean, energy.mean[3:] + (x - energy.mean[:3]) @ gain.T)
    expected = covariance[3:, 3:] - gain @ covariance[:3, 3:]
    torch.testing.assert_close(posterior_covariance, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_new_network_is_zero_everywhere(activation):
    network = MLPEnergy(3, 2, (16, 8), activation, generator())
    x, z = torch.randn(5, 3, generator=generator()), torch.randn(5, 2, generator=generator())
    assert torch.equal(network(x, z), torch.zeros(5))
    # zero through its last layer only: otherwise nothing could be learned
    assert all(bool(weight.abs().sum() > 0.0) for weight in network.weights)


def test_initial_weights_depend_on_the_generator_alone():
    first, second = MLPEnergy(2, 1, generator=generator(3)), MLPEnergy(2, 1, generator=generator(3))
    other = MLPEnergy(2, 1, generator=generator(4))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))
    assert not torch.equal(first.weights[0], other.weights[0])


def test_untrained_anchored_energy_is_the_reference():
    reference = gaussian_reference(2, 1)
    energy = AnchoredEnergy(reference, MLPEnergy(2, 1, (8,), generator=generator()).double())
    g = generator()
    x, z = torch.randn(5, 2, generator=g).double(), torch.randn(5, 1, generator=g).double()
    assert torch.equal(energy(x, z), reference.energy(x, z))


@pytest.mark.parametrize("bound", [0.5, 15.0])
def test_correction_stays_within_the_bound_of_an_exploding_network(bound):
    network = mlp(2, 1, scale=1e6)
    energy = AnchoredEnergy(gaussian_reference(2, 1), network, bound)
    g = generator()
    x, z = 1e3 * torch.randn(50, 2, generator=g).double(), torch.randn(50, 1, generator=g).double()
    correction = energy.correction(x, z)
    assert float(network(x, z).detach().abs().max()) > 1e6
    assert float(correction.detach().abs().max()) <= bound
    torch.testing.assert_close(energy(x, z), energy.reference.energy(x, z) + correction)


def test_correction_is_the_network_where_it_is_small():
    network = mlp(2, 1, scale=1e-4)
    energy = AnchoredEnergy(gaussian_reference(2, 1), network)
    g = generator()
    x, z = torch.randn(9, 2, generator=g).double(), torch.randn(9, 1, generator=g).double()
    value = network(x, z)
    # tanh(t) = t - t^3 / 3 + ...
    tolerance = float(value.detach().abs().max()) ** 3 / (3.0 * energy.bound**2) + 1e-15
    assert float((energy.correction(x, z) - value).detach().abs().max()) <= tolerance


def test_bridged_energy_is_the_network_itself():
    network = linear_gaussian(2, 1)
    energy = BridgedEnergy(gaussian_reference(2, 1), network)
    g = generator()
    x, z = torch.randn(5, 2, generator=g).double(), torch.randn(5, 1, generator=g).double()
    assert torch.equal(energy(x, z), network(x, z))
    path_end = energy.reference.energy(x, z) + energy.correction(x, z)
    torch.testing.assert_close(path_end, network(x, z))


def test_ridge_bounds_the_precision_from_below():
    energy = LinearGaussianEnergy(2, 1, ridge=0.3).double()
    with torch.no_grad():
        energy.factor.zero_()
    torch.testing.assert_close(energy.precision(), 0.3 * torch.eye(3, dtype=torch.float64))
    expected = 1.5 * math.log(2.0 * math.pi / 0.3)
    assert float(energy.log_partition().detach()) == pytest.approx(expected, rel=1e-12)


def test_energy_of_the_features_alone_is_the_anchored_one_without_latents():
    anchored = AnchoredEnergy(gaussian_reference(2, 1).without_latents(), mlp(2, 0))
    energy = FeatureEnergy(anchored)
    x = torch.randn(7, 2, generator=generator(), dtype=torch.float64)
    empty = x[:, :0]
    assert energy.n_features == 2
    torch.testing.assert_close(energy(x), anchored(x, empty))
    torch.testing.assert_close(energy(x), energy.correction(x) - energy.reference.log_marginal(x))
