"""The paper's three simulated sets: rows of a seed, entropies, numbers of latents, kept sizes."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from sklvebm import datasets


class DataSet(NamedTuple):
    """How rows of one set are drawn, and what is known of them."""

    draw: Callable
    entropy: Callable  # nats; minus the largest mean log-likelihood
    log_density: Callable  # exact, nats
    n_latents: int
    n_chart: int  # coordinates of the simulator's chart
    n_updates: int  # of training in the paper


SETS = {
    "LCR-2D": DataSet(
        datasets.make_concentric_rings,
        datasets.concentric_rings_entropy,
        datasets.concentric_rings_log_density,
        2,
        2,
        4000,
    ),
    "LCS-3D": DataSet(
        datasets.make_concentric_shells,
        datasets.concentric_shells_entropy,
        datasets.concentric_shells_log_density,
        3,
        3,
        5000,
    ),
    "HMR-2D": DataSet(
        datasets.make_harmonic_rings,
        datasets.harmonic_rings_entropy,
        datasets.harmonic_rings_log_density,
        2,
        22,
        7000,
    ),
}


@cache
def entropy_bound(set_name):
    """Return the largest mean log-likelihood on a set, nats; quadrature takes seconds."""
    return -SETS[set_name].entropy()


class Sizes(NamedTuple):
    """How many rows serve for what."""

    n_train: int = 40_000
    n_test: int = 10_000
    n_compared: int = 2000  # rows reconstructed, and draws compared with test rows
    n_probe: int = 10_000  # training rows that the probe decoder is fitted to and selected on
    n_splits: int = 10  # of the noise floor
    n_factor_train: int = 10_000
    n_factor_test: int = 2000
    max_iter: int | None = None  # epochs at most; None leaves every method its own


QUICK = Sizes(
    n_train=400,
    n_test=150,
    n_compared=50,
    n_probe=200,
    n_splits=2,
    n_factor_train=300,
    n_factor_test=150,
    max_iter=2,
)


class Rows(NamedTuple):
    """Training and test rows of one seed; nothing is chosen on the latter."""

    train: np.ndarray
    test: np.ndarray


def rows_of(set_name, seed, sizes):
    """Return fresh rows; training and test rows come from streams of their own."""
    draw = SETS[set_name].draw
    return Rows(
        draw(sizes.n_train, random_state=41_000 + seed),
        draw(sizes.n_test, random_state=42_000 + seed),
    )


def constant_rmse(X):
    """Return the RMSE per coordinate of predicting the mean."""
    return float(np.sqrt(((X - X.mean(0)) ** 2).mean()))
