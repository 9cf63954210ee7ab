"""Bars and ellipses of 16 x 16 pixels or more: densities of images, beside scikit-learn's own.

    python examples/figures/shapes.py                       # 16 x 16
    python examples/figures/shapes.py --size 32 --only "probabilistic PCA" WassersteinFlowEBM
    python examples/figures/shapes.py --output docs/images/shapes.png

Rows are drawn by `make_shape_images`, which adds noise of a known standard deviation to shapes of
five factors. A density that knew the shape of every row would have the noise's own log-density;
"short of the noise" is by how many nats a model stays below that. No model can reach it: a part is
the entropy of where the shapes are. Held-out rows are scored once; seconds are of the processor.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM
from sklvebm.datasets import make_shape_images

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import classical_rivals  # noqa: E402  (a module of the benchmarks)

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "shapes.png"
NOISE = 0.05
N_TRAIN, N_HELD_OUT, N_SCORED, N_SHOWN = 2000, 500, 200, 8
ESTIMATORS = {
    "ParticleLVEBM": lambda shape: ParticleLVEBM(8, image_shape=shape, random_state=0),
    "PotentialFlowEBM": lambda shape: PotentialFlowEBM(image_shape=shape, random_state=0),
    "WassersteinFlowEBM": lambda shape: WassersteinFlowEBM(image_shape=shape, random_state=0),
}
RIVALS = {
    name: classical_rivals.RIVALS[name]
    for name in ("probabilistic PCA", "factor analysis", "kernel density")
}


def fit_rival(name, train):
    """Return scores, draws (none) and settings of one of scikit-learn's densities."""
    mean, scale = train.mean(0), train.std(0)
    fitted = RIVALS[name]((train - mean) / scale, 0)

    def score_samples(rows):
        return fitted.score_samples((rows - mean) / scale) - np.log(scale).sum()

    return score_samples, None, fitted.settings


def fit_estimator(name, train, size):
    """Return scores, draws and settings of one of the three estimators."""
    model = ESTIMATORS[name]((size, size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train)
        draws = model.sample(N_SHOWN)
    kept = "kept" if model.improved_ else "the reference"
    return model.score_samples, draws, f"{model.n_iter_} epochs, {kept}"


def main():
    """Fit, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = (*RIVALS, *ESTIMATORS)
    parser.add_argument("--size", type=int, default=16, help="side of the images, pixels")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="methods")
    parser.add_argument("--output", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    size = arguments.size
    X = make_shape_images(N_TRAIN + N_HELD_OUT, size=size, noise=NOISE, random_state=0)
    train, held_out = X[:N_TRAIN], X[N_TRAIN:]
    of_noise = -0.5 * size**2 * np.log(2.0 * np.pi * np.e * NOISE**2)
    print(f"{size} x {size}, {N_TRAIN} rows; the noise alone: {of_noise:.1f} nats")
    lines = {"rows": held_out[:N_SHOWN]}
    for name in arguments.only:
        begin = time.process_time()
        fit = fit_rival(name, train) if name in RIVALS else fit_estimator(name, train, size)
        score_samples, draws, settings = fit
        fitted = time.process_time()
        score = score_samples(held_out[:N_SCORED]).mean()
        scored = time.process_time()
        print(
            f"{name:20s} {score:9.2f} nats, short of the noise {of_noise - score:8.2f}, "
            f"fit {fitted - begin:6.1f} s, score {scored - fitted:6.1f} s, {settings}",
            flush=True,
        )
        if draws is not None:
            lines[name] = draws
    figure, panels = plt.subplots(
        len(lines), N_SHOWN, figsize=(N_SHOWN, 1.15 * len(lines)), layout="constrained"
    )
    for line, (name, rows) in zip(np.atleast_2d(panels), lines.items(), strict=True):
        for panel, row in zip(line, rows, strict=True):
            panel.imshow(row.reshape(size, size), cmap="gray_r", vmin=-0.2, vmax=1.2)
            panel.set_axis_off()
        line[0].set_title(name, fontsize=9, loc="left")
    figure.savefig(arguments.output, dpi=110)
    print(arguments.output)


if __name__ == "__main__":
    main()
