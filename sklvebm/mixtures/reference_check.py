"""Numerical checks of a fitted reference: densities below its peak, and distinct draws."""

import torch
from torch import Tensor

from sklvebm.mixtures.reference import MixtureReference

_CHECKED_ROWS, _CHECKED_DRAWS = 2000, 256
_MAX_EXCESS_DENSITY = 1e-3  # nats, of a row's log density above the reference's upper bound
_MIN_DISTINCT_SHARE = 0.9  # share of draws that differ from all others


def check_reference(reference: MixtureReference, rows: Tensor, seed: int) -> dict[str, float]:
    """Measure numerical errors of the reference on rows (N, D) and on its own draws.

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
    """Return the problem that two fields of `Diagnostics` show, or an empty list."""
    if excess_density <= _MAX_EXCESS_DENSITY and distinct_draws >= _MIN_DISTINCT_SHARE:
        return []
    return [
        "the reference is numerically inaccurate (densities above their peaks by "
        f"{excess_density:.2g} nats, {distinct_draws:.0%} of draws distinct): numbers of X are too "
        "different in size; drop rows far from the others"
    ]
