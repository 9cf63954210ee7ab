"""One latent of curved rows: as in probabilistic PCA, and along the rows.

    python examples/figures/latent_maps.py

Writes `docs/images/latent_maps.png`. Rows are coloured by their latent; the line is
`inverse_transform` of the latents from one end to the other, E[x | z]. Both models have the same
density, to the last digit.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.feature_selection import r_regression
from sklearn.neighbors import KNeighborsRegressor

from sklvebm import ParticleLVEBM

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "latent_maps.png"
N = 1500


def spiral(rng):
    """Return rows along a spiral and where on it they are."""
    angle = 2.0 * np.pi * rng.uniform(size=N)
    turn = 1.5 * np.pi + 1.5 * angle
    X = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1) / 10.0
    return X + 0.1 * rng.standard_normal(X.shape), angle


def helix(rng):
    """Return rows along a helix and where on it they are."""
    angle = 2.0 * np.pi * rng.uniform(size=N)
    X = np.stack([np.cos(2.0 * angle), np.sin(2.0 * angle), angle / np.pi - 1.0], 1)
    return X + 0.1 * rng.standard_normal(X.shape), angle


def moons(rng):
    """Return two half circles and the angle on them, the second counted on from the first."""
    X, moon = make_moons(N, noise=0.08, random_state=rng.integers(2**31))
    angle = np.where(
        moon == 0, np.arctan2(X[:, 1], X[:, 0]), np.pi + np.arctan2(0.5 - X[:, 1], 1.0 - X[:, 0])
    )
    return X, angle


def recovery(model, X, factor):
    """Return R^2 of the factor by ten neighbours in latent space, halves against each other."""
    Z, half = model.transform(X), N // 2
    regressor = KNeighborsRegressor(10).fit(Z[:half], factor[:half])
    return regressor.score(Z[half:], factor[half:])


def draw(axis, model, X, factor, title):
    """Draw rows, coloured by their latent, and the curve of the model."""
    Z = model.transform(X)[:, 0]
    grid = np.linspace(*np.quantile(Z, [0.01, 0.99]), 80)[:, None]
    line = model.inverse_transform(grid)
    columns = [0, 2] if X.shape[1] == 3 else [0, 1]
    axis.scatter(*X[:, columns].T, c=np.sign(r_regression(Z[:, None], factor)) * Z, s=4)
    axis.plot(*line[:, columns].T, color="black", lw=1.5)
    axis.set_title(f"{title}\nscore {model.score(X):.3f}, R² {recovery(model, X, factor):.3f}")
    axis.set_xticks([])
    axis.set_yticks([])


def main():
    """Fit six models and draw them."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
    for column, make in enumerate((moons, spiral, helix)):
        X, factor = make(np.random.default_rng(0))
        for row, kind in enumerate(("linear", "auto")):
            model = ParticleLVEBM(1, latent_map=kind, random_state=0).fit(X)
            draw(axes[row, column], model, X, factor, f'{make.__name__}, latent_map="{kind}"')
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    main()
