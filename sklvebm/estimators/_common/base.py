"""What every energy starts from: standardised rows and the reference fitted to them."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.estimators._common.transactional_fit import Reporter
from sklvebm.mixtures.final_reference import final_reference, refit_gain
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_selection import fit_reference
from sklvebm.mixtures.stacking import (
    MixtureChoice,
    choose_mixture,
)
from sklvebm.preprocessing.dequantization import warn_of_repeated_rows
from sklvebm.preprocessing.scaling import Standardisation, check_reach, fit_standardisation
from sklvebm.preprocessing.splitting import Rows


class Base(NamedTuple):
    """What a model is anchored on."""

    standardisation: Standardisation
    standardised: np.ndarray  # (N, D), the rows that are not held out
    reference: MixtureReference  # float64, on the CPU
    choice: MixtureChoice | None  # what the reference is, if cross-validation chose it


def fit_base(
    X: np.ndarray,
    rows: Rows,
    settings: SimpleNamespace,
    random_state: np.random.RandomState,
    report: Reporter,
) -> Base:
    """Standardise and fit the reference.

    Held-out rows take no part in the reference either: else it looks better on them than it is,
    and early stopping comes too early.
    """
    standardisation = fit_standardisation(X)
    warn_of_repeated_rows(X)
    check_reach(standardisation.apply(X), X)
    standardised = standardisation.apply(X[rows.fitted])
    by_validation = isinstance(settings.reference, str) and settings.reference == "mixture"
    report.stage(f"choosing and fitting the reference to {len(standardised)} rows")
    choice = choose_mixture(standardised, random_state) if by_validation else None
    reference = fit_reference(
        standardised, settings.n_components, settings.reference, random_state, choice=choice
    )
    report.stage(f"reference: {len(reference.log_weights)} components")
    return Base(standardisation, standardised, reference, choice)


def expected_refit_gain(
    X: np.ndarray, rows: Rows, training: Any, settings: SimpleNamespace, continues: bool
) -> Tensor:
    """Return how much better than the reference trained on is `kept_reference`, (n_monitored,)."""
    if continues:
        return torch.zeros(len(rows.monitor), dtype=torch.float64)
    return refit_gain(X, rows.fitted, rows.monitor, training, settings)


def kept_reference(
    X: np.ndarray,
    rows: Rows,
    training: Any,
    settings: SimpleNamespace,
    *,
    seed: int,
    continues: bool,
) -> MixtureReference:
    """Return the reference that is the model where training did not help.

    That of the fit before, if there was one, else one fitted to all rows of X, standardised.
    """
    if continues:
        return training.reference
    return final_reference(X, rows.fitted, training, settings, seed)
