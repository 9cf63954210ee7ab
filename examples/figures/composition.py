"""Shapes made of shapes: a ring and a blob multiplied, divided and tempered.

    python examples/figures/composition.py [--output docs/images/composition.png]

A flow is fitted to a ring, a latent-variable model to a blob on its left. Nothing is fitted
afterwards: each panel shows the log-density of a composition, less its highest value, and a few
hundred of its draws. Printed are brackets of log Z beside sums over the grid.
"""

import argparse
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklvebm import ParticleLVEBM, PotentialFlowEBM, compose
from sklvebm.datasets import make_concentric_rings

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "composition.png"
REACH, N_GRID = 3.5, 121
DEPTH = 8.0  # nats below the highest density that the colours resolve
N_DRAWS = 300


def fitted():
    """Return the models of the ring and of the blob."""
    ring = make_concentric_rings(1500, radii=[1.2], radial_noise=0.1, random_state=0)
    blob = np.random.default_rng(0).normal([-1.0, 0.0], [0.8, 1.2], (1000, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return (
            PotentialFlowEBM(random_state=0).fit(ring),
            ParticleLVEBM(1, random_state=0).fit(blob),
        )


def compositions(ring, blob):
    """Return a composition for each title."""
    return {
        "ring": compose([(ring, 1.0)]),
        "blob": compose([(blob, 1.0)]),
        "ring · blob": compose([(ring, 1.0), (blob, 1.0)]),
        "ring · blob$^{-1/2}$": compose([(ring, 1.0), (blob, -0.5)], n_nodes=16),
        "ring$^{0.2}$": compose([(ring, 0.2)]),
        "(ring · blob)$^3$": compose([(ring, 3.0), (blob, 3.0)], n_nodes=16),
    }


def draw(panel, title, composed, grid, axis):
    """Draw the log-density and draws of one composition; print its normaliser two ways."""
    log_z = composed.log_partition(n_walkers=256, tolerance=0.1, random_state=0)
    log_density = composed.score_samples(grid)
    total = np.log(np.exp(log_density).sum() * (axis[1] - axis[0]) ** 2) + log_z.value
    print(f"{title:22s} log Z in [{log_z.lower:.3f}, {log_z.upper:.3f}], by the grid {total:.3f}")
    relative = (log_density - log_density.max()).reshape(len(axis), len(axis))
    image = panel.pcolormesh(axis, axis, relative, vmin=-DEPTH, vmax=0.0, cmap="magma")
    X = composed.sample(N_DRAWS, random_state=1)
    panel.scatter(*X.T, s=3, c="#7fd4ff", lw=0, alpha=0.8)
    panel.set_title(title)
    panel.set_aspect("equal")
    panel.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[])
    return image


def main():
    """Fit, compose, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FIGURE)
    output = parser.parse_args().output
    axis = np.linspace(-REACH, REACH, N_GRID)
    # the first coordinate changes fastest: rows of a picture are the second
    grid = np.stack([part.ravel() for part in np.meshgrid(axis, axis)], 1)
    figure, panels = plt.subplots(2, 3, figsize=(9.0, 6.2), layout="constrained")
    for panel, (title, composed) in zip(panels.flat, compositions(*fitted()).items(), strict=True):
        image = draw(panel, title, composed, grid, axis)
    figure.colorbar(image, ax=panels, shrink=0.6, label="log-density below its highest value, nats")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
