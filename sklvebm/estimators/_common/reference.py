"""The reference of a fit: selected and fitted before training, and refitted if it is the model."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.estimators._common.config import AnchoredConfig
from sklvebm.estimators._common.serialization import (
    choice_from_plain,
    plain_choice,
    plain_reference,
    reference_from_plain,
)
from sklvebm.estimators._common.session import FitSession
from sklvebm.mixtures.choice import choose_mixture
from sklvebm.mixtures.final_reference import Anchored, final_reference, refit_gain
from sklvebm.mixtures.missing_cells import reference_log_marginal
from sklvebm.mixtures.policy import StackPolicy
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_selection import fit_reference
from sklvebm.mixtures.stacking import MixtureChoice
from sklvebm.preprocessing.prepared import PreparedData
from sklvebm.row_weights import mean_of
from sklvebm.versions import own_version


class FittedReference(NamedTuple):
    """The reference of a model."""

    reference: MixtureReference  # float64, on the CPU
    choice: MixtureChoice | None  # of its mixtures, if cross-validation made it


class _Task(NamedTuple):
    """All that the reference of a fit depends on."""

    rows: np.ndarray  # (N, D), standardised and completed
    observed: np.ndarray | None  # the same rows with NaN in missing cells
    row_weights: np.ndarray | None
    n_components: int
    kind: Any  # as in `fit_reference`
    policy: StackPolicy | None
    choice: MixtureChoice | None
    source: np.random.RandomState  # of folds and starts
    version: str  # of the package: results of another one are not used


def fit_session_reference(session: FitSession) -> FittedReference:
    """Fit the reference of a first fit to the rows that are not held out.

    Held-out rows are not used: the reference would overfit them, and early stopping would stop too
    early.
    """
    config: AnchoredConfig = session.config
    rows, observed = session.data.fitted, session.data.observed
    if observed is not None:
        observed = observed[session.data.split.fitted]
    policy = config.stack_policy
    session.report.phase("reference", f"choosing and fitting the reference to {len(rows)} rows")
    kind = "mixture" if policy else config.reference
    given = (config.n_components, kind, policy, session.choice, session.random_state)
    weights = session.data.fitted_weights
    task = _Task(rows, observed, weights, *given, own_version())
    plain, choice, state = session.cached(_fitted)(task)
    session.random_state.set_state(state)
    reference = reference_from_plain(plain)
    session.report.stage(f"reference: {len(reference.log_weights)} components")
    return FittedReference(reference, choice_from_plain(choice))


def _fitted(task: _Task) -> tuple[dict[str, Any], dict[str, Any] | None, Any]:
    """Return the reference and the choice of its mixtures, as arrays and plain types.

    The third result is the state of the source afterwards.
    """
    source = copy.deepcopy(task.source)
    choice = task.choice
    if choice is None and task.policy is not None:
        known = task.observed, task.row_weights
        choice = choose_mixture(task.rows, source, task.policy, *known)
    reference = fit_reference(
        task.rows,
        task.n_components,
        task.kind,
        source,
        choice=choice,
        observed=task.observed,
        row_weights=task.row_weights,
    )
    return plain_reference(reference), plain_choice(choice), source.get_state()


def expected_refit_gain(session: FitSession, training: Anchored) -> Tensor:
    """Return the gain of `kept_reference` over the reference trained on, nats, (n_monitored,)."""
    if session.continues:
        return torch.zeros(len(session.data.split.monitor), dtype=torch.float64)
    return refit_gain(session.data, training)


def kept_reference(session: FitSession, training: Anchored, seed: int) -> MixtureReference:
    """Return the reference that is the model where training did not help.

    In a continued fit it is that of the earlier fit, otherwise one fitted to all rows.
    """
    if session.continues:
        return training.reference
    return final_reference(session.data, training, session.config.n_components, seed)


def mean_log_density(reference: MixtureReference, data: PreparedData) -> float:
    """Return the mean log density of the observed cells of the monitored rows, mapped; nats."""
    of_rows = reference_log_marginal(reference, torch.from_numpy(data.judged))
    return mean_of(of_rows.numpy(), data.monitored_weights)
