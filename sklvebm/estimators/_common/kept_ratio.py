"""The density ratio of a fit, and its place in a checkpoint."""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch

from sklvebm.checkpointing import RATIO
from sklvebm.estimators._common.session import FitSession
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.objectives.density_ratio import RatioStart
from sklvebm.optimisation import adopted, copied, write


def kept_ratio(
    session: FitSession,
    energy: AnchoredEnergy,
    train: Callable[[], RatioStart],
    generator: torch.Generator,
) -> RatioStart:
    """Return a density ratio, trained or, where a checkpoint has it, taken from there.

    Parameters
    ----------
    session : FitSession
        The fit.
    energy : AnchoredEnergy
        The untrained energy.
    train : callable
        Trains the ratio.
    generator : torch.Generator
        Its source of random numbers, which a finished ratio leaves as it was after training.
    """
    if session.checkpoint is None:
        return train()

    def compute() -> dict[str, Any]:
        start = train()
        numbers: Any = copied(start.energy)
        return {"start": start._replace(energy=numbers), "generator": generator.get_state()}

    kept = session.checkpoint.result(RATIO, compute)
    generator.set_state(kept["generator"])
    start: RatioStart = kept["start"]
    trained, numbers = copy.deepcopy(energy), cast(Any, start.energy)
    write(trained, adopted(None, numbers, energy.reference.location.device))
    return start._replace(energy=trained)
