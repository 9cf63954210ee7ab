"""A potential that carries noise to data: two moons, their energies, and digits on their way.

    python examples/figures/potential_flow.py [--output docs/images/potential_flow.png]

On the moons the potential is anchored on a single Gaussian, so that the flow has something to do:
by default it would be anchored on a mixture, which held-out rows do not let it leave. The upper row
shows paths from noise to data, the energy at three times and, last, the logarithm of the density by
the change of variables, which the energy at time 1 should equal. The lower row shows digits.
"""

import argparse
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits, make_moons
from sklearn.exceptions import ConvergenceWarning

from sklvebm import PotentialFlowEBM

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "potential_flow.png"
TIMES = (0.5, 0.8, 1.0)
PATH_TIMES = np.concatenate([np.linspace(0.0, 0.9, 40), np.linspace(0.9, 1.0, 41)[1:]])
SHOWN = (0, 20, 30, 39, 49, 59, 79)  # of PATH_TIMES
SIDE = 10  # pixels of a digit with its margin
DEPTH = 8.0  # nats below the highest density that the colours resolve


def path(model, noise):
    """Return positions of noise (n, d) at PATH_TIMES, (n_times, n, d), standardised, by Heun."""
    potential, x = model.potential_, torch.from_numpy(noise)
    positions = [x]
    for start, stop in zip(PATH_TIMES[:-1], PATH_TIMES[1:], strict=True):
        first = potential.velocity(x, start)
        second = potential.velocity(x + (stop - start) * first, stop)
        x = x + 0.5 * (stop - start) * (first + second)
        positions.append(x)
    return torch.stack(positions).numpy()


def draw_paths(panel, model, X):
    """Draw data, thirty paths and where they end."""
    shown = (X - model.mean_) / model.scale_
    panel.scatter(*shown.T, s=2, c="0.75", lw=0)
    positions = path(model, np.random.default_rng(1).standard_normal((40, 2)))
    for number in range(positions.shape[1]):
        panel.plot(*positions[:, number].T, c="C0", lw=0.7, alpha=0.7)
    panel.scatter(*positions[0].T, s=8, c="C1", lw=0, label="noise", zorder=3)
    panel.scatter(*positions[-1].T, s=8, c="C3", lw=0, label="data", zorder=3)
    panel.legend(loc="lower left", frameon=False, markerscale=2)
    panel.set_title("paths of the flow")


def draw_density(panel, axis, log_density, title):
    """Draw log-densities on the grid, relative to the highest."""
    relative = (log_density - log_density.max()).reshape(len(axis), len(axis))
    image = panel.pcolormesh(axis, axis, relative, vmin=-DEPTH, vmax=0.0, cmap="magma")
    panel.set_title(title)
    return image


def draw_moons(figure, panels):
    """Fit the moons and fill the upper row."""
    X, _ = make_moons(2000, noise=0.1, random_state=0)
    model = PotentialFlowEBM(
        reference="gaussian", margins="none", max_iter=150, random_state=0
    ).fit(X)
    print(f"two moons: {model.n_iter_} epochs\n{model.diagnostics_.report()}")
    draw_paths(panels[0], model, X)
    axis = np.linspace(-2.5, 2.5, 120)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    for panel, t in zip(panels[1:], TIMES, strict=False):
        energy = model.potential_.energy(torch.from_numpy(grid), t)
        draw_density(panel, axis, -energy.numpy(), f"minus energy at time {t:g}")
    flow = model.score_samples(grid * model.scale_ + model.mean_)
    image = draw_density(panels[-1], axis, flow, "log-density by the flow")
    figure.colorbar(image, ax=panels[-1], label="nats below the maximum", shrink=0.8)
    for panel in panels:
        panel.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=(), yticks=())


def tiled(images, n_columns):
    """Return images (n, 64) side by side, with a white margin around each."""
    framed = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    rows = framed.reshape(-1, n_columns, SIDE, SIDE)
    return rows.transpose(0, 2, 1, 3).reshape(-1, SIDE * n_columns)


def draw_digits(panels):
    """Fit the digits and fill the lower row."""
    X = load_digits().data
    X = X + np.random.default_rng(0).uniform(-0.5, 0.5, X.shape)
    model = PotentialFlowEBM(margins="none", random_state=0).fit(X)
    print(f"digits: {model.n_iter_} epochs, kept {model.improved_}\n{model.diagnostics_.report()}")
    positions = path(model, np.random.default_rng(3).standard_normal((10, 64)))
    steps = positions[list(SHOWN)] * model.scale_ + model.mean_
    panels[0].imshow(tiled(steps.reshape(-1, 64), 10), cmap="gray_r", vmin=0, vmax=16)
    panels[0].set_yticks(
        [SIDE * k + 0.5 * (SIDE - 1) for k in range(len(SHOWN))],
        [f"t = {PATH_TIMES[k]:.3g}" for k in SHOWN],
    )
    panels[0].set_title("digits on their way from noise")
    draws = model.sample(70, random_state=0)
    panels[1].imshow(tiled(draws, 10), cmap="gray_r", vmin=0, vmax=16)
    panels[1].set_title("draws")
    panels[2].imshow(tiled(X[:70], 10), cmap="gray_r", vmin=0, vmax=16)
    panels[2].set_title("data")
    for panel in panels:
        panel.set_xticks(())
    for panel in panels[1:]:
        panel.set_yticks(())


def main(arguments=None):
    """Fit both models, draw and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIGURE)
    output = parser.parse_args(arguments).output
    warnings.simplefilter("ignore", ConvergenceWarning)
    figure = plt.figure(figsize=(16, 7.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    draw_moons(upper, upper.subplots(1, 5))
    draw_digits(lower.subplots(1, 3))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=72)
    print(f"Figure: {output}")


if __name__ == "__main__":
    main()
