"""Data sets of the density benchmark: shapes in the plane and in space, physics, small tables."""

from typing import NamedTuple

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split
from toy_data import TOYS

from sklvebm.datasets import (
    concentric_rings_entropy,
    concentric_shells_entropy,
    harmonic_rings_entropy,
)

N_TRAIN, N_TEST = 2000, 10_000
N_PHYSICS = 10_000


class Split(NamedTuple):
    """Training and held-out rows of one seed."""

    train: np.ndarray
    test: np.ndarray


def checkerboard(n, rng):
    """Draw the dark squares of a 4 x 4 board of side 4, uniformly."""
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    return np.stack([column, row], 1) - 2.0 + rng.uniform(size=(n, 2))


def two_spirals(n, rng):
    """Draw two spirals of one and a half turns, noise 0.1."""
    angle = 3.0 * np.pi * np.sqrt(rng.uniform(size=n))
    side = rng.choice([-1.0, 1.0], size=n)
    curve = np.stack([-np.cos(angle), np.sin(angle)], 1) * angle[:, None]
    return side[:, None] * curve / 3.0 + 0.1 * rng.standard_normal((n, 2))


def helix(n, rng):
    """Draw two turns of a helix in space, noise 0.1."""
    angle = 4.0 * np.pi * rng.uniform(size=n)
    curve = np.stack([np.cos(angle), np.sin(angle), angle / np.pi - 2.0], 1)
    return curve + 0.1 * rng.standard_normal((n, 3))


def concentric_rings(n, rng):
    """Draw circles of radius 0.5, 1 and 1.5 with radial noise 0.05 and noise 0.02 (LCR-2D)."""
    angle = 2.0 * np.pi * rng.uniform(size=n)
    radius = rng.choice([0.5, 1.0, 1.5], size=n) + 0.05 * rng.standard_normal(n)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points + 0.02 * rng.standard_normal((n, 2))


def concentric_shells(n, rng):
    """Draw spheres of radius 0.5, 1 and 1.5 with the same noise (LCS-3D)."""
    direction = rng.standard_normal((n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = rng.choice([0.5, 1.0, 1.5], size=n) + 0.05 * rng.standard_normal(n)
    return radius[:, None] * direction + 0.02 * rng.standard_normal((n, 3))


def harmonic_rings(n, rng):
    """Draw rings of mean radius 0.6, 1.5 and 2.4, the outer two wavy, noise 0.02 (HMR-2D)."""
    angle = 2.0 * np.pi * rng.uniform(size=n)
    ring = rng.integers(3, size=n)
    radius = np.array([0.6, 1.5, 2.4])[ring] + 0.02 * rng.standard_normal(n)
    radius += np.where(ring == 1, 0.22 * np.cos(3.0 * angle), 0.0)
    wave = 0.30 * np.cos(5.0 * angle) - 0.12 * np.cos(10.0 * angle)
    radius += np.where(ring == 2, wave, 0.0)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points + 0.02 * rng.standard_normal((n, 2))


SHAPES = {
    **{name: TOYS[name] for name in ("two moons", "swiss roll", "eight gaussians", "pinwheel")},
    "checkerboard": checkerboard,
    "two spirals": two_spirals,
    "helix": helix,
}
PHYSICS = {
    "LCR-2D": concentric_rings,
    "LCS-3D": concentric_shells,
    "HMR-2D": harmonic_rings,
}
# functions that return the entropy, nats: minus the best possible mean log-likelihood
ENTROPIES = {
    "LCR-2D": concentric_rings_entropy,
    "LCS-3D": concentric_shells_entropy,
    "HMR-2D": harmonic_rings_entropy,
}
TABLES = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "diabetes": lambda: datasets.load_diabetes(scaled=False),
    "digits": datasets.load_digits,
}
SETS = (*SHAPES, *PHYSICS, *TABLES)


def smallest_step(column):
    """Return the smallest distance of two different values, 1 if there is only one."""
    values = np.unique(column)
    return np.diff(values).min() if len(values) > 1 else 1.0


def table_rows(name, rng):
    """Return the rows of a table with uniform noise as wide as each column's resolution.

    Measured columns are rounded, and the density of a rounded column is unbounded: with noise of
    one unit of rounding, densities of different methods can be compared.
    """
    X = TABLES[name]().data
    step = np.array([smallest_step(np.round(column, 6)) for column in X.T])
    return X + step * rng.uniform(-0.5, 0.5, size=X.shape)


def split(name, seed):
    """Return training and held-out rows; other seeds draw or split afresh."""
    rng = np.random.default_rng([seed, 20241101])
    if name in TABLES:
        return Split(*train_test_split(table_rows(name, rng), test_size=1 / 3, random_state=seed))
    draw = SHAPES.get(name) or PHYSICS[name]
    return Split(draw(N_TRAIN if name in SHAPES else N_PHYSICS, rng), draw(N_TEST, rng))
