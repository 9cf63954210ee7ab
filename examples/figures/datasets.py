"""What the data sets of sklvebm look like: a figure of every one, coloured by a true factor.

    python examples/figures/datasets.py [--output docs/images/datasets.png]

Rings, wavy rings and the double well have a density that is known exactly; its entropy bounds what
a model of theirs can score. Shells, orbits and the attractor have more features than a picture has
axes: two are shown. The oscillators' ten features are shown by their two principal components.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from sklearn.decomposition import PCA

from sklvebm import datasets

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "datasets.png"
N_SAMPLES = 4000
# title, name, columns of X that are shown, column of the factors that colours, its name, cyclic?
PANELS = [
    ("rings (LCR-2D)", "make_concentric_rings", (0, 1), 1, "angle", True),
    ("shells (LCS-3D)", "make_concentric_shells", (0, 2), 0, "radius", False),
    ("wavy rings (HMR-2D)", "make_harmonic_rings", (0, 1), 0, "mean radius", False),
    ("double well", "make_double_well", (0, 1), 1, "energy", False),
    ("driven pendulum", "make_pendulum", (0, 1), 1, "phase of the drive", True),
    ("Kepler orbits", "make_kepler_orbits", (0, 1), 0, "energy", False),
    ("Lorenz", "make_lorenz", (0, 2), 1, "y", False),
    ("coupled oscillators", "make_coupled_oscillators", None, 3, "phase of mode 2", True),
]
AXES = {
    "make_double_well": ("position", "momentum"),
    "make_pendulum": ("angle", "velocity"),
    "make_lorenz": ("x", "z"),
    "make_coupled_oscillators": ("component 1", "component 2"),
}
ENTROPIES = {
    "make_concentric_rings": datasets.concentric_rings_entropy,
    "make_concentric_shells": datasets.concentric_shells_entropy,
    "make_harmonic_rings": datasets.harmonic_rings_entropy,
    "make_double_well": datasets.double_well_entropy,
}


def draw(figure, panel, title, name, columns, factor, label, cyclic):
    """Fill one panel and print its data set's entropy where it is known."""
    X, factors = getattr(datasets, name)(N_SAMPLES, return_factors=True, random_state=0)
    shown = PCA(2).fit_transform(X) if columns is None else X[:, columns]
    colours = "hsv" if cyclic else "viridis"
    points = panel.scatter(*shown.T, c=factors[:, factor], cmap=colours, s=2, lw=0)
    figure.colorbar(points, ax=panel, label=label, shrink=0.8)
    x_label, y_label = AXES.get(name, tuple(f"feature {column + 1}" for column in columns or ()))
    panel.set(title=title, xlabel=x_label, ylabel=y_label)
    if name not in AXES:
        panel.set_aspect("equal")
    known = f", entropy {ENTROPIES[name]():.4f} nats" if name in ENTROPIES else ""
    print(f"{title}: {X.shape[1]} features, {factors.shape[1]} factors{known}")


def main():
    """Draw all data sets side by side and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIGURE)
    output = parser.parse_args().output
    figure, panels = plt.subplots(2, 4, figsize=(16, 7.5), layout="constrained")
    for panel, description in zip(panels.flat, PANELS, strict=True):
        draw(figure, panel, *description)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=72)
    print(f"Figure: {output}")


if __name__ == "__main__":
    main()
