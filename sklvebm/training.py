"""The training loop for any objective: epochs, optimiser, averaging, plateaus, history."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sklvebm.communication import ALONE, Communicator, mean_over_ranks
from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.mcmc.state import Batch
from sklvebm.optimisation import (
    Optimisation,
    Storable,
    adopted,
    copied,
    numbers_of,
    restored,
    snapshot,
    write,
)
from sklvebm.row_weights import pass_over
from sklvebm.training_course import Course, Plateau, Progress
from sklvebm.updates import (
    CLIP_NORM,
    UpdatesInPlace,
    average_share,
    move_average,
    n_batches,
    updates_in_place,
    warm_rate,
)

_NORM, _BOUND = "norm of the parameters", "bound"  # among what an epoch reads
# a model this far below where it started has run away, nats
_FALL, _FALL_PER_FEATURE = 5.0, 1.0


class Objective(Protocol):
    """The methods of an objective that the loop calls; `state` is what `step` returns."""

    loss_name: str  # under which the history has the mean loss
    # whether the bound of parameters that are not finite is NaN without an error: the loop then
    # computes it before it reads anything, and waits for the device once an epoch
    has_total_bound: bool

    def step(
        self, energy: Any, batch: Batch, state: Any, generator: torch.Generator
    ) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Return the loss, the new state, for which the old one may be used up, and 0-d metrics."""

    def lower_bound(
        self,
        energy: Any,
        state: Any,
        target: Any,
        x: Tensor,
        generator: torch.Generator,
        *,
        row_weights: Tensor | None = None,
    ) -> Tensor | float:
        """Return the mean ELBO of `target` on rows x, in nats, given the state of `energy`.

        `row_weights` say how often each row counts, or None for equal weights.
        """

    def measures(self, energy: Any, state: Any) -> dict[str, Tensor]:
        """Return 0-d tensors of a state that `problem` needs among its metrics."""

    def problem(self, state: Any, metrics: dict[str, float]) -> str | None:
        """Return why the particles do not represent the model any more; None if they do."""


class Keeper(Protocol):
    """Keeps the state of training between two epochs, so that it can be continued."""

    def kept(self) -> dict[str, Any] | None:
        """Return the state of an interrupted run, tensors on the CPU; None if there is none."""

    def keep(self, numbers: Callable[[], dict[str, Any]], *, at_once: bool) -> None:
        """Keep the state that a function returns, now or after a later epoch."""


class TrainingResult(NamedTuple):
    """Outcome of `train`."""

    optimisation: Optimisation
    state: Any
    best: Any  # module
    best_lower_bound: float  # nats per row
    history: list[Progress]
    converged: bool


def batches(order: Tensor, batch_size: int, ranks: Communicator = ALONE) -> tuple[Tensor, ...]:
    """Return the rows of a pass, in their order (n_rows,), in index tensors of nearly equal size.

    All ranks get the same number of them, though their numbers of rows may differ.
    """
    largest = len(order)
    if ranks.size > 1:
        largest = int(ranks.gather(torch.tensor(largest)).max())
    return torch.tensor_split(order, n_batches(largest, batch_size))


def _pass_over(
    optimisation: Optimisation,
    objective: Objective,
    x: Tensor,
    state: Any,
    *,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    row_weights: Tensor | None = None,
    in_place: UpdatesInPlace | None = None,
    ranks: Communicator = ALONE,
) -> tuple[Optimisation, Any, dict[str, Tensor]]:
    """Pass over the rows x (N, D) once; return the optimisation, the state and mean metrics, 0-d.

    The host waits for nothing here but other ranks. Given `in_place`, that makes the updates.
    """
    energy, average, optimizer, n_updates = optimisation
    order = pass_over(len(x), generator, x.device, row_weights)
    parts = batches(order, batch_size, ranks)
    if in_place is not None:
        state, means = in_place.pass_over(parts, state, n_updates, learning_rate)
        return optimisation._replace(n_updates=in_place.n_updates), state, means
    names: tuple[str, ...] = ()
    values: list[Tensor] = []
    one = None  # the gradient of a loss in itself, the same for all
    for index in parts:
        optimizer.learning_rate = warm_rate(learning_rate, n_updates)
        optimizer.zero_grad()
        with torch.enable_grad():
            loss, state, metrics = objective.step(energy, Batch(x[index], index), state, generator)
            one = torch.ones_like(loss) if one is None else one
            loss.backward(one)
        ranks.average_gradients(optimizer.parameters)
        optimizer.step(CLIP_NORM)
        n_updates += 1
        move_average(average, energy, average_share(n_updates))
        names = (objective.loss_name, *metrics)
        values += [loss.detach(), *metrics.values()]
    of_names = torch.stack(values).reshape(-1, len(names)).mean(0) if values else ()
    means = dict(zip(names, of_names, strict=True))
    return Optimisation(energy, average, optimizer, n_updates), state, means


def train_epoch(
    optimisation: Optimisation,
    objective: Objective,
    x: Tensor,
    state: Any,
    *,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> tuple[Optimisation, Any, dict[str, float]]:
    """Pass over the rows x (N, D) once; return the optimisation, the state and mean metrics.

    Raises
    ------
    ParticleDivergenceError
        If the loss or a parameter is not finite after the epoch.
    """
    optimisation, state, means = _pass_over(
        optimisation,
        objective,
        x,
        state,
        batch_size=batch_size,
        learning_rate=learning_rate,
        generator=generator,
    )
    metrics = read_together({**means, _NORM: _norm(optimisation.energy)})
    _check_finite(metrics)
    return optimisation, state, metrics


def read_together(values: dict[str, Tensor | float]) -> dict[str, float]:
    """Return 0-d tensors as numbers; the host waits for their device once."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        return {name: float(value) for name, value in values.items()}
    stacked = torch.stack([value.detach().double() for value in tensors.values()])
    read = dict(zip(tensors, stacked.tolist(), strict=True))
    return {name: read[name] if name in read else float(values[name]) for name in values}


def _over_ranks(
    ranks: Communicator, values: dict[str, float], averaged: set[str]
) -> dict[str, float]:
    """Return means over all ranks of some numbers, and the largest of the others, by name."""
    of_ranks = ranks.gather(torch.tensor(list(values.values()), dtype=torch.float64))
    means, largest = of_ranks.mean(0).tolist(), of_ranks.amax(0).tolist()
    every = zip(values, means, largest, strict=True)
    return {name: mean if name in averaged else most for name, mean, most in every}


def _norm(energy: nn.Module) -> Tensor:
    """Return a norm of all parameters, 0-d: it is finite where they are."""
    return torch.stack(torch._foreach_norm(list(energy.parameters()))).double().sum()


def _check_finite(metrics: dict[str, float]) -> None:
    """Raise where a metric or the norm of the parameters, which is taken out, is not finite."""
    finite = all(math.isfinite(value) for value in metrics.values())
    metrics.pop(_NORM)
    if not finite:
        raise ParticleDivergenceError(
            "particles or parameters are not finite: "
            f"{ {name: round(value, 3) for name, value in metrics.items()} }"
        )


def train(
    optimisation: Optimisation,
    objective: Objective,
    x: Tensor,
    x_monitor: Tensor,
    state: Any,
    *,
    learning_rate: float,
    batch_size: int,
    max_iter: int,
    tol: float,
    n_iter_no_change: int,
    generator: torch.Generator,
    callback: Callable[[Progress], bool | None],
    undo_falls: bool = True,
    row_weights: Tensor | None = None,
    monitor_weights: Tensor | None = None,
    keeper: Keeper | None = None,
    ranks: Communicator = ALONE,
    refines: bool = False,
) -> TrainingResult:
    """Train until the monitored ELBO stops improving, keeping the best model seen.

    An epoch after which something is not finite, the particles do not stand for the model, or the
    ELBO has fallen far below its start is undone and tried again at 0.3 times the learning rate.

    Parameters
    ----------
    optimisation : Optimisation
        Model, running average and optimiser; may be modified.
    objective : Objective
        What to descend.
    x : Tensor of shape (N, D)
        Training rows.
    x_monitor : Tensor of shape (N_monitor, D)
        Rows whose mean ELBO decides: held out, or training rows.
    state : object
        The objective's particles; may be modified, as the optimisation.
    learning_rate : float
        Multiplied by 0.3 at the first two plateaus; the third ends training.
    batch_size : int
        Rows per update.
    max_iter : int
        Epochs at most.
    tol : float
        Smallest improvement, in nats.
    n_iter_no_change : int
        Epochs without improvement that make a plateau.
    generator : torch.Generator
        Source of all randomness.
    callback : callable
        Called with `Progress` after every epoch; training ends if it returns True.
    undo_falls : bool, default=True
        Whether an ELBO far below its start undoes the epoch. False where it only means
        overfitting, which the plateaus end.
    row_weights, monitor_weights : Tensor of shape (N,) and (N_monitor,) or None, default=None
        How often each row counts; None counts each row once.
    keeper : Keeper or None, default=None
        Receives the state after each epoch, and has that of an interrupted run, which is continued.
    ranks : Communicator, default=ALONE
        Processes that train together. Each has rows and particles of its own, and the same model.
        Gradients are averaged before every update; rank 0 makes all decisions.
    refines : bool, default=False
        Whether the start is a trained model; the first plateau then ends training.

    Returns
    -------
    result : TrainingResult
        `best` is the running average with the highest monitored ELBO, a mean over five epochs, or
        the initial model if none beats it.

    Raises
    ------
    ParticleDivergenceError
        If the ELBO is not finite at the start, or five roll-backs did not help.
    """
    run = _Run(
        optimisation,
        objective,
        x,
        x_monitor,
        state=state,
        batch_size=batch_size,
        generator=generator,
        row_weights=row_weights,
        monitor_weights=monitor_weights,
        ranks=ranks,
    )
    course = _started(run, learning_rate, Plateau(tol, n_iter_no_change), refines=refines)
    if undo_falls:
        fall = _FALL + _FALL_PER_FEATURE * x.shape[1]
        run.least_lower_bound = course.best_lower_bound - fall
    if keeper is not None:
        _continue(run, course, keeper)
    while not course.is_over and len(course.history) < max_iter:
        sound = None  # frees the last copy before the next one is made
        sound = snapshot(run.optimisation), copy.deepcopy(run.state)
        progress = ranks.broadcast(run.epoch(len(course.history) + 1, course.learning_rate))
        course.history.append(progress)
        is_last = ranks.broadcast(bool(callback(progress)))
        if progress.problem:
            course.note_problem(progress)
            run.optimisation, run.state = restored(run.optimisation, sound[0]), sound[1]
        else:
            course.note(progress.lower_bound, run.optimisation.average, is_last)
        course.is_over |= is_last
        if keeper is not None:
            at_end = course.is_over or len(course.history) >= max_iter
            keeper.keep(lambda: _numbers_of(run, course), at_once=at_end)
    kept = copy.deepcopy(run.optimisation.average)
    write(kept, course.best)
    bound, history = course.best_lower_bound, course.history
    return TrainingResult(run.optimisation, run.state, kept, bound, history, course.converged)


def _started(run: "_Run", learning_rate: float, plateau: Plateau, *, refines: bool) -> Course:
    """Return the course of a run before its first epoch."""
    best, bound = copied(run.optimisation.average), float(run.monitored())
    if not math.isfinite(bound):
        raise ParticleDivergenceError(
            f"The model has no finite ELBO ({bound}) before the first update."
        )
    # the bound falls in the first updates: an untrained start is no reference for plateaus
    return Course(best, bound, learning_rate, plateau, refines=refines)


def _numbers_of(run: "_Run", course: Course) -> dict[str, Any]:
    """Return the state of training between two epochs, as `_continue` needs it."""
    own = run.objective.state() if isinstance(run.objective, Storable) else {}
    return {
        "optimisation": snapshot(run.optimisation),
        "state": numbers_of(run.state),
        "objective": own,
        "generator": run.generator.get_state(),
        "course": course.numbers(),
    }


def _continue(run: "_Run", course: Course, keeper: Keeper) -> None:
    """Put a run where an interrupted one was at the end of an epoch, if that was kept."""
    kept = keeper.kept()
    if kept is None:
        return
    here = run.x.device
    run.optimisation = restored(run.optimisation, adopted(None, kept["optimisation"], here))
    run.state = adopted(run.state, kept["state"], here)
    if isinstance(run.objective, Storable):
        run.objective.load(adopted(None, kept["objective"], here))
    course.load(adopted(None, kept["course"], here))
    set_generator(run.generator, kept["generator"], len(course.history))


def set_generator(generator: torch.Generator, kept: Tensor | None, n_epochs: int) -> None:
    """Put a generator in a state that was kept after some epochs.

    It is None where another number of ranks continues: noise of earlier epochs must not come again.
    """
    if kept is None:
        generator.manual_seed(generator.initial_seed() + n_epochs)
    else:
        generator.set_state(kept)


class _Run:
    """A training run between two epochs, and how it gets from one to the next."""

    def __init__(
        self,
        optimisation: Optimisation,
        objective: Objective,
        x: Tensor,
        x_monitor: Tensor,
        *,
        state: Any,
        batch_size: int,
        generator: torch.Generator,
        row_weights: Tensor | None = None,
        monitor_weights: Tensor | None = None,
        ranks: Communicator = ALONE,
    ) -> None:
        self.row_weights, self.monitor_weights = row_weights, monitor_weights
        self.ranks = ranks
        self.optimisation, self.state = optimisation, state
        self.objective, self.x, self.x_monitor = objective, x, x_monitor
        self.batch_size, self.generator = batch_size, generator
        self.least_lower_bound = -math.inf
        how = {"x": x, "state": state, "generator": generator}
        self.in_place = None  # no recording waits for other ranks
        if ranks.size == 1:
            self.in_place = updates_in_place(objective, *optimisation[:3], **how)

    def monitored(self) -> Tensor | float:
        """Return the ELBO of the running average on the monitored rows, in nats per row."""
        last, average = self.optimisation.energy, self.optimisation.average
        rows, source, weights = self.x_monitor, self.generator, self.monitor_weights
        lower_bound = self.objective.lower_bound
        bound = lower_bound(last, self.state, average, rows, source, row_weights=weights)
        if self.ranks.size == 1:
            return bound
        total = float(len(rows) if weights is None else weights.sum())
        return mean_over_ranks(self.ranks, float(bound), total)

    def epoch(self, number: int, learning_rate: float) -> Progress:
        """Pass over the rows once and look for problems, which leave an ELBO of NaN."""
        self.optimisation, self.state, means = _pass_over(
            self.optimisation,
            self.objective,
            self.x,
            self.state,
            batch_size=self.batch_size,
            learning_rate=learning_rate,
            generator=self.generator,
            row_weights=self.row_weights,
            in_place=self.in_place,
            ranks=self.ranks,
        )
        measures = self.objective.measures(self.optimisation.energy, self.state)
        bound = {_BOUND: self.monitored()} if self.objective.has_total_bound else {}
        norm = {_NORM: _norm(self.optimisation.energy)}
        read = read_together({**means, **norm, **measures, **bound})
        if self.ranks.size > 1:
            read = _over_ranks(self.ranks, read, set(means))
        of_state = {name: read.pop(name) for name in measures}
        known = read.pop(_BOUND, None)
        try:
            _check_finite(read)
        except ParticleDivergenceError as error:
            return Progress(number, math.nan, learning_rate, {}, str(error))
        metrics = read
        problem = self.objective.problem(self.state, {**metrics, **of_state})
        lower_bound = math.nan if problem else known
        if lower_bound is None:
            lower_bound = float(self.monitored())
        if not problem and not lower_bound > self.least_lower_bound:
            problem = f"the ELBO fell to {lower_bound:.4g} nats"
        if problem:
            return Progress(number, math.nan, learning_rate, metrics, problem)
        return Progress(number, lower_bound, learning_rate, metrics)
