"""Axes for displays: matplotlib on demand, one panel or a grid of them in one place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import check_array

from sklvebm.messages import naming_columns
from sklvebm.validation import as_plain_array

ROW_STYLE = {"s": 6, "color": "0.15", "alpha": 0.6, "linewidths": 0}
MAX_ROWS = 1000  # that a display draws as points


def pyplot(owner: str) -> Any:
    """Return `matplotlib.pyplot`.

    Parameters
    ----------
    owner : str
        Name of the display that needs it, for the message.

    Raises
    ------
    ImportError
        Without matplotlib; says how to install it.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{owner} needs matplotlib, which is not installed. Install it by "
            '`pip install "sklvebm[plot]"` or `pip install matplotlib`.'
        ) from error
    return plt


def panels(
    owner: str, ax: Any, shape: tuple[int, int], *, size: tuple[float, float]
) -> tuple[Any, np.ndarray]:
    """Return the axes that a display owns, and its panels.

    Parameters
    ----------
    owner : str
        Name of the display.
    ax : matplotlib axes or None
        Where to draw; None makes a figure. Axes that have to hold several panels are divided.
    shape : tuple of two ints
        Rows and columns of panels.
    size : tuple of two floats
        Width and height of a panel in a new figure, inches.

    Returns
    -------
    ax : matplotlib axes
        The axes given or made; invisible if they hold several panels.
    axes : ndarray of shape `shape`
        The panels.
    """
    plt = pyplot(owner)
    if ax is None:
        n_rows, n_columns = shape
        _, ax = plt.subplots(figsize=(size[0] * n_columns, size[1] * n_rows), layout="constrained")
    axes = np.empty(shape, dtype=object)
    if axes.size == 1:
        axes[0, 0] = ax
        return ax, axes
    ax.set_axis_off()
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            f"{owner} divides its axes into {axes.size} panels; pass axes of plt.subplots, not of "
            "figure.add_axes."
        )
    grid = place.subgridspec(*shape)
    for row, column in np.ndindex(*shape):
        axes[row, column] = ax.figure.add_subplot(grid[row, column])
    return ax, axes


def checked_rows(X: Any, *, may_miss: bool = False) -> np.ndarray:
    """Return rows as a float64 array (N, D).

    Raises
    ------
    ValueError
        If cells are infinite, or missing where they may not be; says what helps.
    """
    with naming_columns(X):
        rows: np.ndarray = check_array(
            as_plain_array(X), dtype=np.float64, ensure_all_finite="allow-nan", input_name="X"
        )
    n_incomplete = int(np.isnan(rows).any(axis=1).sum())
    if n_incomplete and not may_miss:
        raise ValueError(
            f"X has {n_incomplete} rows with missing cells (NaN), which this display cannot show. "
            "Fill them by ParticleImputer, or pass the complete rows only."
        )
    return rows


def names_of(X: Any, n_features: int, estimator: Any = None) -> list[str]:
    """Return the names of the columns of X, else those that an estimator saw, else x0, x1, ..."""
    for names in (getattr(X, "columns", None), getattr(estimator, "feature_names_in_", None)):
        if names is not None and len(names) == n_features:
            return [str(name) for name in names]
    return [f"x{column}" for column in range(n_features)]


def columns_of(features: Any, names: Sequence[str]) -> list[int]:
    """Return the indices of features, which are given by index or by name.

    Parameters
    ----------
    features : int, str or sequence of them
        Features to show.
    names : sequence of str
        Names of all columns.

    Raises
    ------
    ValueError
        If there is no such feature, none at all, or one twice.
    """
    asked = [features] if isinstance(features, int | np.integer | str) else list(features)
    found = []
    for feature in asked:
        if isinstance(feature, str):
            if feature not in names:
                raise ValueError(f"features must be among {list(names)}, got {feature!r}.")
            found.append(list(names).index(feature))
        elif 0 <= feature < len(names):
            found.append(int(feature))
        else:
            raise ValueError(f"features must be from 0 to {len(names) - 1}, got {feature}.")
    if not found or len(set(found)) < len(found):
        raise ValueError(f"features must be one or more different columns, got {features!r}.")
    return found


def some_rows(rows: np.ndarray, n_rows: int = MAX_ROWS) -> np.ndarray:
    """Return at most `n_rows` rows, spread evenly over all."""
    return rows[:: max(1, -(-len(rows) // n_rows))]


def label_grid(axes: np.ndarray, names: Sequence[str]) -> None:
    """Label the outer panels of a grid of pairs, in which feature i is row and column i."""
    n = len(names)
    for i in range(n):
        axes[n - 1, i].set_xlabel(names[i])
        if i > 0:
            axes[i, 0].set_ylabel(names[i])
        for j in range(n):
            axes[i, j].tick_params(labelbottom=i == n - 1, labelleft=j == 0 and i > 0)
