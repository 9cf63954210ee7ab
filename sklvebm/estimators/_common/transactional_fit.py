"""Shared by iterative `fit` methods: roll-back on failure, progress, convergence warnings."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.training import Progress

_PRIVATE = {"_model", "_training", "_split_seed"}


def check_unchanged(estimator: BaseEstimator, config: Any, shape: dict[str, Any]) -> None:
    """Raise ValueError if a parameter that shapes the model is not what it was."""
    for name, was in shape.items():
        if getattr(config, name) != was:
            raise ValueError(
                f"{name} must stay {was} while a fit is continued, got "
                f"{getattr(estimator, name)}; use warm_start=False, or a clone, to start anew."
            )


@contextmanager
def unchanged_on_failure(estimator: BaseEstimator, keeps_model: bool = True) -> Iterator[None]:
    """Put every attribute back if the body raises, also on KeyboardInterrupt.

    Parameters
    ----------
    estimator : estimator
        Whose attributes are watched.
    keeps_model : bool, default=True
        False for a fit from scratch that, if it diverges, must leave no earlier model behind that
        could be mistaken for its own.
    """
    previous = dict(estimator.__dict__)
    try:
        yield
    except BaseException as error:
        if isinstance(error, ParticleDivergenceError) and not keeps_model:
            previous = {
                name: value
                for name, value in previous.items()
                if not name.endswith("_") and name not in _PRIVATE
            }
        estimator.__dict__.clear()
        estimator.__dict__.update(previous)
        raise


class Reporter:
    """Prints what a fit does, if `verbose` says so; nats are in the units of X.

    Parameters
    ----------
    estimator : BaseEstimator
        Has a parameter `verbose`: epochs from one line to the next, 0 for silence.
    monitored : str
        What the monitored value is, in words.
    """

    def __init__(self, estimator: BaseEstimator, monitored: str) -> None:
        self.name, self.every = type(estimator).__name__, int(estimator.verbose)
        self.monitored, self.begin = monitored, time.perf_counter()

    def __call__(self, progress: Progress, value: float) -> None:
        """Print the progress of an epoch, if it is its turn."""
        if self.every and progress.epoch % self.every == 0:
            self.stage(
                f"epoch {progress.epoch}, {self.monitored} {value:.3f} nats, learning rate "
                f"{progress.learning_rate:.2g}"
            )

    def stage(self, text: str) -> None:
        """Print what begins now, or what came of it."""
        if self.every:
            print(f"[{self.name}] {text}, {time.perf_counter() - self.begin:.1f} s", flush=True)

    def kept(self, improved: bool, gain: float, n_rows: int, *, falls_back: bool = True) -> None:
        """Print what `fit` returns, and why."""
        if not falls_back:
            self.stage("kept the trained model, which has no reference to fall back to")
            return
        what = "the trained model: it is" if improved else "the reference: training is not"
        self.stage(
            f"kept {what} better on {n_rows} monitored rows beyond doubt (gain less its doubt "
            f"{gain:.3f} nats)"
        )


def warn_of_problems(estimator: BaseEstimator, family: Any, outcome: Any) -> None:
    """Warn if training was cut short by `max_iter` or the diagnostics found problems.

    Parameters
    ----------
    estimator : BaseEstimator
        After its fit.
    family : Family
        Has the words for what is monitored and for what problems throw doubt on.
    outcome : Outcome
        Of the fit.
    """
    # one epoch of `partial_fit` is no attempt to reach a plateau
    stopped = not (outcome.converged or outcome.is_reference or outcome.one_epoch)
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
    """Return the improvement that counts; without a tolerance every epoch is one."""
    return -math.inf if tol is None else tol


_COSTLY = ("n_chains", "n_particles", "n_probes", "batch_size", "hidden_layer_sizes")


def memory_advice(estimator: BaseEstimator) -> str:
    """Return which parameters of an estimator to decrease where memory is short."""
    given = [name for name in _COSTLY if hasattr(estimator, name)]
    values = [f"decrease {name} (now {getattr(estimator, name)!r})" for name in given]
    return ", ".join([*values, "or fit fewer rows"])
