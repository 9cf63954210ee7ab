"""The reference of a fit: selected and fitted before training, and refitted if it is the model."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.estimators._common.config import AnchoredConfig
from sklvebm.estimators._common.session import FitSession
from sklvebm.mixtures.final_reference import Anchored, final_reference, refit_gain
from sklvebm.mixtures.missing_cells import reference_log_marginal
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_selection import fit_reference
from sklvebm.mixtures.stacking import MixtureChoice, choose_mixture


class FittedReference(NamedTuple):
    """The reference of a model."""

    reference: MixtureReference  # float64, on the CPU
    choice: MixtureChoice | None  # of its mixtures, if cross-validation made it


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
    session.report.stage(f"choosing and fitting the reference to {len(rows)} rows")
    source = session.random_state
    choice = session.choice
    if choice is None and policy is not None:
        choice = choose_mixture(rows, source, policy, observed)
    kind = "mixture" if policy else config.reference
    reference = fit_reference(
        rows, config.n_components, kind, source, choice=choice, observed=observed
    )
    session.report.stage(f"reference: {len(reference.log_weights)} components")
    return FittedReference(reference, choice)


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


def mean_log_density(reference: MixtureReference, rows: np.ndarray) -> float:
    """Return the mean log density of the observed cells of rows (N, D), standardised; nats."""
    return float(reference_log_marginal(reference, torch.from_numpy(rows)).mean())
