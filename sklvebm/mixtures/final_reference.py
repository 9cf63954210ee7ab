"""The reference that replaces a rejected energy, and its expected gain from fitting all rows."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_selection import fit_reference, with_defensive_weight
from sklvebm.mixtures.stacking import MAX_FITTED_ROWS, MixtureChoice
from sklvebm.preprocessing.prepared import PreparedData
from sklvebm.row_weights import chosen, mean_of

_MAX_COMPARED_ROWS = 2000  # fitted rows, at most, in the estimate of the gap to held-out rows


class Anchored(Protocol):
    """The part of a training record that concerns its reference."""

    @property
    def reference(self) -> MixtureReference:
        """The reference that was trained on."""

    @property
    def choice(self) -> MixtureChoice | None:
        """The choice of mixtures, if cross-validation made it."""


def final_reference(
    data: PreparedData, training: Anchored, n_latents: int, seed: int
) -> MixtureReference:
    """Return the reference, fitted to all rows, that is the model where training did not help.

    It needs no held-out rows. It corrects no energy, so that the weight of its defensive components
    needs no lower limit and is the likeliest one.

    Parameters
    ----------
    data : PreparedData
        All rows.
    training : Training or FlowTraining
        Has the reference, and the choice of its mixtures or None.
    n_latents : int
        Latents of the reference.
    seed : int
        Seed of the mixtures' starts.
    """
    if training.choice is None or not data.holds_out:
        return training.reference
    if len(data.split.fitted) >= MAX_FITTED_ROWS:
        return with_defensive_weight(training.reference, training.choice.defensive_weight)
    return fit_reference(
        data.completed,
        n_latents,
        "mixture",
        np.random.RandomState(seed),
        choice=training.choice,
        observed=data.observed,
        row_weights=data.row_weights,
        least_defensive_weight=0.0,
    )


def refit_gain(data: PreparedData, training: Anchored) -> Tensor:
    """Return the gain expected from `final_reference` over the reference trained on, row by row.

    An energy is kept only if it gains more. The effect of the other defensive weight is computed.
    The gain from fitting the held-out rows cannot be measured on these rows and is estimated. A
    model with p parameters is about p / n nats better on its n training rows than on others, and on
    others p / (2 n) worse than its optimum. Going from n to N rows therefore gains half of that gap
    times 1 - n / N.

    Parameters
    ----------
    data : PreparedData
        All rows; the gain is evaluated on the monitored ones.
    training : Training or FlowTraining
        As in `final_reference`.

    Returns
    -------
    gain : Tensor of shape (n_monitored,), float64
        In nats, on the CPU.
    """
    own, rows = training.reference, torch.from_numpy(data.monitored)
    if training.choice is None or not data.holds_out:
        return rows.new_zeros(len(rows))
    light = with_defensive_weight(own, training.choice.defensive_weight)
    of_rows = light.log_marginal(rows)
    gain = of_rows - own.log_marginal(rows)
    fitted = data.split.fitted
    if len(fitted) >= MAX_FITTED_ROWS:
        return gain
    some = fitted[:: -(-len(fitted) // _MAX_COMPARED_ROWS)]
    of_some = light.log_marginal(torch.from_numpy(data.completed[some])).numpy()
    gap = mean_of(of_some, chosen(data.row_weights, some))
    gap -= mean_of(of_rows.numpy(), data.monitored_weights)
    return gain + 0.5 * max(0.0, gap) * (1.0 - len(fitted) / len(data.standardised))
