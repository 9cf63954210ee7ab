"""Settings of the mixture search: candidates, stopping rules and limits, each with its unit."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

LOW_RANK = "low-rank"


@dataclass(frozen=True)
class SearchPolicy:
    """Settings of the search for single mixtures; what was measured: docs/benchmarks/defaults.md.

    Attributes
    ----------
    component_grid : tuple of int
        Numbers of components, ascending; the search begins at the first.
    covariance_types : tuple of str
        Some of "full", "tied", "diag" and "low-rank".
    ranks : tuple of int
        Directions of "low-rank", ascending.
    rows_per_column : float
        "low-rank" is tried with fewer rows for each column. With more, full covariances were as
        good or better wherever both were measured.
    fewest_columns : int
        "low-rank" is tried with this many columns or more.
    coarse_step : int
        Grid places from one coarse point to the next; places around the best coarse point are
        tried afterwards.
    patience : int
        Coarse points without improvement that end the search of a covariance type. One is too few:
        data on shells needs many components before any mixture beats a single Gaussian.
    few_rows : int
        Below this number of rows, there are five folds instead of three and a larger first ridge.
    many_rows : int
        Above this number of rows, one quarter is held out once.
    tie : float
        Standard errors of the paired difference of losses within which fewer parameters win.
    ridges : tuple of float
        Added to variances, standardised units squared, ascending.
    first_ridge : float
        Start of the search with few rows; with more rows the start is the covariance floor.
    """

    # fmt: off
    component_grid: tuple[int, ...] = (
        1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 85, 110, 150, 200,
    )
    # fmt: on
    covariance_types: tuple[str, ...] = ("full", "tied", "diag", "low-rank")
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rows_per_column: float = 4.0
    fewest_columns: int = 16
    coarse_step: int = 3
    patience: int = 3
    few_rows: int = 500
    many_rows: int = 1000
    tie: float = 0.25
    ridges: tuple[float, ...] = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3)
    first_ridge: float = 1e-3

    def kinds(self, X: np.ndarray) -> list[str]:
        """Return the covariance types to try for rows (N, D), with ranks: "low-rank-<r>"."""
        n_rows, n_features = X.shape
        kinds = [kind for kind in self.covariance_types if kind != LOW_RANK]
        is_wide = n_features >= self.fewest_columns and n_rows < self.rows_per_column * n_features
        if LOW_RANK in self.covariance_types and (is_wide or not kinds):
            most = max(1, min(n_rows // 4, n_features // 2))
            kinds += [f"{LOW_RANK}-{rank}" for rank in self.ranks if rank <= most]
        return kinds

    def allowed_components(self, X: np.ndarray, kind: str) -> list[int]:
        """Return the numbers of components that rows (N, D) can support, at least [1]."""
        # k-means finds empty clusters where a component has fewer than five rows
        most_components = max(1, len(np.unique(X, axis=0)) // 5)
        return [
            k
            for k in self.component_grid
            if k <= most_components and n_parameters(k, kind, X.shape[1]) <= 0.5 * X.size
        ] or [1]


def rank_of(covariance_type: str) -> int | None:
    """Return r of "low-rank-<r>", or None for another covariance type."""
    word, _, rank = covariance_type.rpartition("-")
    return int(rank) if word == LOW_RANK else None


def n_parameters(n_components: int, covariance_type: str, n_features: int) -> int:
    """Return the number of free parameters of a Gaussian mixture."""
    if (rank := rank_of(covariance_type)) is not None:
        # loadings are defined up to a rotation
        rotations = min(rank * (rank - 1) // 2, rank * n_features)
        return n_components * (n_features * (rank + 2) + 1 - rotations) - 1
    of_covariance = {
        "full": n_components * n_features * (n_features + 1) // 2,
        "tied": n_features * (n_features + 1) // 2,
        "diag": n_components * n_features,
    }
    return n_components * (n_features + 1) - 1 + of_covariance[covariance_type]


@dataclass(frozen=True)
class StackPolicy(SearchPolicy):
    """Settings of the stacking; what was measured of them: docs/benchmarks/defaults.md.

    A *kind* is a covariance type, a number of components and a ridge. A stack is a weighted mean
    of ensembles of one kind each, whose members differ in their starts.

    Attributes
    ----------
    component_grid, ..., first_ridge
        As in `SearchPolicy`.
    min_gain : float
        Smallest gain in nats per row that justifies the cost of an ensemble.
    n_trial_members : int
        Members of an ensemble during the comparison of candidates.
    n_growth_members, growth_places : int
        Members, and grid places per step, in trials of larger numbers of components.
    min_growth_rows, max_judging_rows : int
        Smallest number of rows for these trials, and upper limit on their held-out rows.
    many_held_out_rows, max_errors_behind : int and float
        With more held-out rows than the former, a covariance type is left out if its best single
        mixture is worse than the best of all by more than the latter, in standard errors.
    neighbours : tuple of int
        Grid places, relative to the best single mixture's, whose kinds enter the stack.
    min_share : float
        Kinds with a smaller share of the density are left out.
    max_members, max_components, max_numbers : int
        Limits for all kinds together; numbers are entries of means and covariances.
    least_components : int
        With many columns, this many components are allowed whatever their numbers are.
    min_tail_rows, max_tail_weight : float
        Limits of the weight of all defensive components, the lower one in held-out rows.
    prior_tail_rows : float
        Rows that a Student-like tail counts as in the shares of the defensive components.
    """

    min_gain: float = 1e-3
    n_trial_members: int = 4
    n_growth_members: int = 2
    growth_places: int = 2
    min_growth_rows: int = 7_000
    max_judging_rows: int = 10_000
    many_held_out_rows: int = 1000
    max_errors_behind: float = 4.0
    neighbours: tuple[int, ...] = (-1, 0, 2, 4)
    min_share: float = 0.05
    max_members: int = 32
    max_components: int = 1000
    max_numbers: int = 120_000
    least_components: int = 4
    min_tail_rows: float = 0.25
    max_tail_weight: float = 0.3
    prior_tail_rows: float = 1.0

    def most_components(self, kinds: Iterable[str], n_features: int) -> int:
        """Return the upper limit on the components of members of some covariance types."""
        # an upper bound: tied components share a covariance
        numbers = n_features * (2 if all(kind == "diag" for kind in kinds) else 1 + n_features)
        least = self.least_components if n_features >= self.fewest_columns else 0
        return min(self.max_components, max(least, self.max_numbers // numbers))


DEFAULT_POLICY = StackPolicy()

# Measured in docs/benchmarks/defaults.md. "fast": twice as coarse a grid, and small ensembles; with
# fewer folds, it lost four times as much on tables of a few hundred rows.
_POLICIES = {
    "fast": replace(
        DEFAULT_POLICY,
        component_grid=(1, 2, 4, 8, 16, 32, 64, 128),
        coarse_step=2,
        patience=1,
        many_rows=500,
        ridges=(1e-6, 1e-4, 1e-3, 1e-2, 0.1),
        n_trial_members=2,
        neighbours=(0,),
        max_members=8,
    ),
    "default": DEFAULT_POLICY,
    "thorough": replace(
        DEFAULT_POLICY,
        coarse_step=2,
        patience=4,
        many_rows=3000,
        ridges=(1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3),
        n_trial_members=8,
        n_growth_members=4,
        neighbours=(-2, -1, 0, 1, 2, 3, 4),
        min_share=0.02,
        max_members=64,
        max_components=2000,
        max_numbers=240_000,
    ),
}
EFFORTS = tuple(_POLICIES)


def policy_of(effort: str) -> StackPolicy:
    """Return the settings of the search for one of `EFFORTS`."""
    return _POLICIES[effort]


@runtime_checkable
class HasStackPolicy(Protocol):
    """An estimator that restricts the mixtures of a reference."""

    def stack_policy(self) -> StackPolicy:
        """Return the settings that follow from its parameters."""
