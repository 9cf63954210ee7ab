"""Shows conditional distributions of missing cells: moons of one coordinate, halves of digits.

Top: the stack of mixtures was fitted to moons of which 30 % of the cells are missing. Left, its
density; middle, rows whose second coordinate is filled by the conditional mean, which lies between
the moons; right, by draws, which lie on them. Bottom: the lower halves of held-out digits are
missing; the truth, the conditional mean, six draws. Writes `docs/images/missing_cells.png`, in
half a minute.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, make_moons

from sklvebm import MixtureStack, ParticleImputer, dequantize

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "missing_cells.png"
N_ROWS, N_NEW, N_HELD_OUT, N_DRAWS = 600, 300, 4, 6


def draw_moons(axes):
    """Draw the density of moons with missing cells, and rows filled in two ways."""
    random = np.random.RandomState(0)
    X, _ = make_moons(N_ROWS, noise=0.07, random_state=0)
    X = np.where(random.uniform(size=X.shape) < 0.3, np.nan, X)
    stack = MixtureStack(random_state=0).fit(X)
    new, _ = make_moons(N_NEW, noise=0.07, random_state=1)
    new[:, 1] = np.nan
    sides = np.linspace(-1.6, 2.6, 200), np.linspace(-1.1, 1.6, 200)
    grid = np.stack(np.meshgrid(*sides), -1)
    density = np.exp(stack.score_samples(grid.reshape(-1, 2))).reshape(grid.shape[:2])
    filled = [stack.conditional_mean(new), stack.sample_conditional(new, 1, 0)[:, 0]]
    titles = ["density, 30 % of the cells missing", "conditional means", "conditional draws"]
    for ax, rows, title in zip(axes, [X, *filled], titles, strict=True):
        ax.contourf(*sides, density, levels=30, cmap="Blues")
        ax.scatter(*rows.T, s=3, color="black", alpha=0.6)
        ax.set(title=title, xticks=[], yticks=[], xlim=sides[0][[0, -1]], ylim=sides[1][[0, -1]])


def draw_digits(axes):
    """Draw digits without their lower halves, filled by means and draws."""
    digits = load_digits().data
    shuffled = dequantize(digits, random_state=0)[np.random.RandomState(0).permutation(len(digits))]
    held_out, X = shuffled[:N_HELD_OUT], shuffled[N_HELD_OUT:]
    density = MixtureStack(covariance_types=["full"], max_components=20)
    imputer = ParticleImputer(density, random_state=0).fit(X)
    half = held_out.copy()
    half[:, 32:] = np.nan
    columns = [held_out, half, imputer.transform(half)]
    imputer.set_params(strategy="sample")
    columns += [imputer.set_params(random_state=i).transform(half) for i in range(N_DRAWS)]
    titles = ["truth", "observed", "mean", *[f"draw {i + 1}" for i in range(N_DRAWS)]]
    for column, rows, title in zip(axes.T, columns, titles, strict=True):
        column[0].set_title(title, fontsize=9)
        for ax, image in zip(column, rows, strict=True):
            ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0.0, vmax=16.0)
            ax.set(xticks=[], yticks=[], facecolor="wheat")


def main():
    """Fit and draw."""
    figure = plt.figure(figsize=(11, 8.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.6])
    draw_moons(top.subplots(1, 3))
    draw_digits(bottom.subplots(N_HELD_OUT, 3 + N_DRAWS))
    plt.savefig(IMAGE, dpi=80)


if __name__ == "__main__":
    main()
