"""`EnergyDisplay`: negative log-density on a plane, and where it departs from the reference."""

from typing import Any, Self

import numpy as np

from sklvebm.plotting._grids import log_reference, make_grid, on_grid
from sklvebm.plotting._panels import ROW_STYLE, panels

RESPONSES = ("energy", "correction")


class EnergyDisplay:
    """Picture of an energy of one or two features, or of its correction of the reference.

    Make one by `EnergyDisplay.from_estimator`, which also draws it.

    Parameters
    ----------
    points : list of ndarray of shape (grid_resolution,)
        Axis of the grid for each feature shown, in its units.
    values : ndarray of shape (grid_resolution,) or (grid_resolution, grid_resolution)
        Nats. "energy": `-log p` above its minimum on the grid. "correction": `log r - log p`, with
        r the reference; negative where the model has more mass than its reference. The first of
        two axes is the second feature.
    feature_names : list of str
        Names of the features shown.
    response : {"energy", "correction"}, default="energy"
        What the values are.
    rows : ndarray of shape (n_rows, n_shown) or None, default=None
        Rows to draw as points.
    others : {"none", "marginal", "slice"}, default="none"
        What was done to the features that are not shown.

    Attributes
    ----------
    ax_ : matplotlib axes
        The axes that were drawn on.
    figure_ : matplotlib figure
        Their figure.

    See Also
    --------
    DensityDisplay : The density itself.
    TrainingDisplay : How the energy was trained.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import MixtureStack
    >>> from sklvebm.plotting import EnergyDisplay
    >>> X, _ = make_moons(300, noise=0.1, random_state=0)
    >>> model = MixtureStack(max_components=8, random_state=0).fit(X)
    >>> display = EnergyDisplay.from_estimator(model, X)
    >>> float(display.values.min())
    0.0
    """

    def __init__(
        self,
        *,
        points: list[np.ndarray],
        values: np.ndarray,
        feature_names: list[str],
        response: str = "energy",
        rows: np.ndarray | None = None,
        others: str = "none",
    ) -> None:
        self.points = points
        self.values = values
        self.feature_names = feature_names
        self.response = response
        self.rows = rows
        self.others = others

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        features: Any = None,
        response: str = "energy",
        others: str = "auto",
        at: Any = None,
        grid_resolution: int | None = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Evaluate the energy of a fitted density on a grid and draw it.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `score_samples`; for "correction" also with `reference_`, `mean_` and
            `scale_`.
        X : array-like of shape (n_samples, n_features)
            Rows that set the limits of the picture and are drawn as points.
        features : int, str, sequence of one or two of them, or None, default=None
            Features to show; None shows the first two.
        response : {"energy", "correction"}, default="energy"
            What to show.
        others : {"auto", "marginal", "slice"}, default="auto"
            Treatment of the other features, as in `DensityDisplay.from_estimator`.
        at : array-like of shape (n_features,) or None, default=None
            Where to slice, in the units of X; None takes the medians of X.
        grid_resolution : int or None, default=None
            Points on each axis. None is 80, and 32 where an energy integrates other features out:
            each point then needs particles.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : EnergyDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        TypeError
            If the estimator has no reference, or no missing cells, that are needed.
        ValueError
            If X or a parameter is not usable.
        """
        if response not in RESPONSES:
            raise ValueError(f"response must be one of {RESPONSES}, got {response!r}.")
        grid = make_grid(
            estimator, X, features=features, others=others, at=at, resolution=grid_resolution
        )
        if len(grid.columns) > 2:
            raise ValueError(f"features must be one or two, got {len(grid.columns)}.")
        (log_density,) = on_grid(estimator.score_samples, grid).values()
        if response == "correction":
            (log_r,) = on_grid(log_reference(estimator), grid).values()
            values = log_r - log_density
        else:
            values = log_density.max() - log_density
        display = cls(
            points=grid.points,
            values=values,
            feature_names=grid.names,
            response=response,
            rows=grid.rows,
            others=grid.others,
        )
        return display.plot(ax, **options)

    def plot(
        self,
        ax: Any = None,
        *,
        max_energy: float = 10.0,
        cmap: str | None = None,
        show_rows: bool = True,
    ) -> Self:
        """Draw the energy or the correction.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        max_energy : float, default=10.0
            Energies above are drawn alike, nats. Corrections reach as far on both sides of zero as
            the largest one, at most this far.
        cmap : str or None, default=None
            Colour map; None is "viridis_r" for energies and "RdBu_r" for corrections.
        show_rows : bool, default=True
            Draw the rows as points.

        Returns
        -------
        self : EnergyDisplay
            With `ax_` and `figure_`.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        self.ax_, _ = panels(type(self).__name__, ax, (1, 1), size=(5.2, 4.2))
        self.figure_ = self.ax_.figure
        is_energy = self.response == "energy"
        label = "energy above its minimum, nats" if is_energy else "correction, nats"
        if len(self.points) == 1:
            self.ax_.plot(self.points[0], self.values)
            self.ax_.set(xlabel=self.feature_names[0], ylabel=label)
            if is_energy:
                self.ax_.set_ylim(-0.03 * max_energy, max_energy)
            if show_rows and self.rows is not None:
                floor = np.full(len(self.rows), 0.02)
                transform = self.ax_.get_xaxis_transform()
                self.ax_.plot(self.rows[:, 0], floor, "|", color="0.15", transform=transform)
            return self
        reach = max_energy if is_energy else min(max_energy, np.abs(self.values).max() or 1.0)
        filled = self.ax_.contourf(
            *self.points,
            self.values,
            levels=np.linspace(0.0 if is_energy else -reach, reach, 21),
            cmap=cmap or ("viridis_r" if is_energy else "RdBu_r"),
            extend="max" if is_energy else "both",
        )
        self.figure_.colorbar(filled, ax=self.ax_, label=label)
        self.ax_.set(xlabel=self.feature_names[0], ylabel=self.feature_names[1])
        if show_rows and self.rows is not None:
            self.ax_.scatter(*self.rows.T, **ROW_STYLE)
        return self
