"""The hand-derived gradient in the parameters beside automatic differentiation."""

import pytest
import torch

from sklvebm.backends import select_contrast
from sklvebm.kernels import mlp_contrast
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.embeddings import PeriodicEnergy
from sklvebm.models.energies import ACTIVATIONS, AnchoredEnergy, BridgedEnergy, MLPEnergy
from sklvebm.models.reach import Reach

D, N_ROWS = 3, 23


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def anchored(activation, hidden, n_latents, has_reach, dtype=torch.float64):
    """Return an energy whose corrections are both small and close to the bound."""
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, D),
        torch.eye(D)[None],
        latent_map=0.3 * torch.ones(n_latents, D),
        latent_variance=torch.ones(n_latents),
        location=torch.zeros(D),
    )
    network = MLPEnergy(D, n_latents, hidden, activation, generator())
    with torch.no_grad():
        network.output.normal_(0.0, 2.0, generator=generator(1))
    reach = Reach(torch.zeros(D), 0.5 * torch.eye(D)) if has_reach else None
    return AnchoredEnergy(reference, network, bound=4.0, reach=reach).to(dtype)


def rows_and_weights(energy, n=N_ROWS):
    width = energy.n_features + energy.n_latents
    rows = torch.randn(n, width, generator=generator(2), dtype=torch.float64)
    weights = torch.randn(n, generator=generator(3), dtype=torch.float64)
    weights[::5] = 0.0
    return (part.to(energy.network.output.dtype) for part in (rows, weights))


def gradients(value, energy):
    return torch.autograd.grad(value, list(energy.network.parameters()))


def both(energy, rows, weights):
    """Return values and gradients by hand and by automatic differentiation."""
    by_hand = select_contrast(energy)(rows, weights)
    plain = weights @ energy.correction(*energy.reference.parts(rows))
    return (by_hand, *gradients(by_hand, energy)), (plain, *gradients(plain, energy))


@pytest.mark.parametrize("has_reach", [True, False])
@pytest.mark.parametrize("n_latents", [0, 2])
@pytest.mark.parametrize("hidden", [(8,), (8, 5), (5, 9, 4)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_value_and_gradient_are_those_of_automatic_differentiation(
    activation, hidden, n_latents, has_reach
):
    energy = anchored(activation, hidden, n_latents, has_reach)
    for actual, expected in zip(*both(energy, *rows_and_weights(energy)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
        assert bool(expected.any())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_blocks_of_rows_add_up(activation, monkeypatch):
    energy = anchored(activation, (8, 5), 1, True)
    monkeypatch.setattr(mlp_contrast, "_BLOCK_NUMBERS", 40)
    for actual, expected in zip(*both(energy, *rows_and_weights(energy)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_single_precision_and_large_products(activation):
    energy = anchored(activation, (96, 96), 1, True, torch.float32)
    for actual, expected in zip(*both(energy, *rows_and_weights(energy, 400)), strict=True):
        torch.testing.assert_close(
            actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


def test_a_row_without_weight_has_no_effect():
    energy = anchored("silu", (8,), 1, True)
    rows, weights = rows_and_weights(energy)
    other = rows.clone()
    other[weights == 0.0] = 50.0
    contrast = select_contrast(energy)
    values = [contrast(each, weights) for each in (rows, other)]
    assert float(values[0]) == float(values[1])
    for a, b in zip(*(gradients(value, energy) for value in values), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_scaled_by_what_is_behind_the_sum():
    energy = anchored("tanh", (8,), 1, False)
    rows, weights = rows_and_weights(energy)
    contrast = select_contrast(energy)
    once = gradients(contrast(rows, weights), energy)
    thrice = gradients(3.0 * contrast(rows, weights), energy)
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3.0 * a, b)


def test_other_energies_have_none():
    energy = anchored("tanh", (8,), 1, False)
    assert select_contrast(BridgedEnergy(energy.reference, energy.network)) is None
    network = PeriodicEnergy(D, 1, (8,), generator=generator())
    assert select_contrast(AnchoredEnergy(energy.reference, network)) is None
