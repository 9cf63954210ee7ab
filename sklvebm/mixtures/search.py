"""Searches for single Gaussian mixtures by their likelihood of held-out rows."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from sklearn import config_context
from threadpoolctl import threadpool_limits

from sklvebm.mixtures.components import LOG_2PI
from sklvebm.mixtures.expectation_maximization import Mixture, Start, fit_mixtures
from sklvebm.mixtures.missing_cells import Components, log_components, score_observed
from sklvebm.mixtures.policy import StackPolicy, n_parameters, rank_of
from sklvebm.mixtures.starts import Starts
from sklvebm.preprocessing.dequantization import resolution
from sklvebm.preprocessing.scaling import without_outliers
from sklvebm.row_weights import chosen, mean_of, standard_error_of

_MAX_ROW_LOSS = 1e3  # nats, of one held-out row
_IMPOSSIBLE_LOG_DENSITY = -1e300  # nats, of a candidate that cannot be fitted
# A column's scale is the width of the shortest interval with this share of its distinct values,
# over the same width of a standard normal distribution. Below this scale in standardised units, the
# column mixes rows of very different size.
_DENSEST_SHARE, _DENSEST_NORMAL_WIDTH, _MIN_ORDINARY_SCALE = 0.1, 0.25132, 0.1
_MIN_SCALE = 1e-7  # standardised units; smaller scales are rounding in double precision
COVARIANCE_FLOOR = 1e-6  # standardised units squared; scikit-learn's reg_covar
DEFENSIVE_WEIGHT = 0.05  # during the comparison of candidates; fitted afterwards
_DEFENSIVE_SPREAD = 2.0  # of the first defensive component, standard deviations of the data
# Defensive components have one shape and these scales. Together they are a discrete scale mixture
# that decays like Student's t; with three degrees of freedom, its variance is finite.
TAIL_SCALES = 10.0 ** np.arange(10)
_TAIL_DEGREES = 3.0
TAIL_SHARES = TAIL_SCALES**-_TAIL_DEGREES / (TAIL_SCALES**-_TAIL_DEGREES).sum()


class Candidate(NamedTuple):
    """One kind of Gaussian mixture."""

    n_components: int
    covariance_type: str
    ridge: float  # added to variances, in `ridge_units`


class Fold(NamedTuple):
    """One split of the rows."""

    train: np.ndarray  # complete
    test: np.ndarray  # NaN in missing cells
    wide: np.ndarray  # (N, K), log densities of the test rows under defensive components, nats
    # of either kind of rows; None counts each row once
    train_weights: np.ndarray | None = None
    test_weights: np.ndarray | None = None


class ColumnScales(NamedTuple):
    """Scales of columns that contain both small and large rows.

    Attributes
    ----------
    ridge_units : ndarray of shape (n_features,)
        Units of ridges, standardised units squared; usually one. Where few large rows dominate a
        column's standard deviation, the unit is the squared scale of its densest tenth, at least
        the rounding of the values.
    centre, scale : ndarray of shape (n_features,)
        Of the densest tenth of the values, standardised units.
    """

    ridge_units: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    def start_rows(self, X: np.ndarray) -> np.ndarray:
        """Return the rows on which the starts of mixtures measure distances.

        Distances between large rows dominate those between small ones. Each column that contains
        both is joined by a column of log distances from its densest tenth.
        """
        mixed = self.ridge_units < 1.0
        sizes = np.log1p(np.abs(X - self.centre)[:, mixed] / self.scale[mixed])
        return np.concatenate([X, sizes], 1) if mixed.any() else X


def column_scales(X: np.ndarray) -> ColumnScales:
    """Measure the columns of standardised rows X (n_samples, n_features)."""
    parts = zip(*(_densest(column) for column in X.T), strict=True)
    return ColumnScales(*(np.array(part) for part in parts))


def _densest(column: np.ndarray) -> tuple[float, float, float]:
    """Return a column's unit of ridges, and the centre and scale of its densest tenth."""
    values = np.unique(column)
    n = int(np.ceil(_DENSEST_SHARE * len(values)))
    if n < 2:
        return 1.0, 0.0, 1.0
    widths = values[n:] - values[:-n]
    first = int(widths.argmin())
    scale = max(widths[first] / _DENSEST_NORMAL_WIDTH, _MIN_SCALE)
    centre = 0.5 * (values[first] + values[first + n])
    unit = 1.0
    if scale < _MIN_ORDINARY_SCALE:
        step = resolution(column[:, None])[0]
        # continuous in the scale, so that small changes of the data have small effects
        unit = max(scale / _MIN_ORDINARY_SCALE, step / np.sqrt(12.0 * COVARIANCE_FLOOR))
    return float(min(1.0, unit) ** 2), float(centre), float(scale)


def fit_candidate(
    X: np.ndarray,
    candidate: Candidate,
    scales: ColumnScales,
    seeds: list[int],
    row_weights: np.ndarray | None = None,
) -> list[Mixture | None]:
    """Fit mixtures of one kind to rows X (n_samples, n_features), one for each seed."""
    rows, k = scales.start_rows(X), candidate.n_components
    starts = [Start(X, Starts(rows, s, row_weights).labels(k), row_weights) for s in seeds]
    return fit_mixtures(starts, *candidate[:2], candidate.ridge * scales.ridge_units)


class HeldOutLosses:
    """Losses of candidates on held-out rows, nats; each mixture is fitted once.

    Losses include a defensive component beside the candidate. Without it, the rows in the tails
    alone decide.

    Parameters
    ----------
    folds : list of Fold
        The cross-validation.
    seed : int
        Seed of the first member; the others count on from it.
    scales : ColumnScales
        Scales of all rows.
    policy : StackPolicy
        Settings of the search.
    """

    def __init__(
        self, folds: list[Fold], seed: int, scales: ColumnScales, policy: StackPolicy
    ) -> None:
        self.folds, self.seed, self.scales, self.policy = folds, seed, scales, policy
        self.defensive_components = np.concatenate([fold.wide for fold in folds])
        self.wide = logsumexp(self.defensive_components + np.log(TAIL_SHARES), axis=1)
        weights = [fold.test_weights for fold in folds if fold.test_weights is not None]
        self.row_weights = np.concatenate(weights) if weights else None  # of held-out rows
        self._starts = functools.cache(self._starts_of_fold)
        self._members: dict[tuple[int, Candidate], np.ndarray] = {}

    def _starts_of_fold(self, fold: int, number: int) -> Starts:
        X, row_weights = self.folds[fold].train, self.folds[fold].train_weights
        return Starts(self.scales.start_rows(X), self.seed + number, row_weights)

    def members(self, candidate: Candidate, n_members: int) -> list[np.ndarray]:
        """Return log densities of held-out rows under each member, fitted side by side."""
        # a single covariance is the same of both kinds, and takes seconds in a thousand columns
        if candidate[:2] == (1, "full"):
            candidate = candidate._replace(covariance_type="tied")
        # every start gives the same single component
        n_fits = 1 if candidate.n_components == 1 else n_members
        numbers = range(n_fits)
        wanted = [number for number in numbers if (number, candidate) not in self._members]
        k = candidate.n_components
        starts = [
            Start(fold.train, self._starts(place, number).labels(k), fold.train_weights)
            for number in wanted
            for place, fold in enumerate(self.folds)
        ]
        if starts:
            ridge = candidate.ridge * self.scales.ridge_units
            mixtures = iter(fit_mixtures(starts, *candidate[:2], ridge))
            for number in wanted:
                parts = [_held_out(next(mixtures), fold.test) for fold in self.folds]
                self._members[number, candidate] = np.concatenate(parts)
        return [self._members[number, candidate] for number in numbers] * (n_members // n_fits)

    def log_density(self, candidate: Candidate, n_members: int = 1) -> np.ndarray:
        """Return the ensemble's log density of held-out rows, without the defensive component."""
        members = self.members(candidate, n_members)
        return np.logaddexp.reduce(members, axis=0) - np.log(n_members)

    def of_rows(self, candidate: Candidate, n_members: int = 1) -> np.ndarray:
        """Return the loss of every held-out row, with the defensive component."""
        return self.losses_of(self.log_density(candidate, n_members))

    def losses_of(self, log_density: np.ndarray) -> np.ndarray:
        """Return losses of held-out rows under a log density (N,) and the tails, nats.

        Losses are bounded: rows beyond all tails have the same loss under every candidate and
        would hide the differences on other rows.
        """
        main = np.log1p(-DEFENSIVE_WEIGHT) + log_density
        return np.minimum(-np.logaddexp(main, np.log(DEFENSIVE_WEIGHT) + self.wide), _MAX_ROW_LOSS)

    def mean(self, candidate: Candidate, n_members: int = 1) -> float:
        """Return the mean loss."""
        return mean_of(self.of_rows(candidate, n_members), self.row_weights)

    def diversity(self, candidate: Candidate, n_members: int) -> float:
        """Return the gain of an ensemble over the average of its members, nats, >= 0."""
        members = self.members(candidate, n_members)
        means = [mean_of(member, self.row_weights) for member in members]
        ensemble = self.log_density(candidate, n_members)
        return mean_of(ensemble, self.row_weights) - float(np.mean(means))

    def standard_error(self, first: Candidate, second: Candidate, n_members: int = 1) -> float:
        """Return the standard error of the difference of two candidates' mean losses."""
        difference = self.of_rows(first, n_members) - self.of_rows(second, n_members)
        return standard_error_of(difference, self.row_weights)


def _held_out(mixture: Mixture | None, X: np.ndarray) -> np.ndarray:
    """Return log densities of held-out rows X (N, D), nats."""
    impossible = np.full(len(X), _IMPOSSIBLE_LOG_DENSITY)
    if mixture is None:  # other candidates may have regular covariances
        return impossible
    try:
        return score_observed(mixture, X)
    except np.linalg.LinAlgError:
        return impossible


def search_singles(
    X: np.ndarray, losses: HeldOutLosses
) -> tuple[Candidate, dict[Candidate, float]]:
    """Find the best single mixture.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    losses : HeldOutLosses
        Their cross-validation.

    Returns
    -------
    best : Candidate
        The candidate with the fewest parameters among those within `tie` standard errors of
        the best, with its best ridge.
    tried : dict of Candidate to float
        Mean losses of all evaluated candidates.
    """
    policy = losses.policy
    ridge = policy.first_ridge if len(X) < policy.few_rows else COVARIANCE_FLOOR
    tried = _search_components(X, losses, ridge)
    best = min(tried, key=tried.__getitem__)
    near = [
        candidate
        for candidate, loss in tried.items()
        if loss - tried[best] <= policy.tie * losses.standard_error(candidate, best)
    ]
    simplest = min(near, key=lambda c: n_parameters(c.n_components, c.covariance_type, X.shape[1]))
    ridges = _ridges(policy.ridges, losses.scales.ridge_units)
    ridge = _search_ridge(lambda r: losses.mean(simplest._replace(ridge=r)), ridge, ridges)
    return simplest._replace(ridge=ridge), tried


def _search_components(
    X: np.ndarray, losses: HeldOutLosses, ridge: float
) -> dict[Candidate, float]:
    """Return mean losses of all covariance types, up to the components that stop helping."""
    policy = losses.policy
    grids = {kind: policy.allowed_components(X, kind) for kind in policy.kinds(X)}
    tried: dict[Candidate, float] = {}

    def look_at(n_components: int, kind: str) -> float:
        candidate = Candidate(n_components, kind, ridge)
        if candidate not in tried:
            tried[candidate] = losses.mean(candidate)
        return tried[candidate]

    best_of_rank: list[float] = []
    for kind, grid in grids.items():
        found: dict[int, float] = {}
        # further directions do not help where two more of them did not
        if rank_of(kind) and best_of_rank and min(best_of_rank) < min(best_of_rank[-2:]):
            continue
        for position in range(0, len(grid), policy.coarse_step):
            found[position] = look_at(grid[position], kind)
            if position - min(found, key=found.__getitem__) >= policy.patience * policy.coarse_step:
                break
        if rank_of(kind):
            best_of_rank.append(min(found.values()))
    best = min(tried, key=tried.__getitem__)
    grid = grids[best.covariance_type]
    centre = grid.index(best.n_components)
    for n_components in grid[max(0, centre - policy.coarse_step + 1) : centre + policy.coarse_step]:
        look_at(n_components, best.covariance_type)
    return tried


def _ridges(given: tuple[float, ...], units: np.ndarray) -> tuple[float, ...]:
    """Return the ridges of the search, ascending; more of them where a unit is below one."""
    ridges = list(given)
    while ridges[-1] * units.min() < 0.1 * given[-1]:
        ridges.append(10.0 * ridges[-1])
    return tuple(ridges)


def _search_ridge(loss: Callable[[float], float], first: float, ridges: tuple[float, ...]) -> float:
    """Return the ridge with the least loss, searched from the first one in both directions."""
    losses = {first: loss(first)}
    position = ridges.index(first)
    for side in (ridges[position + 1 :], ridges[:position][::-1]):
        for ridge in side:
            losses[ridge] = loss(ridge)
            if losses[ridge] > min(losses.values()):
                break
    return min(losses, key=losses.__getitem__)


def split_folds(
    X: np.ndarray,
    policy: StackPolicy,
    judged: np.ndarray,
    row_weights: np.ndarray | None = None,
) -> tuple[list[Fold], list[Fold]]:
    """Split rows, which are in random order, into folds.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows, complete.
    policy : StackPolicy
        Settings of the search, which give the number of folds.
    judged : ndarray of shape (n_samples, n_features)
        The same rows, with NaN in missing cells.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.

    Returns
    -------
    folds : list of Fold
        Folds for the comparison of candidates; none if there are too few rows.
    others : list of Fold
        Folds of the other rows, where the comparison uses one fold.
    """
    n_folds = 5 if len(X) < policy.few_rows else 3
    if len(X) < n_folds:
        return [], []
    if len(X) > policy.many_rows:
        folds = _folds_of(X, judged, row_weights, 4)
        return folds[:1], folds[1:]
    return _folds_of(X, judged, row_weights, n_folds), []


def one_fold(
    X: np.ndarray,
    judged: np.ndarray,
    order: np.ndarray,
    limits: tuple[int, int],
    row_weights: np.ndarray | None = None,
) -> Fold:
    """Split rows into one fold with a quarter of them held out.

    Parameters
    ----------
    X, judged : ndarray of shape (n_samples, n_features)
        As in `split_folds`.
    order : ndarray of shape (n_samples,)
        A random order of the rows.
    limits : tuple of two ints
        Upper limits on the numbers of fitted and held-out rows.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        As in `split_folds`.
    """
    most_fitted, most_judging = limits
    n_judging = min(len(order) // 4, most_judging)
    test, train = np.split(order[: n_judging + most_fitted], [n_judging])
    return _fold(X, judged, row_weights, train, test)


def _folds_of(
    X: np.ndarray, judged: np.ndarray, row_weights: np.ndarray | None, n_folds: int
) -> list[Fold]:
    order = np.arange(len(X))
    parts = np.array_split(order, n_folds)
    return [_fold(X, judged, row_weights, np.setdiff1d(order, part), part) for part in parts]


def _fold(
    X: np.ndarray,
    judged: np.ndarray,
    row_weights: np.ndarray | None,
    train: np.ndarray,
    test: np.ndarray,
) -> Fold:
    wide = log_defensive_components(X[train], judged[test])
    weights = chosen(row_weights, train), chosen(row_weights, test)
    return Fold(X[train], judged[test], wide, *weights)


def log_defensive_components(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return log densities (N, K) of test rows under the training rows' defensive components."""
    covariance, centre = defensive_covariance(train), without_outliers(train).mean(0)
    if np.isnan(test).any():
        scales = torch.from_numpy(TAIL_SCALES)
        of = torch.zeros(len(scales), dtype=torch.long)
        parts = torch.from_numpy(centre).expand(len(scales), -1), torch.from_numpy(covariance)[None]
        components = Components(torch.zeros_like(scales), *parts, of, scales)
        return log_components(torch.from_numpy(test), components).numpy()
    root = np.linalg.cholesky(covariance)
    white = solve_triangular(root, (test - centre).T, lower=True)
    constant = np.log(np.diag(root)).sum() + 0.5 * test.shape[1] * LOG_2PI
    # divided before squaring: squares of distant rows may overflow
    squares = np.stack([((white / scale) ** 2).sum(0) for scale in TAIL_SCALES], 1)
    return -0.5 * squares - constant - test.shape[1] * np.log(TAIL_SCALES)


def defensive_covariance(X: np.ndarray) -> np.ndarray:
    """Return the covariance (D, D) of the defensive component for rows X."""
    n_features, X = X.shape[1], without_outliers(X)
    if len(X) > 1:  # as `np.cov`, but in the copy that was clipped
        X -= X.mean(axis=0)
        spread = np.dot(X.T, X) * (1.0 / len(X))
    else:
        spread = np.eye(n_features)
    return _DEFENSIVE_SPREAD**2 * (spread + COVARIANCE_FLOOR * np.eye(n_features))


@contextmanager
def plain_arrays_on_one_thread() -> Iterator[None]:
    """Run the body with the fastest settings for small mixture fits.

    Rows are NumPy arrays, also under array API dispatch. Small matrices are slower on several
    threads than on one. scikit-learn's checks of rows and parameters are switched off: the rows
    were checked before, and the checks take longer than many of the hundred small fits.
    """
    unchecked = {"skip_parameter_validation": True, "assume_finite": True}
    with config_context(array_api_dispatch=False, **unchecked), threadpool_limits(1):
        yield
