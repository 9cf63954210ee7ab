"""Langevin particle in a double well: stationary draws, density and entropy."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.special import ive, logsumexp

from sklvebm.datasets._blurred_curves import check_rows
from sklvebm.datasets._sample import Sample
from sklvebm.validation import Interval, check_random_state, validate_params

_POSITIVE = [Interval(Real, 0, None, closed="neither")]
_SYSTEM = {"barrier": _POSITIVE, "half_distance": _POSITIVE, "temperature": _POSITIVE}
_NOISE = [Interval(Real, 0, None, closed="left")]
_N_NODES = 2001  # of the trapezoidal rule over the position
_BLOCK_ROWS = 500  # convolved at a time
_MAX_RELATIVE_ENERGY = 45.0  # nats above the minimum, where the quadrature ends


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        **_SYSTEM,
        "noise": _NOISE,
        "return_factors": ["boolean"],
        "random_state": ["random_state"],
    }
)
def make_double_well(
    n_samples: int = 100,
    *,
    barrier: float = 3.0,
    half_distance: float = 1.0,
    temperature: float = 1.0,
    noise: float = 0.0,
    return_factors: bool = False,
    random_state: Any = None,
) -> Sample:
    r"""Draw position and momentum of a Langevin particle in a double well, in equilibrium.

    .. math:: dq = p\,dt, \qquad dp = -(V'(q) + \gamma p)\,dt + \sqrt{2\gamma T}\,dW, \qquad
        V(q) = h\,\bigl((q / w)^2 - 1\bigr)^2

    The stationary density is proportional to `exp(-(p²/2 + V(q)) / T)`, for every friction γ. Rows
    are exact and independent draws, by rejection sampling.

    Parameters
    ----------
    n_samples : int, default=100
        Number of rows; they are independent.
    barrier : float, default=3.0
        Height h of the barrier, in units of energy (those of p²).
    half_distance : float, default=1.0
        Half the distance w between the two minima, in units of position.
    temperature : float, default=1.0
        Temperature T, in units of energy.
    noise : float, default=0.0
        Standard deviation of measurement, added to both columns.
    return_factors : bool, default=False
        Whether to return the factors of each row.
    random_state : int, RandomState, Generator or None, default=None
        Source of the draws; an int gives the same rows again.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        Position and momentum (unit mass), float64.
    factors : ndarray of shape (n_samples, 2)
        Well, -1 or 1, and total energy, without noise. Only returned with `return_factors=True`.

    Raises
    ------
    ValueError
        If a parameter is not legal.

    See Also
    --------
    double_well_log_density : Exact log density of these rows.

    References
    ----------
    .. [1] H. Risken, "The Fokker-Planck Equation", 2nd ed., Springer, 1989, chapter 10.

    Examples
    --------
    >>> from sklvebm.datasets import make_double_well
    >>> X, factors = make_double_well(5, return_factors=True, random_state=0)
    >>> X.shape, factors.shape
    ((5, 2), (5, 2))
    """
    random_state = check_random_state(random_state)
    steepness = barrier / temperature
    scaled = np.empty(0)
    while len(scaled) < n_samples:
        # (u² - 1)² >= (u - 1)² for u >= 0: a normal density around one dominates each half
        u = 1.0 + random_state.randn(2 * n_samples) / np.sqrt(2.0 * steepness)
        excess = steepness * ((u**2 - 1.0) ** 2 - (u - 1.0) ** 2)
        accepted = (u > 0.0) & (random_state.standard_exponential(len(u)) > excess)
        scaled = np.append(scaled, u[accepted])
    well = random_state.choice([-1.0, 1.0], n_samples)
    state = np.stack(
        [
            half_distance * well * scaled[:n_samples],
            np.sqrt(temperature) * random_state.randn(n_samples),
        ],
        1,
    )
    X = state + noise * random_state.randn(n_samples, 2)
    if not return_factors:
        return X
    potential = temperature * _reduced_potential(state[:, 0], barrier, half_distance, temperature)
    return X, np.stack([well, potential + 0.5 * state[:, 1] ** 2], 1)


@validate_params({"X": ["array-like"], **_SYSTEM, "noise": _NOISE})
def double_well_log_density(
    X: Any,
    *,
    barrier: float = 3.0,
    half_distance: float = 1.0,
    temperature: float = 1.0,
    noise: float = 0.0,
) -> np.ndarray:
    r"""Return the exact stationary log density of position and momentum in a double well.

    .. math:: \log p(q, p) = -\frac{V(q)}{T} - \log Z_q - \frac{p^2}{2T} - \frac12 \log 2\pi T,
        \qquad Z_q = \frac{\pi w}{2} e^{-\beta/2}
        \bigl(I_{-1/4}(\beta/2) + I_{1/4}(\beta/2)\bigr), \quad \beta = h / T

    With measurement noise the momentum has variance `T + noise²` and the position is convolved.

    Parameters
    ----------
    X : array-like of shape (n_samples, 2)
        Positions and momenta.
    barrier : float, default=3.0
        Height of the barrier, in units of energy.
    half_distance : float, default=1.0
        Half the distance between the two minima, in units of position.
    temperature : float, default=1.0
        Temperature, in units of energy.
    noise : float, default=0.0
        Standard deviation of measurement, added to both columns.

    Returns
    -------
    log_density : ndarray of shape (n_samples,)
        Log densities with respect to area in phase space, in nats.

    Raises
    ------
    ValueError
        If a parameter is not legal.

    See Also
    --------
    make_double_well : Rows of this distribution.
    double_well_entropy : Minus the mean of this.

    Notes
    -----
    Without noise, the density is a closed form. With noise, the trapezoidal rule over the position
    is accurate to about eight digits if the noise is at least a five-hundredth of `half_distance`
    and the barrier at most 10⁴ temperatures.

    Examples
    --------
    >>> from sklvebm.datasets import double_well_log_density
    >>> double_well_log_density([[1.0, 0.0], [0.0, 0.0]]).round(4)
    array([-1.0329, -4.0329])
    """
    X = check_rows(X, 2)
    position = _log_position_density(X[:, 0], barrier, half_distance, temperature, noise)
    variance = temperature + noise**2
    return position - 0.5 * (X[:, 1] ** 2 / variance + np.log(2.0 * np.pi * variance))


@validate_params({**_SYSTEM, "noise": _NOISE})
def double_well_entropy(
    *,
    barrier: float = 3.0,
    half_distance: float = 1.0,
    temperature: float = 1.0,
    noise: float = 0.0,
) -> float:
    """Return the differential entropy of position and momentum in a double well.

    Minus the entropy is the largest mean log-likelihood that any density can have on new rows.

    Parameters
    ----------
    barrier : float, default=3.0
        Height of the barrier, in units of energy.
    half_distance : float, default=1.0
        Half the distance between the two minima, in units of position.
    temperature : float, default=1.0
        Temperature, in units of energy.
    noise : float, default=0.0
        Standard deviation of measurement, added to both columns.

    Returns
    -------
    entropy : float
        Differential entropy, in nats.

    Raises
    ------
    ValueError
        If a parameter is not legal.

    See Also
    --------
    make_double_well : Rows of this distribution.
    double_well_log_density : Its mean, negated, is the entropy.

    Notes
    -----
    The momentum is normal. The entropy of the position is computed by the trapezoidal rule, to
    about eight digits if any noise is at least a five-hundredth of `half_distance` and the barrier
    at most 10⁴ temperatures.

    Examples
    --------
    >>> from sklvebm.datasets import double_well_entropy
    >>> round(double_well_entropy(), 4)
    2.1151
    """
    position = _grid(barrier, half_distance, temperature, noise)
    value = _log_position_density(position, barrier, half_distance, temperature, noise)
    density = np.exp(value)
    spacing = position[1] - position[0]
    variance = temperature + noise**2
    return float(0.5 * np.log(2.0 * np.pi * np.e * variance) - spacing * (density @ value))


def _reduced_potential(
    position: np.ndarray, barrier: float, half_distance: float, temperature: float
) -> np.ndarray:
    """Return the potential energy over the temperature, in nats."""
    return barrier / temperature * ((position / half_distance) ** 2 - 1.0) ** 2


def _grid(
    barrier: float, half_distance: float, temperature: float, noise: float = 0.0
) -> np.ndarray:
    """Return equidistant positions up to a density of exp(-45) relative to the maximum."""
    reach = half_distance * np.sqrt(1.0 + np.sqrt(_MAX_RELATIVE_ENERGY * temperature / barrier))
    reach += noise * np.sqrt(2.0 * _MAX_RELATIVE_ENERGY)
    return np.linspace(-reach, reach, _N_NODES)


def _log_position_density(
    position: np.ndarray, barrier: float, half_distance: float, temperature: float, noise: float
) -> np.ndarray:
    """Return log densities of positions (n,), in nats."""
    half_beta = 0.5 * barrier / temperature
    log_z = np.log(0.5 * np.pi * half_distance * (ive(-0.25, half_beta) + ive(0.25, half_beta)))
    if noise == 0.0:
        return -_reduced_potential(position, barrier, half_distance, temperature) - log_z
    node = _grid(barrier, half_distance, temperature)
    potential = _reduced_potential(node, barrier, half_distance, temperature)
    log_step = np.log(node[1] - node[0]) - log_z - 0.5 * np.log(2.0 * np.pi * noise**2)
    result = np.empty(len(position))
    for start in range(0, len(position), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        exponent = -0.5 * ((position[rows, None] - node) / noise) ** 2 - potential
        result[rows] = logsumexp(exponent, axis=1) + log_step
    return result
