"""Shared by iterative `fit` methods: roll-back on failure, progress, convergence warnings."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from sklvebm.estimators._common.progress import Tasks
from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.training_course import Progress

_PRIVATE_ATTRIBUTES = {"_model", "_training", "_split_seed"}  # set by `fit`


def check_unchanged(estimator: BaseEstimator, config: Any, shape: dict[str, Any]) -> None:
    """Raise ValueError if a parameter that shapes the model has changed."""
    for name, was in shape.items():
        if getattr(config, name) != was:
            raise ValueError(
                f"{name} must stay {was} while a fit is continued, got "
                f"{getattr(estimator, name)}; use warm_start=False, or a clone, to start anew."
            )


@contextmanager
def unchanged_on_failure(estimator: BaseEstimator, keeps_model: bool = True) -> Iterator[None]:
    """Restore every attribute if the body raises, also on KeyboardInterrupt.

    Parameters
    ----------
    estimator : estimator
        The estimator to restore.
    keeps_model : bool, default=True
        False for a fit from scratch: if it diverges, an earlier model is removed, so that it cannot
        be mistaken for a result of this fit.
    """
    previous = dict(estimator.__dict__)
    try:
        yield
    except BaseException as error:
        if isinstance(error, ParticleDivergenceError) and not keeps_model:
            previous = {
                name: value
                for name, value in previous.items()
                if not name.endswith("_") and name not in _PRIVATE_ATTRIBUTES
            }
        estimator.__dict__.clear()
        estimator.__dict__.update(previous)
        raise


class Reporter:
    """Prints the stages and epochs of a fit, and tells callbacks; nats are in the units of X.

    Parameters
    ----------
    estimator : BaseEstimator
        Has a parameter `verbose`: epochs from one line to the next, 0 for no output.
    monitored : str
        Name of the monitored value.
    """

    def __init__(self, estimator: BaseEstimator, monitored: str) -> None:
        self.name, self.every = type(estimator).__name__, int(estimator.verbose)
        self.monitored, self.begin = monitored, time.perf_counter()
        self.tasks = Tasks(estimator)

    def __call__(self, progress: Progress, value: float) -> bool:
        """Print the progress of every `verbose`-th epoch; return whether training is to stop."""
        if self.every and progress.epoch % self.every == 0:
            self.stage(
                f"epoch {progress.epoch}, {self.monitored} {value:.3f} nats, learning rate "
                f"{progress.learning_rate:.2g}"
            )
        self.tasks.epoch()
        return self.tasks.stops

    def phase(self, name: str, text: str) -> None:
        """Begin "reference", "training" or "normalising", and print its text."""
        if name == "training":  # its epochs are the tasks
            self.tasks.end()
        else:
            self.tasks.begin(name)
        self.stage(text)

    def stage(self, text: str) -> None:
        """Print a stage or its result, with the time."""
        if self.every:
            print(f"[{self.name}] {text}, {time.perf_counter() - self.begin:.1f} s", flush=True)

    def kept(self, improved: bool, gain: float, n_rows: int, *, falls_back: bool = True) -> None:
        """Print whether `fit` keeps the trained model, and why."""
        if not falls_back:
            self.stage("kept the trained model, which has no reference to fall back to")
            return
        what = "the trained model: it is" if improved else "the reference: training is not"
        self.stage(
            f"kept {what} significantly better on {n_rows} monitored rows (lower confidence limit "
            f"of the gain {gain:.3f} nats)"
        )


def warn_of_problems(estimator: BaseEstimator, family: Any, outcome: Any) -> None:
    """Warn if training was cut short by `max_iter` or the diagnostics found problems.

    Parameters
    ----------
    estimator : BaseEstimator
        After its fit.
    family : Family
        Has the names for the message.
    outcome : Outcome
        Result of the fit.
    """
    # one epoch of `partial_fit` is not expected to reach a plateau, nor a fit that a callback ended
    stopped = not (outcome.converged or outcome.is_reference or outcome.one_epoch)
    stopped = stopped and len(outcome.history) >= estimator.max_iter
    if stopped and estimator.max_iter > 0 and estimator.tol is not None:
        warnings.warn(
            f"Training stopped at max_iter={estimator.max_iter} epochs before the "
            f"{family.monitored} reached a plateau; increase max_iter or tol.",
            ConvergenceWarning,
            stacklevel=4,
        )
    problems = outcome.diagnostics.problems() if outcome.diagnostics is not None else []
    if problems:
        warnings.warn(
            f"{family.doubtful} may not be trusted: "
            + "; ".join(problems)
            + ". See diagnostics_.report().",
            ConvergenceWarning,
            stacklevel=4,
        )


def least_improvement(tol: float | None) -> float:
    """Return the smallest improvement that counts; without a tolerance, any change does."""
    return -math.inf if tol is None else tol


# parameters that determine the memory of a fit
_MEMORY_PARAMETERS = ("n_chains", "n_particles", "n_probes", "batch_size", "hidden_layer_sizes")


def memory_advice(estimator: BaseEstimator) -> str:
    """Return the parameters of an estimator to decrease if memory is short, as a message."""
    given = [name for name in _MEMORY_PARAMETERS if hasattr(estimator, name)]
    values = [f"decrease {name} (now {getattr(estimator, name)!r})" for name in given]
    return ", ".join([*values, "or fit fewer rows"])
