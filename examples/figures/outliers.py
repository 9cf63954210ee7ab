"""Shows the threshold of `DensityOutlierDetector`, and which cells make rows of a table odd.

Left: moons with fifteen stray points, the level of the threshold (`contamination="auto"`), and the
rows that it flags. Right: shares of the cells of twelve wines by `explain_outlier`; in four of them
one cell was replaced by that of another wine (boxes). Writes `docs/images/outliers.png`, in half a
minute.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from sklearn.datasets import load_wine, make_moons

from sklvebm import DensityOutlierDetector, MixtureStack

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "outliers.png"
N_SHOWN, N_WRONG = 12, 4


def draw_threshold(ax):
    """Draw moons, stray points and the level of the threshold."""
    moons, _ = make_moons(300, noise=0.08, random_state=0)
    stray = np.random.RandomState(1).uniform([-1.8, -1.3], [2.8, 1.8], (15, 2))
    X = np.concatenate([moons, stray])
    density = MixtureStack(covariance_types=["full"], max_components=12)
    detector = DensityOutlierDetector(density, random_state=0).fit(X)
    sides = np.linspace(-2.0, 3.0, 200), np.linspace(-1.5, 2.0, 200)
    grid = np.stack(np.meshgrid(*sides), -1)
    decision = detector.decision_function(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    ax.contourf(*sides, decision, levels=[0.0, np.inf], colors=["lightsteelblue"])
    flagged = detector.predict(X) == -1
    ax.scatter(*X[~flagged].T, s=6, color="black", label="inliers")
    ax.scatter(*X[flagged].T, s=25, color="crimson", marker="x", label="outliers")
    ax.set(title=f"{flagged.sum()} of {len(X)} rows flagged, 15 are stray", xticks=[], yticks=[])
    ax.legend(loc="lower right", fontsize=8)


def draw_shares(figure, ax):
    """Draw the shares of cells of wines, some of them with a wrong cell."""
    table = load_wine()
    random = np.random.RandomState(3)
    order = random.permutation(len(table.data))
    shown, train = table.data[order[:N_SHOWN]].copy(), table.data[order[N_SHOWN:]]
    columns = random.permutation(shown.shape[1])[:N_WRONG]
    for row, column in enumerate(columns):
        # that of the training row whose value is the most different
        other = train[np.abs(train[:, column] - shown[row, column]).argmax(), column]
        shown[row, column] = other
    density = MixtureStack(covariance_types=["full"], max_components=4)
    detector = DensityOutlierDetector(density, random_state=0).fit(train)
    shares = detector.explain_outlier(shown)
    image = ax.imshow(shares, cmap="Reds", vmin=0.0, vmax=8.0, aspect="auto")
    for row, column in enumerate(columns):
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, lw=2))
    labels = ["outlier" if y == -1 else "inlier" for y in detector.predict(shown)]
    ax.set_yticks(range(N_SHOWN), labels, fontsize=8)
    names = [name.split("/")[0] for name in table.feature_names]
    ax.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    ax.set_title("shares of the cells of twelve wines; boxes: a wrong value")
    figure.colorbar(image, ax=ax, label="nats above the mean", extend="max")
    print(f"the wrong cell is the largest of its row in {(shares[:N_WRONG].argmax(1) == columns)}")


def main():
    """Fit and draw."""
    figure, axes = plt.subplots(
        1, 2, figsize=(12, 4.4), layout="constrained", width_ratios=[1, 1.3]
    )
    draw_threshold(axes[0])
    draw_shares(figure, axes[1])
    plt.savefig(IMAGE, dpi=80)


if __name__ == "__main__":
    main()
