"""Data whose shape is known: five two-dimensional toys and a curved ten-dimensional one."""

import numpy as np


def two_moons(n, rng):
    """Draw two interleaved half circles, noise 0.1."""
    angle = np.pi * rng.uniform(size=n)
    upper = rng.integers(2, size=n).astype(bool)
    x = np.where(upper, np.cos(angle), 1.0 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([x, y], 1) + 0.1 * rng.standard_normal((n, 2))


def swiss_roll(n, rng):
    """Roll up a spiral of one and a half turns, noise 0.1."""
    angle = 1.5 * np.pi * (1.0 + 2.0 * rng.uniform(size=n))
    curve = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1)
    return (curve + rng.standard_normal((n, 2))) / 10.0


def eight_gaussians(n, rng):
    """Draw eight Gaussians of spread 0.2 on a circle of radius 2."""
    angle = rng.integers(8, size=n) * np.pi / 4.0
    centres = 2.0 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centres + 0.2 * rng.standard_normal((n, 2))


def pinwheel(n, rng):
    """Draw five arms, twisted by their radius."""
    radius = 1.0 + 0.3 * rng.standard_normal(n)
    across = 0.1 * rng.standard_normal(n)
    angle = 2.0 * np.pi * rng.integers(5, size=n) / 5.0 + 0.25 * np.exp(radius)
    cos, sin = np.cos(angle), np.sin(angle)
    return 2.0 * np.stack([radius * cos - across * sin, radius * sin + across * cos], 1)


def rings(n, rng):
    """Draw three concentric circles of radius 1, 2 and 3, noise 0.1."""
    radius = 1.0 + rng.integers(3, size=n) + 0.1 * rng.standard_normal(n)
    angle = 2.0 * np.pi * rng.uniform(size=n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


TOYS = {
    "two moons": two_moons,
    "swiss roll": swiss_roll,
    "eight gaussians": eight_gaussians,
    "pinwheel": pinwheel,
    "rings": rings,
}


def toy_rows(name, n_train, n_evaluate, seed=20240601):
    """Return training and evaluation rows of a toy, independent draws from one fixed seed."""
    train, evaluate = np.random.default_rng(seed).spawn(2)
    return TOYS[name](n_train, train), TOYS[name](n_evaluate, evaluate)


def curved_rows(n, seed, n_features=10, n_latents=3):
    """Return rows on a curved surface in `n_features` dimensions plus noise."""
    shape, rng = np.random.default_rng(seed).spawn(2)
    weights = shape.standard_normal((n_latents, n_features))
    bends = shape.standard_normal((n_latents, n_features))
    latents = rng.standard_normal((n, n_latents))
    surface = latents @ weights + np.sin(2.0 * latents @ bends)
    return surface + 0.2 * rng.standard_normal((n, n_features))
