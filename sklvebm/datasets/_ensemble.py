"""Independent trajectories of one ordinary differential equation, integrated side by side."""

from collections.abc import Callable

import numpy as np
from scipy.integrate import solve_ivp

# of the whole ensemble in root mean square: single trajectories are a little worse
TOLERANCE = 1e-8

Derivative = Callable[[float, np.ndarray], np.ndarray]  # time, states -> rates of change


def flow(derivative: Derivative, start: np.ndarray, duration: float) -> np.ndarray:
    """Carry states along an equation and return them at the end, shape (n_states, n_samples).

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
