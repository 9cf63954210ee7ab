"""Rows of a continued fit that lie outside of the reference: found, named, and given components."""

import math
import warnings

import numpy as np
import torch

from sklvebm.inference.missed_components import is_outside
from sklvebm.mixtures.reference import MixtureReference

_DEFENSIVE_SHARE = 0.01  # of the defensive component, in telling which rows are outside
_MAX_ISOLATED_ROWS = 3  # rows outside, more than which may be a region of their own
_N_DRAWS, _MAX_EXCESS_DEVIATIONS = (
    4096,
    4.0,
)  # of the reference; standard deviations of how many may be outside
_MAX_NAMED_ROWS = 5  # rows in a warning


def rows_outside(rows: np.ndarray, reference: MixtureReference) -> np.ndarray:
    """Return the places of standardised rows (N, D) outside of a reference, if they are too many.

    Empty where no more rows are outside than draws of the reference would be.
    """
    there = is_outside(reference, torch.from_numpy(rows), _DEFENSIVE_SHARE)
    outside = np.flatnonzero(there.numpy())
    y = reference.sample(_N_DRAWS, torch.Generator().manual_seed(0))[:, : reference.n_features]
    own = is_outside(reference, reference.to_features(y), _DEFENSIVE_SHARE)
    expected = float(own.double().mean()) * len(rows)
    few = len(outside) <= max(
        _MAX_ISOLATED_ROWS, expected + _MAX_EXCESS_DEVIATIONS * math.sqrt(expected)
    )
    return outside[:0] if few else outside


def warn_of_drift(rows: np.ndarray, reference: MixtureReference, consequence: str) -> np.ndarray:
    """Return `rows_outside`, and warn of them.

    Warns
    -----
    UserWarning
        If there are some: how many, which, and what becomes of them.
    """
    outside = rows_outside(rows, reference)
    if len(outside):
        named = ", ".join(map(str, outside[:_MAX_NAMED_ROWS])) + (
            ", ..." if len(outside) > _MAX_NAMED_ROWS else ""
        )
        warnings.warn(
            f"{len(outside)} of {len(rows)} rows ({named}) lie outside of the reference that the "
            f"first rows were given{consequence}. If the rows keep drifting, fit anew to rows of "
            "all kinds.",
            UserWarning,
            stacklevel=6,
        )
    return outside
