"""
Scores beside exact densities
=============================

Rings, shells and the double well have exact log-densities, so that the score of a model can be
compared with the truth: minus the entropy is the best score that is possible.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklvebm import MixtureStack
from sklvebm.datasets import (
    concentric_rings_log_density,
    concentric_shells_entropy,
    concentric_shells_log_density,
    double_well_log_density,
    harmonic_rings_log_density,
    make_concentric_rings,
    make_concentric_shells,
    make_double_well,
    make_harmonic_rings,
)

tables = {
    "rings": (make_concentric_rings, concentric_rings_log_density),
    "shells": (make_concentric_shells, concentric_shells_log_density),
    "double well": (make_double_well, double_well_log_density),
    "wavy rings": (make_harmonic_rings, harmonic_rings_log_density),
}
print(f"entropy of the shells: {concentric_shells_entropy():.3f} nats")

figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
for ax, (name, (make, log_density)) in zip(axes, tables.items(), strict=True):
    train, test = (make(400, random_state=seed) for seed in (0, 1))
    model = MixtureStack(max_components=20, random_state=0).fit(train)
    exact, found = log_density(test), model.score_samples(test)
    print(f"{name:12s} exact {exact.mean():7.3f}, model {found.mean():7.3f} nats per row")
    ax.scatter(exact, found, s=3)
    ends = np.quantile(exact, [0.01, 1.0])
    ax.plot(ends, ends, color="black")
    ax.set(title=name, xlabel="exact, nats", ylabel="model, nats")
