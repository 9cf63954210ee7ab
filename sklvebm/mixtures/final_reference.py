"""The reference as the model: what is kept where training did not help, and what it is worth."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_selection import fit_reference, with_defensive_weight
from sklvebm.mixtures.stacking import MOST_FITTED_ROWS, MixtureChoice
from sklvebm.preprocessing.prepared import PreparedData

_MOST_COMPARED = 2000  # of the rows that a reference was fitted to


class Anchored(Protocol):
    """A training, as far as it concerns the reference that it stands on."""

    @property
    def reference(self) -> MixtureReference:
        """The reference."""

    @property
    def choice(self) -> MixtureChoice | None:
        """What the reference is, if cross-validation chose it."""


def final_reference(
    data: PreparedData, training: Anchored, n_latents: int, seed: int
) -> MixtureReference:
    """Return the reference that is the model where training did not help: fitted to all rows.

    No rows need to be held out from it. Its defensive components no longer have to catch wells of
    an energy either, so that their weight is what the rows want.

    Parameters
    ----------
    data : PreparedData
        All rows.
    training : Training or FlowTraining
        Has the reference, and the choice it was fitted by or None.
    n_latents : int
        Latents of the reference.
    seed : int
        Of the mixtures' starts.
    """
    if training.choice is None or not data.holds_out:
        return training.reference
    if len(data.split.fitted) >= MOST_FITTED_ROWS:
        return with_defensive_weight(training.reference, training.choice.defensive_weight)
    return fit_reference(
        data.standardised,
        n_latents,
        "mixture",
        np.random.RandomState(seed),
        choice=training.choice,
        least_defensive_weight=0.0,
    )


def refit_gain(data: PreparedData, training: Anchored) -> Tensor:
    """Return the gain expected from `final_reference` over the reference trained on, row by row.

    A model has to gain more. The change by another weight of the defensive components is computed.
    The gain by adding the held-out rows cannot be measured on these rows. A model of p numbers is
    about p / n nats better on the n rows it was fitted to than on others, and p / (2 n) worse on
    others than its best. Going from n to N rows therefore gains half of that gap times 1 - n / N.

    Parameters
    ----------
    data : PreparedData
        All rows; the monitored ones are compared.
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
    if len(fitted) >= MOST_FITTED_ROWS:
        return gain
    some = data.standardised[fitted[:: -(-len(fitted) // _MOST_COMPARED)]]
    gap = float(light.log_marginal(torch.from_numpy(some)).mean() - of_rows.mean())
    return gain + 0.5 * max(0.0, gap) * (1.0 - len(fitted) / len(data.standardised))
