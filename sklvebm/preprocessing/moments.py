"""Standardisation of rows that are read in parts: extremes in one pass, moments in another.

Results equal those of `fit_standardisation` to rounding, if the limits of its clipping are given.
"""

import warnings
from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np

from sklvebm.preprocessing.scaling import (
    Standardisation,
    are_constant,
    clipping_limits,
    is_far,
    variance_unit,
    warn_of_constant_columns,
)


class Extremes(NamedTuple):
    """What one pass over rows finds in each column; NaN where no cell is observed."""

    least: np.ndarray  # (D,)
    most: np.ndarray  # (D,)
    first: np.ndarray  # (D,), the first observed value

    def joined(self, later: "Extremes") -> "Extremes":
        """Return the extremes of these rows and of later ones."""
        first = np.where(np.isnan(self.first), later.first, self.first)
        least, most = np.fmin(self.least, later.least), np.fmax(self.most, later.most)
        return Extremes(least, most, first)


def extremes_of(X: np.ndarray) -> Extremes:
    """Return the extremes of rows X (N, D), at least one; NaN in missing cells."""
    first = X[np.isnan(X).argmin(axis=0), np.arange(X.shape[1])]
    found = np.fmin.reduce(X, axis=0), np.fmax.reduce(X, axis=0), first
    return Extremes(*(part.astype(np.float64) for part in found))


class Moments(NamedTuple):
    """Weight, mean and deviation of the observed cells of each column.

    The deviation is the root of the sum of squared distances from the mean: squares of tiny numbers
    underflow.
    """

    weight: np.ndarray  # (D,)
    mean: np.ndarray  # (D,)
    deviation: np.ndarray  # (D,)

    def joined(self, other: "Moments") -> "Moments":
        """Return the moments of the rows of both, by the pairwise update of Chan and others."""
        weight = self.weight + other.weight
        share = np.divide(other.weight, weight, out=np.zeros_like(weight), where=weight > 0.0)
        apart = other.mean - self.mean
        between = np.abs(apart) * np.sqrt(self.weight * share)
        deviation = np.hypot(np.hypot(self.deviation, other.deviation), between)
        return Moments(weight, self.mean + apart * share, deviation)


def moments_of(X: np.ndarray, row_weights: np.ndarray | None = None) -> Moments:
    """Return the moments of rows X (N, D), NaN in missing cells, with weights (N,) or none."""
    observed = ~np.isnan(X)
    times = observed if row_weights is None else observed * row_weights[:, None]
    weight = times.sum(axis=0, dtype=np.float64)
    divisor = np.where(weight > 0.0, weight, 1.0)
    mean = (np.where(observed, X, 0.0) * times).sum(axis=0) / divisor
    away = np.where(observed, X - mean, 0.0)
    unit = variance_unit(np.abs(away).max(axis=0))
    return Moments(weight, mean, unit * np.sqrt(((away / unit) ** 2 * times).sum(axis=0)))


class ColumnSummary(NamedTuple):
    """What the units of rows follow from."""

    extremes: Extremes
    moments: Moments  # with distant values clipped

    def joined(self, other: "ColumnSummary") -> "ColumnSummary":
        """Return the summary of the rows of both."""
        extremes = self.extremes.joined(other.extremes)
        return ColumnSummary(extremes, self.moments.joined(other.moments))


def summary_of_blocks(
    blocks: Iterable[tuple[np.ndarray, np.ndarray | None]], some: np.ndarray, extremes: Extremes
) -> ColumnSummary:
    """Return what the units of rows follow from, in one pass.

    Parameters
    ----------
    blocks : iterable of (ndarray of shape (n_rows, n_features), ndarray of shape (n_rows,) or None)
        All rows, NaN in missing cells, with their weights or None; read once.
    some : ndarray of shape (n_samples, n_features)
        Some of the rows, whose quartiles decide which values are clipped.
    extremes : Extremes
        Of all rows.
    """
    limits = clipping_limits(np.asarray(some, dtype=np.float64))
    parts = (moments_of(np.clip(X, *limits), row_weights) for X, row_weights in blocks)
    return ColumnSummary(extremes, reduce(Moments.joined, parts))


def standardisation_of(summary: ColumnSummary) -> Standardisation:
    """Return mean and standard deviation of each column.

    Warns
    -----
    UserWarning
        If columns are constant, or values are a million standard deviations from the others.
    """
    (least, most, first), (weight, mean, deviation) = summary
    constant = are_constant(least, most)
    warn_of_constant_columns(constant)
    scale = np.where(constant, 1.0, deviation / np.sqrt(weight))
    units = Standardisation(np.where(constant, first, mean), scale)
    far = np.flatnonzero(is_far(units.apply(np.stack([least, most]))).any(axis=0))
    if len(far):
        warnings.warn(
            f"Columns {far.tolist()} of X have values more than a million scales from the others. "
            "If such values stand for missing or unknown ones, remove their rows; else transform "
            "the columns, by a logarithm for example.",
            UserWarning,
            stacklevel=5,
        )
    return units
