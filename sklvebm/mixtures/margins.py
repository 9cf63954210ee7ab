"""Chooses columns whose histograms beat smooth densities on held-out rows."""

from functools import partial
from typing import NamedTuple

import numpy as np

from sklvebm.mixtures.expectation_maximization import Start, fit_mixtures
from sklvebm.mixtures.policy import StackPolicy
from sklvebm.mixtures.stacking import JudgedChoice, MixtureChoice, judged_choice
from sklvebm.mixtures.starts import Starts
from sklvebm.preprocessing.dequantization import resolution
from sklvebm.preprocessing.margins import PSEUDO_COUNT, Bins
from sklvebm.preprocessing.scaling import Standardisation, without_outliers
from sklvebm.row_weights import chosen, mean_of, standard_error_of

MAX_BINS = 64  # of one column
_MIN_ROWS = 20  # shorter columns have no bins
_MAX_COMPARED_ROWS = 2000  # rows in the comparison of bins and smooth densities
_RIVAL_COMPONENTS = (1, 2, 4, 8)  # numbers of components of the smooth densities
_RIVAL_RIDGE = 1e-4  # added to their variances, in variances of the column
_MIN_STEPS_PER_BIN = 4  # steps of rounding in the narrowest bin
_N_FOLDS = 4
_MIN_STANDARD_ERRORS = 1.0  # by which the mean gain of bins in one column must exceed zero
# The same for all columns together. Columns were selected on the same rows, which favours them: on
# breast cancer and wine, gains of 1.6 and 3.2 standard errors were losses on new rows; where
# histograms pay (diabetes, digits) the gain is 8 or more.
_MIN_JOINT_ERRORS = 4.0
# nats of a row, in one column and in all of them; clips gains, so that no single row decides
_MAX_ROW_GAIN, _MAX_JOINT_GAIN = 20.0, 100.0


class ChosenMargins(NamedTuple):
    """Histograms of columns, and the mixtures of the reference chosen with or without them."""

    margins: tuple[Bins | None, ...] | None  # None: no column has one
    choice: MixtureChoice | None  # None: nothing was compared
    gain: float = 0.0  # of the histograms on held-out rows, nats per row


def column_margins(
    X: np.ndarray, max_bins: int = MAX_BINS, row_weights: np.ndarray | None = None
) -> tuple[Bins | None, ...] | None:
    """Return the histogram of every column of rows X (N, D) that needs one; None if none does.

    NaN marks missing cells, which are left out. `row_weights` (N,) say how often each row counts.
    """
    known = ~np.isnan(X)
    margins = tuple(
        bins_or_none(column[seen], max_bins, chosen(row_weights, seen))
        for column, seen in zip(X.T, known.T, strict=True)
    )
    return None if all(bins is None for bins in margins) else margins


def choose_margins(
    X: np.ndarray,
    seed: int,
    policy: StackPolicy,
    observed: np.ndarray | None = None,
    row_weights: np.ndarray | None = None,
) -> ChosenMargins:
    """Decide by held-out rows whether mixtures are fitted to columns with histograms.

    Edges may belong to several columns together, as on a checkerboard: histograms of single columns
    then lose. Mixtures are chosen with them and without them, on the same folds.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows, complete.
    seed : int
        Seed of folds and starts.
    policy : StackPolicy
        Settings of the search for mixtures.
    observed : ndarray of shape (n_samples, n_features) or None, default=None
        The same rows with NaN in missing cells; None where no cell is missing.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.
    """
    given = X if observed is None else observed
    margins = column_margins(given, row_weights=row_weights)
    if margins is None:
        return ChosenMargins(None, None)
    n_features = X.shape[1]
    units = Standardisation(np.zeros(n_features), np.ones(n_features), margins)

    def judged(X: np.ndarray, observed: np.ndarray | None) -> JudgedChoice:
        return judged_choice(X, np.random.RandomState(seed), policy, observed, row_weights)

    plain = judged(X, observed)
    mapped = judged(units.apply(X), None if observed is None else units.apply(observed))
    # the same rows but for rounding, which can make copies of distinct rows
    rows, first, second = np.intersect1d(mapped.rows, plain.rows, return_indices=True)
    weights = chosen(row_weights, rows)
    gains = mapped.log_density[first] + _log_slopes_of_others(units, given[rows], weights)
    gains -= plain.log_density[second]
    gains = gains.clip(-_MAX_JOINT_GAIN, _MAX_JOINT_GAIN)
    if len(gains) < _MIN_ROWS:
        return ChosenMargins(None, plain.choice)
    gain, error = mean_of(gains, weights), standard_error_of(gains, weights)
    if gain > _MIN_JOINT_ERRORS * error:
        return ChosenMargins(margins, mapped.choice, gain)
    return ChosenMargins(None, plain.choice, gain)


def _log_slopes_of_others(
    units: Standardisation, rows: np.ndarray, row_weights: np.ndarray | None
) -> np.ndarray:
    """Return the log slopes of rows (N, D), nats, each with bins counted on the other rows."""
    total = units.log_slopes(rows)
    for j, bins in units.mapped_columns():
        is_known = ~np.isnan(rows[:, j])
        own = 1.0 if row_weights is None else row_weights[is_known]
        total[is_known] -= bins.left_out(rows[is_known, j], own)
    return total


def bins_or_none(
    x: np.ndarray, max_bins: int, row_weights: np.ndarray | None = None
) -> Bins | None:
    """Return the best bins of a column (N,), or None where smooth densities are as good.

    Rounded values have none, unless rounding is much finer than the bins: the density of single
    values depends on the width of the bins. `dequantize` adds the noise that they need.
    """
    if max_bins == 0 or len(x) < _MIN_ROWS or not 0.0 < np.ptp(x) < np.inf:
        return None
    step = float(resolution(x[:, None])[0])
    if _MIN_STEPS_PER_BIN * step * max_bins > np.ptp(x):
        return None
    order = np.random.RandomState(0).permutation(len(x))[:_MAX_COMPARED_ROWS]
    folds = [order[first::_N_FOLDS] for first in range(_N_FOLDS)]
    others = [np.concatenate(folds[:k] + folds[k + 1 :]) for k in range(_N_FOLDS)]
    if min(np.ptp(x[known]) for known in others) == 0.0:
        return None
    splits = zip(others, folds, strict=True)
    parts = [_part(x, known, new, row_weights) for known, new in splits]
    if not _bins_win(parts, max_bins):
        return None
    return _best_bins(x, max_bins, row_weights)


class _Part(NamedTuple):
    """One fold of a column: values that densities are fitted to, and others, with weights."""

    known: np.ndarray
    new: np.ndarray
    known_weights: np.ndarray | None
    new_weights: np.ndarray | None


def _bins_win(parts: list[_Part], max_bins: int) -> bool:
    """Return whether bins gain significantly over the best smooth density of each fold.

    Smooth densities are selected on the new rows, which favours them.
    """
    bins = [_best_bins(p.known, max_bins, p.known_weights).log_density(p.new) for p in parts]
    best = [np.full(len(p.new), -np.inf) for p in parts]
    weights = None
    if parts[0].new_weights is not None:
        weights = np.concatenate([p.new_weights for p in parts])
    for k in _RIVAL_COMPONENTS:
        if k >= min(len(p.known) for p in parts):
            break
        fits = fit_mixtures([_start(p, k) for p in parts], k, "full", _RIVAL_RIDGE)
        for place, (mixture, part) in enumerate(zip(fits, parts, strict=True)):
            if mixture is not None:
                rival = mixture.score_samples(part.new[:, None])
                mean = partial(mean_of, row_weights=part.new_weights)
                best[place] = max(best[place], rival, key=mean)
        gain = np.concatenate(bins) - np.concatenate(best)
        gain = np.clip(gain, -_MAX_ROW_GAIN, _MAX_ROW_GAIN)
        if not mean_of(gain, weights) > _MIN_STANDARD_ERRORS * standard_error_of(gain, weights):
            return False  # further rivals can only be better
    return True


def _start(part: _Part, n_components: int) -> Start:
    X, row_weights = part.known[:, None], part.known_weights
    return Start(X, Starts(X, 0, row_weights).labels(n_components), row_weights)


def _part(
    x: np.ndarray, known: np.ndarray, new: np.ndarray, row_weights: np.ndarray | None
) -> _Part:
    """Return values x at two sets of places, in standard deviations of the known ones.

    Distant values do not determine the unit.
    """
    inner = without_outliers(x[known][:, None])
    # the variance of the smallest floating-point numbers underflows to zero
    middle, scale = inner.mean(), inner.std() or 1.0
    weights = chosen(row_weights, known), chosen(row_weights, new)
    return _Part((x[known] - middle) / scale, (x[new] - middle) / scale, *weights)


def _best_bins(x: np.ndarray, max_bins: int, row_weights: np.ndarray | None = None) -> Bins:
    """Return bins whose number maximises the leave-one-out likelihood."""
    if row_weights is None:
        best = int(_left_out(x, max_bins).argmax()) + 1
    else:
        best = int(_weighted_left_out(x, max_bins, row_weights).argmax()) + 1
    edges = np.linspace(x.min(), x.max(), best + 1)
    counts = np.histogram(x, edges, weights=row_weights)[0]
    total = len(x) if row_weights is None else row_weights.sum()
    outside = 1.0 / (total + 1.0)
    shares = (counts + PSEUDO_COUNT) / (total + best * PSEUDO_COUNT)
    cumulative = outside + (1.0 - 2.0 * outside) * np.concatenate([[0.0], np.cumsum(shares)])
    return Bins(edges, cumulative, float(edges[1] - edges[0]))


def _left_out(x: np.ndarray, max_bins: int) -> np.ndarray:
    """Return the mean leave-one-out log density of rows for 1, 2, ... bins, (max_bins,), nats."""
    numbers = np.arange(1, max_bins + 1)
    starts = np.cumsum(numbers) - numbers  # places of the bins of each number in one array
    shares = (x - x.min()) / np.ptp(x)
    # faster than histograms with edges, up to rows within rounding of an edge
    place = np.minimum((shares[:, None] * numbers).astype(np.int64), numbers - 1) + starts
    counts = np.bincount(place.ravel(), minlength=int(numbers.sum()))
    filled = np.maximum(counts, 1)  # empty bins have no row to leave out
    total = np.add.reduceat(counts * np.log(filled - 1.0 + PSEUDO_COUNT), starts)
    widths = np.ptp(x) / numbers
    return total / len(x) - np.log((len(x) - 1.0 + numbers * PSEUDO_COUNT) * widths)


def _weighted_left_out(x: np.ndarray, max_bins: int, row_weights: np.ndarray) -> np.ndarray:
    """Return what `_left_out` does for weighted rows: one row is left out with its weight."""
    values, total = np.empty(max_bins), row_weights.sum()
    shares = (x - x.min()) / np.ptp(x)
    for number in range(1, max_bins + 1):
        place = np.minimum((shares * number).astype(np.int64), number - 1)
        counts = np.bincount(place, row_weights, minlength=number)
        others = np.maximum(counts[place] - row_weights, 0.0) + PSEUDO_COUNT
        log_density = np.log(others / (total - row_weights + number * PSEUDO_COUNT))
        values[number - 1] = mean_of(log_density, row_weights) - np.log(np.ptp(x) / number)
    return values
