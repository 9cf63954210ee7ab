r"""
Products and powers of densities
================================

:func:`~sklvebm.compose` multiplies fitted models without fitting anything again:
:math:`p(x) \propto p_1(x)^{a} p_2(x)^{b}`. The normaliser is bracketed.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklvebm import MixtureStack, compose
from sklvebm.datasets import make_concentric_rings

ring = MixtureStack(max_components=16, random_state=0).fit(
    make_concentric_rings(800, radii=[1.2], radial_noise=0.1, random_state=0)
)
blob = MixtureStack(max_components=1, random_state=0).fit(
    np.random.default_rng(0).normal([-1.0, 0.0], [0.8, 1.2], (500, 2))
)
compositions = {
    "ring": compose([(ring, 1.0)]),
    "ring · blob": compose([(ring, 1.0), (blob, 1.0)]),
    "ring$^{0.2}$": compose([(ring, 0.2)]),
}
axis = np.linspace(-3.0, 3.0, 80)
grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for ax, (title, composed) in zip(axes, compositions.items(), strict=True):
    energy = composed.energy(grid).reshape(80, 80)
    ax.contourf(axis, axis, energy - energy.min(), levels=np.linspace(0.0, 8.0, 17), cmap="magma_r")
    ax.scatter(*composed.sample(200, random_state=0).T, s=4, color="tab:cyan")
    ax.set(title=title, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    log_z = composed.log_partition(n_walkers=128, tolerance=0.2, random_state=0)
    print(f"{title}: log Z in [{log_z.lower:.3f}, {log_z.upper:.3f}]")
