"""The reference as the model: what is kept where training did not help, and what it is worth."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_selection import fit_reference, with_defensive_weight
from sklvebm.mixtures.stacking import MOST_FITTED_ROWS

_ASKED = 2000  # of the rows that a reference was fitted to: how well it knows them


def final_reference(
    X: np.ndarray, fitted: np.ndarray, training: Any, settings: SimpleNamespace, seed: int
) -> MixtureReference:
    """Return the reference that is the model where training did not help: of all rows of X.

    Nothing has to be held out from it any more, nor does it have to catch wells of an energy, so
    that its defensive component can be as light as the rows want it.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    fitted : ndarray of shape (n_fitted,)
        Places of the rows that `training.reference` was fitted to.
    training : Training or FlowTraining
        Has the reference, and the choice it was fitted by or None.
    settings : SimpleNamespace
        Constructor parameters.
    seed : int
        Of the mixtures' starts.
    """
    if training.choice is None or not settings.early_stopping:
        return training.reference
    if len(fitted) >= MOST_FITTED_ROWS:
        return with_defensive_weight(training.reference, training.choice.defensive_weight)
    return fit_reference(
        X,
        settings.n_components,
        "mixture",
        np.random.RandomState(seed),
        choice=training.choice,
        least_defensive_weight=0.0,
    )


def refit_gain(
    X: np.ndarray,
    fitted: np.ndarray,
    monitored: np.ndarray,
    training: Any,
    settings: SimpleNamespace,
) -> Tensor:
    """Return by how much `final_reference` is better than the reference trained on, row by row.

    A model has to be better by more. What another weight of the defensive component changes is
    computed. What the held-out rows add cannot be seen on themselves: a model of p numbers is about
    p / n nats better on the n rows it was fitted to than on others, and p / (2 n) worse on others
    than its best. From n to N rows it therefore gains half of that gap times 1 - n / N.

    Parameters
    ----------
    X, fitted, training, settings
        As in `final_reference`.
    monitored : ndarray of shape (n_monitored,)
        Places of the rows that decide.

    Returns
    -------
    advantage : Tensor of shape (n_monitored,), float64
        In nats, on the CPU.
    """
    own, rows = training.reference, torch.from_numpy(X[monitored])
    if training.choice is None or not settings.early_stopping:
        return rows.new_zeros(len(rows))
    light = with_defensive_weight(own, training.choice.defensive_weight)
    of_rows = light.log_marginal(rows)
    advantage = of_rows - own.log_marginal(rows)
    if len(fitted) >= MOST_FITTED_ROWS:
        return advantage
    asked = fitted[:: -(-len(fitted) // _ASKED)]
    gap = float(light.log_marginal(torch.from_numpy(X[asked])).mean() - of_rows.mean())
    return advantage + 0.5 * max(0.0, gap) * (1.0 - len(fitted) / len(X))
