"""Densities of single columns: histograms where they beat smooth densities, else mixtures."""

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from sklvebm.mixtures.expectation_maximization import Mixture, Start, fit_mixtures
from sklvebm.mixtures.starts import Starts
from sklvebm.preprocessing.dequantization import resolution
from sklvebm.preprocessing.margins import PSEUDO_COUNT, Bins, Margin, SmoothMargin
from sklvebm.preprocessing.scaling import without_outliers
from sklvebm.preprocessing.value_steps import step_of
from sklvebm.row_weights import chosen, mean_of, standard_error_of

MAX_BINS = 64  # of one column
MIN_ROWS = 20  # shorter columns have no bins
_MAX_COMPARED_ROWS = 2000  # rows in the comparison of bins and smooth densities
_RIVAL_COMPONENTS = (1, 2, 4, 8)  # numbers of components of the smooth densities
_RIVAL_RIDGE = 1e-4  # added to their variances, in variances of the column
_MIN_STEPS_PER_BIN = 4  # steps of rounding in the narrowest bin
_N_FOLDS = 4
_MIN_STANDARD_ERRORS = 1.0  # by which the mean gain of bins in one column must exceed zero
_MAX_ROW_GAIN = 20.0  # nats of a row; clips gains, so that no single row decides
# Smooth margins
# With fewer rows, or fewer columns, held-out rows did not reliably tell where they pay
# (docs/benchmarks/margins.md).
_MIN_SMOOTH_ROWS, _MIN_SMOOTH_COLUMNS = 1000, 4
_SMOOTH_COMPONENTS = (1, 2, 4, 8, 16)
_MAX_CHOOSING_ROWS, _MAX_FITTED_ROWS = 4000, 20_000  # for their number, and their final fit
# Added to variances, in variances of the column: the least one above the squared step of rounding,
# so that no component is narrower than a step.
_SMOOTH_RIDGES = (1e-6, 1e-4, 1e-2, 1.0)


def column_margins(
    X: np.ndarray, max_bins: int = MAX_BINS, row_weights: np.ndarray | None = None
) -> tuple[Bins | None, ...] | None:
    """Return the histogram of every column of rows X (N, D) that needs one; None if none does.

    NaN marks missing cells, which are left out. `row_weights` (N,) say how often each row counts.
    """
    known = ~np.isnan(X)
    folds = _folds(len(X)) if known.all() and len(X) >= MIN_ROWS else None
    # the same rows of every column: many columns together take less time than one by one
    units = None if folds is None else [_units(X[fold.known]) for fold in folds]
    margins = tuple(
        bins_or_none(
            column[seen],
            max_bins,
            chosen(row_weights, seen),
            None if units is None else [(middle[j], scale[j]) for middle, scale in units],
        )
        for j, (column, seen) in enumerate(zip(X.T, known.T, strict=True))
    )
    return None if all(bins is None for bins in margins) else margins


def bins_or_none(
    x: np.ndarray,
    max_bins: int,
    row_weights: np.ndarray | None = None,
    units: list[tuple[float, float]] | None = None,
) -> Bins | None:
    """Return the best bins of a column (N,), or None where smooth densities are as good.

    `units` are the results of `_units` for each fold, or None.

    Rounded values have none, unless rounding is much finer than the bins: the density of single
    values depends on the width of the bins. `dequantize` adds the noise that they need.
    """
    if max_bins == 0 or len(x) < MIN_ROWS or not 0.0 < np.ptp(x) < np.inf:
        return None
    step = step_of(x)
    if _MIN_STEPS_PER_BIN * step * max_bins > np.ptp(x):
        return None
    folds = _folds(len(x))
    if min(np.ptp(x[fold.known]) for fold in folds) == 0.0:
        return None
    if units is None:
        of_folds = (_units(x[fold.known][:, None]) for fold in folds)
        units = [(middle[0], scale[0]) for middle, scale in of_folds]
    pairs = zip(folds, units, strict=True)
    parts = [_part(x, fold, unit, row_weights) for fold, unit in pairs]
    if not _bins_win(parts, max_bins):
        return None
    return _best_bins(x, max_bins, row_weights)


class _Places(NamedTuple):
    """One fold: places of the values that densities are fitted to, and of others."""

    known: np.ndarray
    new: np.ndarray


@lru_cache(maxsize=1)  # of all columns without missing cells
def _folds(n_rows: int) -> list[_Places]:
    order = np.random.RandomState(0).permutation(n_rows)[:_MAX_COMPARED_ROWS]
    folds = [order[first::_N_FOLDS] for first in range(_N_FOLDS)]
    others = [np.concatenate(folds[:k] + folds[k + 1 :]) for k in range(_N_FOLDS)]
    return [_Places(*fold) for fold in zip(others, folds, strict=True)]


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
        for place, (rival, part) in enumerate(zip(_rivals(parts, k), parts, strict=True)):
            if rival is not None:
                mean = partial(mean_of, row_weights=part.new_weights)
                best[place] = max(best[place], rival, key=mean)
        gain = np.concatenate(bins) - np.concatenate(best)
        gain = np.clip(gain, -_MAX_ROW_GAIN, _MAX_ROW_GAIN)
        if not mean_of(gain, weights) > _MIN_STANDARD_ERRORS * standard_error_of(gain, weights):
            return False  # further rivals can only be better
    return True


def _rivals(parts: list[_Part], n_components: int) -> list[np.ndarray | None]:
    """Return log densities of the new values of each part under a mixture of the known ones, nats.

    None where no mixture can be fitted.
    """
    if n_components == 1:  # in closed form: it decides about most columns
        return [_normal_log_density(part) for part in parts]
    starts = [_start(part, n_components) for part in parts]
    fits = fit_mixtures(starts, n_components, "full", _RIVAL_RIDGE)
    return [
        None if mixture is None else mixture.score_samples(part.new[:, None])
        for mixture, part in zip(fits, parts, strict=True)
    ]


def _normal_log_density(part: _Part) -> np.ndarray:
    """Return log densities of the new values under the normal distribution of the known ones."""
    mean = np.average(part.known, weights=part.known_weights)
    variance = np.average((part.known - mean) ** 2, weights=part.known_weights) + _RIVAL_RIDGE
    return -0.5 * ((part.new - mean) ** 2 / variance + np.log(2.0 * np.pi * variance))


def _start(part: _Part, n_components: int) -> Start:
    X, row_weights = part.known[:, None], part.known_weights
    return Start(X, Starts(X, 0, row_weights).labels(n_components), row_weights)


def _units(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return middles and standard deviations (D,) of columns of X (N, D), without outliers."""
    inner = without_outliers(X)
    scale = inner.std(0)
    # the variance of the smallest floating-point numbers underflows to zero
    return inner.mean(0), np.where(scale > 0.0, scale, 1.0)


def _part(
    x: np.ndarray, fold: _Places, unit: tuple[float, float], row_weights: np.ndarray | None
) -> _Part:
    """Return values x at two sets of places, in standard deviations of the known ones.

    Distant values do not determine the unit.
    """
    middle, scale = unit
    weights = chosen(row_weights, fold.known), chosen(row_weights, fold.new)
    return _Part((x[fold.known] - middle) / scale, (x[fold.new] - middle) / scale, *weights)


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


# Smooth margins ----------------------------------------------------------------------------------


def every_margin(
    X: np.ndarray,
    edges: tuple[Bins | None, ...] | None,
    row_weights: np.ndarray | None = None,
) -> tuple[Margin | None, ...] | None:
    """Return a density of every column of rows X (N, D), or None where no column needs one.

    That of `edges`, the histograms that `column_margins` returns, elsewhere a Gaussian mixture;
    None stands for a Gaussian.
    """
    if X.shape[1] < _MIN_SMOOTH_COLUMNS:
        return edges
    margins: list[Margin | None] = list(edges or [None] * X.shape[1])
    smooth = [j for j, bins in enumerate(margins) if bins is None]
    for j, margin in zip(smooth, _smooth_margins(X[:, smooth], row_weights), strict=True):
        margins[j] = margin
    return None if all(margin is None for margin in margins) else tuple(margins)


def margins_of_option(
    option: str, X: np.ndarray, row_weights: np.ndarray | None = None
) -> tuple[Margin | None, ...] | None:
    """Return the densities of columns for the value "histogram" or "all" of `margins`."""
    edges = column_margins(X, row_weights=row_weights)
    return edges if option == "histogram" else every_margin(X, edges, row_weights)


class _Column(NamedTuple):
    """The observed cells of a column, in random order, with their unit."""

    x: np.ndarray  # (n_observed,), in units of `scale` from `middle`
    row_weights: np.ndarray | None
    middle: float
    scale: float
    ridge: float  # added to variances, in squared units

    def start(self, places: np.ndarray, n_components: int) -> Start:
        """Return the start of a fit to some of the cells."""
        x, row_weights = self.x[places], chosen(self.row_weights, places)
        labels = Starts(x[:, None], 0, row_weights).labels(n_components)
        return Start(x[:, None], labels, row_weights)


def _smooth_margins(X: np.ndarray, row_weights: np.ndarray | None) -> list[SmoothMargin | None]:
    """Return a mixture for each column, fitted side by side; None where one component is best."""
    columns = {j: column for j, x in enumerate(X.T) if (column := _column(x, row_weights))}
    numbers = _numbers_of_components(columns)
    found: list[SmoothMargin | None] = [None] * X.shape[1]
    for n_components in set(numbers.values()) - {1}:
        chosen_columns = {j: columns[j] for j, k in numbers.items() if k == n_components}
        every = {j: [np.arange(len(c.x))[:_MAX_FITTED_ROWS]] for j, c in chosen_columns.items()}
        for j, (mixture,) in _fitted(chosen_columns, every, n_components).items():
            if mixture is not None:
                found[j] = _margin(mixture, columns[j])
    return found


def _column(x: np.ndarray, row_weights: np.ndarray | None) -> _Column | None:
    seen = np.flatnonzero(~np.isnan(x))
    if len(seen) < _MIN_SMOOTH_ROWS or not 0.0 < np.ptp(x[seen]) < np.inf:
        return None
    step = float(resolution(x[seen][:, None])[0])
    seen = seen[np.random.RandomState(0).permutation(len(seen))]
    inner = without_outliers(x[seen][:, None])
    middle, scale = float(inner.mean()), float(inner.std()) or 1.0
    ridge = next((r for r in _SMOOTH_RIDGES if r >= (step / scale) ** 2), _SMOOTH_RIDGES[-1])
    return _Column((x[seen] - middle) / scale, chosen(row_weights, seen), middle, scale, ridge)


def _numbers_of_components(columns: dict[int, _Column]) -> dict[int, int]:
    """Return the number of components of each column with the best held-out likelihood."""
    folds, others = {}, {}
    for j, column in columns.items():
        order = np.arange(min(len(column.x), _MAX_CHOOSING_ROWS))
        folds[j] = [order[first::_N_FOLDS] for first in range(_N_FOLDS)]
        others[j] = [np.setdiff1d(order, fold) for fold in folds[j]]
    numbers, best = dict.fromkeys(columns, 1), dict.fromkeys(columns, -np.inf)
    improving = set(columns)
    for n_components in _SMOOTH_COMPONENTS:
        tried = {j: columns[j] for j in columns if j in improving}
        for j, mixtures in _fitted(tried, others, n_components).items():
            value = _held_out(columns[j], mixtures, folds[j])
            if value > best[j]:
                numbers[j], best[j] = n_components, value
            else:
                improving.remove(j)
    return numbers


def _held_out(column: _Column, mixtures: list[Mixture | None], folds: list[np.ndarray]) -> float:
    """Return the mean log density of a column's folds, nats; -inf where a fit is singular."""
    total = []
    for mixture, fold in zip(mixtures, folds, strict=True):
        if mixture is None:
            return -np.inf
        log_density = mixture.score_samples(column.x[fold][:, None])
        total.append(np.maximum(log_density, -_MAX_ROW_GAIN))
    return mean_of(np.concatenate(total), chosen(column.row_weights, np.concatenate(folds)))


def _fitted(
    columns: dict[int, _Column], places: dict[int, list[np.ndarray]], n_components: int
) -> dict[int, list[Mixture | None]]:
    """Return mixtures of some columns, one for each of the given sets of places."""
    found: dict[int, list[Mixture | None]] = {}
    for ridge in {column.ridge for column in columns.values()}:
        own = [j for j, column in columns.items() if column.ridge == ridge]
        starts = [columns[j].start(part, n_components) for j in own for part in places[j]]
        fits: Iterable[Mixture | None] = iter(fit_mixtures(starts, n_components, "full", ridge))
        for j in own:
            found[j] = [fit for _, fit in zip(places[j], fits, strict=False)]
    return found


def _margin(mixture: Mixture, column: _Column) -> SmoothMargin:
    scales = np.sqrt(mixture.covariances[:, 0, 0])
    means = column.middle + column.scale * mixture.means[:, 0]
    return SmoothMargin(mixture.weights, means, column.scale * scales, float(len(column.x)))
