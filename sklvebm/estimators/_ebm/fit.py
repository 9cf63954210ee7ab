"""One call of `fit` of an estimator with a pool: start or go on, train, adopt the outcome."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator

from sklvebm.estimators._common.drift import warn_of_drift
from sklvebm.estimators._common.parameters import Rule, resolved_attributes
from sklvebm.estimators._common.transactional_fit import (
    Reporter,
    check_unchanged,
    checked_settings,
    memory_advice,
    unchanged_on_failure,
)
from sklvebm.estimators._common.validation import checked_rows
from sklvebm.estimators._ebm import serialization
from sklvebm.estimators._ebm.drift import follow_drift
from sklvebm.estimators._ebm.training import (
    Outcome,
    PoolObjective,
    Training,
    anchored_on,
    continue_training,
    start_training,
    to_go_on_from,
)
from sklvebm.messages import naming_memory
from sklvebm.preprocessing.scaling import check_reach
from sklvebm.preprocessing.splitting import split_rows
from sklvebm.runtime import generator_of, numerical_session, resolve_device


class Plan(NamedTuple):
    """What one estimator's `fit` has that another's has not."""

    rules: dict[str, Rule]
    resolve: Callable[[SimpleNamespace, int, int], SimpleNamespace]  # "auto", rows, features
    objective: Callable[[SimpleNamespace], PoolObjective]
    shape: Callable[[Training], dict[str, Any]]  # parameters that a continued fit cannot change
    monitored: str  # what the held-out rows are asked for, in words
    value: str  # the same as the name of an attribute and of a key of the history
    resolved: tuple[str, ...]  # parameters that may be "auto"


def fit_pool(estimator: BaseEstimator, X: Any, plan: Plan, *, one_epoch: bool = False) -> Outcome:
    """Fit an estimator to rows X and set its attributes, all at once or not at all.

    Parameters
    ----------
    estimator : BaseEstimator
        Has parameters `warm_start`, `random_state` and those of `plan.rules`.
    X : array-like of shape (n_samples, n_features)
        Rows.
    plan : Plan
        The estimator's own part.
    one_epoch : bool, default=False
        Go on from what there is by one epoch and keep its running average, as `partial_fit` does.

    Raises
    ------
    ValueError, TypeError, ParticleDivergenceError
        As `fit`.
    """
    continues = hasattr(estimator, "_training") and (one_epoch or estimator.warm_start)
    with (
        unchanged_on_failure(estimator, keeps_model=continues),
        naming_memory(memory_advice(estimator)),
    ):
        X = checked_rows(estimator, X, reset=not continues, least=1 if continues else 2)
        settings = plan.resolve(checked_settings(estimator, plan.rules), *X.shape)
        if one_epoch:
            settings.max_iter, settings.early_stopping = 1, False
        with numerical_session(torch.get_num_threads()):
            outcome = _train(estimator, X, settings, plan, continues, keep_best=not one_epoch)
        _adopt(estimator, outcome, estimator.n_iter_ if continues else 0, plan, settings)
    return outcome


def _train(
    estimator: BaseEstimator,
    X: np.ndarray,
    settings: SimpleNamespace,
    plan: Plan,
    continues: bool,
    *,
    keep_best: bool,
) -> Outcome:
    """Start or continue training on the rows X."""
    if continues:
        chart, training = estimator._model.standardisation, estimator._training
        check_unchanged(estimator, settings, {**_common_shape(training), **plan.shape(training)})
        if not keep_best:
            # another chunk: particles of the former rows are of no use to these
            training = training._replace(state=training.state._replace(latents=None))
        training = to_go_on_from(training, resolve_device(settings.device))
        training = anchored_on(training, estimator.reference_)
        check_reach(chart.apply(X), X)
        if keep_best:
            consequence = ", which stays: the energy cannot learn them"
            warn_of_drift(X, chart, training.reference, consequence)
        else:
            source = np.random.RandomState([estimator._model.seed, estimator.n_iter_, 1])
            training = follow_drift(X, chart, training, source)
        # an integer seed must not repeat the noise of earlier epochs
        random_state = np.random.RandomState([estimator._model.seed, estimator.n_iter_])
    else:
        random_state = generator_of(estimator.random_state)
        estimator._split_seed = random_state.randint(np.iinfo(np.int32).max)
    report = Reporter(estimator, plan.monitored)
    # the same rows are held out whenever the same number of rows is given
    rows = split_rows(X, settings, np.random.RandomState(estimator._split_seed))
    if not continues:
        chart, training = start_training(X, rows, settings, random_state, report)
    return continue_training(
        X,
        rows,
        chart,
        training,
        settings,
        plan.objective(settings),
        random_state,
        report,
        keep_best,
        continues=continues,
    )


def _common_shape(training: Training) -> dict[str, Any]:
    state = training.state
    return {
        "n_temperatures": state.pool.shape[0],
        "n_chains": state.pool.shape[1],
        "dtype": str(state.pool.dtype).removeprefix("torch."),
    }


def _resolved_map(settings: SimpleNamespace, training: Training) -> dict[str, str]:
    """Return how latents depend on rows, where there are latents."""
    if settings.n_components == 0:
        return {}
    return {"latent_map_": "linear" if training.chart is None else "manifold"}


def _adopt(
    estimator: BaseEstimator,
    outcome: Outcome,
    n_earlier: int,
    plan: Plan,
    settings: SimpleNamespace,
) -> None:
    """Set the fitted attributes."""
    jacobian = outcome.model.standardisation.log_jacobian
    values = [p.lower_bound + jacobian for p in outcome.history]
    earlier_values = getattr(estimator, f"{plan.value}s_") if n_earlier else []
    earlier_history = estimator.history_ if n_earlier else []
    history = [
        {
            "epoch": p.epoch + n_earlier,
            plan.value: value,
            "learning_rate": p.learning_rate,
            **p.metrics,
            "problem": p.problem,
        }
        for p, value in zip(outcome.history, values, strict=True)
    ]
    estimator.__dict__.update(
        serialization.derived_attributes(outcome.model),
        **resolved_attributes(settings, plan.resolved),
        **_resolved_map(settings, outcome.training),
        **{
            "_model": outcome.model,
            "_training": outcome.training,
            "diagnostics_": outcome.diagnostics,
            f"{plan.value}_": outcome.lower_bound,
            f"{plan.value}s_": earlier_values + values,
            "history_": earlier_history + history,
            "n_iter_": n_earlier + len(outcome.history),
            "converged_": outcome.converged,
            "improved_": outcome.improved,
            "device_": str(outcome.device),
        },
    )
