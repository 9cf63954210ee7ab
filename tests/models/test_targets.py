"""The targets' analytic chain rules against automatic differentiation through the coordinates."""

import pytest
import torch
from torch import nn

from sklvebm.backends import select_correction_and_grad
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, BridgedEnergy, LinearGaussianEnergy, MLPEnergy
from sklvebm.models.targets import (
    autograd_correction_and_grad,
    feature_target,
    joint_target,
    latent_target,
)

N, D, L = 6, 3, 2
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def reference(is_diagonal=False):
    roots = 0.4 * random(2, D, D, seed=1) + torch.eye(D, dtype=torch.float64)
    if is_diagonal:
        roots = torch.diag_embed(torch.diagonal(roots, dim1=1, dim2=2))
    return MixtureReference(
        torch.tensor([0.3, 0.7]),
        random(2, D, seed=2),
        roots @ roots.transpose(1, 2),
        latent_map=random(L, D, seed=3),
        latent_variance=torch.tensor([0.3, 0.8]),
        location=random(D, seed=4),
        defensive_weight=0.1,
        defensive_covariance=4.0 * torch.eye(D),
    )


def mlp():
    network = MLPEnergy(D, L, (8, 6), generator=generator()).double()
    with torch.no_grad():
        network.output.normal_(0.0, 1.0, generator=generator(5))
    return network


def linear_gaussian():
    network = LinearGaussianEnergy(D, L).double()
    with torch.no_grad():
        network.factor.add_(0.3 * random(D + L, D + L, seed=6))
    return network


class Shifted(nn.Module):
    """An energy plus a constant."""

    def __init__(self, network, constant):
        super().__init__()
        self.network, self.constant = network, constant

    def forward(self, x, z):
        return self.network(x, z) + self.constant


class FeaturesOnly(nn.Module):
    """An energy that ignores the latents."""

    def forward(self, x, z):
        return x.pow(4).sum(1)


ENERGIES = {
    "anchored": lambda: AnchoredEnergy(reference(), mlp(), bound=3.0),
    "anchored-diagonal": lambda: AnchoredEnergy(reference(is_diagonal=True), mlp(), bound=3.0),
    "bridged": lambda: BridgedEnergy(reference(), linear_gaussian()),
}


@pytest.fixture(params=ENERGIES)
def energy(request):
    return ENERGIES[request.param]()


def derivative(function, position):
    position = position.detach().requires_grad_()
    return torch.autograd.grad(function(position).sum(), position)[0]


def test_automatic_gradients_equal_finite_differences(energy):
    x, z = random(N, D), random(N, L, seed=1)
    correction, grad = autograd_correction_and_grad(energy)(torch.cat([x, z], 1))
    grad_x, grad_z = grad[:, :D], grad[:, D:]
    torch.testing.assert_close(correction, energy.correction(x, z).detach())
    step = 1e-5
    for grad, argument, width in [(grad_x, 0, D), (grad_z, 1, L)]:
        for k in range(width):
            ahead, behind = [x.clone(), z.clone()], [x.clone(), z.clone()]
            ahead[argument][:, k] += step
            behind[argument][:, k] -= step
            slope = (energy.correction(*ahead) - energy.correction(*behind)) / (2.0 * step)
            # central differences: truncation 1e-10 times third derivatives, rounding 1e-10
            torch.testing.assert_close(grad[:, k], slope.detach(), rtol=1e-6, atol=1e-7)


def test_results_are_detached_and_inputs_untouched(energy):
    x, z = random(N, D), random(N, L, seed=1)
    rows = torch.cat([x, z], 1)
    results = autograd_correction_and_grad(energy)(rows)
    assert not any(result.requires_grad for result in results)
    assert not rows.requires_grad
    assert torch.equal(rows, torch.cat([x, z], 1))
    assert all(parameter.grad is None for parameter in energy.parameters())


def test_gradients_exist_where_gradients_are_switched_off(energy):
    with torch.no_grad():
        _, grad = autograd_correction_and_grad(energy)(random(N, D + L))
    assert bool(grad[:, :D].abs().sum() > 0.0)


def test_energy_that_ignores_the_latents_has_the_reference_gradient_in_them():
    energy = BridgedEnergy(reference(), FeaturesOnly())
    x, z = random(N, D), random(N, L, seed=1)
    grad_z = autograd_correction_and_grad(energy)(torch.cat([x, z], 1))[1][:, D:]
    expected = -derivative(lambda u: energy.reference.energy(x, u), z)
    torch.testing.assert_close(grad_z, expected, **TIGHT)


def test_joint_target_differentiates_through_the_coordinates(energy):
    target = joint_target(energy, select_correction_and_grad(energy))
    position = random(N, D + L)
    value = target.evaluate(position)

    def correction(u):
        return energy.correction(*energy.reference.split(u))

    torch.testing.assert_close(value.correction, correction(position).detach(), **TIGHT)
    torch.testing.assert_close(value.grad, derivative(correction, position), **TIGHT)


def test_joint_base_is_the_reference_energy_up_to_a_constant(energy):
    target = joint_target(energy, select_correction_and_grad(energy))
    position = random(N, D + L)

    def reference_energy(u):
        return energy.reference.energy(*energy.reference.split(u))

    base, grad = target.base(position)
    expected = reference_energy(position)
    torch.testing.assert_close(base - base[0], expected - expected[0], **TIGHT)
    torch.testing.assert_close(grad, derivative(reference_energy, position), **TIGHT)


def test_latent_target_differentiates_through_the_coordinates(energy):
    x, position = random(N, D, seed=8), random(N, L)
    target = latent_target(energy, x, select_correction_and_grad(energy))
    value = target.evaluate(position)

    def correction(e):
        return energy.correction(x, energy.reference.to_latents(x, e))

    torch.testing.assert_close(value.correction, correction(position).detach(), **TIGHT)
    torch.testing.assert_close(value.grad, derivative(correction, position), **TIGHT)


def test_latent_base_is_the_reference_posterior_up_to_a_constant(energy):
    x, position = random(N, D, seed=8), random(N, L)
    target = latent_target(energy, x, select_correction_and_grad(energy))

    def minus_log_conditional(e):
        return -energy.reference.log_conditional(x, energy.reference.to_latents(x, e))

    base, grad = target.base(position)
    expected = minus_log_conditional(position)
    torch.testing.assert_close(base - base[0], expected - expected[0], **TIGHT)
    torch.testing.assert_close(grad, derivative(minus_log_conditional, position), **TIGHT)


def test_feature_target_differentiates_through_the_coordinates(energy):
    z, position = random(N, L, seed=8), random(N, D)
    target = feature_target(
        energy, z, 1, energy.reference.feature_conditional(z), select_correction_and_grad(energy)
    )
    value = target.evaluate(position)

    def correction(y):
        return energy.correction(energy.reference.to_features(y), z)

    torch.testing.assert_close(value.correction, correction(position).detach(), **TIGHT)
    torch.testing.assert_close(value.grad, derivative(correction, position), **TIGHT)


def test_feature_base_is_the_reference_energy_up_to_a_constant(energy):
    z, position = random(N, L, seed=8), random(N, D)
    target = feature_target(
        energy, z, 1, energy.reference.feature_conditional(z), select_correction_and_grad(energy)
    )

    def reference_energy(y):
        return energy.reference.energy(energy.reference.to_features(y), z)

    base, grad = target.base(position)
    expected = reference_energy(position)
    torch.testing.assert_close(base - base[0], expected - expected[0], **TIGHT)
    torch.testing.assert_close(grad, derivative(reference_energy, position), **TIGHT)


def test_frames_of_joint_targets_leave_the_white_latents_alone(energy):
    target = joint_target(energy, select_correction_and_grad(energy))
    position = random(N, D + L)
    frame = target.frames(position, IndependentNoise(generator()))
    for function in frame:
        assert torch.equal(function(position)[:, D:], position[:, D:])
    torch.testing.assert_close(frame.colour(frame.whiten(position)), position, **TIGHT)


@pytest.mark.parametrize("make", [autograd_correction_and_grad, select_correction_and_grad])
def test_gradients_do_not_see_a_constant_in_the_energy(make):
    rows = random(N, D + L)
    plain = BridgedEnergy(reference(), linear_gaussian())
    shifted = BridgedEnergy(reference(), Shifted(plain.network, 7.5))
    correction, grad = make(plain)(rows)
    moved, moved_grad = make(shifted)(rows)
    torch.testing.assert_close(moved, correction + 7.5)
    assert torch.equal(grad, moved_grad)


@pytest.mark.parametrize("n_latents", [0, 2])
def test_the_pull_of_one_gaussian_is_affine(n_latents):
    def gaussian(weights):
        return MixtureReference(
            torch.full((weights,), 1.0 / weights),
            torch.arange(2.0 * weights).reshape(weights, 2),
            torch.diag(torch.tensor([0.5, 2.0])).repeat(weights, 1, 1),
            latent_map=torch.ones(n_latents, 2),
            latent_variance=torch.ones(n_latents),
            location=torch.tensor([0.3, -0.2]),
        )

    one = gaussian(1)
    energy = AnchoredEnergy(one, MLPEnergy(2, n_latents, (4,), generator=generator()).double())
    target = joint_target(energy, autograd_correction_and_grad(energy))
    position = torch.randn(6, 2 + n_latents, generator=generator(), dtype=torch.float64)
    assert one.linear_pull() is not None
    torch.testing.assert_close(target.pull(position), target.base(position)[1])
    assert gaussian(2).linear_pull() is None
