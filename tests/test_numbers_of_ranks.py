"""What one number of ranks began, another continues: equal states, and equal updates thereafter.

Ranks are threads here, which share a list. They get the noise of one process, each its own part.
"""

import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch

from sklvebm import MixtureReference
from sklvebm import training as training_loop
from sklvebm.communication import ALONE, Communicator, ProcessGroupCommunicator
from sklvebm.estimators._common.keeper_of_ranks import KeeperOfRanks, parts_of
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.objectives import maximum_likelihood, proximal
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.optimisation import (
    Storable,
    adopted,
    numbers_of,
    restored,
    snapshot,
    start_optimisation,
)

SPECIFICATION = importlib.util.spec_from_file_location(
    "two_ranks", Path(__file__).parent / "two_ranks.py"
)
two_ranks = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(two_ranks)
N_ROWS, N_BATCHES, N_CHAINS, N_PARTICLES, N_EPOCHS = 120, 5, 12, 3, 2
LADDER = 3

here = threading.local()  # its `ranks` are those of the thread


class Threads(Communicator):
    """One of several ranks that are threads."""

    def __init__(self, rank, size, board, barrier):
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def _shown(self, value):
        self.board[self.rank] = value
        self.barrier.wait(60)
        every = list(self.board)
        self.barrier.wait(60)
        return every

    def sum(self, tensor):
        return self.gather(tensor).sum(0)

    def gather(self, tensor):
        return torch.stack(self._shown(tensor.detach().clone()))

    def broadcast(self, value, source=0):
        return self._shown(value)[source]

    average_gradients = ProcessGroupCommunicator.average_gradients


def on_ranks(size, function):
    """Return what a function of the communicator returns on every rank."""
    if size == 1:
        here.ranks = ALONE
        return [function(ALONE)]
    board, barrier = [None] * size, threading.Barrier(size)

    def run(rank):
        here.ranks = Threads(rank, size, board, barrier)
        try:
            return function(here.ranks)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


class NoiseOfThread(IndependentNoise):
    """The numbers of all ranks, of which each takes its own; chains are divided in blocks."""

    def _own(self, draw, like):
        (first, *rest), ranks = like.shape, here.ranks
        if first == N_ROWS // N_BATCHES // ranks.size * N_PARTICLES:  # those of rows, one by one
            whole = draw(first // N_PARTICLES, ranks.size, N_PARTICLES, *rest)
            return whole[:, ranks.rank].reshape(like.shape)
        n_own = N_CHAINS // ranks.size
        n_rungs = first // n_own if first % n_own == 0 else first  # otherwise swaps of rungs
        whole = draw(n_rungs, N_CHAINS, *like.shape[1:] if first % n_own == 0 else ())
        return whole.chunk(ranks.size, 1)[ranks.rank].reshape(like.shape)

    def normal(self, like):
        return self._own(lambda *shape: self._drawn(torch.randn, shape), like)

    def uniform(self, like):
        return self._own(lambda *shape: self._drawn(torch.rand, shape), like)

    def _drawn(self, function, shape):
        return function(shape, generator=self.generator, dtype=torch.float64)


draw_of_reference = MixtureReference.sample


def drawn_by_thread(self, n, generator, **options):
    ranks = here.ranks
    every = draw_of_reference(self, n * ranks.size, generator, **options)
    return every.chunk(ranks.size)[ranks.rank]


@pytest.fixture(autouse=True)
def noise_of_one_process(monkeypatch):
    monkeypatch.setattr(maximum_likelihood, "IndependentNoise", NoiseOfThread)
    monkeypatch.setattr(proximal, "IndependentNoise", NoiseOfThread)
    monkeypatch.setattr(MixtureReference, "sample", drawn_by_thread)
    shape = {"SIZE": 1, "N_BATCHES": 1, "PER_RANK": N_ROWS, "N_CHAINS": N_CHAINS}
    for name, value in shape.items():
        monkeypatch.setattr(two_ranks, name, value)
    monkeypatch.setattr(training_loop, "pass_over", lambda n, *rest: torch.arange(n))
    # those at the pool's start cannot be divided
    monkeypatch.setattr(TemperedPool, "proposed", lambda self, energy, state, noise: state)
    monkeypatch.setattr(ParticleLikelihood, "_moves_together", mock.Mock(return_value=False))


class Training:
    """Updates of one rank, from the first state or from that of a checkpoint."""

    def __init__(self, ranks, kind, kept=None):
        here.ranks = ALONE  # the start is that of one process
        energy, x, state = two_ranks.start_of_updates(LADDER, kind)
        here.ranks = ranks
        own = slice(ranks.rank, None, ranks.size)
        if state.latents is not None:
            state.latents.values = state.latents.values[own].clone()
        pool = state.pool.chunk(ranks.size, 1)[ranks.rank].clone()
        self.ranks, self.x, state = ranks, x[own].clone(), state._replace(pool=pool)
        self.generator = torch.Generator().manual_seed(1)
        self.objective = two_ranks.objective_of(N_CHAINS // ranks.size, LADDER, kind)
        self.objective.share(ranks, 1.0)
        if kind == "flow":
            state = self.objective.ready(energy, state, len(self.x), self.generator)
        optimisation = start_optimisation(energy, learning_rate=0.01, alpha=0.01)
        self.optimisation, self.state = optimisation, state
        if kept is not None:
            self.load(kept)

    def load(self, kept):
        cpu = torch.device("cpu")
        self.optimisation = restored(self.optimisation, kept["optimisation"])
        self.state = adopted(self.state, kept["state"], cpu)
        if isinstance(self.objective, Storable):
            self.objective.load(adopted(None, kept["objective"], cpu))

    def numbers(self):
        own = self.objective.state() if isinstance(self.objective, Storable) else {}
        state = numbers_of((self.state,))[0]
        return {"optimisation": snapshot(self.optimisation), "state": state, "objective": own}

    def go_on(self, n_epochs=N_EPOCHS):
        for _ in range(n_epochs):
            self.optimisation, self.state, _ = training_loop._pass_over(
                self.optimisation,
                self.objective,
                self.x,
                self.state,
                batch_size=len(self.x) // N_BATCHES,
                learning_rate=0.01,
                generator=self.generator,
                ranks=self.ranks,
            )
        return self


class File:
    """Stands for a checkpoint: holds what it is given."""

    numbers = None

    def is_due(self, at_once):
        return True

    def keep(self, stage, numbers, *, at_once):
        self.numbers = numbers()


def begun(n_ranks, kind):
    """Return what is kept of some epochs on several ranks, and the state of each rank."""
    file = File()

    def run(ranks):
        training = Training(ranks, kind).go_on()
        numbers = {**training.numbers(), "generator": training.generator.get_state()}
        keeper = KeeperOfRanks(ranks, file if ranks.rank == 0 else None, N_CHAINS)
        keeper.keep(lambda: numbers, at_once=True)
        return numbers

    every = on_ranks(n_ranks, run)
    return file.numbers, every


def gone_on(parts, source, kind):
    """Continue on as many ranks as there are parts; return the numbers of each."""

    def run(ranks):
        training = Training(ranks, kind, parts[ranks.rank])
        training.generator.set_state(source)  # the noise that one process would go on with
        return training.go_on().numbers()

    return on_ranks(len(parts), run)


def together(states):
    """Return pool and posterior particles of all ranks, in the order of one process."""
    states = [getattr(state, "particles", state) for state in states]
    pool = torch.cat([state.pool for state in states], 1)
    if states[0].latents is None:
        return pool, None
    of_ranks = [state.latents["values"] for state in states]
    return pool, torch.stack(of_ranks, 1).flatten(0, 1)


def parameters(numbers):
    optimisation = numbers["optimisation"]
    moments = [*optimisation.optimizer["first"], *optimisation.optimizer["second"]]
    return torch.cat([t.flatten() for t in [*optimisation.energy, *optimisation.average, *moments]])


@pytest.mark.parametrize("kind", ["likelihood", "flow"])
@pytest.mark.parametrize(("n_from", "n_to"), [(2, 1), (2, 3), (3, 2), (1, 2)])
def test_another_number_of_ranks_begins_with_the_same_state(n_from, n_to, kind):
    kept, before = begun(n_from, kind)
    parts = parts_of(kept, n_to, N_CHAINS)
    found = on_ranks(n_to, lambda ranks: Training(ranks, kind, parts[ranks.rank]).numbers())
    for own in found:
        assert torch.equal(parameters(own), parameters(before[0]))
    ours, theirs = (together([own["state"] for own in every]) for every in (found, before))
    assert torch.equal(ours[0], theirs[0])
    if kind == "likelihood":
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(("n_from", "n_to"), [(2, 1), (2, 3), (3, 2), (1, 2)])
def test_another_number_of_ranks_makes_the_same_updates_with_the_same_noise(n_from, n_to):
    kept, before = begun(n_from, "likelihood")
    parts = parts_of(kept, n_to, N_CHAINS)
    found = gone_on(parts, before[0]["generator"], "likelihood")
    (whole,) = on_ranks(
        1, lambda ranks: Training(ranks, "likelihood").go_on(2 * N_EPOCHS).numbers()
    )
    for own in found:
        assert (parameters(own) - parameters(whole)).abs().max() < 1e-12
    ours, theirs = together([own["state"] for own in found]), together([whole["state"]])
    assert (ours[0] - theirs[0]).abs().max() < 1e-10
    assert (ours[1] - theirs[1]).abs().max() < 1e-10
