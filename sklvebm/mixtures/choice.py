"""Chooses the mixtures of given rows: single ones, ensembles, stacks, and weights of the tails."""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from sklvebm.mixtures.policy import DEFAULT_POLICY, StackPolicy
from sklvebm.mixtures.search import (
    COVARIANCE_FLOOR,
    DEFENSIVE_WEIGHT,
    TAIL_SHARES,
    Candidate,
    Fold,
    HeldOutLosses,
    column_scales,
    one_fold,
    plain_arrays_on_one_thread,
    search_singles,
    split_folds,
)
from sklvebm.mixtures.stacking import (
    MAX_FITTED_ROWS,
    MAX_SELECTION_ROWS,
    MixtureChoice,
    MixturePart,
    fitted_defensive_shares,
    fitted_defensive_weight,
    grown,
    log_density_of,
    loss_of,
    parts_of,
    search_ensemble,
    stack_of,
)
from sklvebm.preprocessing.splitting import repeats_together
from sklvebm.row_weights import chosen


class JudgedChoice(NamedTuple):
    """A choice of mixtures, with the densities of held-out rows that it rests on."""

    choice: MixtureChoice
    rows: np.ndarray  # (n_judged,), indices of the held-out rows
    log_density: np.ndarray  # (n_judged,), of each of them under the mixtures of the others, nats


class SearchedRows(NamedTuple):
    """Held-out rows and their log densities under the best single mixture of the others."""

    rows: np.ndarray  # (n_judged,), indices
    log_density: np.ndarray  # (n_judged,), nats


class MixtureSearch:
    """The search for the mixtures of given rows by held-out likelihood, in two steps.

    The first step chooses covariance type, number of components and ridge of a single mixture. The
    second one chooses an ensemble of such mixtures, perhaps with more components; a stack of
    several kinds; with many rows, more components of each kind. BIC is cheaper, but selects too
    few components for curved data and is unreliable with few rows in many dimensions.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows. At most 6,000 random ones are used, and at most 30,000 in the last step.
    random_state : numpy.random.RandomState
        Source of folds and starts.
    policy : StackPolicy or None, default=None
        Settings of the search; None is the default.
    observed : ndarray of shape (n_samples, n_features) or None, default=None
        The same rows with NaN in missing cells: held-out rows are judged by their observed cells.
        None where no cell is missing.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts, in fits and in held-out means; None counts each row once.
    """

    def __init__(
        self,
        X: np.ndarray,
        random_state: np.random.RandomState,
        policy: StackPolicy | None = None,
        observed: np.ndarray | None = None,
        row_weights: np.ndarray | None = None,
    ) -> None:
        self._policy = policy or DEFAULT_POLICY
        self._seed = random_state.randint(2**30)
        order = random_state.permutation(len(X))[:MAX_SELECTION_ROWS]
        self._every, self._weights = X, row_weights
        self._given = X if observed is None else observed
        self._order = repeats_together(X, order)
        self._some = X[self._order]
        self._singles: tuple[Candidate, dict[Candidate, float]] | None = None
        with plain_arrays_on_one_thread():
            known = self._given[self._order], chosen(row_weights, self._order)
            folds, self._others = split_folds(self._some, self._policy, *known)
            self.is_possible = bool(folds)
            if folds:
                self._scales = column_scales(self._some)
                self._losses = self._losses_of(folds)

    def _losses_of(self, folds: list[Fold]) -> HeldOutLosses:
        return HeldOutLosses(folds, self._seed, self._scales, self._policy)

    def _searched(self) -> tuple[Candidate, dict[Candidate, float]]:
        if self._singles is None:
            self._singles = search_singles(self._some, self._losses)
        return self._singles

    @plain_arrays_on_one_thread()
    def singles(self) -> SearchedRows:
        """Return held-out rows and their log densities under the best single mixture.

        None are held out if there are fewer rows than folds.
        """
        if not self.is_possible:
            return SearchedRows(self._order[:0], np.zeros(0))
        log_density = -self._losses.of_rows(self._searched()[0])
        # folds follow each other in the order of the rows
        return SearchedRows(self._order[: len(log_density)], log_density)

    @plain_arrays_on_one_thread()
    def judged(self) -> JudgedChoice:
        """Return the choice: a single component, and no rows, if there are too few rows."""
        if not self.is_possible:
            return JudgedChoice(self._one_component(), self._order[:0], np.zeros(0))
        policy, order, shares = self._policy, self._order, self._chosen_shares()
        losses = self._losses
        if len(self._every) >= policy.min_growth_rows:
            order, losses = self._many_rows()
            shares = grown(losses, shares)
            n_tried = policy.n_growth_members
            main, wide = log_density_of(losses, shares, n_tried), losses.defensive_components
        else:
            n_tried = policy.n_trial_members
            main, wide = log_density_of(losses, shares), losses.defensive_components
            if self._others:  # rows in the tails are few: the weight uses the other folds as well
                of_others = self._losses_of(self._others)
                main = np.append(main, log_density_of(of_others, shares, 1))
                wide = np.concatenate([wide, of_others.defensive_components])
        parts = parts_of(losses, shares, self._every.shape[1], n_tried)
        # folds follow each other in the order of the rows
        judged = order[: len(main)]
        how: dict[str, Any] = {"policy": policy, "row_weights": chosen(self._weights, judged)}
        weight = fitted_defensive_weight(main, logsumexp(wide + np.log(TAIL_SHARES), axis=1), **how)
        tails = fitted_defensive_shares(main, wide, weight, **how)
        of_tails = logsumexp(wide + np.log(tails), axis=1) + np.log(weight)
        log_density = np.logaddexp(np.log1p(-weight) + main, of_tails)
        return JudgedChoice(MixtureChoice(parts, weight, tails), judged, log_density)

    def _one_component(self) -> MixtureChoice:
        kinds = self._policy.kinds(self._some)
        one = Candidate(1, "diag" if "diag" in kinds else kinds[0], COVARIANCE_FLOOR)
        return MixtureChoice((MixturePart(one, 1, 1.0),), DEFENSIVE_WEIGHT)

    def _many_rows(self) -> tuple[np.ndarray, HeldOutLosses]:
        """Return an order of all rows, and the losses of one fold that begins it."""
        order = np.random.RandomState(self._seed).permutation(len(self._every))
        order = repeats_together(self._every, order)
        limits = MAX_FITTED_ROWS, self._policy.max_judging_rows
        fold = one_fold(self._every, self._given, order, limits, self._weights)
        return order, self._losses_of([fold])

    def _chosen_shares(self) -> dict[Candidate, float]:
        """Return the kinds of the stack and their shares of the density."""
        losses, (single, tried) = self._losses, self._searched()
        shares = {search_ensemble(self._some, losses, single): 1.0}
        stacked = stack_of(self._some, losses, tried, shares)
        # a superfluous weight gains about one nat in the sum over held-out rows by overfitting
        least_gain = losses.policy.min_gain + (len(stacked) - 1) / len(losses.wide)
        return (
            stacked if loss_of(losses, stacked) < loss_of(losses, shares) - least_gain else shares
        )


def choose_mixture(
    X: np.ndarray,
    random_state: np.random.RandomState,
    policy: StackPolicy | None = None,
    observed: np.ndarray | None = None,
    row_weights: np.ndarray | None = None,
) -> MixtureChoice:
    """Choose mixtures and their weights by held-out likelihood; see `MixtureSearch`."""
    return MixtureSearch(X, random_state, policy, observed, row_weights).judged().choice
