"""The numbers of a state of training: taken out of objects, and put back in their place."""

import copy
from typing import NamedTuple

import torch
from torch import nn

from sklvebm.adam import Adam
from sklvebm.objectives.row_particles import RowParticles
from sklvebm.optimisation import adopted, numbers_of, restored, snapshot, start_optimisation

CPU = torch.device("cpu")


class Pair(NamedTuple):
    particles: RowParticles
    rest: object


def state(value):
    particles = RowParticles((2, 3, 1), torch.zeros(()))
    particles.values.fill_(value)
    layer = nn.Linear(2, 1)
    optimizer = Adam(layer.parameters(), learning_rate=0.1)
    layer(torch.full((1, 2), value)).sum().backward()
    optimizer.step()
    return Pair(particles, {"layer": layer, "adam": optimizer, "n": [int(value), None]})


def test_objects_are_changed_in_place_and_the_rest_is_new():
    first, second = state(1.0), state(2.0)
    numbers = copy.deepcopy(numbers_of(first))
    result = adopted(second, numbers, CPU)
    assert isinstance(result, Pair)
    assert result.particles is second.particles
    assert torch.equal(result.particles.values, first.particles.values)
    assert result.rest["layer"] is second.rest["layer"]
    assert torch.equal(result.rest["layer"].weight, first.rest["layer"].weight)
    assert result.rest["adam"] is second.rest["adam"]
    for ours, theirs in zip(result.rest["adam"].second, first.rest["adam"].second, strict=True):
        assert torch.equal(ours, theirs)
    assert result.rest["n"] == [1, None]


def test_what_is_not_there_yet_is_made():
    class Centre(NamedTuple):
        x: torch.Tensor

    made = adopted(Pair(None, None), numbers_of(Pair(None, Centre(torch.ones(2)))), CPU)
    assert torch.equal(made.rest.x, torch.ones(2))


def test_a_snapshot_puts_an_optimisation_back():
    optimisation = start_optimisation(nn.Linear(2, 1), learning_rate=0.1, alpha=0.0)
    before = snapshot(optimisation)
    optimisation.energy(torch.ones(1, 2)).sum().backward()
    optimisation.optimizer.step()
    assert not torch.equal(optimisation.energy.weight, before.energy[0])
    back = restored(optimisation._replace(n_updates=1), before)
    assert torch.equal(back.energy.weight, before.energy[0])
    assert (back.n_updates, back.optimizer.n_steps) == (0, 0)
