"""Whether a reference can be true of its own rows: what is impossible is not called sound."""

import torch
from torch import Tensor

from sklvebm.mixtures.reference import MixtureReference

_CHECKED_ROWS, _CHECKED_DRAWS = 2000, 256
_MOST_EXCESS = 1e-3  # nats
_LEAST_DISTINCT = 0.9


def check_reference(reference: MixtureReference, rows: Tensor, seed: int) -> dict[str, float]:
    """Measure whether the reference is what its components say, on rows (N, D) and on draws.

    Returns
    -------
    measured : dict of str to float
        `excess_density` and `distinct_draws` of `Diagnostics`.
    """
    x = rows[:_CHECKED_ROWS].cpu().double()
    generator = torch.Generator().manual_seed(seed)
    y = reference.sample(_CHECKED_DRAWS, generator)[:, : reference.n_features]
    log_density = reference.log_marginal(x)
    return {
        "excess_density": float((log_density.max() - reference.log_peak()).clamp(min=0.0)),
        "distinct_draws": len(torch.unique(reference.to_features(y), dim=0)) / _CHECKED_DRAWS,
    }


def impossible_reference(excess_density: float, distinct_draws: float) -> list[str]:
    """Return what is wrong with a reference, by two fields of `Diagnostics`; empty if nothing."""
    if excess_density <= _MOST_EXCESS and distinct_draws >= _LEAST_DISTINCT:
        return []
    return [
        "the reference is not what its components say (densities above their peaks by "
        f"{excess_density:.2g} nats, {distinct_draws:.0%} of draws distinct): numbers of X are too "
        "different in size; drop rows far from the others"
    ]
