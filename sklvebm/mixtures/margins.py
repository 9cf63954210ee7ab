"""Decides by held-out rows which columns of a fit are mapped to normal ones."""

from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sklvebm.mixtures.choice import JudgedChoice, MixtureSearch
from sklvebm.mixtures.column_densities import MIN_ROWS, column_margins, every_margin
from sklvebm.mixtures.policy import StackPolicy
from sklvebm.mixtures.stacking import MixtureChoice
from sklvebm.preprocessing.margins import Margin
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.row_weights import chosen, mean_of, standard_error_of

# By which the mean gain of margins must exceed zero. Columns were selected on the same rows, which
# favours them: on breast cancer and wine, gains of 1.6 and 3.2 standard errors were losses on new
# rows; where histograms pay (diabetes, digits) the gain is 8 or more.
_MIN_ERRORS = 4.0
_CLEAR_ERRORS = 8.0  # of a gain with single mixtures, after which no stacks are compared
_MAX_GAIN = 100.0  # nats of a row; clips gains, so that no single row decides

Margins = tuple[Margin | None, ...] | None


class ChosenMargins(NamedTuple):
    """Densities of columns, and the mixtures of the reference chosen with or without them."""

    margins: Margins  # None: no column has one
    choice: MixtureChoice | None  # None: nothing was compared
    gain: float = 0.0  # of the margins on held-out rows, nats per row


def choose_margins(
    X: np.ndarray,
    seed: int,
    policy: StackPolicy,
    observed: np.ndarray | None = None,
    row_weights: np.ndarray | None = None,
) -> ChosenMargins:
    """Decide by held-out rows which columns are normal before mixtures are fitted.

    The candidates are none; columns with edges, by histograms; all columns, by histograms or
    mixtures of their own. Shapes may belong to several columns together, as on a checkerboard:
    margins then lose. Mixtures are searched with each of them on the same folds.

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
    table = _Table(X, observed, given, row_weights)
    edges = column_margins(given, row_weights=row_weights)
    candidates: list[Margins] = [None]
    for margins in (edges, every_margin(given, edges, row_weights)):
        if margins is not None and not _same(margins, candidates[-1]):
            candidates.append(margins)
    if len(candidates) == 1:
        return ChosenMargins(None, None)
    plain, *others = [_Candidate(margins, table, seed, policy) for margins in candidates]
    remaining = _remaining([plain, *others], table)
    best, *rivals = remaining
    rejected = max(_gain(plain.singles, other.singles, table)[0] for other in others)
    gain = 0.0 if best is plain else _gain(plain.singles, best.singles, table)[0]
    for rival in rivals:
        more, error = _gain(best.judged, rival.judged, table)
        if more > _MIN_ERRORS * error:
            best, gain = rival, gain + more
        else:
            rejected = more
    return ChosenMargins(best.margins, best.choice, gain if best is not plain else rejected)


class _Table(NamedTuple):
    """Standardised rows, complete and as they are given, with their weights."""

    X: np.ndarray  # (N, D)
    observed: np.ndarray | None  # with NaN, if cells are missing
    given: np.ndarray  # one of the two
    row_weights: np.ndarray | None


class _Judged(NamedTuple):
    """Log densities of held-out rows in the units of the table, (n_judged,), nats."""

    rows: np.ndarray  # (n_judged,), indices
    log_density: np.ndarray


class _Candidate:
    """Margins, and the search for mixtures of the rows that they map."""

    def __init__(self, margins: Margins, table: _Table, seed: int, policy: StackPolicy) -> None:
        n_features = table.X.shape[1]
        self.margins, self._table = margins, table
        self._units = Standardisation(np.zeros(n_features), np.ones(n_features), margins)
        X, observed = table.X, table.observed
        if margins is not None:
            X = self._units.apply(X)
            observed = None if observed is None else self._units.apply(observed)
        source = np.random.RandomState(seed)
        self._search = MixtureSearch(X, source, policy, observed, table.row_weights)

    @cached_property
    def _found(self) -> JudgedChoice:
        return self._search.judged()

    @property
    def choice(self) -> MixtureChoice:
        """The mixtures that the whole search chooses."""
        return self._found.choice

    @cached_property
    def singles(self) -> _Judged:
        """Held-out rows under the best single mixture."""
        return self._in_units(*self._search.singles())

    @cached_property
    def judged(self) -> _Judged:
        """Held-out rows under the choice."""
        return self._in_units(self._found.rows, self._found.log_density)

    def _in_units(self, rows: np.ndarray, log_density: np.ndarray) -> _Judged:
        """Add the log slopes of the margins, each without the row's own contribution."""
        given, row_weights = self._table.given[rows], chosen(self._table.row_weights, rows)
        total = log_density + self._units.log_slopes(given)
        for j, margin in self._units.mapped_columns():
            known = ~np.isnan(given[:, j])
            own = 1.0 if row_weights is None else row_weights[known]
            total[known] -= margin.left_out(given[known, j], own)
        return _Judged(rows, total)


def _remaining(candidates: list[_Candidate], table: _Table) -> list[_Candidate]:
    """Return the candidates that single mixtures leave in question, simpler ones first.

    One is left out if a simpler one is better, or another one better by far.
    """
    remaining = list(candidates)
    for simple, other in combinations(candidates, 2):
        if simple in remaining and other in remaining:
            gain, error = _gain(simple.singles, other.singles, table)
            if not gain > 0.0:
                remaining.remove(other)
            elif gain > _CLEAR_ERRORS * error:
                remaining.remove(simple)
    return remaining


def _gain(first: _Judged, second: _Judged, table: _Table) -> tuple[float, float]:
    """Return the mean gain of the second over the first with its standard error, nats per row."""
    # the same rows but for rounding, which can make copies of distinct rows
    rows, own, others = np.intersect1d(first.rows, second.rows, return_indices=True)
    if len(rows) < MIN_ROWS:
        return 0.0, 0.0
    gains = (second.log_density[others] - first.log_density[own]).clip(-_MAX_GAIN, _MAX_GAIN)
    weights = chosen(table.row_weights, rows)
    return mean_of(gains, weights), standard_error_of(gains, weights)


def _same(first: Margins, second: Margins) -> bool:
    """Return whether the same columns have margins, which are then the same."""
    if first is None or second is None:
        return first is second
    pairs = zip(first, second, strict=True)
    return all((one is None) == (other is None) for one, other in pairs)
