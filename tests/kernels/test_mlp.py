"""The hand-derived gradient of the anchored perceptron against automatic differentiation."""

import pytest
import torch

from sklvebm.backends import select_correction_and_grad
from sklvebm.kernels import mlp
from sklvebm.kernels.mlp import mlp_correction_and_grad
from sklvebm.mcmc.langevin import crank_nicolson_step, mala_step, start, ula_step
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import (
    ACTIVATIONS,
    AnchoredEnergy,
    BridgedEnergy,
    LinearGaussianEnergy,
    MLPEnergy,
)
from sklvebm.models.targets import autograd_correction_and_grad, joint_target

D, L = 3, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def reference():
    return MixtureReference(
        torch.ones(1),
        torch.zeros(1, D),
        torch.eye(D)[None],
        latent_map=torch.ones(L, D),
        latent_variance=torch.ones(L),
        location=torch.zeros(D),
    )


def anchored(activation="silu", hidden_layer_sizes=(16, 8), dtype=torch.float64):
    network = MLPEnergy(D, L, hidden_layer_sizes, activation, generator())
    with torch.no_grad():
        network.output.normal_(0.0, 1.0, generator=generator(1))
    # a small bound, so that the saturation takes part in the gradient
    return AnchoredEnergy(reference(), network, bound=2.0).to(dtype)


def inputs(dtype=torch.float64, n=40):
    g = generator(2)
    return 2.0 * torch.randn(n, D + L, generator=g, dtype=torch.float64).to(dtype)


def largest_relative_error(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("hidden_layer_sizes", [(16,), (16, 8), (16, 8, 12)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_equals_automatic_differentiation(activation, hidden_layer_sizes, dtype, tolerance):
    energy = anchored(activation, hidden_layer_sizes, dtype)
    rows = inputs(dtype)
    expected = autograd_correction_and_grad(energy)(rows)
    for fast, plain in zip(mlp_correction_and_grad(energy)(rows), expected, strict=True):
        assert fast.shape == plain.shape
        assert fast.dtype == dtype
        assert largest_relative_error(fast, plain) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n", [0, 1, 1500])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_equals_automatic_differentiation_in_blocks(
    monkeypatch, activation, n, dtype, tolerance
):
    # three blocks of unequal size, large enough for oneDNN
    monkeypatch.setattr(mlp, "_BLOCK_NUMBERS", 128 * 600)
    energy = anchored(activation, (96, 128), dtype)
    rows = inputs(dtype, n)
    expected = autograd_correction_and_grad(energy)(rows)
    for fast, plain in zip(mlp_correction_and_grad(energy)(rows), expected, strict=True):
        assert fast.shape == plain.shape
        if n:
            assert largest_relative_error(fast, plain) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("step", [ula_step, mala_step, crank_nicolson_step])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_noise_gives_the_trajectory_of_the_plain_gradient(activation, step, dtype, tolerance):
    energy = anchored(activation, (64, 64), dtype)
    position = inputs(dtype, 200)
    ends = []
    for gradient in (mlp_correction_and_grad(energy), autograd_correction_and_grad(energy)):
        target, noise = joint_target(energy, gradient), IndependentNoise(generator(3))
        chains = start(position, target)
        ones = torch.ones(len(position), dtype=dtype)
        for _ in range(20):
            chains, _ = step(chains, target, beta=ones, step_size=0.02 * ones, noise=noise)
        ends.append(chains.position)
    # an acceptance within rounding of its uniform number may go either way
    equal = ((ends[0] - ends[1]).abs() < tolerance).all(1)
    assert float(equal.double().mean()) >= 0.99
    assert bool(((ends[0] - position).abs() > 0.01).any(1).all())


def test_kernel_reads_the_weights_at_each_call():
    energy = anchored()
    rows = inputs()
    fast = mlp_correction_and_grad(energy)
    before = fast(rows)[0]
    with torch.no_grad():
        for parameter in energy.network.parameters():
            parameter.mul_(0.5)
    expected = autograd_correction_and_grad(energy)(rows)
    assert not torch.allclose(before, expected[0])
    for actual, plain in zip(fast(rows), expected, strict=True):
        assert largest_relative_error(actual, plain) < 1e-12


def test_kernel_leaves_weights_and_inputs_alone():
    energy = anchored()
    rows = inputs()
    copies = [p.detach().clone() for p in energy.parameters()]
    results = mlp_correction_and_grad(energy)(rows)
    assert not any(result.requires_grad for result in results)
    assert all(torch.equal(p, c) for p, c in zip(energy.parameters(), copies, strict=True))
    assert torch.equal(rows, inputs())


def test_kernel_of_an_untrained_network_is_zero():
    energy = AnchoredEnergy(reference(), MLPEnergy(D, L, (8,), generator=generator()).double())
    assert all(
        torch.equal(part, torch.zeros_like(part))
        for part in mlp_correction_and_grad(energy)(inputs())
    )


class OtherMLP(MLPEnergy):
    """A subclass may compute anything; the kernel must not take it for its parent."""

    def forward(self, x, z):
        return 2.0 * super().forward(x, z) + x[:, 0]


def test_backends_pick_the_kernel_for_anchored_perceptrons_only(monkeypatch):
    chosen = []

    def spy(energy):
        chosen.append(energy)
        return mlp_correction_and_grad(energy)

    monkeypatch.setattr("sklvebm.kernels.mlp.mlp_correction_and_grad", spy)
    network = anchored().network
    other = OtherMLP(D, L, (8,), generator=generator()).double()
    with torch.no_grad():
        other.output.normal_(0.0, 1.0, generator=generator(1))
    fast = anchored()
    plain = [
        AnchoredEnergy(reference(), LinearGaussianEnergy(D, L).double()),
        AnchoredEnergy(reference(), other),
        BridgedEnergy(reference(), network),
        BridgedEnergy(reference(), LinearGaussianEnergy(D, L).double()),
    ]
    rows = inputs()
    for energy in [fast, *plain]:
        results = select_correction_and_grad(energy)(rows)
        for actual, expected in zip(
            results, autograd_correction_and_grad(energy)(rows), strict=True
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    assert chosen == [fast]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_serves_energies_without_latents(activation):
    network = MLPEnergy(D, 0, (16, 8), activation, generator())
    with torch.no_grad():
        network.output.normal_(0.0, 1.0, generator=generator(1))
    energy = AnchoredEnergy(reference().without_latents(), network, bound=2.0).double()
    x = inputs()[:, :D]
    for fast, plain in zip(
        mlp_correction_and_grad(energy)(x),
        autograd_correction_and_grad(energy)(x),
        strict=True,
    ):
        torch.testing.assert_close(fast, plain.detach(), rtol=1e-10, atol=1e-12)
