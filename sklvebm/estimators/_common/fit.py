"""One call of `fit` or `partial_fit`, for every family: start or continue, train, set results."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator

from sklvebm.checkpointing import Checkpoint
from sklvebm.communication import Communicator
from sklvebm.estimators._common.checkpoints import checkpoint_of
from sklvebm.estimators._common.config import TrainingConfig, checked_parameters
from sklvebm.estimators._common.fit_on_ranks import (
    fit_of_ranks,
    receive_fitted,
    send_fitted,
)
from sklvebm.estimators._common.margins import with_margins
from sklvebm.estimators._common.parameters import Rule, resolved_attributes
from sklvebm.estimators._common.progress import CallbackSupport, fit_task, n_tasks_of
from sklvebm.estimators._common.rows_to_fit import RowsToFit, gathered_on_first, rows_to_fit
from sklvebm.estimators._common.session import FitSession, Outcome
from sklvebm.estimators._common.transactional_fit import (
    Reporter,
    check_unchanged,
    memory_advice,
    unchanged_on_failure,
    warn_of_problems,
)
from sklvebm.messages import naming_memory
from sklvebm.mixtures.missing_fit import with_completed_rows
from sklvebm.preprocessing.dequantization import warn_of_repeated_rows
from sklvebm.preprocessing.prepared import prepare
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.row_sources import is_chunks
from sklvebm.row_weights import DistinctRows
from sklvebm.runtime import generator_of, numerical_session, without_numpy_errors


class Family(NamedTuple):
    """The steps and names of the fit of one estimator."""

    rules: dict[str, Rule]
    configure: Callable[[dict[str, Any], int, int], TrainingConfig]  # parameters, rows, features
    start: Callable[[FitSession], Any]  # creates the untrained model
    # returns the model of an earlier fit; None if a fit cannot be continued
    resume: Callable[[BaseEstimator, FitSession], Any] | None
    train: Callable[[FitSession, Any], Outcome]
    # parameters that a continued fit cannot change; None if a fit cannot be continued
    shape: Callable[[Any], dict[str, Any]] | None
    attributes: Callable[[Outcome], dict[str, Any]]  # further fitted attributes
    monitored: str  # name of the monitored value in messages
    value: str  # its name as an attribute and as a key of the history
    resolved: tuple[str, ...]  # parameters that may be "auto"
    doubtful: str = "Scores"  # subject of the warning of problems in the diagnostics
    with_missing: dict[str, str] = {}  # values of "auto" for rows with missing cells


def fit_in_epochs(
    estimator: BaseEstimator,
    X: Any,
    family: Family,
    *,
    sample_weight: Any = None,
    one_epoch: bool = False,
) -> Outcome | None:
    """Fit an estimator to rows X and set its attributes, all at once or not at all.

    Within `distributed`, rows are those of all ranks. Rank 0 alone has an outcome.

    Parameters
    ----------
    estimator : BaseEstimator
        Has the parameters of `family.rules`.
    X : array-like or RowSource of shape (n_samples, n_features)
        Rows.
    family : Family
        The steps and names of the estimator's fit.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        How often each row counts.
    one_epoch : bool, default=False
        Continue by one epoch and keep its running average, as `partial_fit` does.

    Raises
    ------
    ValueError, TypeError, ParticleDivergenceError
        As `fit`.
    """
    warm = one_epoch or getattr(estimator, "warm_start", False)
    continues = bool(warm) and hasattr(estimator, "_training")
    with (
        unchanged_on_failure(estimator, keeps_model=continues),
        naming_memory(memory_advice(estimator)),
        fit_of_ranks() as ranks,
    ):
        with ranks.agreement():
            parameters = checked_parameters(estimator, family.rules)
            how = {"reset": not continues, "may_miss": estimator._may_miss_cells}
            least = 1 if continues or ranks.size > 1 else 2
            rows = rows_to_fit(estimator, X, sample_weight, least=least, **how)
        rows = gathered_on_first(ranks, estimator, rows)
        if ranks.rank > 0:
            receive_fitted(ranks, estimator)
            return None
        outcome = _fit_rows(estimator, rows, parameters, family, ranks, one_epoch=one_epoch)
        send_fitted(ranks, estimator)
    return outcome


def _fit_rows(
    estimator: BaseEstimator,
    rows: RowsToFit,
    parameters: dict[str, Any],
    family: Family,
    ranks: Communicator,
    *,
    one_epoch: bool,
) -> Outcome:
    """Fit an estimator to checked rows and set its attributes."""
    warm = one_epoch or getattr(estimator, "warm_start", False)
    continues = bool(warm) and hasattr(estimator, "_training")
    distinct = rows.distinct(1 if continues else 2)
    if not continues:
        warn_of_repeated_rows(distinct.repeated_share)
    if np.isnan(distinct.X).any():
        parameters = _without_auto(parameters, family.with_missing)
    if continues and family.shape is not None:
        # "auto" stays what the rows of the first fit made of it
        parameters = _without_auto(parameters, family.shape(estimator._training))
    config = family.configure(parameters, *distinct.X.shape)
    if one_epoch:
        config = replace(config, max_iter=1, early_stopping=False)
    is_first = not (continues or one_epoch)
    with (
        checkpoint_of(estimator, distinct, config, is_first=is_first) as checkpoint,
        numerical_session(torch.get_num_threads()),
    ):
        report = Reporter(estimator, family.monitored)
        if rows.text is not None:
            report.stage(rows.text)
        if continues:
            session = _continued(estimator, distinct, config, report)
        else:
            session = _begun(estimator, distinct, config, report, checkpoint, units=rows.units())
        session = session._replace(keep_best=not one_epoch, ranks=ranks)
        if continues and family.resume is not None and family.shape is not None:
            check_unchanged(estimator, config, family.shape(estimator._training))
            training = family.resume(estimator, session)
        else:
            session = with_margins(session)
            training = family.start(session)
        outcome = family.train(session, training)._replace(one_epoch=one_epoch)
        report.tasks.end()
        outcome = outcome._replace(log_jacobian=session.data.log_jacobian)
        _adopt(estimator, outcome, config, family, continues)
    return outcome


def _without_auto(parameters: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with known values in place of "auto"."""
    words = {name for name, value in parameters.items() if isinstance(value, str)}
    chosen = {name: known[name] for name in words & set(known) if parameters[name] == "auto"}
    return {**parameters, **chosen}


def _begun(
    estimator: BaseEstimator,
    distinct: DistinctRows,
    config: TrainingConfig,
    report: Reporter,
    checkpoint: Checkpoint | None,
    *,
    units: Standardisation | None,
) -> FitSession:
    """Return the session of a first fit, with the random numbers of its checkpoint.

    `units` are those of all rows, where `distinct` are a part of them, otherwise None.
    """
    random_state = generator_of(estimator.random_state)
    if checkpoint is not None:
        random_state.set_state(checkpoint.result("random_state", random_state.get_state))
        if checkpoint.is_continued:
            where = f"{checkpoint.place}, from {checkpoint.path}"
            report.stage(f"continuing an interrupted fit {where}")
    estimator._split_seed = random_state.randint(np.iinfo(np.int32).max)
    data = prepare(distinct, config.held_out_share, estimator._split_seed, units)
    data = with_completed_rows(data, estimator._split_seed)
    return FitSession(data, config, random_state, report, checkpoint=checkpoint)


def _continued(
    estimator: BaseEstimator, distinct: DistinctRows, config: TrainingConfig, report: Reporter
) -> FitSession:
    """Return the session of a continued fit, in the units of the first."""
    units = estimator._model.standardisation
    data = prepare(distinct, config.held_out_share, estimator._split_seed, units)
    data = with_completed_rows(data, estimator._split_seed)
    # an integer seed must not repeat the noise of earlier epochs
    random_state = np.random.RandomState([estimator._split_seed, estimator.n_iter_])
    return FitSession(data, config, random_state, report, continues=True)


def _adopt(
    estimator: BaseEstimator,
    outcome: Outcome,
    config: TrainingConfig,
    family: Family,
    continues: bool,
) -> None:
    """Set the fitted attributes."""
    n_earlier = estimator.n_iter_ if continues else 0
    units = outcome.model.standardisation
    values = [progress.lower_bound + outcome.log_jacobian for progress in outcome.history]
    history = [
        {
            "epoch": progress.epoch + n_earlier,
            family.value: value,
            "learning_rate": progress.learning_rate,
            **progress.metrics,
            "problem": progress.problem,
        }
        for progress, value in zip(outcome.history, values, strict=True)
    ]
    earlier_values = getattr(estimator, f"{family.value}s_") if continues else []
    earlier_history = estimator.history_ if continues else []
    estimator.__dict__.update(
        **family.attributes(outcome),
        **resolved_attributes(config, family.resolved),
        **{
            "_model": outcome.model,
            "_training": outcome.training,
            "mean_": units.mean,
            "scale_": units.scale,
            "margins_": units.word,
            "n_bins_": units.n_bins,
            f"{family.value}_": outcome.value,
            f"{family.value}s_": earlier_values + values,
            "history_": earlier_history + history,
            "n_iter_": n_earlier + len(outcome.history),
            "converged_": outcome.converged,
            "device_": str(outcome.device),
        },
    )


class EpochFitMixin(CallbackSupport):
    """`fit` of an estimator that trains in epochs."""

    @property
    def _family(self) -> Family:
        """The steps and names of the estimator's fit."""
        raise NotImplementedError

    @without_numpy_errors
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the model to rows X.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Training rows, at least two, NaN in missing cells; not modified. May be the path of a
            file for `open_rows`. Of more than 100,000 rows that are not in memory, a random part of
            them is fitted, in the units of all.
        y : Ignored
            Present for the interface of scikit-learn.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How often each row counts, not negative; only ratios matter. None counts each row once.

        Returns
        -------
        self : estimator
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If X or a parameter is not usable; names it, the rule and the value.
        ParticleDivergenceError
            If training diverged and five roll-backs to the last sound epoch, each with a lower
            learning rate, did not help. The estimator is then unfitted, unless it continued an
            earlier fit.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` ends before a plateau, or the diagnostics found a problem.
        """
        with fit_task(self, X, n_tasks_of(self)):
            outcome = fit_in_epochs(self, X, self._family, sample_weight=sample_weight)
        if outcome is not None:
            warn_of_problems(self, self._family, outcome)
        return self


class ContinuedFitMixin(EpochFitMixin):
    """`fit` and `partial_fit`."""

    @without_numpy_errors
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Pass over the rows X once, starting a model at the first call.

        Units and reference are those of the first call's rows, which should be representative. For
        later rows outside of the reference, there is a warning, and components are added to it.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features), or iterable of such
            Rows of this chunk; at least two at the first call. An iterable of chunks, such as a
            generator, is the same as one call for each of them. If one of them fails, the estimator
            stays as the chunks before it left it.
        y : Ignored
            Present for the interface of scikit-learn.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How often each row of this chunk counts, as in `fit`. None with an iterable of chunks.

        Returns
        -------
        self : estimator
            The estimator after one more epoch, with the running average of its parameters.

        Raises
        ------
        ValueError, TypeError, ParticleDivergenceError
            As `fit`.

        Warns
        -----
        UserWarning
            If rows lie outside of the reference.
        ConvergenceWarning
            If `diagnostics_` found a problem.
        """
        if is_chunks(X):
            return self._fit_chunks(X, sample_weight)
        how = {"sample_weight": sample_weight, "one_epoch": True}
        with fit_task(self, X, n_tasks_of(self, one_epoch=True)):
            outcome = fit_in_epochs(self, X, self._family, **how)
        if outcome is not None:
            warn_of_problems(self, self._family, outcome)
        return self

    def _fit_chunks(self, chunks: Iterable[Any], sample_weight: Any) -> Self:
        """Call `partial_fit` for each chunk of rows."""
        if sample_weight is not None:
            raise ValueError(
                "sample_weight must be None with an iterable of chunks; call partial_fit for each "
                "chunk with its weights."
            )
        is_empty = True
        for chunk in chunks:
            is_empty = False
            self.partial_fit(chunk)
        if is_empty:
            raise ValueError(f"X ({type(chunks).__name__}) yielded no chunks of rows.")
        return self
