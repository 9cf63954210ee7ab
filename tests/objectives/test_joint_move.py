"""Posterior particles and pool moved together: the particles that moving them apart gives."""

import copy

import pytest
import torch

from sklvebm.kernels.plain_steps import plain_walk, plain_white_step
from sklvebm.mcmc.langevin import KERNELS
from sklvebm.mcmc.state import Batch, IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.reach import Reach
from sklvebm.objectives import frame_move, joint_move, maximum_likelihood
from sklvebm.objectives.frame_move import can_move_in_frames, move_in_frames
from sklvebm.objectives.joint_move import can_move_together, move_together
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood

D, L, N_ROWS, N_PARTICLES, N_CHAINS = 3, 2, 7, 2, 9


def move_in_one_walk(*arguments, **how):
    """Move with all steps as one walk, which a GPU kernel makes where there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_move, "select_walk", lambda energy, n_numbers: plain_walk(energy))
        return move_together(*arguments, **how)


def move_in_kernel_steps(*arguments, **how):
    """Move in frames by what a GPU kernel makes of a step, where there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_move, "select_white_step", plain_white_step)
        return move_in_frames(*arguments, **how)


MOVES = [
    (move_in_one_walk, "ula", 1),
    *((move_in_kernel_steps, "crank-nicolson", t) for t in (2, 3)),
    *((move_together, dynamics, t) for dynamics in KERNELS for t in (1, 3)),
    *((move_in_frames, "crank-nicolson", t) for t in (2, 3, 4)),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def trained(is_diagonal):
    covariances = torch.stack([torch.eye(D), torch.diag(torch.tensor([0.5, 1.0, 2.0]))])
    if not is_diagonal:
        covariances = covariances + 0.3
    reference = MixtureReference(
        torch.tensor([0.4, 0.6]),
        torch.tensor([[-1.0, 0.0, 0.3], [1.0, 0.5, 0.0]]),
        covariances,
        latent_map=0.4 * normal(L, D, seed=3),
        latent_variance=torch.tensor([0.75, 0.5]),
        location=torch.tensor([0.2, 0.0, -0.1]),
        defensive_weight=0.1,
        defensive_covariance=9.0 * torch.eye(D),
    )
    network = MLPEnergy(D, L, (8,), generator=generator()).double()
    with torch.no_grad():
        network.output.normal_(generator=generator(1))
    return AnchoredEnergy(reference, network, reach=Reach(torch.zeros(D), 0.5 * torch.eye(D)))


class NumbersOfTheirOwn(IndependentNoise):
    """Posterior particles and pool get numbers from two generators, whichever is moved first."""

    def __init__(self, n_joint):
        super().__init__(generator(5))
        self.of_rows, self.n, self.n_joint = generator(6), N_ROWS * N_PARTICLES, n_joint
        # of pairs of neighbours in the second, fourth, ... update, and of all pairs
        n_rungs = n_joint // N_CHAINS
        self.n_swaps, self.n_pairs = (n_rungs - 1) // 2 * N_CHAINS, n_rungs // 2 * N_CHAINS

    def _drawn(self, draw, like):
        def numbers(shape, source):
            return draw(shape, generator=source, dtype=like.dtype)

        if like.dim() == 3:  # of all steps; posterior particles make half of them
            return torch.stack([self._of_step(draw, like, k) for k in range(len(like))])
        if len(like) not in (self.n, self.n + self.n_joint, self.n + self.n_pairs):
            return numbers(like.shape, self.generator)
        if like.dim() == 1:
            of_rows = numbers((self.n,), self.of_rows)
        else:
            of_rows = numbers((self.n, L), self.of_rows)
            # those of fixed rows must not matter
            fixed = torch.full((self.n, like.shape[1] - L), 7.0, dtype=like.dtype)
            of_rows = torch.cat([fixed, of_rows], 1)
        behind = (len(like) - self.n, *like.shape[1:])
        if len(like) != self.n + self.n_pairs or like.dim() == 2:
            return torch.cat([of_rows, numbers(behind, self.generator)])
        swaps = numbers((self.n_swaps,), self.generator)
        # that of a pair that is none must not matter
        return torch.cat([of_rows, swaps, swaps.new_ones(self.n_pairs - self.n_swaps)])

    def _of_step(self, draw, like, k):
        if k < max(1, len(like) // 2):
            return self._drawn(draw, like[k])
        unused = torch.full_like(like[k, : self.n], 7.0)
        return torch.cat([unused, self._drawn(draw, like[k, self.n :])])

    def normal(self, like):
        return self._drawn(torch.randn, like)

    def uniform(self, like):
        return self._drawn(torch.rand, like)


def started(dynamics, n_temperatures, n_steps, energy):
    objective = ParticleLikelihood(
        dynamics=dynamics,
        n_particles=N_PARTICLES,
        n_chains=N_CHAINS,
        n_temperatures=n_temperatures,
        n_langevin_steps=n_steps,
        step_size=0.05,
    )
    x = normal(20, D, seed=4)
    state = objective.init(energy, len(x), generator=generator(2))
    sizes = torch.linspace(0.05, 0.2, n_temperatures).to(state.pool)
    index = torch.arange(3, 3 + N_ROWS)
    return objective, state._replace(pool_step_size=sizes, n_updates=1), Batch(x[index], index)


@pytest.mark.parametrize("is_diagonal", [True, False])
@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize(("move", "dynamics", "n_temperatures"), MOVES)
def test_moving_together_is_moving_apart(dynamics, n_temperatures, n_steps, is_diagonal, move):
    energy = trained(is_diagonal)
    objective, state, batch = started(dynamics, n_temperatures, n_steps, energy)
    noise = [NumbersOfTheirOwn(N_CHAINS * n_temperatures) for _ in range(2)]
    apart, together = copy.deepcopy(state), copy.deepcopy(state)
    with torch.no_grad():
        moved = objective.posterior.move(energy, batch, apart, noise[0])
        sweep = objective.tempered.move(energy, apart, noise[0])
    how = {"tempered": objective.tempered, "posterior": objective.posterior}
    own, own_sweep = move(energy, batch, together, noise[1], **how)
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(own.latents.values, moved.latents.values, **close)
    for actual, expected in zip(own[1:], moved[1:], strict=True):
        torch.testing.assert_close(actual, expected, **close)
    of_pairs = sweep.swap_acceptance[sweep.parity :: 2]
    own_pairs = own_sweep.tried()
    torch.testing.assert_close(own_pairs, of_pairs, **close)
    for actual, expected in zip(own_sweep[:3], sweep[:3], strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True, **close)
    assert torch.equal(own_sweep.origin(), sweep.origin())
    assert own_sweep.parity == sweep.parity
    # what is kept of the pool is what it would be computed to be
    flat = own_sweep.pool.flatten(0, 1)
    if own_sweep.correction is not None:
        expected = energy.correction(*energy.reference.split(flat)).detach()
        torch.testing.assert_close(own_sweep.correction.flatten(), expected, **close)
    if own_sweep.rows is not None:
        torch.testing.assert_close(own_sweep.rows, energy.reference.rows(flat), **close)
    # particles moved, and only those of the batch
    outside = torch.ones(20, dtype=torch.bool).index_fill(0, batch.index, False)
    assert torch.equal(together.latents.values[outside], state.latents.values[outside])
    assert not torch.equal(own.latents.values[batch.index], state.latents.values[batch.index])
    assert not torch.equal(own_sweep.pool, state.pool)


def test_both_are_moved_together_unless_in_parts_or_by_another_family(monkeypatch):
    energy = trained(False)
    monkeypatch.setattr(maximum_likelihood, "can_move_in_frames", lambda *arguments: False)
    calls = []

    def seen(*arguments, **options):
        calls.append(options)
        return move_together(*arguments, **options)

    monkeypatch.setattr(maximum_likelihood, "move_together", seen)
    objective, state, batch = started("crank-nicolson", 3, 2, energy)
    objective.step(energy, batch, state, generator())
    assert len(calls) == 1
    assert can_move_together(energy, len(batch.x) * N_PARTICLES, state, batch.x.device)
    monkeypatch.setattr(joint_move, "parts_of_work", lambda *arguments: 2)
    assert not can_move_together(energy, len(batch.x) * N_PARTICLES, state, batch.x.device)
    objective.step(energy, batch, state, generator())
    monkeypatch.undo()
    monkeypatch.setattr(maximum_likelihood, "can_move_in_frames", lambda *arguments: False)
    monkeypatch.setattr(maximum_likelihood, "move_together", seen)
    monkeypatch.setattr(joint_move, "n_blocks_of", lambda *arguments: 2)
    objective.step(energy, batch, state, generator())
    assert len(calls) == 1


def test_frames_serve_exact_steps_on_a_ladder_of_few_columns(monkeypatch):
    energy, n = trained(False), N_ROWS * N_PARTICLES
    for dynamics, n_temperatures, expected in (
        ("crank-nicolson", 3, True),
        ("crank-nicolson", 1, False),
        ("mala", 3, False),
    ):
        objective, state, _ = started(dynamics, n_temperatures, 2, energy)
        assert can_move_in_frames(energy, objective.tempered.kernel, state, n) is expected
    objective, state, _ = started("crank-nicolson", 3, 2, energy)
    monkeypatch.setattr(frame_move, "_MOST_NUMBERS", 100)
    assert not can_move_in_frames(energy, objective.tempered.kernel, state, n)


def test_plans_pair_neighbours_and_proposals():
    n, t, c = 2, 4, 3
    for parity in (0, 1):
        plan = frame_move.plan_of((n, t, c), parity, torch.float64, torch.device("cpu"))
        pairs = plan.pairs.T[: n + (t - parity) // 2 * c].tolist()
        assert plan.pairs.shape == (2, n + t // 2 * c)
        assert pairs[:n] == [[0, 2], [1, 3]]
        rung = [[(place - 2 * n) // c for place in pair] for pair in pairs[n:]]
        assert all(b - a == 1 and a % 2 == parity for a, b in rung)
        falls = plan.falls @ torch.tensor([0.0, 0.1, 0.4, 1.0]).double()
        assert plan.pair_shares.tolist() == [[0.5, 0.5], [1.0, 0.0]][parity]
        assert falls[:n].tolist() == [1.0, 1.0]
        expected = (
            [[0.0 - 0.1] * c, [0.4 - 1.0] * c] if parity == 0 else [[0.1 - 0.4] * c, [0.0] * c]
        )
        torch.testing.assert_close(falls[n:], torch.tensor(expected).double().flatten())
        all_change = plan.places + plan.shift
        assert sorted(all_change[n:].tolist()) == list(range(2 * n, 2 * n + t * c))
        assert all_change[:n].tolist() == [2, 3]
        torch.testing.assert_close(plan.averages.sum(1), torch.ones(1 + t).double())
        assert (plan.averages[plan.group, torch.arange(n + t * c)] > 0.0).all()
