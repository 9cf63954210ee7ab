r"""Closed curves `r(\phi)` around the origin, with noise along the radius and in the plane.

A row is `(r(\phi) + \sigma_r \epsilon)\, u(\phi) + \sigma_x \xi` with a uniform angle φ, direction
u, and standard normal ε and ξ. Given the angle, it is Gaussian with variance
`\sigma_r^2 + \sigma_x^2` along `u(\phi)` and `\sigma_x^2` across it. The density is an integral
over the angle with a periodic and analytic integrand, for which the trapezoidal rule converges
exponentially once its step resolves the noise.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils import check_array

_BLOCK_EXPONENTS = 2**18  # in memory at a time
_MAX_NODES = 2**22  # angles of the trapezoidal rule
_NODES_PER_BLUR = 12.0  # angles per inverse angular scale: the error is below rounding
_N_ACROSS, _N_ALONG = 8, 20  # Gauss-Hermite nodes of an entropy: six digits for separate rings

Curves = Callable[[np.ndarray], np.ndarray]  # angles (n,) -> radii (n_curves, n)


def positive_vector(values: Any, name: str) -> np.ndarray:
    """Return positive numbers as an array of shape (n,), float64."""
    values = check_array(values, ensure_2d=False, dtype=np.float64, input_name=name)
    if values.ndim != 1 or values.min() <= 0.0:
        raise ValueError(f"{name} must be a sequence of positive numbers, got {values.tolist()}.")
    return values


def check_rows(X: Any, n_features: int) -> np.ndarray:
    """Return rows as an array of shape (n_samples, n_features), float64."""
    X = check_array(X, dtype=np.float64, input_name="X")
    if X.shape[1] != n_features:
        raise ValueError(f"X must have {n_features} features, got {X.shape[1]}.")
    return X


def directions(angle: np.ndarray) -> np.ndarray:
    """Return unit vectors of shape (n, 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def draw(
    curves: Curves,
    n_samples: int,
    radial_noise: float,
    noise: float,
    random_state: np.random.RandomState,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw rows (n, 2), their curve's index, radius before the noise in the plane, and angle."""
    angle = random_state.uniform(0.0, 2.0 * np.pi, n_samples)
    radii = curves(angle)
    index = random_state.randint(len(radii), size=n_samples)
    radius = radii[index, np.arange(n_samples)] + radial_noise * random_state.randn(n_samples)
    X = radius[:, None] * directions(angle) + noise * random_state.randn(n_samples, 2)
    return X, index, radius, angle


def log_density(
    X: Any, curves: Curves, steepness: float, radial_noise: float, noise: float
) -> np.ndarray:
    """Return log densities of rows, shape (n_samples,), in nats.

    `steepness` bounds the derivatives of the radii by the angle.
    """
    X = check_rows(X, 2)
    along = np.hypot(radial_noise, noise)
    distance = np.hypot(*X.T)
    order = np.argsort(distance)
    result = np.empty(len(X))
    while len(order):
        # the noise spans a smaller angle at distant rows; rows of similar distance share a grid
        blur = distance[order[-1]] / noise + steepness / along
        n_nodes = int(_NODES_PER_BLUR * (blur + 8.0))
        if n_nodes > _MAX_NODES:
            raise ValueError(
                f"Rows of X must lie within {_MAX_NODES / _NODES_PER_BLUR:.0f} times the noise "
                f"({noise:g}) of the origin, got a distance of {distance[order[-1]]:g}."
            )
        angle = 2.0 * np.pi * np.arange(n_nodes) / n_nodes
        radii = curves(angle)
        n_rows = max(1, _BLOCK_EXPONENTS // radii.size)
        order, rows = order[:-n_rows], order[-n_rows:]
        result[rows] = _log_mean(X[rows], angle, radii, along, noise)
    return result - np.log(2.0 * np.pi * noise * along)


def _log_mean(
    X: np.ndarray, angle: np.ndarray, radii: np.ndarray, along: float, noise: float
) -> np.ndarray:
    """Return the logarithm of the mean, over angles and curves, of exp(-misfit); shape (n,)."""
    u = directions(angle)
    across = X @ (u[:, ::-1] * [-1.0, 1.0]).T / noise  # (n, n_nodes)
    misfit = (X @ u.T)[:, None] - radii  # (n, n_curves, n_nodes)
    exponent = -0.5 * ((misfit / along) ** 2 + across[:, None] ** 2)
    largest = exponent.max(axis=(1, 2))
    total = np.exp(exponent - largest[:, None, None]).mean(axis=(1, 2))
    return largest + np.log(total)


def entropy(
    curves: Curves, steepness: float, radial_noise: float, noise: float, *, n_angles: int
) -> float:
    """Return minus the mean log density, in nats, by quadrature over angle and noises.

    `n_angles` equidistant angles are used; one is exact for circles.
    """
    along = np.hypot(radial_noise, noise)
    (g, weight_g), (h, weight_h) = (
        np.polynomial.hermite_e.hermegauss(n) for n in (_N_ALONG, _N_ACROSS)
    )
    weight = np.outer(weight_g, weight_h) / (weight_g.sum() * weight_h.sum())
    total = 0.0
    for angle in 2.0 * np.pi * np.arange(n_angles) / n_angles:
        (u,) = directions(np.array([angle]))
        v = np.array([-u[1], u[0]])
        for radius in curves(np.array([angle]))[:, 0]:
            X = (radius + along * g)[:, None, None] * u + noise * h[:, None] * v
            value = log_density(X.reshape(-1, 2), curves, steepness, radial_noise, noise)
            total += weight.ravel() @ value
    return -float(total) / (n_angles * len(curves(np.zeros(1))))
