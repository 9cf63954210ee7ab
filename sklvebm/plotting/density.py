"""`DensityDisplay`: the log-density of one, two or more features."""

from typing import Any, Self

import numpy as np

from sklvebm.plotting._grids import make_grid, on_grid
from sklvebm.plotting._panels import ROW_STYLE, label_grid, panels

MASSES = (0.99, 0.95, 0.8, 0.5, 0.2)


def mass_levels(log_density: np.ndarray, masses: Any) -> np.ndarray:
    """Return the log-densities above which regions of a grid hold given shares of its mass.

    Parameters
    ----------
    log_density : ndarray
        Nats, on an even grid that covers the density.
    masses : sequence of float
        Shares between zero and one, decreasing.

    Returns
    -------
    levels : ndarray of shape (n_masses,)
        Increasing, nats.
    """
    highest_first = np.sort(log_density, axis=None)[::-1]
    mass = np.cumsum(np.exp(highest_first - highest_first[0]))
    places = np.searchsorted(mass / mass[-1], masses)
    return highest_first[np.minimum(places, len(mass) - 1)]


class DensityDisplay:
    """Picture of a density: a curve, regions of highest density, or a grid of pairs.

    Make one by `DensityDisplay.from_estimator`, which also draws it.

    Parameters
    ----------
    points : list of ndarray of shape (grid_resolution,)
        Axis of the grid for each feature shown, in its units.
    log_densities : dict of tuple to ndarray
        Log-densities in nats, by the places of the features in a panel: `(0,)` for a curve, of
        shape (grid_resolution,); `(0, 1)` for a plane, of shape (grid_resolution,
        grid_resolution), whose first axis is the second feature.
    feature_names : list of str
        Names of the features shown.
    rows : ndarray of shape (n_rows, n_shown) or None, default=None
        Rows to draw as points.
    others : {"none", "marginal", "slice"}, default="none"
        What was done to the features that are not shown.

    Attributes
    ----------
    ax_ : matplotlib axes
        The axes that were drawn on; those around the panels if there are several.
    axes_ : ndarray of shape (n_shown, n_shown) or (1, 1)
        The panels.
    figure_ : matplotlib figure
        Their figure.

    See Also
    --------
    EnergyDisplay : Negative log-density, and where it differs from the reference.
    SampleComparisonDisplay : Draws of the model beside rows.

    Notes
    -----
    Filled regions are those of highest density with 99, 95, 80, 50 and 20 percent of the mass
    within the plane that is shown.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import MixtureStack
    >>> from sklvebm.plotting import DensityDisplay
    >>> X, _ = make_moons(300, noise=0.1, random_state=0)
    >>> model = MixtureStack(max_components=8, random_state=0).fit(X)
    >>> display = DensityDisplay.from_estimator(model, X)
    >>> display.log_densities[0, 1].shape
    (80, 80)
    """

    def __init__(
        self,
        *,
        points: list[np.ndarray],
        log_densities: dict[tuple[int, ...], np.ndarray],
        feature_names: list[str],
        rows: np.ndarray | None = None,
        others: str = "none",
    ) -> None:
        self.points = points
        self.log_densities = log_densities
        self.feature_names = feature_names
        self.rows = rows
        self.others = others

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        features: Any = None,
        others: str = "auto",
        at: Any = None,
        grid_resolution: int | None = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Evaluate a fitted density on a grid and draw it.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `score_samples`.
        X : array-like of shape (n_samples, n_features)
            Rows that set the limits of the picture and are drawn as points.
        features : int, str, sequence of them or None, default=None
            One feature gives a curve, two give a plane, more give a grid of pairs. None shows the
            first two.
        others : {"auto", "marginal", "slice"}, default="auto"
            Treatment of the other features. "marginal" integrates them out, as the estimator does
            with missing cells: exact for mixtures, by particles otherwise. "slice" holds them
            fixed: the picture is the joint density on a plane, proportional to the conditional
            density. "auto" is "marginal" where the estimator allows missing cells and `at` is
            None.
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
        display : DensityDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        TypeError
            If features have to be integrated out of a density without missing cells.
        ValueError
            If X or a parameter is not usable.
        """
        grid = make_grid(
            estimator, X, features=features, others=others, at=at, resolution=grid_resolution
        )
        display = cls(
            points=grid.points,
            log_densities=on_grid(estimator.score_samples, grid),
            feature_names=grid.names,
            rows=grid.rows,
            others=grid.others,
        )
        return display.plot(ax, **options)

    def plot(
        self,
        ax: Any = None,
        *,
        masses: Any = MASSES,
        cmap: str = "Blues",
        show_rows: bool = True,
    ) -> Self:
        """Draw the density.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        masses : sequence of float, default=(0.99, 0.95, 0.8, 0.5, 0.2)
            Shares of the mass within the filled regions, decreasing.
        cmap : str, default="Blues"
            Colour map of the regions.
        show_rows : bool, default=True
            Draw the rows as points.

        Returns
        -------
        self : DensityDisplay
            With `ax_`, `axes_` and `figure_`.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        n = len(self.points)
        shape = (1, 1) if n <= 2 else (n, n)
        size = (5.0, 4.2) if n <= 2 else (2.2, 2.0)
        self.ax_, self.axes_ = panels(type(self).__name__, ax, shape, size=size)
        self.figure_ = self.ax_.figure
        for part, log_density in self.log_densities.items():
            panel = self.axes_[0, 0] if n <= 2 else self.axes_[part[-1], part[0]]
            rows = self.rows[:, part] if show_rows and self.rows is not None else None
            if len(part) == 1:
                self._draw_curve(panel, part[0], log_density, rows)
            else:
                regions = self._draw_regions(panel, part, log_density, masses, cmap)
                if rows is not None:
                    panel.scatter(*rows.T, **ROW_STYLE)
        if n == 1:
            self.axes_[0, 0].set(xlabel=self.feature_names[0], ylabel="density")
        elif n == 2:
            names = self.feature_names
            self.axes_[0, 0].set(xlabel=names[0], ylabel=names[1])
            bar = self.figure_.colorbar(
                regions, ax=self.axes_[0, 0], spacing="uniform", label="mass within"
            )
            bar.set_ticks(regions.levels[:-1], labels=[f"{100 * mass:g} %" for mass in masses])
        else:
            label_grid(self.axes_, self.feature_names)
            for i, j in zip(*np.triu_indices(n, 1), strict=True):
                self.axes_[i, j].set_axis_off()
        if self.others != "none" and n <= 2:
            title = {"marginal": "marginal density", "slice": "slice of the joint density"}
            self.axes_[0, 0].set_title(title[self.others], fontsize="medium")
        return self

    def _draw_curve(
        self, panel: Any, place: int, log_density: np.ndarray, rows: np.ndarray | None
    ) -> None:
        """Draw the density of one feature, and its rows as short strokes."""
        density = np.exp(log_density)
        panel.fill_between(self.points[place], density, color="tab:blue", alpha=0.25, lw=0)
        panel.plot(self.points[place], density, color="tab:blue")
        panel.set_ylim(bottom=0.0)
        if rows is not None:
            panel.plot(
                rows[:, 0],
                np.full(len(rows), 0.02),
                "|",
                color="0.15",
                alpha=0.4,
                transform=panel.get_xaxis_transform(),
            )

    def _draw_regions(
        self, panel: Any, part: tuple[int, ...], log_density: np.ndarray, masses: Any, cmap: str
    ) -> Any:
        """Fill the regions of highest density of two features."""
        levels = np.maximum.accumulate(mass_levels(log_density, masses))
        # equal levels, on a coarse grid, would be refused
        levels = levels + 1e-9 * np.arange(len(levels))
        axes = (self.points[place] for place in part)
        shades = np.linspace(0.15, 0.85, len(levels))
        colors = [_shade(cmap, shade) for shade in shades]
        top = max(log_density.max(), levels[-1]) + 1.0
        return panel.contourf(*axes, log_density, levels=[*levels, top], colors=colors)


def _shade(cmap: str, shade: float) -> Any:
    """Return a colour of a named map."""
    import matplotlib

    return matplotlib.colormaps[cmap](shade)
