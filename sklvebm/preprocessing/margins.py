"""Histogram densities of single columns, and the map that makes such a column normal."""

from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri, ndtri_exp

LOG_2PI = float(np.log(2.0 * np.pi))
PSEUDO_COUNT = 0.5  # rows added to every bin


class Bins(NamedTuple):
    """A histogram of K equal bins from the least to the largest row, with exponential tails."""

    edges: np.ndarray  # (K + 1,)
    cumulative: np.ndarray  # (K + 1,), probability below each edge
    tail: float  # scale of the exponential tails, units of the column

    def heights(self) -> np.ndarray:
        """Return the density in each bin, (K,)."""
        return np.diff(self.cumulative) / np.diff(self.edges)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return the log density at x (N,), nats."""
        z, log_slope = self.to_normal(x)
        return log_slope - 0.5 * (z**2 + LOG_2PI)

    def to_normal(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return normal values of x (N,) and the log of their slopes, (N,)."""
        last = len(self.edges) - 2
        place = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, last)
        below, above = self.edges[0] - x, x - self.edges[-1]
        log_mass = np.log(self.cumulative[0])  # of each tail
        height = self.heights()
        inner = self.cumulative[place] + height[place] * (x - self.edges[place])
        z = ndtri(np.clip(inner, self.cumulative[0], self.cumulative[-1]))
        z = np.where(below > 0.0, ndtri_exp(log_mass - np.maximum(below, 0.0) / self.tail), z)
        z = np.where(above > 0.0, -ndtri_exp(log_mass - np.maximum(above, 0.0) / self.tail), z)
        outside = np.maximum(np.maximum(below, above), 0.0)
        log_density = np.where(
            outside > 0.0,
            log_mass - np.log(self.tail) - outside / self.tail,
            np.log(height)[place],
        )
        return z, log_density + 0.5 * (z**2 + LOG_2PI)

    def left_out(self, x: np.ndarray, row_weights: float | np.ndarray = 1.0) -> np.ndarray:
        """Return what each row x (N,) adds to its own log density, nats: its bin holds it.

        The rows must be some of those that the bins were counted on, with the same weights (N,).
        """
        n_bins, outside = len(self.edges) - 1, self.cumulative[0]
        n_rows = 1.0 / outside - 1.0
        total = n_rows + n_bins * PSEUDO_COUNT
        filled = np.diff(self.cumulative) / (1.0 - 2.0 * outside) * total  # with pseudo-counts
        place = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, n_bins - 1)
        others = np.maximum(filled[place] - row_weights, PSEUDO_COUNT)
        return np.log(filled[place] / total) - np.log(others / (total - row_weights))

    def from_normal(self, z: np.ndarray) -> np.ndarray:
        """Return the values of the column (N,) at normal values z (N,)."""
        log_mass = np.log(self.cumulative[0])
        x = np.interp(ndtr(z), self.cumulative, self.edges)
        below = self.tail * (log_mass - log_ndtr(z))  # positive in the lower tail
        above = self.tail * (log_mass - log_ndtr(-z))
        x = np.where(below > 0.0, self.edges[0] - below, x)
        return np.where(above > 0.0, self.edges[-1] + above, x)
