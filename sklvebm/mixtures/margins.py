"""Histogram densities of single columns, where they beat smooth mixtures on held-out rows."""

from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri, ndtri_exp

from sklvebm.mixtures.components import LOG_2PI
from sklvebm.mixtures.expectation_maximization import fit_mixture
from sklvebm.preprocessing.scaling import without_outliers

_PSEUDO_COUNT = 0.5  # rows added to every bin
_MIN_ROWS = 20  # shorter columns have no bins
_MAX_COMPARED_ROWS = 2000  # rows in the comparison of bins and smooth densities
_RIVAL_COMPONENTS = (1, 2, 4, 8)  # numbers of components of the smooth densities
_RIVAL_RIDGE = 1e-4  # added to their variances, in variances of the column
_N_FOLDS = 4
_MIN_STANDARD_ERRORS = 1.0  # by which the mean gain of bins must exceed zero
_MAX_ROW_GAIN = 20.0  # nats; clips gains, so that no single row decides


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

    def from_normal(self, z: np.ndarray) -> np.ndarray:
        """Return the values of the column (N,) at normal values z (N,)."""
        log_mass = np.log(self.cumulative[0])
        x = np.interp(ndtr(z), self.cumulative, self.edges)
        below = self.tail * (log_mass - log_ndtr(z))  # positive in the lower tail
        above = self.tail * (log_mass - log_ndtr(-z))
        x = np.where(below > 0.0, self.edges[0] - below, x)
        return np.where(above > 0.0, self.edges[-1] + above, x)


def bins_or_none(x: np.ndarray, max_bins: int) -> Bins | None:
    """Return the best bins of a column (N,), or None where smooth densities are as good."""
    if max_bins == 0 or len(x) < _MIN_ROWS or not 0.0 < np.ptp(x) < np.inf:
        return None
    some = np.random.RandomState(0).permutation(x)[:_MAX_COMPARED_ROWS]
    folds = [some[first::_N_FOLDS] for first in range(_N_FOLDS)]
    others = [np.concatenate(folds[:k] + folds[k + 1 :]) for k in range(_N_FOLDS)]
    if min(np.ptp(known) for known in others) == 0.0:
        return None
    gains = [_gain(known, new, max_bins) for known, new in zip(others, folds, strict=True)]
    gain = np.concatenate(gains)
    if not gain.mean() > _MIN_STANDARD_ERRORS * gain.std() / np.sqrt(len(gain)):
        return None
    return _best_bins(x, max_bins)


def _gain(known: np.ndarray, new: np.ndarray, max_bins: int) -> np.ndarray:
    """Return the gain of bins over the best smooth density on new rows, (N,), nats."""
    inner = without_outliers(known[:, None])
    # the variance of the smallest floating-point numbers underflows to zero
    middle, scale = inner.mean(), inner.std() or 1.0
    known, new = (known - middle) / scale, (new - middle) / scale
    bins = _best_bins(known, max_bins).log_density(new)
    rivals = [
        fit_mixture(known[:, None], k, "full", _RIVAL_RIDGE, seed=0).score_samples(new[:, None])
        for k in _RIVAL_COMPONENTS
        if k < len(known)
    ]
    best = max(rivals, key=np.mean)  # selected on the new rows, which favours smooth densities
    return np.clip(bins - best, -_MAX_ROW_GAIN, _MAX_ROW_GAIN)


def _best_bins(x: np.ndarray, max_bins: int) -> Bins:
    """Return bins whose number maximises the leave-one-out likelihood."""
    best = max(range(1, max_bins + 1), key=lambda k: _left_out(x, k))
    edges, counts = _counts(x, best)
    outside = 1.0 / (len(x) + 1.0)
    shares = (counts + _PSEUDO_COUNT) / (len(x) + best * _PSEUDO_COUNT)
    cumulative = outside + (1.0 - 2.0 * outside) * np.concatenate([[0.0], np.cumsum(shares)])
    return Bins(edges, cumulative, float(edges[1] - edges[0]))


def _counts(x: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    edges = np.linspace(x.min(), x.max(), n_bins + 1)
    return edges, np.histogram(x, edges)[0]


def _left_out(x: np.ndarray, n_bins: int) -> float:
    """Return the mean leave-one-out log density of rows, nats."""
    _, counts = _counts(x, n_bins)
    filled = counts[counts > 0]
    total = len(x) - 1.0 + n_bins * _PSEUDO_COUNT
    density = (filled - 1.0 + _PSEUDO_COUNT) / total * n_bins / np.ptp(x)
    return float(filled @ np.log(density)) / len(x)
