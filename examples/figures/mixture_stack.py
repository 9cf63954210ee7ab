"""Shows why densities are averaged: single Gaussian mixtures, and the stack of many.

Left and middle: two mixtures with the number of components that cross-validation chooses, fitted
from different starts; right: `MixtureStack`. Mean log-densities of new rows stand above. Writes
`docs/images/mixture_stack.png`, in some ten seconds.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV

from sklvebm import MixtureStack

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "mixture_stack.png"
N_TRAIN, N_NEW = 300, 10_000


def chosen_mixtures(X):
    """Return two mixtures of the size that cross-validation chooses, with other starts."""
    grid = {"n_components": [1, 2, 4, 6, 8, 11, 15, 20], "covariance_type": ["full", "diag"]}
    search = GridSearchCV(GaussianMixture(random_state=0), grid, cv=5).fit(X)
    return [search.best_estimator_, GaussianMixture(**search.best_params_, random_state=1).fit(X)]


def draw(ax, model, X, title):
    """Draw the density of a model, and the rows that it was fitted to."""
    sides = [
        np.linspace(low - 0.5, high + 0.5, 200)
        for low, high in zip(X.min(0), X.max(0), strict=True)
    ]
    grid = np.stack(np.meshgrid(*sides), -1)
    density = np.exp(model.score_samples(grid.reshape(-1, 2))).reshape(grid.shape[:2])
    ax.contourf(*sides, density, levels=30, cmap="Blues")
    ax.scatter(*X.T, s=2, color="black", alpha=0.5)
    ax.set(title=title, xticks=[], yticks=[])


def main():
    """Fit, print and draw."""
    X, _ = make_moons(N_TRAIN, noise=0.1, random_state=0)
    new, _ = make_moons(N_NEW, noise=0.1, random_state=1)
    first, second = chosen_mixtures(X)
    stack = MixtureStack(random_state=0).fit(X)
    names = [f"{first.n_components} components", "another start", f"{len(stack.members_)} members"]
    _, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for ax, name, model in zip(axes, names, (first, second, stack), strict=True):
        score = model.score(new)
        print(f"{type(model).__name__}, {name}: {score:.3f} nats a row of {N_NEW} new ones")
        draw(ax, model, X, f"{type(model).__name__}, {name}\n{score:.3f} nats a new row")
    plt.savefig(IMAGE, dpi=100)


if __name__ == "__main__":
    main()
