"""Digits drawn by two models of images, and the way from one digit to another.

    python examples/figures/digits.py [--output docs/images/digits.png]

Both models see all of scikit-learn's digits, 8 x 8 pixels with uniform noise as wide as a grey
level, as images: their corrections of a Gaussian mixture are convolutional. The left half shows
rows and draws; the right half paths between held-out rows, through the flow's 64 latents (ends are
the rows themselves) and through eight latents (ends are what these keep of the rows).
"""

import argparse
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from sklvebm import ParticleLVEBM, PotentialFlowEBM, interpolate

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "digits.png"
SHAPE, SIDE = (8, 8), 10  # pixels of an image, and of its place
N_ROWS, N_COLUMNS = 6, 8


def mosaic(rows):
    """Return rows of images (n, m, 64) as one picture."""
    n, m = rows.shape[:2]
    picture = np.zeros((n * SIDE, m * SIDE))
    for i in range(n):
        for j in range(m):
            image = rows[i, j].reshape(SHAPE)
            picture[i * SIDE + 1 : i * SIDE + 9, j * SIDE + 1 : j * SIDE + 9] = image
    return picture


def show(panel, rows, title):
    """Draw rows of images (n, m, 64)."""
    panel.imshow(mosaic(rows), cmap="gray_r", vmin=0.0, vmax=17.0)
    panel.set_title(title, fontsize=10)
    panel.set_axis_off()


def main():
    """Fit, draw, interpolate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FIGURE)
    parser.add_argument("--max-iter", type=int, default=100)
    arguments = parser.parse_args()
    X, y = load_digits(return_X_y=True)
    X = X + np.random.default_rng(0).uniform(size=X.shape)
    train, test, _, digit = train_test_split(X, y, test_size=1 / 3, random_state=0, stratify=y)
    models = {
        "PotentialFlowEBM": PotentialFlowEBM(image_shape=SHAPE, random_state=0),
        "ParticleLVEBM": ParticleLVEBM(8, image_shape=SHAPE, random_state=0),
    }
    pairs = [(0, 1), (2, 3), (4, 9), (5, 6), (7, 1), (8, 3)]
    ends = [(test[digit == a][0], test[digit == b][1]) for a, b in pairs]
    figure, panels = plt.subplots(2, 3, figsize=(9.5, 5.2), layout="constrained")
    shape = (N_ROWS, N_COLUMNS, 64)
    show(panels[0, 0], test[: N_ROWS * N_COLUMNS].reshape(shape), "held-out rows")
    panels[1, 0].set_axis_off()
    for line, (name, model) in enumerate(models.items()):
        begin = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(max_iter=arguments.max_iter).fit(train)
        print(
            f"{name}: {time.process_time() - begin:.0f} s of the processor, "
            f"{model.n_iter_} epochs, {'kept' if model.improved_ else 'the reference'}, "
            f"{model.score(test[:200]):.2f} nats on 200 held-out rows"
        )
        show(
            panels[line, 1],
            model.sample(N_ROWS * N_COLUMNS, random_state=0).reshape(shape),
            f"draws of {name}",
        )
        paths = [interpolate(model, start, end, N_COLUMNS) for start, end in ends]
        show(
            panels[line, 2],
            np.stack(paths),
            f"ways through its {'64' if line == 0 else '8'} latents",
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=110)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
