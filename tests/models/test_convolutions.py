"""Convolutional networks: shapes, translations, gradients, zero starts."""

import copy

import pytest
import torch
from torch import nn

from sklvebm.backends import select_correction_and_grad
from sklvebm.flows.interpolant import interpolant_marginals
from sklvebm.flows.potentials import AnchoredPotential, network_jet
from sklvebm.models.convolutions import ConvEnergy, ConvLayerEnergy, checked_image_shape
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy

SHAPES = [(8, 8), (4, 4), (5, 7), (16, 16), (8, 6, 3), (32, 32)]


def made(kind, shape, n_latents=2, trained=True, **parameters):
    """Return a network in float64 whose last layer is random unless it is untrained."""
    n_features = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(0)
    network = kind(n_features, n_latents, shape, generator=generator, **parameters).double()
    if trained:
        network.output.data.normal_(0.0, 0.3, generator=generator)
    return network


def rows_of(network, n=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, width, generator=generator, dtype=torch.float64)
        for width in (network.n_features, network.n_latents)
    ]


@pytest.mark.parametrize("kind", [ConvEnergy, ConvLayerEnergy])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_energies_have_one_value_a_row_and_start_at_zero(kind, shape):
    network = made(kind, shape, trained=False)
    x, z = rows_of(network)
    assert network(x, z).shape == (5,)
    assert (network(x, z) == 0.0).all()
    trained = made(kind, shape)
    assert (trained(x, z).abs() > 1e-3).all()
    # every pixel and every latent counts
    x, z = x.requires_grad_(), z.requires_grad_()
    grads = torch.autograd.grad(trained(x, z).sum(), (x, z))
    assert all((grad.abs() > 0.0).all() for grad in grads)


@pytest.mark.parametrize("n_latents", [0, 3])
def test_any_number_of_latents_will_do(n_latents):
    network = made(ConvEnergy, (8, 8), n_latents)
    assert torch.isfinite(network(*rows_of(network))).all()


def shifted(x, shape, pixels):
    """Return images in rows moved down and to the right; what leaves comes back as zeros."""
    maps = x.reshape(len(x), *shape)
    moved = torch.zeros_like(maps)
    moved[:, pixels:, pixels:] = maps[:, :-pixels, :-pixels]
    return moved.flatten(1)


def test_features_move_with_the_image():
    """A shift by the total stride moves the maps by one place; borders see the padding."""
    shape = (16, 16)
    network = made(ConvEnergy, shape)
    x = torch.zeros(3, 16, 16, dtype=torch.float64)
    x[:, 3:7, 4:8] = torch.randn(
        3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    x = x.flatten(1)
    maps, moved = network.feature_maps(x), network.feature_maps(shifted(x, shape, 4))
    assert maps.shape == (3, 32, 4, 4)
    # away from the padding, whose zeros stay where they are
    inner = (slice(None), slice(None), slice(2, 3), slice(2, 3))
    outer = (slice(None), slice(None), slice(1, 2), slice(1, 2))
    assert torch.allclose(moved[inner], maps[outer], atol=1e-12)
    # and a shift by less than the stride does not
    off = network.feature_maps(shifted(x, shape, 3))
    assert not torch.allclose(off[inner], maps[outer], atol=1e-3)


def test_local_units_are_a_convolution():
    """The units of a layer are torch's own convolution with the same kernels, time aside."""
    shape = (8, 8)
    network = made(ConvLayerEnergy, shape, 1)
    x, t = rows_of(network)
    kernel = network.kernel.reshape(16, 5, 5, 1).permute(0, 3, 1, 2)
    maps = nn.functional.conv2d(x.reshape(-1, 1, 8, 8), kernel, network.bias, padding=2)
    maps = maps + (t @ network.latent_weight.T)[:, :, None, None]
    expected = torch.tanh(maps).flatten(1) @ network.output
    assert torch.allclose(network(x, t), expected, atol=1e-12)


@pytest.mark.parametrize(("shape", "stride"), [((8, 8), 1), ((16, 16), 2), ((32, 32), 4)])
def test_larger_images_have_no_more_places(shape, stride):
    network = made(ConvLayerEnergy, shape, 1)
    assert network.n_places == 64
    assert network.kernel.shape[1] == (2 * stride + 3) ** 2
    # a shift by the stride moves what the units see by one place
    x = torch.zeros(1, *shape, dtype=torch.float64)
    middle = shape[0] // 2 - 1
    x[0, middle, middle] = 1.0
    weight = network.weights[0][:, :-1]
    before = (x.flatten(1) @ weight.T).reshape(16, 8, 8)
    after = (shifted(x.flatten(1), shape, stride) @ weight.T).reshape(16, 8, 8)
    assert torch.allclose(after[:, 1:, 1:], before[:, :-1, :-1], atol=1e-12)
    assert before.abs().max() > 0.0


def test_colours_are_channels():
    network = made(ConvLayerEnergy, (8, 8, 3), 1)
    x, t = rows_of(network)
    kernel = network.kernel.reshape(16, 5, 5, 3).permute(0, 3, 1, 2)
    images = x.reshape(-1, 8, 8, 3).permute(0, 3, 1, 2)
    maps = nn.functional.conv2d(images, kernel, network.bias, padding=2)
    maps = maps + (t @ network.latent_weight.T)[:, :, None, None]
    expected = torch.tanh(maps).flatten(1) @ network.output
    assert torch.allclose(network(x, t), expected, atol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus"])
def test_the_gradient_of_the_correction_is_that_of_finite_differences(
    mixture_reference, activation
):
    network = made(ConvEnergy, (4, 4), 0, activation=activation)
    energy = AnchoredEnergy(mixture_reference(n_features=16), network)
    evaluate = select_correction_and_grad(energy)
    x, z = rows_of(network, 3)
    correction, grad = evaluate(x)  # there are no latents z
    assert torch.allclose(correction, energy.correction(x, z))
    step = 1e-5
    for pixel in (0, 5, 15):
        ahead, back = x.clone(), x.clone()
        ahead[:, pixel] += step
        back[:, pixel] -= step
        slope = (evaluate(ahead)[0] - evaluate(back)[0]) / (2.0 * step)
        assert torch.allclose(grad[:, pixel], slope, atol=1e-7)
    # what autograd says of the whole energy less that of the reference alone
    x.requires_grad_()
    whole = torch.autograd.grad(energy(x, z).sum() - energy.reference.energy(x, z).sum(), x)[0]
    assert torch.allclose(grad, whole, atol=1e-10)


@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus"])
def test_the_jet_of_a_local_layer_is_that_of_autograd(activation):
    network = made(ConvLayerEnergy, (4, 4), 1, activation=activation)
    x, t = rows_of(network, 3)
    directions = torch.eye(16, dtype=torch.float64)[None]
    jet = network_jet(network, x, t[:, 0], directions)
    x, t = x.requires_grad_(), t.requires_grad_()
    value = network(x, t)
    grad, rate = torch.autograd.grad(value.sum(), (x, t), create_graph=True)
    laplacian = sum(
        torch.autograd.grad(grad[:, pixel].sum(), x, retain_graph=True)[0][:, pixel]
        for pixel in range(16)
    )
    assert torch.allclose(jet.value, value)
    assert torch.allclose(jet.grad, grad)
    assert torch.allclose(jet.rate, rate[:, 0])
    assert torch.allclose(jet.second[:, 0], laplacian)


def test_a_potential_with_local_units_has_a_free_trace(mixture_reference):
    network = made(ConvLayerEnergy, (4, 4), 1)
    potential = AnchoredPotential(interpolant_marginals(mixture_reference(n_features=16)), network)
    assert potential.trace_is_free
    x, _ = rows_of(network)
    values = potential.correction(1e3 * x, torch.full((5,), 0.5, dtype=torch.float64))
    assert (values.abs() <= potential.bound).all()


def test_a_local_layer_says_what_the_same_perceptron_says():
    network = made(ConvLayerEnergy, (5, 7), 1)
    same = MLPEnergy(35, 1, (len(network.output),)).double()
    same.weights[0].data.copy_(network.weights[0])
    same.biases[0].data.copy_(network.biases[0])
    same.output.data.copy_(network.output)
    x, t = rows_of(network)
    assert torch.allclose(network(x, t), same(x, t))


def test_copies_are_their_own():
    network = made(ConvEnergy, (8, 8))
    twin = copy.deepcopy(network)
    twin.kernels[0].data.add_(1.0)
    x, z = rows_of(network)
    assert not torch.allclose(network(x, z), twin(x, z))


@pytest.mark.parametrize(
    ("shape", "n_features", "message"),
    [
        ((8,), 8, r"\(height, width\) or \(height, width, channels\), got \(8,\)"),
        ((2, 2, 2, 8), 64, r"\(height, width\) or"),
        ((3, 8), 24, r"at least 4, got \(3, 8\)"),
        ((8, 8), 63, r"\(8, 8\) has 64 pixels, but X has 63 features"),
    ],
)
def test_illegal_shapes_are_named(shape, n_features, message):
    with pytest.raises(ValueError, match=message):
        checked_image_shape(shape, n_features)
