"""Settings of the mixture search: candidates, stopping rules and limits, each with its unit."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class SearchPolicy:
    """Settings of the search for single mixtures; what was measured: docs/benchmarks/defaults.md.

    Attributes
    ----------
    component_grid : tuple of int
        Numbers of components, ascending; the search begins at the first.
    covariance_types : tuple of str
        Some of "full", "tied" and "diag".
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
    covariance_types: tuple[str, ...] = ("full", "tied", "diag")
    coarse_step: int = 3
    patience: int = 3
    few_rows: int = 500
    many_rows: int = 1000
    tie: float = 0.25
    ridges: tuple[float, ...] = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3)
    first_ridge: float = 1e-3

    def allowed_components(self, X: np.ndarray, kind: str) -> list[int]:
        """Return the numbers of components that rows (N, D) can support, at least [1]."""
        # k-means finds empty clusters where a component has fewer than five rows
        most_components = max(1, len(np.unique(X, axis=0)) // 5)
        return [
            k
            for k in self.component_grid
            if k <= most_components and n_parameters(k, kind, X.shape[1]) <= 0.5 * X.size
        ] or [1]


def n_parameters(n_components: int, covariance_type: str, n_features: int) -> int:
    """Return the number of free parameters of a Gaussian mixture."""
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
    min_tail_rows, max_tail_weight : float
        Limits of the weight of all defensive components, the lower one in held-out rows.
    prior_tail_rows : float
        Rows that a Student-like tail counts as in the shares of the defensive components.
    """

    min_gain: float = 1e-3
    n_trial_members: int = 4
    n_growth_members: int = 2
    growth_places: int = 2
    min_growth_rows: int = 12_000
    max_judging_rows: int = 10_000
    many_held_out_rows: int = 1000
    max_errors_behind: float = 4.0
    neighbours: tuple[int, ...] = (-1, 0, 2, 4)
    min_share: float = 0.05
    max_members: int = 32
    max_components: int = 1000
    max_numbers: int = 120_000
    min_tail_rows: float = 0.25
    max_tail_weight: float = 0.3
    prior_tail_rows: float = 1.0


DEFAULT_POLICY = StackPolicy()


@runtime_checkable
class HasStackPolicy(Protocol):
    """An estimator that restricts the mixtures of a reference."""

    def stack_policy(self) -> StackPolicy:
        """Return the settings that follow from its parameters."""
