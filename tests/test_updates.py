"""Updates in tensors that keep their places, with the states of all objectives.

What a device does with them is tested in `test_launches.py` and `test_replays.py`.
"""

import copy

import pytest
import torch

from sklvebm.adam import Adam
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.objectives.missing_cells import WithMissingCells
from sklvebm.objectives.proximal import WassersteinFlow
from sklvebm.objectives.row_particles import RowParticles
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.optimisation import Optimisation, start_optimisation
from sklvebm.training import _pass_over
from sklvebm.updates import UpdatesInPlace, updates_in_place

POOL = {"dynamics": "mala", "n_chains": 16, "n_temperatures": 3, "n_langevin_steps": 2}
OBJECTIVES = ["particles", "gaussian", "amortized", "proximal", "missing cells"]


def started(name):
    """Return updates of an untrained model on the CPU, and the first state."""
    n_latents = 0 if name == "proximal" else 1
    generator = torch.Generator().manual_seed(0)
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 2),
        torch.eye(2)[None],
        latent_map=torch.full((n_latents, 2), 0.3),
        latent_variance=torch.full((n_latents,), 0.8),
        location=torch.zeros(2),
    )
    network = MLPEnergy(2, n_latents, (8,), "tanh", generator)
    energy = AnchoredEnergy(reference.float(), network)
    x = torch.randn(40, 2, generator=generator)
    if name == "proximal":
        objective = WassersteinFlow(TemperedPool(**POOL, step_size=None))
        state = objective.tempered.init(energy, generator)
    else:
        family = "particles" if name == "missing cells" else name
        objective = ParticleLikelihood(**POOL, step_size=None, n_particles=2, posterior=family)
        state = objective.init(energy, len(x), generator=generator)
    state = objective.ready(energy, state, len(x), generator)
    if name == "missing cells":
        observed = x.clone()
        observed[::3, 1] = torch.nan
        objective = WithMissingCells(objective, observed, x, base=0.0, n_copies=1)
    energy, average, optimizer, _ = start_optimisation(energy, learning_rate=0.01, alpha=0.0)
    how = {"objective": objective, "x": x, "state": state, "generator": generator}
    return UpdatesInPlace(energy, average, optimizer, **how), state


@pytest.mark.parametrize("name", OBJECTIVES)
def test_updates_in_place_are_the_steps_of_the_training_loop(name):
    found = []
    for is_in_place in (False, True):
        updates, state = started(name)
        done = Optimisation(updates.energy, updates.average, updates.optimizer, 0)
        for _ in range(6):  # independence proposals are made twice
            done, state, _ = _pass_over(
                done,
                updates.objective,
                updates.x,
                state,
                batch_size=10,
                learning_rate=0.01,
                generator=updates.generator,
                in_place=updates if is_in_place else None,
            )
        found.append([*tensors_of((done.energy, done.average, state)), updates.x])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def tensors_of(state):
    """Return all tensors of a state of training, not copied."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, torch.nn.Module):
        return [parameter.detach() for parameter in state.parameters()]
    if isinstance(state, Adam):
        return [*state.first, *state.second, state.count]
    if isinstance(state, RowParticles):
        return [state.values]
    parts = list(state.values()) if isinstance(state, dict) else state
    return (
        [t for part in parts for t in tensors_of(part)] if isinstance(parts, list | tuple) else []
    )


def passed(updates, state):
    batches = torch.arange(40).split(10)
    return updates.pass_over(batches, state, updates.n_updates, 0.01)[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_state_that_is_put_back_goes_to_the_places_of_the_present_one(name):
    updates, state = started(name)
    state = passed(updates, state)
    earlier, where = copy.deepcopy(state), [t.data_ptr() for t in tensors_of(updates.state)]
    later = passed(updates, state)
    found = list(zip(tensors_of(later), tensors_of(earlier), strict=True))
    assert any(not torch.equal(a, b) for a, b in found)
    again = updates.pass_over([], earlier, updates.n_updates, 0.01)[0]
    assert [t.data_ptr() for t in tensors_of(again)] == where
    found = zip(tensors_of(again), tensors_of(earlier), strict=True)
    assert all(torch.equal(a, b) for a, b in found)


def test_a_first_proximal_step_that_is_undone_begins_again():
    updates, first = started("proximal")
    first = copy.deepcopy(first)
    passed(updates, first)
    state = updates.pass_over([], first, 0, 0.01)[0]
    assert first.centre is None
    assert updates.objective.kind_of_update(state)[0]  # particles move


def test_updates_on_the_cpu_and_pools_in_blocks_are_not_recorded(monkeypatch):
    updates, state = started("particles")
    how = {"x": updates.x, "state": state, "generator": updates.generator}
    of_fit = updates.objective, updates.energy, updates.average, updates.optimizer
    assert updates_in_place(*of_fit, **how) is None
    elsewhere = torch.device("cuda")
    assert updates.objective.works_in_place(updates.energy, state, elsewhere)
    many = state._replace(pool=torch.zeros(3, 2**13, 3))
    assert not updates.objective.works_in_place(updates.energy, many, elsewhere)
