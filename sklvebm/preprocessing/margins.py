"""Densities of single columns, and the maps that make such columns normal."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import erfcx, log_ndtr, logsumexp, ndtr, ndtri, ndtri_exp

LOG_2PI = float(np.log(2.0 * np.pi))
PSEUDO_COUNT = 0.5  # rows added to every bin
_LEAST_PROBABILITY = 1e-12  # of a tail; logarithms are used below it
# of the inversion: points of the table for each component and how far it reaches, standard
# deviations; steps; relative size of the last one
_TABLE_SIZE, _TABLE_REACH = 65, 8.0
_MAX_INVERSION_STEPS, _INVERSION_ERROR = 100, 1e-14
_BLOCK_ROWS = 65_536  # mapped at once; bounds memory


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
        log_mass = np.log(self.cumulative[0])  # of each tail
        outside = np.maximum(np.maximum(self.edges[0] - x, x - self.edges[-1]), 0.0)
        return np.where(
            outside > 0.0,
            log_mass - np.log(self.tail) - outside / self.tail,
            np.log(self.heights())[self._places(x)],
        )

    def _places(self, x: np.ndarray) -> np.ndarray:
        """Return the bin of each x (N,), the nearest one in the tails."""
        last = len(self.edges) - 2
        return np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, last)

    def to_normal(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return normal values of x (N,) and the log of their slopes, (N,)."""
        place, log_mass = self._places(x), np.log(self.cumulative[0])
        below, above = self.edges[0] - x, x - self.edges[-1]
        inner = self.cumulative[place] + self.heights()[place] * (x - self.edges[place])
        z = ndtri(np.clip(inner, self.cumulative[0], self.cumulative[-1]))
        z = np.where(below > 0.0, ndtri_exp(log_mass - np.maximum(below, 0.0) / self.tail), z)
        z = np.where(above > 0.0, -ndtri_exp(log_mass - np.maximum(above, 0.0) / self.tail), z)
        return z, self.log_density(x) + 0.5 * (z**2 + LOG_2PI)

    def left_out(self, x: np.ndarray, row_weights: float | np.ndarray = 1.0) -> np.ndarray:
        """Return what each row x (N,) adds to its own log density, nats: its bin holds it.

        The rows must be some of those that the bins were counted on, with the same weights (N,).
        """
        n_bins, outside = len(self.edges) - 1, self.cumulative[0]
        n_rows = 1.0 / outside - 1.0
        total = n_rows + n_bins * PSEUDO_COUNT
        filled = np.diff(self.cumulative) / (1.0 - 2.0 * outside) * total  # with pseudo-counts
        place = self._places(x)
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


class SmoothMargin(NamedTuple):
    """A one-dimensional Gaussian mixture, the density of a column without edges."""

    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K,)
    scales: np.ndarray  # (K,), standard deviations
    n_rows: float  # that it was fitted to

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return the log density at x (N,), nats."""
        u = (x[:, None] - self.means) / self.scales
        return logsumexp(np.log(self.weights / self.scales) - 0.5 * (u**2 + LOG_2PI), axis=1)

    def to_normal(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return normal values of x (N,) and the log of their slopes, (N,)."""
        z, log_slope = np.empty(len(x)), np.empty(len(x))
        for part in _blocks(len(x)):
            z[part], log_slope[part] = self._normal(x[part])
        return z, log_slope

    def _normal(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = (x[:, None] - self.means) / self.scales
        below, above = ndtr(u) @ self.weights, ndtr(-u) @ self.weights
        z = np.where(below < above, ndtri(below), -ndtri(above))
        log_slope = self.log_density(x) + 0.5 * (z**2 + LOG_2PI)
        far = np.flatnonzero(np.minimum(below, above) < _LEAST_PROBABILITY)
        if len(far):
            sign = np.where(below[far] < above[far], -1.0, 1.0)
            distance, log_slope[far] = self._tail(sign[:, None] * u[far])
            z[far] = sign * distance
        return z, log_slope

    def _tail(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return normal distances and log slopes where `u` (N, K) is far out for all components.

        Squares of distances are large there, and their difference has no digits: densities and
        tails have the factor of the nearest component in common.
        """
        log_factors = np.log(self.weights) - 0.5 * u**2
        nearest = log_factors.max(axis=1, keepdims=True)
        log_factors -= nearest
        log_density = logsumexp(log_factors - np.log(self.scales), axis=1)
        log_tail = logsumexp(log_factors + _log_mills_ratio(u), axis=1)
        distance = -ndtri_exp(log_tail + nearest[:, 0] - 0.5 * LOG_2PI)
        return distance, log_density - log_tail + _log_mills_ratio(distance)

    def left_out(self, x: np.ndarray, row_weights: float | np.ndarray = 1.0) -> np.ndarray:
        """Return what each row x (N,) adds to its own log density on average, nats.

        This is the number of parameters over the number of rows: leaving one row out is
        asymptotically Akaike's criterion [1]_.

        References
        ----------
        .. [1] M. Stone, "An asymptotic equivalence of choice of model by cross-validation and
           Akaike's criterion", Journal of the Royal Statistical Society B 39, 1977.
        """
        return np.full(len(x), (3 * len(self.weights) - 1) / self.n_rows)

    def from_normal(self, z: np.ndarray) -> np.ndarray:
        """Return the values of the column (N,) at normal values z (N,)."""
        flat = np.asarray(z, dtype=np.float64).reshape(-1)
        x = np.empty(len(flat))
        for part in _blocks(len(flat)):
            x[part] = self._inverse(flat[part])
        return x.reshape(np.shape(z))

    def _inverse(self, z: np.ndarray) -> np.ndarray:
        """Solve for x by Newton steps, by bisection where they leave the bracket."""
        # all components have too little mass below the least of these values, too much above
        # the largest one
        at_components = self.means + self.scales * z[:, None]
        low, high = at_components.min(axis=1), at_components.max(axis=1)
        steps = np.linspace(-_TABLE_REACH, _TABLE_REACH, _TABLE_SIZE)[:, None]
        table = np.sort((self.means + self.scales * steps).reshape(-1))
        x = np.clip(np.interp(z, self._normal(table)[0], table), low, high)
        open_places = np.flatnonzero(low < high)
        for _ in range(_MAX_INVERSION_STEPS):
            if len(open_places) == 0:
                break
            now, wanted = x[open_places], z[open_places]
            found, log_slope = self._normal(now)
            excess = found - wanted
            below = np.where(excess < 0.0, now, low[open_places])
            above = np.where(excess > 0.0, now, high[open_places])
            with np.errstate(over="ignore", invalid="ignore"):  # between distant components
                tried = now - excess * np.exp(-log_slope)
            inside = (tried > below) & (tried < above)
            moved = np.where(inside, tried, 0.5 * (below + above))
            moved = np.where(excess == 0.0, now, moved)
            low[open_places], high[open_places], x[open_places] = below, above, moved
            least = _INVERSION_ERROR * (np.abs(moved) + self.scales.min())
            open_places = open_places[np.abs(moved - now) > least]
        return np.where(np.isnan(z), np.nan, x)


Margin = Bins | SmoothMargin


def _log_mills_ratio(u: np.ndarray) -> np.ndarray:
    """Return the log of the normal tail beyond u over the normal density at u."""
    with np.errstate(over="ignore", divide="ignore"):  # of the branch that is not taken
        outer = np.log(np.sqrt(np.pi / 2.0) * erfcx(np.abs(u) / np.sqrt(2.0)))
    return np.where(u > 0.0, outer, log_ndtr(-u) + 0.5 * (u**2 + LOG_2PI))


def _blocks(n_rows: int) -> Iterator[slice]:
    return (slice(first, first + _BLOCK_ROWS) for first in range(0, n_rows, _BLOCK_ROWS))


def plain_margin(margin: Margin | None) -> Any:
    """Describe a margin by arrays and plain types."""
    if isinstance(margin, SmoothMargin):
        return margin._asdict()
    return margin and list(margin)


def margin_from_plain(parts: Any) -> Margin | None:
    """Undo `plain_margin`."""
    if isinstance(parts, dict):
        return SmoothMargin(**parts)
    return parts and Bins(*parts)
