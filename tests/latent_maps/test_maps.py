"""Charts of the latents: derivatives, coordinates, and the energy that they rename."""

import pytest
import torch

from sklvebm.latent_maps.maps import KernelLatentMap, PerceptronLatentMap
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MappedEnergy, MLPEnergy

D, L, J = 3, 2, 5
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def kernel_map(n_features=D, n_latents=L):
    return KernelLatentMap(
        random(J, n_features),
        0.8,
        offset=random(n_latents, seed=1),
        linear=random(n_latents, n_features, seed=2),
        coefficients=random(J, n_latents, seed=3),
        variance=0.2 + random(n_latents, seed=4).square(),
    )


def perceptron_map(n_features=D, n_latents=L):
    return PerceptronLatentMap(
        random(n_latents, seed=1),
        random(n_latents, n_features, seed=2),
        first_weight=random(J, n_features, seed=3),
        first_bias=random(J, seed=4),
        second_weight=random(J, J, seed=5),
        second_bias=random(J, seed=6),
        last_weight=random(n_latents, J, seed=7),
        variance=0.2 + random(n_latents, seed=8).square(),
    )


KINDS = pytest.mark.parametrize("latent_map", [kernel_map, perceptron_map])


def test_the_map_is_a_line_and_bumps():
    made, x = kernel_map(), random(7, D, seed=5)
    expected = random(L, seed=1) + x @ random(L, D, seed=2).T
    for landmark, coefficient in zip(random(J, D), random(J, L, seed=3), strict=True):
        distance = (x - landmark).square().sum(1, keepdim=True)
        expected = expected + torch.exp(-0.5 * distance / 0.64) * coefficient
    torch.testing.assert_close(made.mean(x), expected, **TIGHT)


def test_the_map_is_a_line_and_two_layers():
    made, rows = perceptron_map(), random(7, D, seed=9)
    for x, mean in zip(rows, made.mean(rows), strict=True):
        first = torch.tanh(random(J, seed=4) + random(J, D, seed=3) @ x)
        second = torch.tanh(random(J, seed=6) + random(J, J, seed=5) @ first)
        expected = random(L, seed=1) + random(L, D, seed=2) @ x + random(L, J, seed=7) @ second
        torch.testing.assert_close(mean, expected, **TIGHT)


@KINDS
def test_the_jacobian_is_that_of_automatic_differentiation(latent_map):
    made, x = latent_map(), random(7, D, seed=5)
    expected = torch.stack([torch.autograd.functional.jacobian(made.mean, row[None]) for row in x])
    torch.testing.assert_close(made.jacobian(x), expected[:, 0, :, 0], **TIGHT)


@KINDS
def test_coordinates_are_inverted(latent_map):
    made, x, e = latent_map(), random(7, D, seed=5), random(7, L, seed=6)
    torch.testing.assert_close(made.from_latents(x, made.to_latents(x, e)), e, **TIGHT)


@KINDS
def test_renamed_latents_leave_the_density_of_rows_alone(latent_map):
    reference = MixtureReference(
        torch.tensor([0.4, 0.6]),
        random(2, 2, seed=7),
        torch.eye(2).expand(2, 2, 2),
        latent_map=random(1, 2, seed=8),
        latent_variance=torch.tensor([0.5]),
        location=torch.zeros(2),
    )
    network = MLPEnergy(2, 1, (8,), generator=torch.Generator().manual_seed(0)).double()
    torch.nn.init.normal_(network.output, generator=torch.Generator().manual_seed(1))
    energy = AnchoredEnergy(reference, network).requires_grad_(False)
    renamed = MappedEnergy(energy, latent_map(2, 1))
    grid = torch.linspace(-25.0, 25.0, 20_001, dtype=torch.float64)[:, None]
    for x in random(4, 2, seed=9):
        rows = x.expand(len(grid), 2)
        evidence = [torch.logsumexp(-e(rows, grid), 0) for e in (energy, renamed)]
        torch.testing.assert_close(*evidence, rtol=1e-8, atol=1e-8)
    # the correction is that of the row and the latents it was trained with
    x, e = random(4, 2, seed=9), random(4, 1, seed=10)
    torch.testing.assert_close(
        renamed.correction(x, renamed.latent_map.to_latents(x, e)),
        energy.correction(x, reference.to_latents(x, e)),
        **TIGHT,
    )
