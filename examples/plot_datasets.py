"""
Rows with known factors
=======================

:mod:`sklvebm.datasets` draws rows whose factors are known. Of some, the density is known, too: its
entropy bounds what any model can score on them.
"""

import matplotlib.pyplot as plt

from sklvebm import datasets

# title, generator, columns that are shown, factor that colours, its name, colours
panels = [
    ("rings", datasets.make_concentric_rings, (0, 1), 1, "angle", "hsv"),
    ("wavy rings", datasets.make_harmonic_rings, (0, 1), 0, "mean radius", "viridis"),
    ("double well", datasets.make_double_well, (0, 1), 1, "energy", "viridis"),
    ("driven pendulum", datasets.make_pendulum, (0, 1), 1, "phase of the drive", "hsv"),
    ("Kepler orbits", datasets.make_kepler_orbits, (0, 1), 0, "energy", "viridis"),
    ("Lorenz", datasets.make_lorenz, (0, 2), 1, "y", "viridis"),
]
figure, axes = plt.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
for ax, (title, make, columns, factor, label, cmap) in zip(axes.flat, panels, strict=True):
    X, factors = make(2000, return_factors=True, random_state=0)
    points = ax.scatter(*X[:, columns].T, c=factors[:, factor], s=3, cmap=cmap, linewidths=0)
    figure.colorbar(points, ax=ax, label=label)
    ax.set_title(f"{title}, {X.shape[1]} columns")

# %%
# Entropies in nats: no density has a larger expected score than minus these.

for entropy in (
    datasets.concentric_rings_entropy,
    datasets.harmonic_rings_entropy,
    datasets.double_well_entropy,
):
    print(f"{entropy.__name__}: {entropy():.4f}")
