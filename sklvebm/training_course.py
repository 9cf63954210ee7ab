"""What the epochs of a training led to: learning rate, best model, history, when to stop."""

import math
from collections import deque
from typing import Any, NamedTuple

from torch import Tensor, nn

from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.optimisation import copied

_LEARNING_RATE_FACTOR = 0.3  # applied on a plateau
_N_REDUCTIONS = 2  # reductions before a plateau ends training
_MAX_ROLL_BACKS = 5
_SMOOTH_OVER = 5  # epochs: the ELBO of one has the noise of a few hundred particles
# attributes that are stored between two epochs
_OF_A_COURSE = (
    "best",
    "best_lower_bound",
    "learning_rate",
    "history",
    "n_roll_backs",
    "is_over",
)
_OF_A_PLATEAU = ("reference", "n_stale", "n_reductions")


class Progress(NamedTuple):
    """The result of one epoch, for the callback and the history."""

    epoch: int
    lower_bound: float  # nats per row, in the objective's units
    learning_rate: float
    metrics: dict[str, float]
    problem: str = ""  # why the epoch was undone; its ELBO is NaN then


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

    def state(self) -> dict[str, Any]:
        """Return all that `load` needs."""
        return {name: getattr(self, name) for name in _OF_A_PLATEAU}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        for name in _OF_A_PLATEAU:
            setattr(self, name, state[name])


class Course:
    """What the epochs of a run have led to: the best model, the learning rate, the history.

    Parameters
    ----------
    best : list of Tensor
        Parameters of the model before the first epoch.
    best_lower_bound : float
        Its ELBO, nats per row.
    learning_rate : float
        Of the first epoch.
    plateau : Plateau
        Which epochs count as better.
    refines : bool, default=False
        Whether the model before the first epoch is a trained one. Epochs must exceed its ELBO by
        the plateau's tolerance, and the first plateau ends the run: it has moved away from the best
        model by then, and smaller steps would not bring it back.
    """

    def __init__(
        self,
        best: list[Tensor],
        best_lower_bound: float,
        learning_rate: float,
        plateau: Plateau,
        *,
        refines: bool = False,
    ) -> None:
        self.best, self.best_lower_bound = best, best_lower_bound
        self.learning_rate, self.plateau = learning_rate, plateau
        self._to_exceed = best_lower_bound + max(0.0, plateau.tol) if refines else -math.inf
        self._last_plateau = 0 if refines else _N_REDUCTIONS
        self.recent: deque[float] = deque(maxlen=_SMOOTH_OVER)
        if refines:
            plateau.update(best_lower_bound)
            # a single lucky epoch is no progress
            self.recent.extend([best_lower_bound] * _SMOOTH_OVER)
        self.history: list[Progress] = []
        self.n_roll_backs = 0
        self.is_over = False

    def note_problem(self, progress: Progress) -> None:
        """Take note of an epoch that is undone."""
        self.n_roll_backs += 1
        if self.n_roll_backs > _MAX_ROLL_BACKS:
            raise ParticleDivergenceError(_exhausted(progress))
        self.learning_rate *= _LEARNING_RATE_FACTOR

    def note(self, lower_bound: float, average: nn.Module, is_last: bool) -> None:
        """Take note of a sound epoch, after which the running average is `average`."""
        self.recent.append(lower_bound)
        smoothed = sum(self.recent) / len(self.recent)
        if smoothed > max(self.best_lower_bound, self._to_exceed):
            self.best, self.best_lower_bound = copied(average), smoothed
        self.plateau.update(smoothed)
        if not is_last and self.plateau.reached():
            if self.converged:
                self.is_over = True
            else:
                self.learning_rate *= _LEARNING_RATE_FACTOR

    @property
    def converged(self) -> bool:
        """Whether the last plateau ended training."""
        return self.plateau.n_reductions > self._last_plateau

    def numbers(self) -> dict[str, Any]:
        """Return all that `load` needs."""
        own = {name: getattr(self, name) for name in _OF_A_COURSE}
        return {**own, "recent": list(self.recent), "plateau": self.plateau.state()}

    def load(self, numbers: dict[str, Any]) -> None:
        """Take over what `numbers` returned."""
        for name in _OF_A_COURSE:
            setattr(self, name, numbers[name])
        self.plateau.load(numbers["plateau"])
        self.recent.extend(numbers["recent"])


def _exhausted(last: Progress) -> str:
    return (
        f"Training was rolled back {_MAX_ROLL_BACKS} times and went wrong again: {last.problem} "
        f"(learning rate {last.learning_rate:.2g}). Decrease learning_rate_init or step_size, or "
        "use dynamics='crank-nicolson' with n_temperatures > 1."
    )
