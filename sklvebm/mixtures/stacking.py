"""Chooses the mixture of the reference by cross-validation: a weighted mean of Gaussian mixtures.

Fits with many components depend on their starts. Mixtures that differ in covariance type or number
of components fit different parts of the data. The mean of their densities is again a Gaussian
mixture, with a higher held-out likelihood than any of them (docs/benchmarks/defaults.md).
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from sklvebm.mixtures.expectation_maximization import Mixture
from sklvebm.mixtures.missing_fit import fit_with_missing
from sklvebm.mixtures.policy import DEFAULT_POLICY, LOW_RANK, StackPolicy
from sklvebm.mixtures.search import (
    TAIL_SHARES,
    Candidate,
    ColumnScales,
    HeldOutLosses,
    column_scales,
    fit_candidate,
    plain_arrays_on_one_thread,
)
from sklvebm.row_weights import chosen, mean_of

MAX_SELECTION_ROWS = 6000  # of the cross-validation
MAX_FITTED_ROWS = 20_000  # of each member
MIN_DEFENSIVE_WEIGHT = 0.01  # of an energy's reference, so that walkers reach wells in its tails
_N_WEIGHT_ITERATIONS = 200  # of expectation maximisation
_MAX_OBSERVED_ITERATIONS = 20  # of a member, with missing cells


class MixturePart(NamedTuple):
    """An ensemble of mixtures of one kind, before it is fitted."""

    candidate: Candidate
    n_members: int
    weight: float  # of all members together


class MixtureChoice(NamedTuple):
    """The stack that cross-validation selects."""

    parts: tuple[MixturePart, ...]  # weights sum to one
    defensive_weight: float  # of all defensive components
    defensive_shares: tuple[float, ...] = tuple(TAIL_SHARES)  # of each of them, summing to one


class MixtureEnsemble(NamedTuple):
    """The weighted mean of the densities of several Gaussian mixtures."""

    members: list[Mixture]
    weights: np.ndarray  # (n_members,), summing to one

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Return log densities (n_samples,), nats."""
        scores = np.stack([member.score_samples(X) for member in self.members], 1)
        return logsumexp(scores + np.log(self.weights), axis=1)


def fit_ensemble(
    X: np.ndarray,
    choice: MixtureChoice,
    random_state: np.random.RandomState,
    observed: np.ndarray | None = None,
    row_weights: np.ndarray | None = None,
) -> MixtureEnsemble:
    """Fit every member to the rows, each from its own start.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows; of more than 20,000, each member is fitted to its own random 20,000.
    choice : MixtureChoice
        The stack to fit.
    random_state : numpy.random.RandomState
        Source of starts.
    observed : ndarray of shape (n_samples, n_features) or None, default=None
        The same rows with NaN in missing cells: members climb the likelihood of the observed cells
        from their fit to X. None where no cell is missing.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.

    Returns
    -------
    ensemble : MixtureEnsemble
        Members of all parts, without those whose covariances are numerically singular.

    Raises
    ------
    ValueError
        If all members are numerically singular.
    """
    order = random_state.permutation(len(X))
    rows = _Rows(X[order], chosen(observed, order), chosen(row_weights, order))
    seed, scales = random_state.randint(2**30), column_scales(rows.X[:MAX_SELECTION_ROWS])
    members, weights = [], []
    with plain_arrays_on_one_thread():
        for part in choice.parts:
            fitted = _fit_part(rows, part, scales, seed)
            seed += part.n_members
            members += fitted
            weights += [part.weight / part.n_members] * len(fitted)
    if not members:
        raise ValueError(
            "No Gaussian mixture can be fitted to X: its columns hold numbers of too different "
            "size. Take logarithms of them, or drop the rows that are far from the others."
        )
    return MixtureEnsemble(members, np.array(weights) / np.sum(weights))


class _Rows(NamedTuple):
    """Rows that members are fitted to."""

    X: np.ndarray  # complete
    observed: np.ndarray | None  # NaN in missing cells
    row_weights: np.ndarray | None

    def some(self, places: np.ndarray) -> "_Rows":
        others = chosen(self.observed, places), chosen(self.row_weights, places)
        return _Rows(self.X[places], *others)


def _fit_part(rows: _Rows, part: MixturePart, scales: ColumnScales, seed: int) -> list[Mixture]:
    """Fit the members of one kind with consecutive seeds, without those that are singular."""
    seeds = range(seed, seed + part.n_members)
    # all members on the same rows, or each one on its own random ones
    groups = [(rows, list(seeds))]
    if (n_rows := len(rows.X)) > MAX_FITTED_ROWS:
        groups = [(rows.some(_some_rows(n_rows, number)), [number]) for number in seeds]
    ridge = part.candidate.ridge * scales.ridge_units
    members = []
    for (X, observed, row_weights), own in groups:
        for member in fit_candidate(X, part.candidate, scales, own, row_weights):
            if member is None:
                continue
            # climbing further with missing cells would fill up the covariances
            if observed is not None and member.covariance_type != LOW_RANK:
                try:
                    how: dict[str, Any] = {"max_iter": _MAX_OBSERVED_ITERATIONS}
                    how["row_weights"] = row_weights
                    member = fit_with_missing(observed, member, ridge, **how)
                except np.linalg.LinAlgError:
                    continue
            members.append(member)
    return members


def _some_rows(n_rows: int, seed: int) -> np.ndarray:
    """Return the rows of one member, which differ between members beyond `MAX_FITTED_ROWS`."""
    return np.random.RandomState(seed).permutation(n_rows)[:MAX_FITTED_ROWS]


def log_density_of(
    losses: HeldOutLosses, shares: dict[Candidate, float], n_members: int | None = None
) -> np.ndarray:
    """Return the log density of held-out rows under small ensembles of weighted kinds."""
    n_members = n_members or losses.policy.n_trial_members
    parts = [np.log(w) + losses.log_density(c, n_members) for c, w in shares.items()]
    return logsumexp(parts, axis=0)


def loss_of(
    losses: HeldOutLosses, shares: dict[Candidate, float], n_members: int | None = None
) -> float:
    """Return the mean loss of held-out rows under weighted kinds, with the tails, nats."""
    return mean_of(losses.losses_of(log_density_of(losses, shares, n_members)), losses.row_weights)


def grown(losses: HeldOutLosses, shares: dict[Candidate, float]) -> dict[Candidate, float]:
    """Return the same kinds with larger numbers of components, as long as held-out rows gain."""
    (fold,) = losses.folds
    n_features = fold.train.shape[1]
    policy = losses.policy
    grids = {k: policy.allowed_components(fold.train, k) for k in {c[1] for c in shares}}
    best, least = shares, loss_of(losses, shares, policy.n_growth_members)
    while True:
        finer: dict[Candidate, float] = {}
        for candidate, share in best.items():
            # this fold may have fewer distinct rows than the selection, hence a shorter grid
            larger = [k for k in grids[candidate.covariance_type] if k > candidate.n_components]
            counts = [candidate.n_components, *larger[: policy.growth_places]]
            grown = candidate._replace(n_components=counts[-1])
            finer[grown] = finer.get(grown, 0.0) + share  # kinds may coincide at the grid's end
        if finer == best or not _is_affordable(policy, finer, n_features, policy.n_growth_members):
            return best
        loss = loss_of(losses, finer, policy.n_growth_members)
        if loss > least - policy.min_gain:
            return best
        best, least = finer, loss


def search_ensemble(X: np.ndarray, losses: HeldOutLosses, single: Candidate) -> Candidate:
    """Return the kind of an ensemble's members: the single mixture, or one with more components.

    Averaging reduces the variance that further components add.
    """
    policy, n_tried = losses.policy, losses.policy.n_trial_members
    grid = policy.allowed_components(X, single.covariance_type)
    means: dict[Candidate, float] = {}
    for n_components in grid[grid.index(single.n_components) :]:
        finer = single._replace(n_components=n_components)
        means[finer] = losses.mean(finer, n_tried)
        if len(means) > 2 and means[finer] > min(means.values()):
            break
    best = min(means, key=means.__getitem__)
    if means[single] - means[best] <= policy.tie * losses.standard_error(single, best, n_tried):
        best = single
    # the single mixture's loss is no criterion: the selection biases it downwards
    return best if losses.diversity(best, n_tried) >= policy.min_gain else single


def stack_of(
    X: np.ndarray,
    losses: HeldOutLosses,
    tried: dict[Candidate, float],
    shares: dict[Candidate, float],
) -> dict[Candidate, float]:
    """Return the likeliest shares of several kinds, without the kinds of small share."""
    (alone,) = shares
    rivals = sorted(_rivals(X, losses, tried, alone))
    stacked = _shares(losses, rivals)
    policy, n_features = losses.policy, X.shape[1]
    if _is_affordable(policy, stacked, n_features):
        return stacked
    kinds = dict.fromkeys((alone.covariance_type, "diag"))  # variances alone are the cheapest
    of_kinds = [[c for c in rivals if c.covariance_type == kind] for kind in kinds]
    found = [_shares(losses, own) for own in of_kinds if own]
    found = [stack for stack in found if _is_affordable(policy, stack, n_features)]
    return min(found, key=partial(loss_of, losses), default=shares)


def _rivals(
    X: np.ndarray, losses: HeldOutLosses, tried: dict[Candidate, float], alone: Candidate
) -> set[Candidate]:
    """Return the kinds that may enter the stack: grid neighbours of each covariance type's best."""
    policy, rivals = losses.policy, {alone}
    best = min(tried, key=tried.__getitem__)
    for kind in {candidate.covariance_type for candidate in tried}:
        own = {c: loss for c, loss in tried.items() if c.covariance_type == kind}
        first = min(own, key=own.__getitem__)
        behind = (own[first] - tried[best]) / max(losses.standard_error(first, best), 1e-12)
        if len(losses.wide) > policy.many_held_out_rows and behind > policy.max_errors_behind:
            continue
        together, by_itself = (alone, first), (first,)
        if not any(_is_affordable(policy, kinds, X.shape[1]) for kinds in (together, by_itself)):
            continue
        grid = policy.allowed_components(X, kind)
        places = np.add(grid.index(first.n_components), policy.neighbours).clip(0, len(grid) - 1)
        rivals |= {Candidate(grid[place], kind, alone.ridge) for place in places}
    return rivals


def _shares(losses: HeldOutLosses, candidates: list[Candidate]) -> dict[Candidate, float]:
    # the defensive density is part of the mixture: otherwise rows in the tails alone decide
    n_tried = losses.policy.n_trial_members
    columns = [losses.log_density(candidate, n_tried) for candidate in candidates]
    weights = likeliest_weights(np.stack([*columns, losses.wide], 1), losses.row_weights)[:-1]
    weights = weights / weights.sum()
    kept = weights >= min(losses.policy.min_share, weights.max())
    total = weights[kept].sum()
    return {c: float(w / total) for c, w, k in zip(candidates, weights, kept, strict=True) if k}


def likeliest_weights(
    log_densities: np.ndarray, row_weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the maximum likelihood weights of a mixture of given densities, by EM.

    Parameters
    ----------
    log_densities : ndarray of shape (n_samples, n_densities)
        Log densities of held-out rows, nats.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.

    Returns
    -------
    weights : ndarray of shape (n_densities,)
        Non-negative, summing to one.
    """
    weights = np.full(log_densities.shape[1], 1.0 / log_densities.shape[1])
    ratios = np.exp(log_densities - log_densities.max(1, keepdims=True))
    for _ in range(_N_WEIGHT_ITERATIONS):
        joint = ratios * np.maximum(weights, 1e-300)
        shares = joint / joint.sum(1, keepdims=True)
        weights = shares.mean(0) if row_weights is None else np.average(shares, 0, row_weights)
    return weights


def _is_affordable(
    policy: StackPolicy,
    kinds: Iterable[Candidate],
    n_features: int,
    n_members: int | None = None,
) -> bool:
    n_members = n_members or policy.n_trial_members
    n_components = n_members * sum(candidate.n_components for candidate in kinds)
    return n_components <= policy.most_components((c[1] for c in kinds), n_features)


def parts_of(
    losses: HeldOutLosses, shares: dict[Candidate, float], n_features: int, n_tried: int
) -> tuple[MixturePart, ...]:
    """Distribute members to kinds by share; one member where all starts give the same fit."""
    policy = losses.policy
    wanted = {
        candidate: max(2, round(policy.max_members * share))
        if losses.diversity(candidate, n_tried) >= policy.min_gain
        else 1
        for candidate, share in shares.items()
    }
    n_components = sum(candidate.n_components * n for candidate, n in wanted.items())
    most = policy.most_components((candidate[1] for candidate in shares), n_features)
    scale = min(1.0, most / n_components)
    return tuple(
        MixturePart(candidate, max(min(2, n), int(scale * n)), shares[candidate])
        for candidate, n in wanted.items()
    )


def fitted_defensive_weight(
    main: np.ndarray,
    wide: np.ndarray,
    policy: StackPolicy = DEFAULT_POLICY,
    row_weights: np.ndarray | None = None,
) -> float:
    """Return the likeliest total weight of the defensive components, 0.3 at most.

    Parameters
    ----------
    main, wide : ndarray of shape (n_samples,)
        Log densities of held-out rows under the mixtures and the defensive components, nats.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        As in `likeliest_weights`.

    Returns
    -------
    weight : float
        At least a quarter of one row's share: new rows may lie in the tails even if no held-out
        row does.
    """
    weight = likeliest_weights(np.stack([main, wide], 1), row_weights)[1]
    return float(np.clip(weight, policy.min_tail_rows / len(main), policy.max_tail_weight))


def fitted_defensive_shares(
    main: np.ndarray,
    wide: np.ndarray,
    defensive_weight: float,
    policy: StackPolicy = DEFAULT_POLICY,
    row_weights: np.ndarray | None = None,
) -> tuple[float, ...]:
    """Return the likeliest shares of the defensive components, by EM.

    A Student-like tail enters as a prior that counts as one row: it determines the shares at
    distances without rows.

    Parameters
    ----------
    main : ndarray of shape (n_samples,)
        Log densities of held-out rows under the mixtures, nats.
    wide : ndarray of shape (n_samples, n_defensive)
        Log densities under each defensive component, nats.
    defensive_weight : float
        Weight of all defensive components together.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        As in `likeliest_weights`.

    Returns
    -------
    shares : tuple of float
        Positive, summing to one.
    """
    shares = TAIL_SHARES
    main = np.log1p(-defensive_weight) + main
    wide = np.log(defensive_weight) + wide
    largest = np.maximum(main, wide.max(1))
    ratio, ratios = np.exp(main - largest), np.exp(wide - largest[:, None])
    times = 1.0 if row_weights is None else row_weights[:, None]
    for _ in range(_N_WEIGHT_ITERATIONS):
        joint = ratios * shares
        counts = (times * joint / (ratio + joint.sum(1))[:, None]).sum(0)
        counts = counts + policy.prior_tail_rows * TAIL_SHARES
        shares = counts / counts.sum()
    return tuple(float(share) for share in shares)
