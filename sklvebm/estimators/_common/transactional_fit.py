"""What fits in epochs have in common: nothing lost on failure, progress printed, doubts told."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from scipy.special import ndtr, stdtrit
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from sklvebm.estimators._common.parameters import OneOf, Rule, check_parameters, parameters_of
from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.training import Progress

_PRIVATE = {"_model", "_training", "_split_seed"}
_CONFIDENCE = float(ndtr(2.0))  # that a gain is one
_LUCKY = 0.95  # quantile that the gains of the luckiest rows count as


def checked_settings(estimator: BaseEstimator, rules: dict[str, Rule]) -> SimpleNamespace:
    """Return the constructor parameters of an estimator with a reference.

    Raises
    ------
    TypeError, ValueError
        If one is not legal; names it, the rule and the value.
    """
    parameters = parameters_of(estimator)
    check_parameters(parameters, rules)
    if not isinstance(estimator.reference, GaussianMixture | MixtureReference):
        others = "a GaussianMixture or a MixtureReference"
        OneOf(("mixture", "gaussian"), others).check("reference", estimator.reference)
    if estimator.validation_fraction == 1.0:
        raise ValueError("validation_fraction must be a number > 0 and < 1, got 1.0.")
    return SimpleNamespace(**parameters)


def check_unchanged(
    estimator: BaseEstimator, settings: SimpleNamespace, shape: dict[str, Any]
) -> None:
    """Raise ValueError if a parameter that shapes the model is not what it was."""
    for name, was in shape.items():
        now = getattr(settings, name)
        if (tuple(now) if isinstance(was, tuple) and now is not None else now) != was:
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


def warn_of_problems(
    estimator: BaseEstimator,
    monitored: str,
    stopped: bool,
    doubted: str,
    problems: list[str],
) -> None:
    """Warn if training was cut short by `max_iter` or the diagnostics found problems.

    Parameters
    ----------
    estimator : BaseEstimator
        After its fit.
    monitored : str
        What the monitored value is, in words.
    stopped : bool
        Whether a trained model is returned that might have become better.
    doubted : str
        What problems throw doubt on, in words.
    problems : list of str
        What the diagnostics found.
    """
    if stopped and estimator.max_iter > 0 and estimator.tol is not None:
        warnings.warn(
            f"Training stopped at max_iter={estimator.max_iter} epochs before the {monitored} "
            "reached a plateau; increase max_iter or tol.",
            ConvergenceWarning,
            stacklevel=4,
        )
    if problems:
        warnings.warn(
            f"{doubted} may not be trusted: "
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


def lower_confidence_limit(gains: Tensor) -> float:
    """Return a one-sided lower limit of the mean gain of held-out rows (N,), nats.

    Two standard errors below the mean, widened for few rows as Student's law has it: three rows
    have to be 4.5 of theirs ahead, and one row proves nothing. The luckiest rows count as the 95 %
    quantile, so that one of them cannot decide; what the worst ones lose counts in full.
    """
    n = len(gains)
    if n < 2:
        return -math.inf
    capped = torch.minimum(gains, torch.quantile(gains, _LUCKY))
    margin = float(stdtrit(n - 1, _CONFIDENCE)) * float(capped.std()) / math.sqrt(n)
    return float(capped.mean()) - margin
