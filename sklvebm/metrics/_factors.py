"""Validation of latents and factors, and angles as points on the circle."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import check_array


def check_latents_and_factors(
    latents: Any, factors: Any, *, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 arrays with equally many rows and at least `least` columns."""
    latents, factors = (
        check_array(
            columns,
            dtype=np.float64,
            ensure_min_samples=2,
            ensure_min_features=least,
            input_name=name,
        )
        for columns, name in ((latents, "latents"), (factors, "factors"))
    )
    if len(latents) != len(factors):
        raise ValueError(
            f"latents and factors must have equally many rows, got {len(latents)} and "
            f"{len(factors)}."
        )
    constant = np.flatnonzero(np.ptp(factors, axis=0) == 0.0)
    if len(constant):
        raise ValueError(f"factors must vary, columns {constant.tolist()} are constant.")
    return latents, factors


def as_targets(factors: np.ndarray, circular: Sequence[int]) -> list[np.ndarray]:
    """Return one array for each factor: (n, 1), or (n, 2) with cosine and sine of an angle."""
    n_factors = factors.shape[1]
    illegal = [column for column in circular if column not in range(n_factors)]
    if illegal:
        raise ValueError(
            f"circular must hold columns of factors, from 0 to {n_factors - 1}, got {illegal}."
        )
    return [
        np.stack([np.cos(column), np.sin(column)], 1) if index in circular else column[:, None]
        for index, column in enumerate(factors.T)
    ]


def explained_share(target: np.ndarray, predicted: np.ndarray) -> float:
    """Return the R² of predictions (n, n_columns), pooled over columns."""
    return float(1.0 - np.sum((target - predicted) ** 2) / np.sum((target - target.mean(0)) ** 2))
