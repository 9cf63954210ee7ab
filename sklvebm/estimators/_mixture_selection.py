"""Chooses the mixture of the reference by cross-validation: an average of Gaussian mixtures.

Fits of many components depend on where they start, and which is best on new rows is chance. The
mean of their densities is a Gaussian mixture again, and better than any of them (docs/tuning.md).
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logsumexp
from scipy.stats import multivariate_normal
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from sklvebm.estimators._boundary import without_outliers

_COMPONENT_GRID = (1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 85, 110, 150, 200)
_COVARIANCE_TYPES = ("full", "tied", "diag")
_COARSE = 3  # every third grid point first, then the neighbours of the best
_N_WORSE = 3  # coarse points without improvement that end the search of a covariance type
_MAX_ROWS_TO_CHOOSE, _MAX_FITTED_ROWS = 6000, 20_000
_FEW_ROWS = 500  # fewer are cut into five folds, and start from a larger ridge
_MANY_ROWS = 1000  # more are split once, a quarter of them held out
_TIE = 0.25  # standard errors of a paired difference
_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3)  # standardised units squared
_FIRST_RIDGE = 1e-3
COVARIANCE_FLOOR = 1e-6  # standardised units squared; scikit-learn's own reg_covar
WIDE_WEIGHT = 0.05  # until it is fitted
# enough for wells to be seen where no data are; the rest of the rows must stay the mixture's
LEAST_WIDE_WEIGHT = 0.01
_LIGHTEST, _MOST_WIDE_WEIGHT = 0.001, 0.3
_WIDE_SPREAD = 2.0  # standard deviations of the data
_LEAST_GAIN = 1e-3  # nats, for which an ensemble is worth its cost
_N_TRIED = 4  # members of an ensemble while components are chosen
_MOST_MEMBERS = 16
# all members together; in numbers, means and covariances are counted
_MOST_COMPONENTS, _MOST_NUMBERS = 1000, 120_000
_MAX_EM_ITERATIONS = 50


class MixtureChoice(NamedTuple):
    """What cross-validation prefers."""

    n_components: int  # of each member
    covariance_type: str
    ridge: float  # added to variances, standardised units squared
    n_members: int
    wide_weight: float  # of the wide component beside the members, 0.001 or more


class MixtureEnsemble(NamedTuple):
    """The mean of the densities of several Gaussian mixtures."""

    members: list[GaussianMixture]

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Return log densities (n_samples,), nats."""
        scores = [member.score_samples(X) for member in self.members]
        return logsumexp(scores, axis=0) - np.log(len(scores))


@contextmanager
def plain_arrays_on_one_thread() -> Iterator[None]:
    """Fit scikit-learn's mixtures as they are fastest, whatever the user has configured.

    Rows are NumPy here; mixtures refuse to start from k-means under array API dispatch, and are
    slower on several threads than on one.
    """
    with config_context(array_api_dispatch=False), threadpool_limits(1):
        yield


def fit_ensemble(
    X: np.ndarray, choice: MixtureChoice, random_state: np.random.RandomState
) -> MixtureEnsemble:
    """Fit every member to the rows, from a start of its own.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows; at most 20,000 random ones are used.
    choice : MixtureChoice
        What to fit.
    random_state : numpy.random.RandomState
        Source of starts.

    Returns
    -------
    ensemble : MixtureEnsemble
        As many members as `choice` says.
    """
    X = X[random_state.permutation(len(X))[:_MAX_FITTED_ROWS]]
    seed = random_state.randint(2**30)
    parameters = choice.n_components, choice.covariance_type, choice.ridge
    with plain_arrays_on_one_thread():
        members = [_fitted(X, *parameters, seed + number) for number in range(choice.n_members)]
    return MixtureEnsemble(members)


@plain_arrays_on_one_thread()
def choose_mixture(X: np.ndarray, random_state: np.random.RandomState) -> MixtureChoice:
    """Choose covariance type, components, ridge and members by held-out likelihood.

    First the covariance type and the components of single mixtures, then a ridge on the
    covariances, then whether an ensemble is better, and with more components each. Candidates are
    scored with a wide component beside them, as they will be used: without it, the rows in the
    tails decide alone. BIC would be cheaper, but takes too few components for curved data, and
    trusts likelihoods that few rows in many dimensions make meaningless.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows; at most 6,000 random ones choose.
    random_state : numpy.random.RandomState
        Source of folds and starts.

    Returns
    -------
    choice : MixtureChoice
        One component without cross-validation, if there are fewer rows than folds.
    """
    seed = random_state.randint(2**30)
    X = X[random_state.permutation(len(X))[:_MAX_ROWS_TO_CHOOSE]]
    folds = _folds(X)
    if not folds:
        return MixtureChoice(1, "diag", COVARIANCE_FLOOR, 1, WIDE_WEIGHT)
    losses = _HeldOutLosses(folds, seed)
    first = _FIRST_RIDGE if len(X) < _FEW_ROWS else COVARIANCE_FLOOR
    singles = _search_components(X, lambda *candidate: losses.mean(*candidate, first))
    best = min(singles, key=singles.get)
    # the fewest parameters among those that are as good as the best within a share of the noise
    near = [
        candidate
        for candidate in singles
        if singles[candidate] - singles[best]
        <= _TIE * losses.standard_error((*candidate, first), (*best, first))
    ]
    n_components, kind = min(near, key=lambda c: _n_parameters(*c, X.shape[1]))
    ridge = _search_ridge(lambda ridge: losses.mean(n_components, kind, ridge), first)
    n_components, n_members = _search_ensemble(X, losses, n_components, kind, ridge)
    held_out = losses.log_density(n_components, kind, ridge, min(n_members, _N_TRIED))
    weight = fitted_wide_weight(held_out, losses.wide)
    return MixtureChoice(n_components, kind, ridge, n_members, weight)


class _HeldOutLosses:
    """Losses of candidates on held-out rows, nats; each mixture is fitted once.

    Parameters
    ----------
    folds : list of (train, test, wide log density of test)
        The cross-validation.
    seed : int
        Start of the first member; the others count on from it.
    """

    def __init__(self, folds: list[tuple[np.ndarray, np.ndarray, np.ndarray]], seed: int) -> None:
        self.folds, self.seed = folds, seed
        self.wide = np.concatenate([fold[2] for fold in folds])
        self._member = functools.cache(self._member_log_density)

    def _member_log_density(
        self, number: int, n_components: int, kind: str, ridge: float
    ) -> np.ndarray:
        parts = []
        for train, test, _ in self.folds:
            mixture = _fitted(train, n_components, kind, ridge, self.seed + number)
            parts.append(mixture.score_samples(test))
        return np.concatenate(parts)

    def log_density(
        self, n_components: int, kind: str, ridge: float, n_members: int = 1
    ) -> np.ndarray:
        """Return the ensemble's log density of all held-out rows, without the wide component."""
        members = [self._member(m, n_components, kind, ridge) for m in range(n_members)]
        return logsumexp(members, axis=0) - np.log(n_members)

    def of_rows(self, *candidate) -> np.ndarray:
        """Return the loss of every held-out row, with the wide component."""
        main = np.log1p(-WIDE_WEIGHT) + self.log_density(*candidate)
        return -np.logaddexp(main, np.log(WIDE_WEIGHT) + self.wide)

    def mean(self, *candidate) -> float:
        """Return the mean loss."""
        return float(self.of_rows(*candidate).mean())

    def diversity(self, *candidate) -> float:
        """Return how much an ensemble is better than its members are on average, nats, >= 0."""
        *parameters, n_members = candidate
        members = [self._member(m, *parameters).mean() for m in range(n_members)]
        return float(self.log_density(*candidate).mean() - np.mean(members))

    def standard_error(self, first: tuple, second: tuple) -> float:
        """Return the standard error of the difference of two candidates' mean losses."""
        difference = self.of_rows(*first) - self.of_rows(*second)
        return float(difference.std() / np.sqrt(len(difference)))


def _search_ensemble(
    X: np.ndarray, losses: _HeldOutLosses, n_components: int, kind: str, ridge: float
) -> tuple[int, int]:
    """Return components of each member, and members: 1 where all starts lead to the same fit.

    Members may have more components than a single mixture: averaging takes away what these add in
    variance.
    """
    grid = [k for k in _allowed_components(X, kind) if k >= n_components]
    means: dict[int, float] = {}
    for k in grid:
        means[k] = losses.mean(k, kind, ridge, _N_TRIED)
        if len(means) > 2 and means[k] > min(means.values()):
            break
    best = min(means, key=means.get)
    candidates = [(k, kind, ridge, _N_TRIED) for k in (n_components, best)]
    if means[n_components] - means[best] <= _TIE * losses.standard_error(*candidates):
        best = n_components
    # the single mixture that was looked at is no measure: it was chosen for its luck
    if losses.diversity(best, kind, ridge, _N_TRIED) < _LEAST_GAIN:
        return n_components, 1
    n_features = X.shape[1]
    numbers = best * n_features * (2 if kind == "diag" else 1 + n_features)
    n_members = min(_MOST_MEMBERS, _MOST_COMPONENTS // best, _MOST_NUMBERS // numbers)
    return best, max(2, n_members)


def fitted_wide_weight(main: np.ndarray, wide: np.ndarray) -> float:
    """Return the likeliest weight of the second of two densities, from 0.001 to 0.3, by EM.

    Parameters
    ----------
    main, wide : ndarray of shape (n_samples,)
        Log densities of held-out rows under both, nats.
    """
    weight = WIDE_WEIGHT
    for _ in range(100):
        share = expit(np.log(weight) - np.log1p(-weight) + wide - main)
        weight = float(np.clip(share.mean(), _LIGHTEST, _MOST_WIDE_WEIGHT))
    return weight


def _search_ridge(loss: Callable[[float], float], first: float) -> float:
    """Return the ridge with the least loss, searched from the first one in both directions."""
    losses = {first: loss(first)}
    position = _RIDGES.index(first)
    for side in (_RIDGES[position + 1 :], _RIDGES[:position][::-1]):
        for ridge in side:
            losses[ridge] = loss(ridge)
            if losses[ridge] > min(losses.values()):
                break
    return min(losses, key=losses.get)


def _n_parameters(n_components: int, covariance_type: str, n_features: int) -> int:
    of_covariance = {
        "full": n_components * n_features * (n_features + 1) // 2,
        "tied": n_features * (n_features + 1) // 2,
        "diag": n_components * n_features,
    }
    return n_components * (n_features + 1) - 1 + of_covariance[covariance_type]


def _folds(X: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return training rows, test rows and the wide component's log density of these."""
    n_folds = 5 if len(X) < _FEW_ROWS else 3
    if len(X) < n_folds:
        return []
    folds, order = [], np.arange(len(X))
    parts = np.array_split(order, n_folds)
    if len(X) > _MANY_ROWS:
        parts = [order[: len(X) // 4]]
    for part in parts:
        train = X[np.setdiff1d(order, part)]
        wide = multivariate_normal(train.mean(0), wide_covariance(train))
        folds.append((train, X[part], wide.logpdf(X[part]).reshape(-1)))
    return folds


def wide_covariance(X: np.ndarray) -> np.ndarray:
    """Return the covariance (D, D) of the defensive component for rows X."""
    n_features, X = X.shape[1], without_outliers(X)
    spread = np.cov(X.T, bias=True).reshape(n_features, -1) if len(X) > 1 else np.eye(n_features)
    return _WIDE_SPREAD**2 * (spread + COVARIANCE_FLOOR * np.eye(n_features))


def _allowed_components(X: np.ndarray, kind: str) -> list[int]:
    """Return the numbers of components that the rows can support, at least [1]."""
    # with fewer than five rows a component, k-means meets empty clusters
    most_components = max(1, len(np.unique(X, axis=0)) // 5)
    return [
        k
        for k in _COMPONENT_GRID
        if k <= most_components and _n_parameters(k, kind, X.shape[1]) <= 0.5 * X.size
    ] or [1]


def _search_components(
    X: np.ndarray, loss: Callable[[int, str], float]
) -> dict[tuple[int, str], float]:
    """Return the losses of all covariance types, over components until they stop helping."""
    grids = {kind: _allowed_components(X, kind) for kind in _COVARIANCE_TYPES}
    losses: dict[tuple[int, str], float] = {}
    for kind, grid in grids.items():
        found: dict[int, float] = {}
        for position in range(0, len(grid), _COARSE):
            found[position] = losses[grid[position], kind] = loss(grid[position], kind)
            # shells look like one Gaussian until there are many components
            if position - min(found, key=found.get) >= _N_WORSE * _COARSE:
                break
    n_components, kind = min(losses, key=losses.get)
    grid = grids[kind]
    centre = grid.index(n_components)
    for n_components in grid[max(0, centre - _COARSE + 1) : centre + _COARSE]:
        if (n_components, kind) not in losses:
            losses[n_components, kind] = loss(n_components, kind)
    return losses


def _fitted(
    X: np.ndarray, n_components: int, kind: str, ridge: float, seed: int
) -> GaussianMixture:
    mixture = GaussianMixture(
        min(n_components, len(X)),
        covariance_type=kind,
        reg_covar=ridge,
        max_iter=_MAX_EM_ITERATIONS,
        # scikit-learn starts tied covariances of "k-means++" so wide that components merge
        init_params="kmeans" if kind == "tied" else "k-means++",
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(X)
