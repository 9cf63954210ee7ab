"""Log-densities on grids of one or two features; the others are integrated out or held fixed."""

from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import get_tags

from sklvebm.mixtures.missing_cells import reference_log_marginal
from sklvebm.plotting._panels import checked_rows, columns_of, names_of, some_rows
from sklvebm.validation import in_container_of

OTHERS = ("auto", "marginal", "slice")
_MARGIN = 0.15  # of the range of a feature, on each side of it
_RESOLUTION, _COSTLY_RESOLUTION = 80, 32  # points on an axis: usually, and by particles


class Grid(NamedTuple):
    """Where a density is evaluated."""

    columns: list[int]
    names: list[str]  # of the columns
    points: list[np.ndarray]  # one axis for each of the columns
    fill: np.ndarray  # (D,): values of the other features, NaN where they are integrated out
    others: str  # "none", "marginal" or "slice"
    rows: np.ndarray  # (n_rows, n_columns): rows to draw as points
    X: Any  # the rows that were given, for their container


def make_grid(
    estimator: Any, X: Any, *, features: Any, others: str, at: Any, resolution: int | None
) -> Grid:
    """Return the grid of a display, see the parameters of `DensityDisplay.from_estimator`.

    Raises
    ------
    TypeError
        If other features are to be integrated out and the estimator allows no missing cells.
    ValueError
        If a parameter is not legal.
    """
    if others not in OTHERS:
        raise ValueError(f"others must be one of {OTHERS}, got {others!r}.")
    if resolution is not None and resolution < 2:
        raise ValueError(f"grid_resolution must be at least 2, got {resolution}.")
    may_miss = get_tags(estimator).input_tags.allow_nan
    X_plain = checked_rows(X, may_miss=may_miss)
    names = names_of(X, X_plain.shape[1], estimator)
    columns = columns_of(range(min(2, len(names))) if features is None else features, names)
    if others == "marginal" and not may_miss:
        raise TypeError(
            f"{type(estimator).__name__} allows no missing cells, so that other features cannot be "
            'integrated out; pass others="slice".'
        )
    if others == "auto":
        others = "marginal" if may_miss and at is None else "slice"
    fill = np.full(len(names), np.nan)
    if others == "slice":
        fill = np.nanmedian(X_plain, axis=0) if at is None else np.asarray(at, dtype=np.float64)
        if fill.shape != (len(names),):
            raise ValueError(f"at must hold {len(names)} values, got shape {fill.shape}.")
    if resolution is None:
        has_particles = bool(getattr(estimator, "improved_", False))
        is_costly = has_particles and others == "marginal" and len(columns) < len(names)
        resolution = _COSTLY_RESOLUTION if is_costly else _RESOLUTION
    shown = X_plain[:, columns]
    return Grid(
        columns=columns,
        names=[names[column] for column in columns],
        points=[_axis(values, resolution) for values in shown.T],
        fill=fill,
        others="none" if len(columns) == len(names) <= 2 else others,
        rows=some_rows(shown),
        X=X,
    )


def _axis(values: np.ndarray, resolution: int) -> np.ndarray:
    """Return points over the range of a feature and a margin."""
    low, high = np.nanmin(values), np.nanmax(values)
    margin = _MARGIN * (high - low) or 1.0
    return np.linspace(low - margin, high + margin, resolution)


def parts_of(n_columns: int) -> list[tuple[int, ...]]:
    """Return the places of the features of every panel: all alone, and all pairs."""
    if n_columns <= 2:
        return [tuple(range(n_columns))]
    return [(i,) for i in range(n_columns)] + list(combinations(range(n_columns), 2))


def on_grid(
    log_density: Callable[[Any], np.ndarray], grid: Grid
) -> dict[tuple[int, ...], np.ndarray]:
    """Return log-densities, nats, for each panel: (resolution,) or (resolution, resolution).

    Of a pair (i, j), the first axis is feature j and the second feature i, as `contourf` expects.
    """
    found = {}
    for part in parts_of(len(grid.columns)):
        mesh = np.meshgrid(*(grid.points[place] for place in part))
        rows = np.tile(grid.fill, (mesh[0].size, 1))
        for place, values in zip(part, mesh, strict=True):
            rows[:, grid.columns[place]] = values.ravel()
        found[part] = np.asarray(
            log_density(in_container_of(grid.X, rows)), dtype=np.float64
        ).reshape(mesh[0].shape)
    return found


def log_reference(estimator: Any) -> Callable[[Any], np.ndarray]:
    """Return the log-density of an estimator's reference, nats, as a function of rows of X.

    Raises
    ------
    TypeError
        If the estimator has no reference.
    """
    reference = getattr(estimator, "reference_", None)
    if reference is None or not hasattr(reference, "log_marginal"):
        raise TypeError(
            f"{type(estimator).__name__} has no reference that its energy corrects; pass "
            'response="energy".'
        )

    def evaluate(X: Any) -> np.ndarray:
        standardised, log_jacobian = estimator.standardise(X)
        found = reference_log_marginal(reference, torch.from_numpy(standardised)).numpy()
        return np.asarray(found + log_jacobian)

    return evaluate
