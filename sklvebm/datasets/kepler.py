"""Positions and velocities on Kepler orbits."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from sklvebm.datasets._sample import Sample
from sklvebm.validation import Interval, check_random_state, validate_params


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "energy_range": [tuple, list],
        "eccentricity_range": [tuple, list],
        "noise": [Interval(Real, 0, None, closed="left")],
        "return_factors": ["boolean"],
        "random_state": ["random_state"],
    }
)
def make_kepler_orbits(
    n_samples: int = 100,
    *,
    energy_range: tuple[float, float] = (-0.75, -0.25),
    eccentricity_range: tuple[float, float] = (0.1, 0.6),
    noise: float = 0.02,
    return_factors: bool = False,
    random_state: Any = None,
) -> Sample:
    r"""Draw positions and velocities of bodies on elliptic orbits around the origin.

    .. math:: \ddot q = -q / |q|^3, \qquad
        E = \tfrac12 |\dot q|^2 - 1 / |q|, \qquad L = q_1 \dot q_2 - q_2 \dot q_1

    Energy and eccentricity e are uniform, all pericentres are on the positive first axis, and the
    time within the period is uniform. Four numbers depend on three factors: without noise, rows
    are on a three-dimensional surface and have no density.

    Parameters
    ----------
    n_samples : int, default=100
        Number of rows; they are independent.
    energy_range : tuple of two floats, default=(-0.75, -0.25)
        Least and largest energy of an orbit, per unit mass where the gravitational parameter is
        one; negative. The semi-major axis is `-1 / (2 E)`.
    eccentricity_range : tuple of two floats, default=(0.1, 0.6)
        Least and largest eccentricity, in [0, 1).
    noise : float, default=0.02
        Standard deviation of measurement, added to all columns.
    return_factors : bool, default=False
        Whether to return the factors of each row.
    random_state : int, RandomState, Generator or None, default=None
        Source of the draws; an int gives the same rows again.

    Returns
    -------
    X : ndarray of shape (n_samples, 4)
        Two coordinates of the position and two of the velocity, float64.
    factors : ndarray of shape (n_samples, 3)
        Energy E, angular momentum `L = sqrt((1 - e²) / (-2 E))` and phase: the mean anomaly, which
        is proportional to the time since pericentre, in [0, 2π), in radians. Only returned with
        `return_factors=True`.

    Raises
    ------
    ValueError
        If a parameter is not legal.

    See Also
    --------
    make_coupled_oscillators : Another conserved energy.
    make_double_well : A particle with two stable positions.

    Notes
    -----
    Instead of an integration, Kepler's equation `M = η - e sin η` is solved to rounding.

    References
    ----------
    .. [1] H. Goldstein, C. Poole and J. Safko, "Classical Mechanics", 3rd ed., Addison-Wesley,
       2002, chapter 3.

    Examples
    --------
    >>> from sklvebm.datasets import make_kepler_orbits
    >>> X, factors = make_kepler_orbits(5, return_factors=True, random_state=0)
    >>> X.shape, factors.shape
    ((5, 4), (5, 3))
    """
    _check_range(energy_range, "energy_range", below=0.0)
    _check_range(eccentricity_range, "eccentricity_range", below=1.0, at_least=0.0)
    random_state = check_random_state(random_state)
    energy = random_state.uniform(*energy_range, n_samples)
    eccentricity = random_state.uniform(*eccentricity_range, n_samples)
    phase = random_state.uniform(0.0, 2.0 * np.pi, n_samples)
    state = _kepler_state(energy, eccentricity, phase)
    X = state + noise * random_state.randn(n_samples, 4)
    if not return_factors:
        return X
    angular_momentum = np.sqrt((1.0 - eccentricity**2) / (-2.0 * energy))
    return X, np.stack([energy, angular_momentum, phase], 1)


def _check_range(
    bounds: tuple[float, float], name: str, *, below: float, at_least: float = -np.inf
) -> None:
    legal = len(bounds) == 2 and at_least <= bounds[0] <= bounds[1] < below
    if not legal:
        rule = f"be (low, high) with low <= high < {below:g}"
        if at_least > -np.inf:
            rule += f" and low >= {at_least:g}"
        raise ValueError(f"{name} must {rule}, got {bounds}.")


def _kepler_state(energy: np.ndarray, eccentricity: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Return position and velocity, shape (n_samples, 4)."""
    axis = -0.5 / energy
    anomaly = _eccentric_anomaly(eccentricity, phase)
    cosine, sine = np.cos(anomaly), np.sin(anomaly)
    flattening = np.sqrt(1.0 - eccentricity**2)
    speed = 1.0 / (np.sqrt(axis) * (1.0 - eccentricity * cosine))
    return np.stack(
        [
            axis * (cosine - eccentricity),
            axis * flattening * sine,
            -speed * sine,
            speed * flattening * cosine,
        ],
        1,
    )


def _eccentric_anomaly(eccentricity: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Solve M = η - e sin η for η, for M in [0, 2π)."""
    # Newton's method converges monotonically from π, the inflection point of the left side
    anomaly = np.full_like(phase, np.pi)
    for _ in range(100):
        excess = anomaly - eccentricity * np.sin(anomaly) - phase
        change = excess / (1.0 - eccentricity * np.cos(anomaly))
        anomaly = anomaly - change
        if np.abs(change).max() < 1e-14:
            break
    return anomaly
