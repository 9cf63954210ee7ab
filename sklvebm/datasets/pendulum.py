"""Phase portrait of a damped pendulum with a periodic drive."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from sklvebm.datasets._ensemble import flow
from sklvebm.datasets._sample import Sample
from sklvebm.validation import Interval, check_random_state, validate_params

_NONNEGATIVE = [Interval(Real, 0, None, closed="left")]


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "damping": _NONNEGATIVE,
        "drive": _NONNEGATIVE,
        "drive_frequency": [Interval(Real, 0, None, closed="neither")],
        "duration": _NONNEGATIVE,
        "start_velocity": _NONNEGATIVE,
        "noise": _NONNEGATIVE,
        "return_factors": ["boolean"],
        "random_state": ["random_state"],
    }
)
def make_pendulum(
    n_samples: int = 100,
    *,
    damping: float = 0.5,
    drive: float = 1.2,
    drive_frequency: float = 2.0 / 3.0,
    duration: float = 60.0,
    start_velocity: float = 1.0,
    noise: float = 0.02,
    return_factors: bool = False,
    random_state: Any = None,
) -> Sample:
    r"""Draw angle and velocity of a damped and driven pendulum.

    .. math:: \ddot\theta + c\,\dot\theta + \sin\theta = a \cos(\Omega t + \psi)

    Time is in units of `1 / ω_0`, with the pendulum's angular frequency ω_0. Every row is the end
    of a separate trajectory, which starts at a uniform angle, a normal velocity and a uniform phase
    ψ of the drive. Rows are therefore independent, and the phase of the drive at the end is
    uniform, too. With the defaults, the motion is chaotic [1]_ and rows cover its attractor at all
    phases. `drive=0` with a short `duration` gives the spirals of a pendulum that comes to rest;
    without damping in addition, closed orbits.

    Parameters
    ----------
    n_samples : int, default=100
        Number of rows; they are independent.
    damping : float, default=0.5
        Friction c, in units of ω_0.
    drive : float, default=1.2
        Amplitude a of the torque, in units of the gravitational one.
    drive_frequency : float, default=2/3
        Angular frequency Ω, in units of ω_0.
    duration : float, default=60
        Time of a trajectory, in units of 1 / ω_0.
    start_velocity : float, default=1
        Standard deviation of the velocity at the start, in units of ω_0.
    noise : float, default=0.02
        Standard deviation of measurement, added to both columns.
    return_factors : bool, default=False
        Whether to return the factors of each row.
    random_state : int, RandomState, Generator or None, default=None
        Source of the draws; an int gives the same rows again.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        Angle in [-π, π), in radians and 0 at rest, wrapped after the noise; angular velocity, in
        units of ω_0. float64.
    factors : ndarray of shape (n_samples, 2)
        Energy `θ'^2 / 2 + 1 - cos θ` without noise, in units of `m g l`, and phase of the drive in
        [0, 2π), in radians. Only returned with `return_factors=True`.

    Raises
    ------
    ValueError
        If a parameter is not legal.
    ArithmeticError
        If the trajectories could not be integrated.

    See Also
    --------
    make_double_well : Noise instead of a drive.
    make_lorenz : An autonomous system in space.

    Notes
    -----
    Integrated by an eighth-order Runge-Kutta method with a relative tolerance of 1e-8. Chaos
    amplifies that error: the distribution of trajectories is reproducible across platforms, single
    trajectories are not.

    References
    ----------
    .. [1] G. L. Baker and J. P. Gollub, "Chaotic Dynamics: An Introduction", 2nd ed., Cambridge
       University Press, 1996.

    Examples
    --------
    >>> from sklvebm.datasets import make_pendulum
    >>> X, factors = make_pendulum(5, return_factors=True, random_state=0)
    >>> X.shape, factors.shape
    ((5, 2), (5, 2))
    """
    random_state = check_random_state(random_state)
    start = np.stack(
        [
            random_state.uniform(-np.pi, np.pi, n_samples),
            start_velocity * random_state.randn(n_samples),
        ]
    )
    phase = random_state.uniform(0.0, 2.0 * np.pi, n_samples)

    def derivative(time: float, state: np.ndarray) -> np.ndarray:
        angle, velocity = state
        torque = drive * np.cos(drive_frequency * time + phase)
        return np.stack([velocity, torque - damping * velocity - np.sin(angle)])

    angle, velocity = flow(derivative, start, duration) if duration > 0.0 else start
    X = np.stack([angle, velocity], 1) + noise * random_state.randn(n_samples, 2)
    X[:, 0] = (X[:, 0] + np.pi) % (2.0 * np.pi) - np.pi
    if not return_factors:
        return X
    energy = 0.5 * velocity**2 + 1.0 - np.cos(angle)
    return X, np.stack([energy, (drive_frequency * duration + phase) % (2.0 * np.pi)], 1)
