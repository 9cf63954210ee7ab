"""The training loop for any objective: epochs, optimiser, averaging, plateaus, history."""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sklvebm.adam import Adam
from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.mcmc.state import Batch
from sklvebm.row_weights import pass_over
from sklvebm.updates import (
    CLIP_NORM,
    UpdatesInPlace,
    average_share,
    move_average,
    n_batches,
    updates_in_place,
    warm_rate,
)

_LEARNING_RATE_FACTOR = 0.3  # applied on a plateau
_N_REDUCTIONS = 2  # reductions before a plateau ends training
_NORM, _BOUND = "norm of the parameters", "bound"  # among what an epoch reads
_MAX_ROLL_BACKS = 5
_SMOOTH_OVER = 5  # epochs: the ELBO of one has the noise of a few hundred particles
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


class Progress(NamedTuple):
    """The result of one epoch, for the callback and the history."""

    epoch: int
    lower_bound: float  # nats per row, in the objective's units
    learning_rate: float
    metrics: dict[str, float]
    problem: str = ""  # why the epoch was undone; its ELBO is NaN then


class Optimisation(NamedTuple):
    """Model, running average and optimiser: the state of training besides particles."""

    # modules, of the kind that the objective takes
    energy: Any  # last iterate
    average: Any  # its running average: the model that is evaluated and kept
    optimizer: Adam
    n_updates: int


class TrainingResult(NamedTuple):
    """Outcome of `train`."""

    optimisation: Optimisation
    state: Any
    best: Any  # module
    best_lower_bound: float  # nats per row
    history: list[Progress]
    converged: bool


def start_optimisation(energy: nn.Module, *, learning_rate: float, alpha: float) -> Optimisation:
    """Return an Adam optimisation of a copy of `energy`.

    Parameters
    ----------
    energy : torch.nn.Module
        The model at its initial parameters; not modified.
    learning_rate : float
        Adam's step.
    alpha : float
        Decoupled weight decay per unit of learning rate.
    """
    energy = copy.deepcopy(energy)
    optimizer = Adam(
        energy.parameters(), learning_rate=learning_rate, weight_decay=alpha, betas=(0.9, 0.99)
    )
    return Optimisation(energy, copy.deepcopy(energy), optimizer, 0)


def batches(order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield the rows of a pass, in their order (n_rows,), in index tensors of nearly equal size."""
    yield from torch.tensor_split(order, n_batches(len(order), batch_size))


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
) -> tuple[Optimisation, Any, dict[str, Tensor]]:
    """Pass over the rows x (N, D) once; return the optimisation, the state and mean metrics, 0-d.

    The host waits for nothing here. Given `in_place`, that makes the updates.
    """
    energy, average, optimizer, n_updates = optimisation
    parts = batches(pass_over(len(x), generator, x.device, row_weights), batch_size)
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


class Plateau:
    """Counts epochs without improvement and says when to slow down and when to stop.

    Parameters
    ----------
    tol : float
        Improvement, in nats, that counts.
    patience : int
        Epochs without one that make a plateau.
    """

    def __init__(self, tol: float, patience: int) -> None:
        self.tol, self.patience = tol, patience
        self.reference, self.n_stale, self.n_reductions = -math.inf, 0, 0

    def update(self, lower_bound: float) -> None:
        """Take note of one epoch's ELBO."""
        if lower_bound > self.reference + self.tol:
            self.reference, self.n_stale = lower_bound, 0
        else:
            self.n_stale += 1

    def reached(self) -> bool:
        """Return True at a plateau, and start counting anew."""
        if self.n_stale < self.patience:
            return False
        self.n_stale = 0
        self.n_reductions += 1
        return True


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
    )
    best, best_lower_bound = _copied(run.optimisation.average), float(run.monitored())
    if not math.isfinite(best_lower_bound):
        raise ParticleDivergenceError(
            f"The model has no finite ELBO ({best_lower_bound}) before the first update."
        )
    if undo_falls:
        run.least_lower_bound = best_lower_bound - _FALL - _FALL_PER_FEATURE * x.shape[1]
    # the bound falls in the first updates: the start is no reference for plateaus
    plateau = Plateau(tol, n_iter_no_change)
    recent: deque[float] = deque(maxlen=_SMOOTH_OVER)
    history: list[Progress] = []
    n_roll_backs = 0
    for epoch in range(1, max_iter + 1):
        sound = None  # frees the last copy before the next one is made
        sound = _snapshot(run.optimisation), copy.deepcopy(run.state)
        progress = run.epoch(epoch, learning_rate)
        history.append(progress)
        is_last = callback(progress)
        if progress.problem:
            n_roll_backs += 1
            if n_roll_backs > _MAX_ROLL_BACKS:
                raise ParticleDivergenceError(_exhausted(progress))
            run.optimisation, run.state = _restored(run.optimisation, sound[0]), sound[1]
            learning_rate *= _LEARNING_RATE_FACTOR
            if is_last:
                break
            continue
        recent.append(progress.lower_bound)
        smoothed = sum(recent) / len(recent)
        if smoothed > best_lower_bound:
            best, best_lower_bound = _copied(run.optimisation.average), smoothed
        plateau.update(smoothed)
        if is_last:
            break
        if plateau.reached():
            if plateau.n_reductions > _N_REDUCTIONS:
                break
            learning_rate *= _LEARNING_RATE_FACTOR
    converged = plateau.n_reductions > _N_REDUCTIONS
    kept = copy.deepcopy(run.optimisation.average)
    _write(kept, best)
    return TrainingResult(run.optimisation, run.state, kept, best_lower_bound, history, converged)


# Snapshots hold numbers only: copies of modules take longer than an epoch of few rows


class _Snapshot(NamedTuple):
    """What an `Optimisation` held."""

    energy: list[Tensor]
    average: list[Tensor]
    optimizer: dict[str, Any]
    n_updates: int


def _snapshot(optimisation: Optimisation) -> _Snapshot:
    energy, average, optimizer, n_updates = optimisation
    return _Snapshot(_copied(energy), _copied(average), optimizer.state(), n_updates)


def _restored(optimisation: Optimisation, earlier: _Snapshot) -> Optimisation:
    """Put the optimisation back in place."""
    _write(optimisation.energy, earlier.energy)
    _write(optimisation.average, earlier.average)
    optimisation.optimizer.load(earlier.optimizer)
    return optimisation._replace(n_updates=earlier.n_updates)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _copied(module: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(module)]


def _write(module: nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(_tensors(module), values, strict=True):
            if not torch.equal(tensor, value):  # models share the reference's tensors
                tensor.copy_(value)


def _exhausted(last: Progress) -> str:
    return (
        f"Training was rolled back {_MAX_ROLL_BACKS} times and went wrong again: {last.problem} "
        f"(learning rate {last.learning_rate:.2g}). Decrease learning_rate_init or step_size, or "
        "use dynamics='crank-nicolson' with n_temperatures > 1."
    )


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
    ) -> None:
        self.row_weights, self.monitor_weights = row_weights, monitor_weights
        self.optimisation, self.state = optimisation, state
        self.objective, self.x, self.x_monitor = objective, x, x_monitor
        self.batch_size, self.generator = batch_size, generator
        self.least_lower_bound = -math.inf
        how = {"x": x, "state": state, "generator": generator}
        self.in_place = updates_in_place(objective, *optimisation[:3], **how)

    def monitored(self) -> Tensor | float:
        """Return the ELBO of the running average on the monitored rows, in nats per row."""
        last, average = self.optimisation.energy, self.optimisation.average
        rows, source, weights = self.x_monitor, self.generator, self.monitor_weights
        bound = self.objective.lower_bound
        return bound(last, self.state, average, rows, source, row_weights=weights)

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
        )
        measures = self.objective.measures(self.optimisation.energy, self.state)
        bound = {_BOUND: self.monitored()} if self.objective.has_total_bound else {}
        norm = {_NORM: _norm(self.optimisation.energy)}
        read = read_together({**means, **norm, **measures, **bound})
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
