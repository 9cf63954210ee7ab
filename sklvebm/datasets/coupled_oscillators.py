"""A chain of coupled oscillators, observed through a fixed nonlinear map to many features."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from sklvebm.datasets._sample import Sample
from sklvebm.validation import Interval, check_random_state, validate_params

_MAP_SEED = 0  # of the map, which is the same for all draws


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 2, None, closed="left")],
        "n_oscillators": [Interval(Integral, 1, None, closed="left")],
        "coupling": [Interval(Real, 0, None, closed="left")],
        "amplitude_range": [tuple, list],
        "noise": [Interval(Real, 0, None, closed="left")],
        "return_factors": ["boolean"],
        "random_state": ["random_state"],
    }
)
def make_coupled_oscillators(
    n_samples: int = 100,
    *,
    n_features: int = 10,
    n_oscillators: int = 2,
    coupling: float = 0.5,
    amplitude_range: tuple[float, float] = (0.5, 1.5),
    noise: float = 0.05,
    return_factors: bool = False,
    random_state: Any = None,
) -> Sample:
    r"""Draw observations of a chain of coupled oscillators in many features.

    .. math:: \ddot q_i = -q_i - \kappa (2 q_i - q_{i-1} - q_{i+1}), \qquad q_0 = q_{n+1} = 0

    Each normal mode k has an independent amplitude and phase: its position is `A_k cos φ_k` and its
    momentum `-ω_k A_k sin φ_k`. The state s of all positions and momenta is observed through a
    fixed map

    .. math:: x = Q \begin{pmatrix} s + \tfrac12 \sin(B s) \\ \sin(C s) \end{pmatrix} +
        \text{noise}

    with an orthogonal Q. The map is one-to-one, since B has norm one, and nonlinear: no linear
    projection inverts it.

    Parameters
    ----------
    n_samples : int, default=100
        Number of rows; they are independent.
    n_features : int, default=10
        Number of columns; at least `2 * n_oscillators`.
    n_oscillators : int, default=2
        Number n of oscillators, and of modes.
    coupling : float, default=0.5
        Stiffness κ of the springs between neighbours, in units of that of the oscillators' own.
    amplitude_range : tuple of two floats, default=(0.5, 1.5)
        Least and largest amplitude of a mode; uniform, positive.
    noise : float, default=0.05
        Standard deviation of measurement, added to all columns.
    return_factors : bool, default=False
        Whether to return the factors of each row.
    random_state : int, RandomState, Generator or None, default=None
        Source of the draws; an int gives the same rows again. The map does not depend on it.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
        Rows, float64.
    factors : ndarray of shape (n_samples, 2 * n_oscillators)
        Amplitudes of all modes, slowest first, then their phases in [0, 2π), in radians. Only
        returned with `return_factors=True`.

    Raises
    ------
    ValueError
        If a parameter is not legal.

    See Also
    --------
    make_pendulum : One oscillator, driven and damped.
    make_kepler_orbits : Another conserved energy.

    Notes
    -----
    States are exact, from a diagonalisation of the chain.

    References
    ----------
    .. [1] H. Goldstein, C. Poole and J. Safko, "Classical Mechanics", 3rd ed., Addison-Wesley,
       2002, chapter 6.

    Examples
    --------
    >>> from sklvebm.datasets import make_coupled_oscillators
    >>> X, factors = make_coupled_oscillators(5, n_features=50, return_factors=True, random_state=0)
    >>> X.shape, factors.shape
    ((5, 50), (5, 4))
    """
    if n_features < 2 * n_oscillators:
        raise ValueError(
            f"n_features must be at least 2 * n_oscillators ({2 * n_oscillators}), "
            f"got {n_features}."
        )
    legal = len(amplitude_range) == 2 and 0.0 < amplitude_range[0] <= amplitude_range[1]
    if not legal:
        raise ValueError(
            f"amplitude_range must be (low, high) with 0 < low <= high, got {amplitude_range}."
        )
    random_state = check_random_state(random_state)
    size = (n_samples, n_oscillators)
    amplitude = random_state.uniform(*amplitude_range, size)
    phase = random_state.uniform(0.0, 2.0 * np.pi, size)
    seen = _observe(_chain_state(amplitude, phase, coupling), n_features)
    X = seen + noise * random_state.randn(n_samples, n_features)
    return (X, np.concatenate([amplitude, phase], 1)) if return_factors else X


def _normal_modes(n_oscillators: int, coupling: float) -> tuple[np.ndarray, np.ndarray]:
    """Return angular frequencies, ascending, shape (n,), and modes as columns, shape (n, n)."""
    neighbours = np.eye(n_oscillators, k=1) + np.eye(n_oscillators, k=-1)
    stiffness = (1.0 + 2.0 * coupling) * np.eye(n_oscillators) - coupling * neighbours
    square, modes = np.linalg.eigh(stiffness)
    # the sign of a mode is arbitrary: a convention makes the phases unique
    return np.sqrt(square), modes * np.where(modes[0] < 0.0, -1.0, 1.0)


def _chain_state(amplitude: np.ndarray, phase: np.ndarray, coupling: float) -> np.ndarray:
    """Return positions and momenta of the masses, shape (n_samples, 2 * n_oscillators)."""
    frequency, modes = _normal_modes(amplitude.shape[1], coupling)
    position = amplitude * np.cos(phase)
    momentum = -frequency * amplitude * np.sin(phase)
    return np.concatenate([position @ modes.T, momentum @ modes.T], 1)


def _observe(state: np.ndarray, n_features: int) -> np.ndarray:
    """Map states (n_samples, n_states) to features; one-to-one."""
    generator = np.random.RandomState(_MAP_SEED)
    n_states = state.shape[1]
    rotation, _ = np.linalg.qr(generator.randn(n_features, n_features))
    bend = generator.randn(n_states, n_states)
    # with norm one, half the sine is a contraction, and the sum with the state is one-to-one
    bend /= np.linalg.norm(bend, 2)
    curve = generator.randn(n_states, n_features - n_states)
    unfolded = state + 0.5 * np.sin(state @ bend)
    return np.concatenate([unfolded, np.sin(state @ curve)], 1) @ rotation
