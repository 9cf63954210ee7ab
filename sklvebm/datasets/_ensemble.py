"""Independent trajectories of an ordinary differential equation, integrated together."""

from collections.abc import Callable

import numpy as np
from scipy.integrate import solve_ivp

# relative and absolute, root mean square over all trajectories; single ones may be less accurate
TOLERANCE = 1e-8

Derivative = Callable[[float, np.ndarray], np.ndarray]  # time, states -> rates of change


def flow(derivative: Derivative, start: np.ndarray, duration: float) -> np.ndarray:
    """Integrate an equation and return the final states, shape (n_states, n_samples).

    `derivative` maps a time and states of shape (n_states, n_samples) to rates of change.
    """

    def flat(time: float, state: np.ndarray) -> np.ndarray:
        return derivative(time, state.reshape(start.shape)).ravel()

    solution = solve_ivp(
        flat,
        (0.0, duration),
        start.ravel(),
        method="DOP853",
        t_eval=[duration],
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )
    if not solution.success or not np.isfinite(solution.y).all():
        raise ArithmeticError(f"The trajectories could not be integrated: {solution.message}")
    return solution.y[:, -1].reshape(start.shape)
