"""Out-of-distribution rows of a continued fit: detection and warning."""

import math
import warnings

import numpy as np
import torch

from sklvebm.inference.missed_components import is_outside
from sklvebm.mixtures.reference import MixtureReference

_DEFENSIVE_SHARE = 0.01  # share of the defensive components in `is_outside`
_MAX_OUTLIERS = 3  # rows outside that are taken for outliers, not for a new region
_N_DRAWS = 4096  # reference draws, which give the expected number of rows outside
_MAX_DEVIATIONS = 4.0  # Poisson standard deviations above the expected number
_MAX_NAMED = 5  # in one warning


def rows_outside(rows: np.ndarray, reference: MixtureReference) -> np.ndarray:
    """Return the indices of standardised rows (N, D) outside of a reference.

    None are returned if their number is consistent with draws of the reference.
    """
    there = is_outside(reference, torch.from_numpy(rows), _DEFENSIVE_SHARE)
    outside = np.flatnonzero(there.numpy())
    y = reference.sample(_N_DRAWS, torch.Generator().manual_seed(0))[:, : reference.n_features]
    own = is_outside(reference, reference.to_features(y), _DEFENSIVE_SHARE)
    expected = float(own.double().mean()) * len(rows)
    few = len(outside) <= max(_MAX_OUTLIERS, expected + _MAX_DEVIATIONS * math.sqrt(expected))
    return outside[:0] if few else outside


def warn_of_drift(rows: np.ndarray, reference: MixtureReference, consequence: str) -> np.ndarray:
    """Return `rows_outside`, and warn of them.

    Warns
    -----
    UserWarning
        If there are such rows: their number, indices and consequence.
    """
    outside = rows_outside(rows, reference)
    if len(outside):
        more = ", ..." if len(outside) > _MAX_NAMED else ""
        named = ", ".join(map(str, outside[:_MAX_NAMED])) + more
        warnings.warn(
            f"{len(outside)} of {len(rows)} rows ({named}) lie outside of the reference that was "
            f"fitted to the first rows{consequence}. If the rows keep drifting, fit anew to rows "
            "of all kinds.",
            UserWarning,
            stacklevel=6,
        )
    return outside
