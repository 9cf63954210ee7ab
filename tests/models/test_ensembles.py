"""Means of several networks against their members, and their way through storage."""

import numpy as np
import pytest
import torch

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.embeddings import PeriodicEnergy
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.ensembles import EnsembleEnergy
from sklvebm.models.networks import (
    NetworkConfig,
    correction_network,
    network_from_plain,
    plain_network,
    shape_of,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def config(**changes):
    usual = {"hidden_layer_sizes": (6,), "activation": "tanh", "image_shape": None}
    return NetworkConfig(**{**usual, "input_gain": 1.0, "n_networks": 3, **changes})


def ensemble(seed=0, **changes):
    made = correction_network(config(**changes), 16, 2, generator(seed))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 1.0, generator=generator(seed + 1))
    return made


def rows(n=7):
    return torch.randn(n, 18, generator=generator(5)).split([16, 2], 1)


KINDS = [{}, {"embedding": "periodic"}, {"image_shape": (4, 4), "hidden_layer_sizes": (2,)}]


@pytest.mark.parametrize("changes", KINDS)
def test_an_ensemble_is_the_mean_of_its_members(changes):
    energy, (x, z) = ensemble(**changes), rows()
    of_members = [network(x, z) for network in energy.networks]
    assert energy.members(x, z).shape == (7, 3)
    torch.testing.assert_close(energy(x, z), sum(of_members) / 3.0)
    torch.testing.assert_close(energy.members(x, z), torch.stack(of_members, 1))


@pytest.mark.parametrize("changes", KINDS)
def test_members_differ_and_are_zero_at_first(changes):
    energy, (x, z) = correction_network(config(**changes), 16, 2, generator()), rows()
    assert not energy(x, z).any()
    assert not energy.output.any()
    first, second, _ = energy.networks
    assert any(not torch.equal(*pair) for pair in zip(*map(weights, (first, second)), strict=True))
    with torch.no_grad():
        second.output.fill_(1.0)
    assert energy.output.any()
    assert energy(x, z).any()


def weights(network):
    return list(network.parameters())


def test_one_network_is_no_ensemble_and_as_it_ever_was():
    alone = correction_network(config(n_networks=1), 16, 2, generator())
    usual = MLPEnergy(16, 2, (6,), "tanh", generator())
    assert type(alone) is MLPEnergy
    assert all(torch.equal(*pair) for pair in zip(weights(alone), weights(usual), strict=True))
    x, z = rows()
    assert torch.equal(alone.members(x, z), alone(x, z)[:, None])


def test_corrections_are_those_that_each_member_would_be():
    one = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 16),
        torch.eye(16)[None],
        latent_map=torch.ones(2, 16),
        latent_variance=torch.full((2,), 0.5),
        location=torch.zeros(16),
    )
    network, (x, z) = ensemble(), rows()

    def reach(x):
        return torch.sigmoid(x[:, 0])

    anchored = AnchoredEnergy(one, network, bound=2.0, reach=reach)
    alone = [AnchoredEnergy(one, own, bound=2.0, reach=reach) for own in network.networks]
    expected = torch.stack([energy.correction(x, z) for energy in alone], 1)
    torch.testing.assert_close(anchored.corrections(x, z), expected)
    # the bound applies to the mean, not to the members
    mean = torch.stack([own(x, z) for own in network.networks]).mean(0)
    torch.testing.assert_close(anchored.correction(x, z), reach(x) * 2.0 * torch.tanh(mean / 2.0))


@pytest.mark.parametrize("changes", KINDS)
def test_an_ensemble_is_rebuilt_from_plain_types(changes):
    energy, (x, z) = ensemble(**changes), rows()
    again = network_from_plain(plain_network(energy), 16, 2)
    assert isinstance(again, EnsembleEnergy)
    np.testing.assert_array_equal(again(x, z).detach(), energy(x, z).detach())
    assert shape_of(again) == shape_of(energy)
    assert shape_of(energy)["n_networks"] == 3
    kind = "periodic" if changes.get("embedding") else "none"
    assert shape_of(energy)["embedding"] == kind


def test_gradients_in_rows_are_those_of_finite_differences():
    energy = ensemble(embedding="periodic").double()
    x, z = (part.double().requires_grad_() for part in rows(3))
    assert torch.autograd.gradcheck(energy, (x, z))


def test_networks_of_an_ensemble_have_fewer_frequencies():
    several = correction_network(config(embedding="periodic"), 4, 2, generator())
    one = correction_network(config(embedding="periodic", n_networks=1), 4, 2, generator())
    assert [type(own) for own in several.networks] == [PeriodicEnergy] * 3
    assert [own.frequencies.shape for own in (one, *several.networks)] == [(4, 16)] + 3 * [(4, 8)]
    again = network_from_plain(plain_network(one), 4, 2)
    assert again.frequencies.shape == (4, 16)
