"""Fits that two processes share, each with one thread, over gloo; `two_ranks.py` is what they do.

Processes take seconds to start: two of them run all tasks that succeed, and two all that fail.
"""

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import sklvebm
from sklvebm import MixtureStack, ParticleLVEBM, checkpoints, distributed
from sklvebm.communication import ALONE, Communicator, active
from sklvebm.estimators._common.keeper_of_ranks import parts_of
from sklvebm.estimators._common.rows_of_ranks import TrainingRows, scattered_rows
from sklvebm.estimators._ebm import shared_training
from sklvebm.mcmc.state import Batch, ParticleState
from sklvebm.objectives.density_ratio import Classification, contrast
from sklvebm.objectives.flow_matching import PotentialFlow
from sklvebm.preprocessing.scaling import fit_standardisation
from sklvebm.row_weights import mean_on_device

HERE = Path(__file__).parent
SPECIFICATION = importlib.util.spec_from_file_location("two_ranks", HERE / "two_ranks.py")
two_ranks = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(two_ranks)
TIMEOUT = 240.0  # seconds, of all tasks of two processes
SECONDS = 30.0  # after which an error on one rank must be known to the other

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed"),
]


def run_ranks(folder, *tasks):
    """Run tasks on two ranks; return results by task and rank, without those of killed ones."""
    root = Path(sklvebm.__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_ranks.py"), str(rank), str(folder), *tasks],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"errors-{rank}").open("w"),
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            process.wait(TIMEOUT)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    written = {path.stem: pickle.loads(path.read_bytes()) for path in folder.glob("*.pkl")}
    missing = [task for task in tasks if f"{task}-0" not in written]
    messages = "\n".join((folder / f"errors-{rank}").read_text() for rank in range(2))
    assert not missing, f"{missing} did not end:\n{messages}"
    return {task: [written.get(f"{task}-{rank}") for rank in range(2)] for task in tasks}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    tasks = ("updates", "fit_particles", "fit_ratio", "flows", "decisions", "continued")
    tasks = (*tasks, "others", "parts", "checkpointed")
    folder = tmp_path_factory.mktemp("sound")
    return {**run_ranks(folder, *tasks), "folder": folder}


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    tasks = ("refused", "raises_on_1", "raises_on_0", "diverges", "diverges_on_0")
    tasks = (*tasks, "recovers", "absent", "killed")
    return run_ranks(tmp_path_factory.mktemp("failed"), *tasks)


# Updates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["likelihood 1", "likelihood 3", "flow 3"])
def test_updates_of_two_ranks_are_those_of_one_process(sound, kind):
    first, second = sound["updates"]
    assert np.abs(first[f"alone {kind}"] - first[f"shared {kind}"]).max() < 1e-12
    np.testing.assert_array_equal(first[f"shared {kind}"], second[f"shared {kind}"])


# Fits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["fit_particles", "fit_ratio"])
def test_all_ranks_end_with_the_same_model(sound, task):
    first, second = sound[task]
    for name in ("scores", "draws", "pickle"):
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(first["scores"], first["pickle"])
    for name in ("history", "parameters", "attributes", "n_chains"):
        assert first[name] == second[name], name
    assert first["n_chains"] == 65
    assert np.isfinite(first["scores"]).all()
    assert all(not epoch["problem"] for epoch in first["history"])


@pytest.mark.parametrize("task", ["fit_particles", "fit_ratio"])
def test_score_is_the_mean_over_the_rows_of_all_ranks(sound, task):
    first, second = sound[task]
    of_rows = first["scores"]
    assert first["score"] == second["score"] == pytest.approx(of_rows.mean(), rel=1e-12)
    weighted = np.average(of_rows, weights=np.arange(len(of_rows)))
    assert first["weighted score"] == second["weighted score"] == pytest.approx(weighted, rel=1e-12)


def test_a_shared_fit_learns_as_one_process_does(sound):
    # the scores of the reference alone are lower by half a nat
    (result, _), X = sound["fit_particles"], two_ranks.ring()
    options = {"reference": "gaussian", "init": "reference", "max_iter": 3, "tol": None}
    model = ParticleLVEBM(n_components=1, n_chains=65, random_state=0, **options).fit(X)
    reference = model.reference_
    rows, log_jacobian = model.standardise(X)
    base = reference.log_marginal(torch.from_numpy(rows)).numpy() + log_jacobian
    alone, shared = model.score(X) - base.mean(), result["scores"].mean() - base.mean()
    assert shared > 0.5 * alone > 0.0


@pytest.mark.parametrize("name", ["WassersteinFlowEBM", "PotentialFlowEBM"])
def test_all_ranks_end_with_the_same_flow(sound, name):
    first, second = (result[name] for result in sound["flows"])
    for part in ("scores", "draws"):
        np.testing.assert_array_equal(first[part], second[part])
    assert first["values"] == second["values"]
    assert first["n_iter"] == second["n_iter"] == 3
    assert first["values"][-1] > first["values"][0]


def test_rank_0_decides(sound):
    first, second = sound["decisions"]
    assert first["noted"] == second["noted"]
    assert first["n_iter"] == second["n_iter"] == len(first["noted"]) == 3


def test_a_shared_fit_is_continued(sound):
    first, second = sound["continued"]
    for one, other in zip(first["scores"], second["scores"], strict=True):
        np.testing.assert_array_equal(one, other)
    assert first["n_iter"] == second["n_iter"] == 3 + 3 + 1
    assert not np.array_equal(first["scores"][0], first["scores"][1])
    assert not np.array_equal(first["scores"][1], first["scores"][2])


@pytest.mark.parametrize("name", ["MixtureStack", "PotentialFlowEBM", "ParticleLVEBM"])
def test_what_rank_0_trains_alone_is_the_fit_of_all_rows(sound, name):
    first, second = sound["others"]
    for part in ("scores", "draws"):
        np.testing.assert_array_equal(first[name][part], second[name][part])
        np.testing.assert_array_equal(first[name][part], second[f"{name} alone"][part])


@pytest.mark.parametrize("name", two_ranks.KEPT_MAKERS)
def test_a_shared_fit_is_continued_from_its_checkpoint(sound, name):
    """To the last bit, where there are as many ranks."""
    first, second = (result[name] for result in sound["checkpointed"])
    whole, again = first["history"]
    assert whole == again
    np.testing.assert_array_equal(*first["scores"])
    np.testing.assert_array_equal(*second["scores"])
    assert first["left"] == []


def test_a_density_ratio_of_two_ranks_is_continued_by_one_process(sound, monkeypatch):
    (first, _), made = sound["checkpointed"], []
    original = Classification.epoch
    monkeypatch.setattr(Classification, "epoch", lambda *a: (made.append(a), original(*a))[1])
    with checkpoints(sound["folder"] / "ratio-of-two", every=0):
        alone = two_ranks.KEPT_MAKERS["ratio"]().fit(two_ranks.ring()).history_
    assert len(made) == 1  # of two
    shared = first["ratio"]["history"][0]
    assert alone[:1] == shared[:1]
    assert ["ratio_loss" in epoch for epoch in alone] == [True, True, False, False]
    assert abs(alone[-1]["lower_bound"] - shared[-1]["lower_bound"]) < 0.2  # nats


def test_a_shared_fit_is_continued_by_one_process_and_the_other_way_round(sound):
    name, (first, _) = "particles", sound["checkpointed"]
    X, make = two_ranks.ring(), two_ranks.KEPT_MAKERS[name]
    shared, value = first[name]["history"][0], "lower_bound"
    with checkpoints(sound["folder"] / f"{name}-of-two", every=0):
        alone = make().fit(X).history_
    assert alone[:1] == shared[:1]
    assert first[name]["of one"][:1] == make().fit(X).history_[:1]
    for other in (alone, first[name]["of one"]):
        assert [epoch["epoch"] for epoch in other] == [1, 2, 3]
        assert abs(other[-1][value] - shared[-1][value]) < 0.2  # nats
        assert not any(epoch["problem"] for epoch in other)


def test_rows_and_chains_of_ranks_are_divided_anew():
    latents = torch.arange(11.0)
    pool = torch.arange(7.0).expand(2, 7)
    fields = dict.fromkeys(ParticleState._fields)

    def training(n_ranks):
        n_own = -(-7 // n_ranks)
        places = [torch.arange(r * n_own, (r + 1) * n_own) % 7 for r in range(n_ranks)]
        states = [
            ParticleState(
                **{**fields, "pool": pool[:, own], "latents": {"values": latents[r::n_ranks]}}
            )
            for r, own in enumerate(places)
        ]
        of_ranks = [{"state": s, "objective": {}, "generator": r} for r, s in enumerate(states)]
        return {"course": {}, **of_ranks[0], "others": of_ranks[1:]}

    for n_from, n_to in [(1, 2), (2, 3), (3, 1), (3, 2), (2, 2)]:
        found, wanted = parts_of(training(n_from), n_to, 7), training(n_to)
        expected = [wanted, *wanted["others"]]
        assert len(found) == n_to
        for rank, (part, own) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(part["state"].pool, own["state"].pool)
            ours, theirs = (p["state"].latents["values"] for p in (part, own))
            assert torch.equal(ours, theirs)
            assert part["generator"] == (rank if n_from == n_to else None)


@pytest.mark.parametrize("name", ["equal", "weighted"])
def test_rank_0_needs_a_part_of_the_rows_of_a_file(sound, name):
    (first, second), X = (result[name] for result in sound["parts"]), two_ranks.ring()
    assert first["n_fitted"] == [60]
    assert second["n_fitted"] == []
    row_weights = np.linspace(0.5, 2.0, 300) if name == "weighted" else None
    units = fit_standardisation(X, row_weights)
    np.testing.assert_allclose(first["mean"], units.mean, rtol=1e-9)
    np.testing.assert_allclose(first["scale"], units.scale, rtol=1e-9)
    np.testing.assert_array_equal(first["scores"], second["scores"])


def test_frames_with_missing_cells_are_fitted(sound):
    first, second = sound["others"]
    assert first["names"] == second["names"] == ["x", "y"]
    np.testing.assert_array_equal(
        first["missing cells"]["scores"], second["missing cells"]["scores"]
    )


# Failures -------------------------------------------------------------------------------------


def test_unusable_rows_of_one_rank_are_refused_on_all(failed):
    first, second = (result["not finite"] for result in failed["refused"])
    assert second[0] == "ValueError"
    assert first[0] == "RankError"
    assert "Rank 1 failed: ValueError: Input X contains infinity" in first[1]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("columns", "ValueError", "Ranks 0 and 1 differ, and must not: the number of columns of X"),
        ("parameters", "ValueError", "effort: 'default' and 'fast'"),
        ("names", "ValueError", "the names of columns: ['a', 'c'] and ['a', 'b']"),
        ("score", "NotFittedError", "not fitted yet"),
        ("too many", "ValueError", "more than max_bytes=4800"),
        ("not shared", "RuntimeError", "TransformedDensity.fit cannot be shared"),
        ("twice", "RuntimeError", "active already"),
    ],
)
def test_what_cannot_be_shared_is_refused_on_all_ranks(failed, name, error, words):
    for result in failed["refused"]:
        assert result[name][0] == error
        assert words in result[name][1]


def test_a_context_is_as_good_as_new_after_refusals(failed):
    first, second = failed["refused"]
    np.testing.assert_array_equal(first["scores"], second["scores"])


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_rank_is_raised_on_all(failed, failing):
    results = failed[f"raises_on_{failing}"]
    own, theirs = results[failing], results[1 - failing]
    assert own["error"][0] == "KeyError"
    assert theirs["error"][:2] == ("RankError", f"Rank {failing} failed: KeyError: 'lost key'")
    for result in results:
        assert result["error"][2] < SECONDS
        assert not result["fitted"]
        # operations of different ranks could be mixed up
        assert result["again"][0] == "RankError"
        assert "enter it again" in result["again"][1]


@pytest.mark.parametrize("task", ["diverges", "diverges_on_0"])
def test_a_divergence_is_one_on_all_ranks(failed, task):
    for result in failed[task]:
        assert result["error"][0] == "ParticleDivergenceError"
        assert not result["fitted"]


def test_a_new_context_works_after_failures(failed):
    first, second = failed["recovers"]
    np.testing.assert_array_equal(first["scores"], second["scores"])


def test_a_rank_that_does_not_take_part_is_not_waited_for_longer_than_the_timeout(failed):
    name, message, seconds = failed["absent"][0]["error"]
    assert name == "RankError"
    assert "did not answer within timeout=2 s" in message
    assert seconds < SECONDS


def test_a_killed_rank_raises_on_the_other(failed):
    first, second = failed["killed"]
    assert second is None  # killed before it could write
    assert first["error"][0] == "RankError"
    assert "connection to another rank was lost" in first["error"][1]
    assert first["error"][2] < SECONDS
    assert not first["fitted"]


# Shares ---------------------------------------------------------------------------------------


class PretendedRanks(Communicator):
    """Rank 0 of several, whose shares stay here."""

    size = 3

    def scatter(self, values):
        self.scattered = list(values)
        return values[0]


@pytest.mark.parametrize("weights", [None, torch.linspace(0.5, 2.0, 11, dtype=torch.float64)])
def test_shares_hold_every_row_once_and_weigh_as_their_rows_do(weights):
    x, ranks = torch.arange(22.0).reshape(11, 2), PretendedRanks()
    rows = TrainingRows(x, x[:4], weights, None if weights is None else weights[:4])
    own = scattered_rows(ranks, rows, torch.Generator())
    assert own is ranks.scattered[0]
    parts = [of_rank.rows for of_rank in ranks.scattered]
    every = torch.cat([part.fitted for part in parts])
    torch.testing.assert_close(every[every[:, 0].argsort()], x)
    assert {len(part.fitted) for part in parts} == {3, 4}
    assert sum(len(part.monitored) for part in parts) == 4
    assert len({of_rank.seed for of_rank in ranks.scattered}) == ranks.size
    # the mean over ranks of weighted means is that over all rows
    means = [mean_on_device(part.fitted[:, 0], part.fitted_weights) for part in parts]
    shares = [of_rank.row_share for of_rank in ranks.scattered]
    mean = sum(share * mean for share, mean in zip(shares, means, strict=True)) / ranks.size
    assert float(mean) == pytest.approx(float(mean_on_device(x[:, 0], weights)), rel=1e-6)


def test_few_monitored_rows_are_on_all_ranks():
    x = torch.arange(8.0).reshape(8, 1)
    part = TrainingRows(x, x[:2]).of_rank(2, 3)
    torch.testing.assert_close(part.monitored, x[:2])


def test_a_share_weighs_rows_against_the_pool():
    energy, x, state = two_ranks.start_of_updates(1)
    losses = []
    for row_share in (0.0, 1.0, 1.5):
        objective = two_ranks.objective_of(two_ranks.SIZE * two_ranks.N_CHAINS, 1)
        objective.share(ALONE, row_share)
        batch = Batch(x[:16], torch.arange(16))
        own = copy.deepcopy(state)
        losses.append(objective.step(energy, batch, own, torch.Generator().manual_seed(0))[0])
    of_rows = losses[1] - losses[0]
    assert abs(float(of_rows.detach())) > 1e-3
    torch.testing.assert_close(losses[2] - losses[0], 1.5 * of_rows)


def test_a_share_of_a_flow_weighs_its_rows(fitted_flow):
    potential, losses = fitted_flow._training.optimisation.energy, []
    x = torch.randn(32, fitted_flow.n_features_in_, generator=torch.Generator().manual_seed(0))
    for row_share in (1.0, 1.5):
        objective = PotentialFlow()
        objective.share(row_share)
        source = torch.Generator().manual_seed(0)
        losses.append(objective.step(potential, Batch(x, torch.arange(32)), None, source)[0])
    torch.testing.assert_close(losses[1], 1.5 * losses[0])


def test_a_share_weighs_rows_against_draws():
    energy, x, _ = two_ranks.start_of_updates(1)
    draws = energy.reference.sample(80, torch.Generator().manual_seed(0))
    losses = [
        contrast(
            energy, x, x.new_zeros(()), draws, torch.Generator().manual_seed(1), row_share=share
        )
        for share in (0.0, 1.0, 1.5)
    ]
    of_rows = losses[1] - losses[0]
    assert float(of_rows.detach()) > 0.1
    torch.testing.assert_close(losses[2] - losses[0], 1.5 * of_rows)


def test_chains_that_cannot_be_divided_are_given_twice():
    pool = torch.arange(10.0).reshape(1, 5, 2)
    parts = shared_training._parts_of_pool(pool, 3, 2)
    torch.testing.assert_close(parts[0], pool[:, :3])
    torch.testing.assert_close(parts[1], pool[:, [3, 4, 0]])


# One process ----------------------------------------------------------------------------------


@pytest.fixture
def group():
    """Make a process group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_of_one_process_changes_nothing(group, tmp_path):
    X = two_ranks.ring()[:100]
    stack = MixtureStack(effort="fast", random_state=0)
    with distributed() as ranks, checkpoints(tmp_path):
        assert active() is ranks is ALONE
        shared = stack.fit(X).score_samples(X)
        score = stack.score(X)
    np.testing.assert_array_equal(shared, stack.fit(X).score_samples(X))
    assert score == stack.score(X)


def test_a_process_group_alone_starts_no_collective_operations(group):
    assert active() is ALONE


def test_without_a_process_group_the_error_says_what_to_do(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=r"torchrun.*RANK, WORLD_SIZE"), distributed():
        pass


def test_the_environment_of_torchrun_makes_a_group_that_ends_with_the_context(monkeypatch):
    settings = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with distributed() as ranks:
        assert dist.is_initialized()
        assert ranks.size == 1
    assert not dist.is_initialized()


@pytest.mark.parametrize("options", [{"timeout": 0.0}, {"max_bytes": "all"}, {"timeout": True}])
def test_parameters_are_checked(group, options):
    (name,) = options
    with (
        pytest.raises(ValueError, match=f"{name} must be a positive number"),
        distributed(**options),
    ):
        pass
