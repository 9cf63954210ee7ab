"""What the ranks of `test_distributed.py` do, each in a process of its own.

    python two_ranks.py RANK FOLDER TASK...

runs the tasks, functions of this file, one after another. What they return goes to
`FOLDER/TASK-RANK.pkl`, or the error that they raise.
"""

import contextlib
import copy
import os
import pickle
import shutil
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from sklvebm import (
    MixtureReference,
    MixtureStack,
    MLPEnergy,
    ParticleDivergenceError,
    ParticleLVEBM,
    PotentialFlowEBM,
    TransformedDensity,
    WassersteinFlowEBM,
    checkpoints,
    distributed,
)
from sklvebm import training as training_loop
from sklvebm.communication import ALONE, active
from sklvebm.estimators._common import rows_to_fit
from sklvebm.estimators._common.rows_to_fit import RowsToFit
from sklvebm.estimators._common.transactional_fit import Reporter
from sklvebm.exceptions import RankError
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.objectives import maximum_likelihood, proximal
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.objectives.proximal import WassersteinFlow
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.optimisation import start_optimisation
from sklvebm.training_course import Course

SIZE = 2
FIT = {"reference": "gaussian", "max_iter": 3, "tol": None, "random_state": 0}


def ring(n=300, seed=0):
    source = np.random.RandomState(seed)
    angle = source.uniform(0.0, 2.0 * np.pi, n)
    return np.c_[np.cos(angle), np.sin(angle)] + 0.1 * source.normal(size=(n, 2))


def own_rows(X, rank):
    """Return shares of different sizes."""
    return X[: len(X) // 3] if rank == 0 else X[len(X) // 3 :]


# Updates --------------------------------------------------------------------------------------

N_BATCHES, PER_RANK, N_PARTICLES, N_CHAINS, N_EPOCHS = 5, 8, 3, 10, 10


class NoiseOfRank(IndependentNoise):
    """The numbers of all ranks, of which one rank takes its own."""

    rank, size = 0, 1

    def _own(self, draw, like):
        first, *rest = like.shape
        if first == PER_RANK * N_PARTICLES:  # posterior particles
            return draw(self.size * first, *rest).chunk(self.size)[self.rank]
        if first % N_CHAINS == 0:  # the pool, rung by rung
            whole = draw(first // N_CHAINS, self.size * N_CHAINS, *rest)
            return whole.chunk(self.size, 1)[self.rank].reshape(like.shape)
        return draw(first, self.size * N_CHAINS).chunk(self.size, 1)[self.rank]  # swaps

    def normal(self, like):
        return self._own(self._drawn(torch.randn), like)

    def uniform(self, like):
        return self._own(self._drawn(torch.rand), like)

    def _drawn(self, function):
        return lambda *shape: function(shape, generator=self.generator, dtype=torch.float64)


def objective_of(n_chains, n_temperatures, kind="likelihood"):
    pool = {"dynamics": "ula", "n_langevin_steps": 2, "step_size": 0.05}
    pool = {**pool, "n_chains": n_chains, "n_temperatures": n_temperatures}
    if kind == "flow":
        return WassersteinFlow(TemperedPool(**pool))
    return ParticleLikelihood(n_particles=N_PARTICLES, **pool)


def start_of_updates(n_temperatures, kind="likelihood"):
    """Return the energy, and rows and particles of all ranks together."""
    source = torch.Generator().manual_seed(0)
    x = torch.from_numpy(ring(SIZE * N_BATCHES * PER_RANK))
    x = (x - x.mean(0)) / x.std(0)
    reference = MixtureReference(
        torch.tensor([0.4, 0.6]),
        torch.tensor([[-0.5, 0.0], [0.5, 0.2]]),
        torch.cov(x.T).expand(2, 2, 2),
        latent_map=torch.full((1, 2), 0.3),
        latent_variance=torch.full((1,), 0.8),
        location=x.mean(0),
    )
    if kind == "flow":
        reference = reference.without_latents()
    network = MLPEnergy(2, reference.n_latents, (16, 16), generator=source)
    with torch.no_grad():  # no correction at the start otherwise
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    energy = AnchoredEnergy(reference, network).double()
    objective = objective_of(SIZE * N_CHAINS, n_temperatures, kind)
    if kind == "flow":
        return energy, x, objective.tempered.init(energy, source)
    return energy, x, objective.init(energy, len(x), generator=source)


def updated(rank, ranks, start, kind):
    """Return the parameters after 50 updates with the rows and particles of one rank, or all."""
    energy, x, state = start
    if ranks.size > 1:
        places = torch.arange(len(x)).reshape(N_BATCHES, ranks.size, PER_RANK)[:, rank].flatten()
        if state.latents is not None:
            state.latents.values = state.latents.values[places].clone()
        x, state = x[places], state._replace(pool=state.pool.chunk(ranks.size, 1)[rank].clone())
    objective = objective_of(state.pool.shape[1], len(state.pool), kind)
    objective.share(ranks, 1.0)
    source = torch.Generator().manual_seed(1)
    if kind == "flow":
        state = objective.ready(energy, state, len(x), source)
    optimisation = start_optimisation(energy, learning_rate=0.01, alpha=0.01)
    batch_size = len(x) // N_BATCHES
    for _ in range(N_EPOCHS):
        optimisation, state, means = training_loop._pass_over(
            optimisation,
            objective,
            x,
            state,
            batch_size=batch_size,
            learning_rate=0.01,
            generator=source,
            ranks=ranks,
        )
    assert optimisation.n_updates == N_BATCHES * N_EPOCHS
    parts = [p.detach().flatten() for p in optimisation.average.parameters()]
    particles = objective.particles(state)
    adapted = [particles.log_partitions, particles.betas, particles.spread]
    if len(particles.pool) > 1:  # without a ladder, the bound has noise
        adapted.append(monitored(rank, ranks, optimisation, objective, state))
    return torch.cat([*parts, *adapted]).numpy()


def monitored(rank, ranks, optimisation, objective, state):
    """Return the bound on rows of which ranks have shares of different sizes, (1,)."""
    rows = torch.from_numpy(ring(60, seed=1))
    rows = rows if ranks.size == 1 else torch.from_numpy(own_rows(rows.numpy(), rank))
    how = {"state": state, "batch_size": 8, "generator": torch.Generator(), "ranks": ranks}
    with torch.no_grad():
        run = training_loop._Run(optimisation, objective, rows, rows, **how)
        return torch.tensor([float(run.monitored())], dtype=torch.float64)


def fresh_rung(rank, size):
    """Return draws of a reference of which one rank takes its own."""
    original = MixtureReference.sample

    def sample(self, n, generator, **options):
        return original(self, n * size, generator, **options).chunk(size)[rank]

    return sample


def updates(rank):
    """Compare updates of two ranks with those of one process, with the same noise."""
    results = {}
    in_order = lambda n, *rest: torch.arange(n)  # noqa: E731
    for kind, n_temperatures in (("likelihood", 1), ("likelihood", 3), ("flow", 3)):
        alone, shared = (start_of_updates(n_temperatures, kind) for _ in range(2))
        with (
            distributed() as ranks,
            mock.patch.object(training_loop, "pass_over", in_order),
            # those at the pool's start cannot be divided
            mock.patch.object(TemperedPool, "proposed", lambda self, energy, state, noise: state),
            mock.patch.object(ParticleLikelihood, "_moves_together", return_value=False),
        ):
            if rank == 0:
                results[f"alone {kind} {n_temperatures}"] = updated(0, ALONE, alone, kind)
            NoiseOfRank.rank, NoiseOfRank.size = rank, ranks.size
            with (
                mock.patch.object(maximum_likelihood, "IndependentNoise", NoiseOfRank),
                mock.patch.object(proximal, "IndependentNoise", NoiseOfRank),
                mock.patch.object(MixtureReference, "sample", fresh_rung(rank, ranks.size)),
            ):
                own = updated(rank, ranks, shared, kind)
            results[f"shared {kind} {n_temperatures}"] = own
    return results


# Fits -----------------------------------------------------------------------------------------


def answers(model, X):
    drawn = model.sample(5, random_state=0)
    drawn = drawn[0] if isinstance(drawn, tuple) else drawn
    return {"scores": model.score_samples(X), "draws": drawn}


def fit(rank, weights=None, **options):
    """Fit and score on all ranks."""
    X = ring()
    model = ParticleLVEBM(n_components=1, n_chains=65, **{**FIT, **options})
    with distributed() as ranks:
        own = None if weights is None else own_rows(weights, rank)
        model.fit(own_rows(X, rank), sample_weight=own)
        score = model.score(own_rows(X, rank))
        weighted = model.score(own_rows(X, rank), sample_weight=own_rows(np.arange(300.0), rank))
    assert ranks.size == SIZE
    assert active() is ALONE
    return {
        **answers(model, X),
        "score": score,
        "weighted score": weighted,
        "history": model.history_,
        "n_chains": model._training.state.pool.shape[1],
        "parameters": model.get_params(),
        "pickle": pickle.loads(pickle.dumps(model)).score_samples(X),
        "attributes": sorted(vars(model)),
    }


def fit_particles(rank):
    return fit(rank, init="reference")


def fit_ratio(rank):
    return fit(rank, weights=np.linspace(0.5, 2.0, 300), init="ratio", max_iter=6)


FITTED = {}  # what a later task needs again, by its name in `KEPT_MAKERS`


def flows(rank):
    """Fit the estimators without latents on all ranks."""
    X, results = ring(), {}
    for model in (WassersteinFlowEBM(init="reference", **FIT), PotentialFlowEBM(**FIT)):
        with distributed():
            model.fit(own_rows(X, rank))
        histories = {"values": getattr(model, model._family.value + "s_"), "n_iter": model.n_iter_}
        results[type(model).__name__] = {**answers(model, X), **histories}
    FITTED["flow"] = model
    return results


def decisions(rank):
    """Fit where ranks have measured different bounds, and a callback ends training on rank 0."""
    noted, original = [], Course.note

    def note(self, lower_bound, *rest):
        noted.append(lower_bound)
        return original(self, lower_bound, *rest)

    def report(self, progress, value):
        return len(noted) == 2

    def own(ranks, values, averaged):
        return {**values, "bound": values["bound"] + rank}

    model = ParticleLVEBM(n_components=1, init="reference", **{**FIT, "max_iter": 9})
    with (
        mock.patch.object(training_loop, "_over_ranks", own),
        mock.patch.object(Course, "note", note),
        mock.patch.object(Reporter, "__call__", report),
        distributed(),
    ):
        model.fit(own_rows(ring(), rank))
    return {"noted": noted, "n_iter": model.n_iter_}


def continued(rank):
    """Continue a fit by `warm_start`, then by `partial_fit`."""
    X = ring()
    model = ParticleLVEBM(n_components=1, warm_start=True, init="reference", **FIT)
    with distributed():
        first = model.fit(own_rows(X, rank)).score_samples(X)
        second = model.fit(own_rows(X, rank)).score_samples(X)
        third = model.partial_fit(own_rows(X, rank)).score_samples(X)
    return {"scores": [first, second, third], "n_iter": model.n_iter_}


def others(rank):
    """Fit what rank 0 trains alone, on two ranks and on one."""
    X, results, few = ring(120), {}, {**FIT, "max_iter": 1}
    for model in (
        MixtureStack(effort="fast", random_state=0),
        PotentialFlowEBM(loss="vapo", **few),
        ParticleLVEBM(n_components=1, posterior="amortized", init="reference", **few),
    ):
        name = type(model).__name__
        with distributed():
            shared = copy.deepcopy(model).fit(own_rows(X, rank))
        results[name] = answers(shared, X)
        if rank == 1:
            results[f"{name} alone"] = answers(model.fit(X), X)
    missing = pd.DataFrame(X.copy(), columns=["x", "y"])
    missing.iloc[::5, 1] = np.nan
    with distributed():
        model = ParticleLVEBM(n_components=1, **few).fit(own_rows(missing, rank))
    results["missing cells"] = answers(model, missing)
    results["names"] = list(model.feature_names_in_)
    return results


KEPT = {"init": "reference", **FIT}
KEPT_MAKERS = {
    "particles": lambda: ParticleLVEBM(n_components=1, n_chains=33, **KEPT),
    # two epochs of the density ratio, two of particles
    "ratio": lambda: ParticleLVEBM(
        n_components=1,
        n_chains=33,
        posterior="gaussian",
        n_temperatures=2,
        **{**KEPT, "init": "ratio", "max_iter": 4},
    ),
    "flow": lambda: PotentialFlowEBM(**FIT),
}


def interrupted(model, rows, epoch=2):
    """Fit until rank 0 reports an epoch, which ends the fit on all ranks."""

    def report(self, progress, value):
        if progress.epoch == epoch:
            raise KeyError("end of the process")
        return False

    with mock.patch.object(Reporter, "__call__", report), contextlib.suppress(KeyError, RankError):
        model.fit(rows)


def checkpointed(rank):
    """Continue fits of two ranks that were interrupted, by two ranks and, later, by one."""
    X, results = ring(), {}
    for name, make in KEPT_MAKERS.items():
        folder = Path(sys.argv[2]) / f"checkpoints-{name}"
        with distributed():
            whole = FITTED[name] if name in FITTED else make().fit(own_rows(X, rank))
        with checkpoints(folder, every=0):
            with distributed():
                interrupted(make(), own_rows(X, rank))
            if rank == 0:
                shutil.copytree(folder, folder.with_name(f"{name}-of-two"))
            if name == "ratio":  # once more, within training
                with distributed():
                    interrupted(make(), own_rows(X, rank), 4)
            with distributed():
                again = make().fit(own_rows(X, rank))
        results[name] = {
            "history": [whole.history_, again.history_],
            "scores": [whole.score_samples(X), again.score_samples(X)],
            "left": [path.name for path in folder.iterdir()],
        }
        if name != "particles":
            continue
        # what one process began
        alone = folder.with_name(f"{name}-of-one")
        if rank == 0:
            with checkpoints(alone, every=0):
                interrupted(make(), X)
        with checkpoints(alone, every=0), distributed():
            results[name]["of one"] = make().fit(own_rows(X, rank)).history_
    return results


def parts(rank):
    """Fit rows of a file that both ranks map, of which neither may hold more than 60."""
    X, results = ring(), {}
    weights, path = np.linspace(0.5, 2.0, 300), Path(sys.argv[2]) / f"ring-{rank}.npy"
    np.save(path, X)
    mapped = np.load(path, mmap_mode="r")
    others = np.load(path) if rank else mapped  # in memory on rank 1
    for name, rows, own_weights in (
        ("equal", own_rows(mapped, rank), None),
        ("weighted", own_rows(others, rank), own_rows(weights, rank)),
    ):
        model, fitted = MixtureStack(max_components=1, margins="none", random_state=0), []
        original = RowsToFit.distinct

        def distinct(self, least, fitted=fitted, original=original):
            fitted.append(len(self.X))
            return original(self, least)

        with (
            mock.patch.object(rows_to_fit, "_MOST_ROWS", 60),
            mock.patch.object(RowsToFit, "distinct", distinct),
            distributed(),
        ):
            model.fit(rows, sample_weight=own_weights)
        results[name] = {"n_fitted": fitted, "mean": model.mean_, "scale": model.scale_}
        results[name]["scores"] = model.score_samples(X)
    return results


# Failures -------------------------------------------------------------------------------------


def caught(function):
    """Return the error that a function raises, in words, and after how many seconds."""
    begin = time.monotonic()
    try:
        function()
    # broad on purpose: tests look at what it is
    except BaseException as error:
        return type(error).__name__, str(error), time.monotonic() - begin
    return "", "", time.monotonic() - begin


def refused(rank):
    """Fit what must be refused on all ranks; then the context is as good as new."""
    X, model = own_rows(ring(), rank), MixtureStack(effort="fast", random_state=0)
    bad = X.copy()
    bad[0, 0] = np.inf if rank == 1 else 0.0
    results = {}
    with distributed(max_bytes=4800):
        results["not finite"] = caught(lambda: model.fit(bad))
        results["columns"] = caught(lambda: model.fit(X[:, : 2 - rank]))
        other = MixtureStack(effort="fast" if rank else "default", random_state=0)
        results["parameters"] = caught(lambda: other.fit(X))
        names = pd.DataFrame(X, columns=["a", "b" if rank else "c"])
        results["names"] = caught(lambda: model.fit(names))
        results["score"] = caught(lambda: model.score(X))
        results["too many"] = caught(lambda: model.fit(np.r_[X, X]))
        results["not shared"] = caught(lambda: TransformedDensity(model).fit(X))
        results["twice"] = caught(lambda: distributed().__enter__())
        results["scores"] = model.fit(X).score_samples(ring())
    return results


def failing_step(rank, action):
    """Return a step of training that does something on one rank, at the fifth call."""
    original, calls = ParticleLikelihood.step, []

    def step(self, *arguments):
        calls.append(None)
        if len(calls) == 5 and active() is ALONE and int(sys.argv[1]) == rank:
            action()
        return original(self, *arguments)

    return mock.patch.object(ParticleLikelihood, "step", step)


def _raise():
    raise KeyError("lost key")


def failing_fit(rank, failing, action, timeout=60.0):
    model = ParticleLVEBM(n_components=1, init="reference", **FIT)
    with failing_step(failing, action), distributed(timeout=timeout):
        found = caught(lambda: model.fit(own_rows(ring(), rank)))
        again = caught(lambda: model.fit(own_rows(ring(), rank)))
    return {"error": found, "again": again, "fitted": hasattr(model, "_model")}


def raises_on_1(rank):
    return failing_fit(rank, 1, _raise)


def raises_on_0(rank):
    return failing_fit(rank, 0, _raise)


def _diverge():
    raise ParticleDivergenceError("far away")


def diverges_on_0(rank):
    return failing_fit(rank, 0, _diverge)


def diverges(rank):
    """Diverge on all ranks, by steps that are too long."""
    model = ParticleLVEBM(
        n_components=1, init="reference", **{**FIT, "max_iter": 30}, learning_rate_init=1e12
    )
    with distributed():
        found = caught(lambda: model.fit(own_rows(ring(), rank)))
    return {"error": found, "fitted": hasattr(model, "_model")}


def recovers(rank):
    """Fit in a new context after failures."""
    with distributed():
        model = MixtureStack(effort="fast", random_state=0).fit(own_rows(ring(), rank))
    return {"scores": model.score_samples(ring())}


def absent(rank):
    """Do not call `fit` on rank 1."""
    with distributed(timeout=2.0):
        if rank == 1:
            time.sleep(6.0)
            return {}
        return {"error": caught(lambda: MixtureStack().fit(own_rows(ring(), rank)))}


def killed(rank):
    """Kill rank 1 while both train."""
    return failing_fit(rank, 1, lambda: os.kill(os.getpid(), signal.SIGKILL), timeout=120.0)


def main(rank, folder, *tasks):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.FileStore(str(folder / "store"), SIZE)
    how = {"rank": rank, "world_size": SIZE, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", store=store, **how)
    for task in tasks:
        begin = time.monotonic()
        result = {**globals()[task](rank), "seconds": time.monotonic() - begin}
        (folder / f"{task}-{rank}.pkl").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
