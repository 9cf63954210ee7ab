"""`LatentDisplay`: latents of rows, coloured by a column."""

from typing import Any, Self

import numpy as np

from sklvebm.plotting._panels import MAX_ROWS, checked_rows, names_of, panels

_MAX_CATEGORIES = 10  # numbers with more different values are drawn with a colour bar


class LatentDisplay:
    """Picture of the latents of rows, coloured by a column or by labels.

    Make one by `LatentDisplay.from_estimator` or `from_predictions`, which also draw it.

    Parameters
    ----------
    latents : ndarray of shape (n_samples, n_shown)
        One or two latents of each row.
    latent_names : list of str
        Their names.
    color : ndarray of shape (n_samples,) or None, default=None
        Numbers or labels.
    color_name : str or None, default=None
        Name of the colour, for its legend.

    Attributes
    ----------
    ax_ : matplotlib axes
        The axes that were drawn on.
    figure_ : matplotlib figure
        Their figure.

    See Also
    --------
    sklvebm.metrics.factor_recovery : How well latents determine known factors.
    DensityDisplay : The density of the rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.plotting import LatentDisplay
    >>> Z = np.random.RandomState(0).normal(size=(50, 2))
    >>> display = LatentDisplay.from_predictions(Z, color=Z[:, 0] > 0, color_name="positive")
    >>> [text.get_text() for text in display.ax_.get_legend().get_texts()]
    ['False', 'True']
    """

    def __init__(
        self,
        *,
        latents: np.ndarray,
        latent_names: list[str],
        color: np.ndarray | None = None,
        color_name: str | None = None,
    ) -> None:
        self.latents = latents
        self.latent_names = latent_names
        self.color = color
        self.color_name = color_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        color: Any = None,
        components: tuple[int, ...] | None = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Compute the latents of rows and draw them.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `transform`.
        X : array-like of shape (n_samples, n_features)
            Rows.
        color : int, str, array-like of shape (n_samples,) or None, default=None
            A column of X, by index or by name, or a value for each row.
        components : sequence of one or two ints or None, default=None
            Latents to show; None shows the first two.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : LatentDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        TypeError
            If the estimator has no `transform`.
        ValueError
            If X or a parameter is not usable.
        """
        if not hasattr(estimator, "transform"):
            raise TypeError(f"{type(estimator).__name__} has no transform, and so no latents.")
        latents = np.asarray(estimator.transform(X), dtype=np.float64)
        names = [str(name) for name in estimator.get_feature_names_out()]
        color_name = options.pop("color_name", None)
        if isinstance(color, int | np.integer | str):
            rows = checked_rows(X, may_miss=True)
            columns = names_of(X, rows.shape[1], estimator)
            place = columns.index(color) if isinstance(color, str) else int(color)
            color, color_name = rows[:, place], columns[place]
        elif color_name is None:
            color_name = getattr(color, "name", None)
        return cls.from_predictions(
            latents,
            color=color,
            color_name=color_name,
            latent_names=names,
            components=components,
            ax=ax,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        latents: Any,
        *,
        color: Any = None,
        color_name: str | None = None,
        latent_names: list[str] | None = None,
        components: tuple[int, ...] | None = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Draw given latents.

        Parameters
        ----------
        latents : array-like of shape (n_samples, n_components)
            Latents of each row.
        color : array-like of shape (n_samples,) or None, default=None
            A number or a label for each row.
        color_name : str or None, default=None
            Name of the colour.
        latent_names : list of str or None, default=None
            Names of all latents; None is z0, z1, ...
        components : sequence of one or two ints or None, default=None
            Latents to show; None shows the first two.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : LatentDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If shapes do not match.
        """
        Z = checked_rows(latents)
        names = latent_names or [f"z{place}" for place in range(Z.shape[1])]
        shown = list(range(min(2, Z.shape[1])) if components is None else components)
        if not 1 <= len(shown) <= 2 or not all(0 <= place < Z.shape[1] for place in shown):
            raise ValueError(
                f"components must be one or two of 0 to {Z.shape[1] - 1}, got {components!r}."
            )
        if color is not None:
            color = np.asarray(color)
            if color.shape != (len(Z),):
                raise ValueError(f"color must hold {len(Z)} values, got shape {color.shape}.")
        display = cls(
            latents=Z[:, shown],
            latent_names=[names[place] for place in shown],
            color=color,
            color_name=color_name,
        )
        return display.plot(ax, **options)

    def plot(self, ax: Any = None, *, s: float = 12.0, cmap: str | None = None) -> Self:
        """Draw the latents.

        Two latents are drawn as points. One latent is drawn against a colour of numbers, or as a
        histogram for each label.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        s : float, default=12.0
            Area of a point, square points of print.
        cmap : str or None, default=None
            Colour map; None is "tab10" for labels and "viridis" for numbers.

        Returns
        -------
        self : LatentDisplay
            With `ax_` and `figure_`.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        self.ax_, _ = panels(type(self).__name__, ax, (1, 1), size=(5.2, 4.2))
        self.figure_ = self.ax_.figure
        # the last points do not hide a class that stands first in a sorted table
        order = np.random.RandomState(0).permutation(len(self.latents))
        Z = self.latents[order]
        color = None if self.color is None else self.color[order]
        labels = None if color is None or not _are_labels(color) else np.unique(color)
        if Z.shape[1] == 1:
            self._draw_one(Z[:, 0], color, labels)
            return self
        if labels is not None and color is not None:
            from matplotlib import colormaps

            shades = dict(zip(labels.tolist(), _shades(colormaps, cmap, len(labels)), strict=True))
            self.ax_.scatter(*Z.T, s=s, c=[shades[label] for label in color.tolist()], alpha=0.8)
            for label, shade in shades.items():
                self.ax_.scatter([], [], s=30, color=[shade], label=str(label))
            self.ax_.legend(title=self.color_name, fontsize="small")
        else:
            drawn = self.ax_.scatter(*Z.T, s=s, c=color, cmap=cmap or "viridis", alpha=0.8)
            if color is not None:
                self.figure_.colorbar(drawn, ax=self.ax_, label=self.color_name or "")
        self.ax_.set(xlabel=self.latent_names[0], ylabel=self.latent_names[1])
        return self

    def _draw_one(self, z: np.ndarray, color: Any, labels: Any) -> None:
        """Draw one latent."""
        self.ax_.set_xlabel(self.latent_names[0])
        if color is not None and labels is None:
            self.ax_.scatter(z[:MAX_ROWS], color[:MAX_ROWS], s=8)
            self.ax_.set_ylabel(self.color_name or "colour")
            return
        groups = [z] if labels is None else [z[color == label] for label in labels]
        names = None if labels is None else [str(label) for label in labels]
        self.ax_.hist(groups, bins=30, stacked=True, label=names)
        self.ax_.set_ylabel("rows")
        if labels is not None:
            self.ax_.legend(title=self.color_name, fontsize="small")


def _are_labels(color: np.ndarray) -> bool:
    """Return whether values are labels: text, truth values, or a few different integers."""
    if color.dtype.kind not in "fiu":
        return True
    different = np.unique(color)
    return len(different) <= _MAX_CATEGORIES and bool((different == np.round(different)).all())


def _shades(colormaps: Any, cmap: str | None, n_labels: int) -> list[Any]:
    """Return a colour for each label."""
    chosen = colormaps[cmap or ("tab10" if n_labels <= 10 else "turbo")]
    if chosen.N <= 20:  # a map of separate colours
        return [chosen(place % chosen.N) for place in range(n_labels)]
    return [chosen(share) for share in np.linspace(0.0, 1.0, n_labels)]
