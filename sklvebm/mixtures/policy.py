"""How the reference is chosen: what is tried and when the choice ends, each number with a unit."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class SearchPolicy:
    """How single mixtures are searched for; how each number was set: docs/benchmarks/defaults.md.

    Attributes
    ----------
    component_grid : tuple of int
        Numbers of components, ascending; the grid is searched from its start.
    covariance_types : tuple of str
        Some of "full", "tied" and "diag".
    coarse_step : int
        Places on the grid from one coarse point to the next; the neighbours of the best coarse
        point are tried as well. Steps of three find what every place finds on fifteen sets.
    patience : int
        Coarse points without improvement that end the search of a covariance type. Shells look
        like one Gaussian until there are many components, so that one is too few.
    few_rows : int
        Fewer rows are cut into five folds instead of three, and start from a larger ridge.
    many_rows : int
        More rows are split once, a quarter of them held out.
    tie : float
        Standard errors of a paired difference of losses, within which fewer parameters win.
    ridges : tuple of float
        Added to variances, standardised units squared, ascending.
    first_ridge : float
        Where the search begins with few rows; with more, it begins with the covariance floor.
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
        # with fewer than five rows a component, k-means meets empty clusters
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
    """How mixtures are stacked; how each number was set: docs/benchmarks/defaults.md.

    Attributes
    ----------
    component_grid, ..., first_ridge
        As in `SearchPolicy`.
    least_gain : float
        Nats per row, for which an ensemble is worth its cost.
    n_tried : int
        Members of an ensemble while candidates are compared.
    n_grown, growth : int
        The same where components are counted again on many rows, and places on the grid at a time.
    grown_from : int
        Rows from which components are counted again, on as many rows as members have.
    most_judging : int
        Held-out rows that judge it, at most.
    many_held_out, behind : int and float
        With more held-out rows, a covariance type is left out whose best single mixture is that
        many standard errors behind.
    neighbours : tuple of int
        Places on the grid of components around the best single mixture's that share the density.
    least_share : float
        Share of the density below which a kind is left out.
    most_members, most_components, most_numbers : int
        Of all kinds together; numbers are those of means and covariances.
    lightest, heaviest_tail : float
        Held-out rows that the defensive components are worth at least, and their weight at most.
    tail_rows : float
        Rows that a Student-like tail counts as where held-out rows shape the tail.
    """

    least_gain: float = 1e-3
    n_tried: int = 4
    n_grown: int = 2
    growth: int = 2
    grown_from: int = 12_000
    most_judging: int = 10_000
    many_held_out: int = 1000
    behind: float = 4.0
    neighbours: tuple[int, ...] = (-1, 0, 2, 4)
    least_share: float = 0.05
    most_members: int = 32
    most_components: int = 1000
    most_numbers: int = 120_000
    lightest: float = 0.25
    heaviest_tail: float = 0.3
    tail_rows: float = 1.0


DEFAULT_POLICY = StackPolicy()


@runtime_checkable
class HasStackPolicy(Protocol):
    """An estimator that says which mixtures a reference may be stacked of."""

    def stack_policy(self) -> StackPolicy:
        """Return what its parameters allow."""
