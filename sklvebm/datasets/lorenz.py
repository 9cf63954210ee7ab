"""The attractor of Lorenz's equations."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from sklvebm.datasets._ensemble import flow
from sklvebm.datasets._sample import Sample
from sklvebm.validation import Interval, check_random_state, validate_params

_POSITIVE = [Interval(Real, 0, None, closed="neither")]


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "sigma": _POSITIVE,
        "rho": _POSITIVE,
        "beta": _POSITIVE,
        "duration": _POSITIVE,
        "noise": [Interval(Real, 0, None, closed="left")],
        "return_factors": ["boolean"],
        "random_state": ["random_state"],
    }
)
def make_lorenz(
    n_samples: int = 100,
    *,
    sigma: float = 10.0,
    rho: float = 28.0,
    beta: float = 8.0 / 3.0,
    duration: float = 20.0,
    noise: float = 0.5,
    return_factors: bool = False,
    random_state: Any = None,
) -> Sample:
    r"""Draw states of the Lorenz system.

    .. math:: \dot x = \sigma (y - x), \qquad \dot y = x (\rho - z) - y, \qquad
        \dot z = x y - \beta z

    Every row is the end of a separate trajectory, so that rows are independent. Trajectories start
    from a normal distribution around `(0, 0, ρ - 1)` with standard deviation 5. They end at a
    uniform time between `duration` and twice that: at a common time they would have similar phases,
    because all of them rotate at nearly the same rate. With the defaults, those of 1963 [1]_, rows
    are stationary on the attractor, whose dimension is 2.06: without noise they have no density.

    Parameters
    ----------
    n_samples : int, default=100
        Number of rows; they are independent.
    sigma : float, default=10
        Prandtl number σ; positive.
    rho : float, default=28
        Rayleigh number ρ over its critical value; positive.
    beta : float, default=8/3
        Aspect ratio β; positive.
    duration : float, default=20
        Shortest time of a trajectory, in Lorenz's units. Errors grow by a factor e in about 1.1 of
        them.
    noise : float, default=0.5
        Standard deviation of measurement, added to all columns.
    return_factors : bool, default=False
        Whether to return the factors of each row.
    random_state : int, RandomState, Generator or None, default=None
        Source of the draws; an int gives the same rows again.

    Returns
    -------
    X : ndarray of shape (n_samples, 3)
        States x, y and z, float64.
    factors : ndarray of shape (n_samples, 3)
        The states without noise. Only returned with `return_factors=True`.

    Raises
    ------
    ValueError
        If a parameter is not legal.
    ArithmeticError
        If the trajectories could not be integrated.

    See Also
    --------
    make_pendulum : A driven system in the plane.

    Notes
    -----
    Integrated by an eighth-order Runge-Kutta method with a relative tolerance of 1e-8. Chaos
    amplifies that error: the distribution of trajectories is reproducible across platforms, single
    trajectories are not.

    References
    ----------
    .. [1] E. N. Lorenz, "Deterministic nonperiodic flow", Journal of the Atmospheric Sciences 20,
       1963.

    Examples
    --------
    >>> from sklvebm.datasets import make_lorenz
    >>> make_lorenz(5, random_state=0).shape
    (5, 3)
    """
    random_state = check_random_state(random_state)
    start = 5.0 * random_state.randn(3, n_samples)
    start[2] += rho - 1.0
    pace = random_state.uniform(1.0, 2.0, n_samples)

    def derivative(_: float, state: np.ndarray) -> np.ndarray:
        x, y, z = state
        return pace * np.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z])

    state = flow(derivative, start, duration).T
    X = state + noise * random_state.randn(n_samples, 3)
    return (X, state) if return_factors else X
