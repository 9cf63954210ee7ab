"""The picture of the README: a density, the cells of odd rows, filled cells.

    python examples/figures/front_page.py

Writes `docs/images/front_page.png`, in a quarter of a minute.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris, load_wine, make_moons

from sklvebm import DensityOutlierDetector, MixtureStack
from sklvebm.plotting import DensityDisplay, ImputationDisplay, OutlierDisplay

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "front_page.png"


def draw_density(ax):
    """Draw the density of two moons."""
    X, _ = make_moons(800, noise=0.1, random_state=0)
    model = MixtureStack(random_state=0).fit(X)
    DensityDisplay.from_estimator(model, X, ax=ax)
    ax.set_title("densities: shares of the mass")


def draw_outliers(ax):
    """Draw the shares of cells of wines, two of which have a wrong one."""
    X = load_wine(as_frame=True).data.iloc[:, :9]
    density = MixtureStack(max_components=4)
    detector = DensityOutlierDetector(density, contamination=0.1, random_state=0).fit(X[10:])
    new = X[:6].copy()
    new.loc[1, "flavanoids"] = 0.3
    new.loc[4, "malic_acid"] = 6.5
    OutlierDisplay.from_estimator(detector, new, ax=ax)
    ax.set_title("outliers: which cell is odd")


def draw_imputation(ax):
    """Draw irises with missing cells."""
    X = load_iris(as_frame=True).data
    holes = X.mask(np.random.RandomState(0).uniform(size=X.shape) < 0.2)
    model = MixtureStack(max_components=6, random_state=0).fit(holes)
    ImputationDisplay.from_estimator(model, holes, features=[0, 2], ax=ax)
    ax.set_title("missing cells: means and intervals")


def main():
    """Fit and draw."""
    figure, axes = plt.subplots(
        1, 3, figsize=(15, 4.2), layout="constrained", width_ratios=[1.15, 1.2, 1]
    )
    for ax, draw in zip(axes, (draw_density, draw_outliers, draw_imputation), strict=True):
        draw(ax)
    figure.savefig(FIGURE, dpi=70)


if __name__ == "__main__":
    main()
