"""Periodic embeddings of columns against their formula, and their way through storage."""

import math

import numpy as np
import pytest
import torch

from sklvebm.backends import select_correction_and_grad
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.embeddings import PeriodicEnergy
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.networks import network_from_plain, plain_network, shape_of


def network(n_features=3, n_latents=2, widths=(6, 5), scale=1.0):
    generator = torch.Generator().manual_seed(0)
    made = PeriodicEnergy(n_features, n_latents, widths, "tanh", generator)
    with torch.no_grad():
        made.output.normal_(0.0, scale, generator=generator)
        made.biases.normal_(0.0, 1.0, generator=generator)
    return made.double()


def rows(n=7, n_features=3, n_latents=2):
    generator = torch.Generator().manual_seed(1)
    both = torch.randn(n, n_features + n_latents, generator=generator, dtype=torch.float64)
    return both.split([n_features, n_latents], 1)


def test_embeddings_are_their_formula_column_by_column():
    own, (x, _) = network(), rows()
    columns = []
    for j in range(3):
        frequencies = own.frequencies[j].detach().numpy()
        angles = 2.0 * math.pi * x[:, j].numpy()[:, None] * frequencies
        waves = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        linear = waves @ own.weights[j].detach().numpy() + own.biases[j].detach().numpy()
        columns.append(linear / (1.0 + np.exp(-linear)))
    np.testing.assert_allclose(own.embedded(x).detach().numpy(), np.hstack(columns), rtol=1e-12)


def test_a_column_moves_its_own_embedding_only():
    own, (x, _) = network(), rows()
    moved = x.clone()
    moved[:, 1] += 0.3
    changed = (own.embedded(moved) != own.embedded(x)).any(0).reshape(3, -1).any(1)
    assert changed.tolist() == [False, True, False]


def test_a_new_network_is_zero_and_starts_with_embeddings_of_unit_scale():
    fresh = PeriodicEnergy(4, 1, (8,), generator=torch.Generator().manual_seed(0))
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    assert not fresh(x, x[:, :1]).any()
    # before the activation, variances of sums of 32 terms of variance 1/2 / 16
    with torch.no_grad():
        angles = 2.0 * math.pi * x.T.unsqueeze(2) * fresh.frequencies.unsqueeze(1)
        linear = torch.cat([angles.sin(), angles.cos()], 2) @ fresh.weights
    assert float(linear.square().mean()) == pytest.approx(1.0, rel=0.3)


def test_gradients_in_rows_and_latents_are_those_of_finite_differences():
    own, (x, z) = network(), rows()
    assert torch.autograd.gradcheck(own, (x.requires_grad_(), z.requires_grad_()))
    assert torch.autograd.gradgradcheck(own, (x, z))  # the proximal term needs second derivatives


def test_hand_written_kernels_are_not_chosen_and_the_gradient_is_right():
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 3),
        torch.eye(3)[None],
        latent_map=torch.ones(2, 3),
        latent_variance=torch.full((2,), 0.5),
        location=torch.zeros(3),
    )
    energy, (x, z) = AnchoredEnergy(reference, network(), bound=2.0).double(), rows()
    assert not energy.is_zero
    correction, grad = select_correction_and_grad(energy)(torch.cat([x, z], 1))
    torch.testing.assert_close(correction, energy.correction(x, z).detach())
    for own, at in ((grad, 0), (grad[:, 3:], 1)):
        step = [torch.zeros_like(x), torch.zeros_like(z)]
        step[at][:, 0] = 1e-6
        up, down = (energy.correction(x + s * step[0], z + s * step[1]) for s in (1.0, -1.0))
        torch.testing.assert_close(own[:, 0], (up - down).detach() / 2e-6, rtol=1e-6, atol=1e-8)


def test_a_network_comes_back_from_plain_arrays():
    own, (x, z) = network(), rows()
    plain = plain_network(own)
    assert plain["kind"] == "periodic"
    again = network_from_plain(plain, 3, 2)
    assert shape_of(again) == shape_of(own)
    assert shape_of(own)["embedding"] == "periodic"
    assert torch.equal(again(x, z), own(x, z))
