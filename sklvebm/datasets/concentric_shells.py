"""Concentric shells in space (LCS-3D): rows, density in closed form, entropy."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.special import dawsn, logsumexp

from sklvebm.datasets._blurred_curves import check_rows, positive_vector
from sklvebm.datasets._sample import Sample
from sklvebm.validation import Interval, check_random_state, validate_params

RADII = (0.5, 1.0, 1.5)
RADIAL_NOISE = 0.05
NOISE = 0.02
_N_NODES = 20  # Gauss-Legendre nodes of a smooth integrand, and of each panel of an entropy
_CUTOFF = 12.0  # standard deviations beyond which the mass of a shell is negligible


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "radii": ["array-like"],
        "radial_noise": [Interval(Real, 0, None, closed="left")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "return_factors": ["boolean"],
        "random_state": ["random_state"],
    }
)
def make_concentric_shells(
    n_samples: int = 100,
    *,
    radii: Any = RADII,
    radial_noise: float = RADIAL_NOISE,
    noise: float = NOISE,
    return_factors: bool = False,
    random_state: Any = None,
) -> Sample:
    r"""Draw concentric spherical shells in space.

    .. math:: x = r\, u + \sigma_x \xi, \qquad r = R + \sigma_r \epsilon

    with R uniform among the radii, u uniform on the unit sphere and standard normal ε and ξ. The
    defaults are the published constants of the data set LCS-3D [1]_.

    Parameters
    ----------
    n_samples : int, default=100
        Number of rows; they are independent.
    radii : array-like of shape (n_shells,), default=(0.5, 1.0, 1.5)
        Mean radii R, in units of X; positive.
    radial_noise : float, default=0.05
        Standard deviation of the radius, in units of X.
    noise : float, default=0.02
        Standard deviation added to all coordinates, in units of X.
    return_factors : bool, default=False
        Whether to return the factors of each row.
    random_state : int, RandomState, Generator or None, default=None
        Source of the draws; an int gives the same rows again.

    Returns
    -------
    X : ndarray of shape (n_samples, 3)
        Rows, float64.
    factors : ndarray of shape (n_samples, 3)
        Radius r, in units of X and before `noise`, polar angle in [0, π] and azimuth in [0, 2π), in
        radians. Only returned with `return_factors=True`.

    Raises
    ------
    ValueError
        If a parameter is not legal.

    See Also
    --------
    concentric_shells_log_density : Exact log density of these rows.
    make_concentric_rings : The same in the plane.

    References
    ----------
    .. [1] S. Tang et al., "Particle Dynamics for Latent-Variable Energy-Based Models",
       arXiv:2510.15447, 2025.

    Examples
    --------
    >>> from sklvebm.datasets import make_concentric_shells
    >>> make_concentric_shells(5, random_state=0).shape
    (5, 3)
    """
    radii = positive_vector(radii, "radii")
    random_state = check_random_state(random_state)
    cosine = random_state.uniform(-1.0, 1.0, n_samples)
    azimuth = random_state.uniform(0.0, 2.0 * np.pi, n_samples)
    radius = random_state.choice(radii, n_samples) + radial_noise * random_state.randn(n_samples)
    sine = np.sqrt(1.0 - cosine**2)
    direction = np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine], 1)
    X = radius[:, None] * direction + noise * random_state.randn(n_samples, 3)
    return (X, np.stack([radius, np.arccos(cosine), azimuth], 1)) if return_factors else X


_DENSITY_CONSTRAINTS: dict[str, list[Any]] = {
    "radii": ["array-like"],
    "radial_noise": [Interval(Real, 0, None, closed="left")],
    "noise": [Interval(Real, 0, None, closed="neither")],
}


@validate_params({"X": ["array-like"], **_DENSITY_CONSTRAINTS})
def concentric_shells_log_density(
    X: Any, *, radii: Any = RADII, radial_noise: float = RADIAL_NOISE, noise: float = NOISE
) -> np.ndarray:
    r"""Return the exact log density of concentric shells, in closed form.

    Given its direction a row is Gaussian, with variance `s² = σ_r² + σ_x²` along the radius and
    `σ_x²` across it. The cosine t between row and direction is uniform, so that

    .. math:: p(x) = \frac{1}{n} \sum_R \frac{N(\rho; R, s^2)}{4\pi\sigma_x^2} \int_{-1}^1
        e^{A (t^2 - 1) + B (t - 1)}\,dt, \qquad
        A = \frac{\rho^2}{2} \Bigl(\frac{1}{\sigma_x^2} - \frac{1}{s^2}\Bigr), \quad
        B = \frac{\rho R}{s^2}

    with `ρ = |x|`; the integral is a difference of two Dawson functions.

    Parameters
    ----------
    X : array-like of shape (n_samples, 3)
        Rows.
    radii : array-like of shape (n_shells,), default=(0.5, 1.0, 1.5)
        Mean radii, in units of X; positive.
    radial_noise : float, default=0.05
        Standard deviation of the radius, in units of X.
    noise : float, default=0.02
        Standard deviation added to all coordinates, in units of X; positive.

    Returns
    -------
    log_density : ndarray of shape (n_samples,)
        Log densities with respect to volume, in nats.

    Raises
    ------
    ValueError
        If a parameter is not legal.

    See Also
    --------
    concentric_shells_entropy : Minus the mean over rows of the shells themselves.

    Examples
    --------
    >>> from sklvebm.datasets import concentric_shells_log_density
    >>> concentric_shells_log_density([[0.0, 0.0, 1.0], [0.0, 0.0, 1.25]]).round(3)
    array([ -1.627, -12.155])
    """
    distance = np.linalg.norm(check_rows(X, 3), axis=1)
    return _log_density(distance, positive_vector(radii, "radii"), radial_noise, noise)


@validate_params(_DENSITY_CONSTRAINTS)
def concentric_shells_entropy(
    *, radii: Any = RADII, radial_noise: float = RADIAL_NOISE, noise: float = NOISE
) -> float:
    """Return the differential entropy of concentric shells.

    Minus the entropy is the largest mean log-likelihood that any density can have on new rows.

    Parameters
    ----------
    radii : array-like of shape (n_shells,), default=(0.5, 1.0, 1.5)
        Mean radii, in units of X; positive.
    radial_noise : float, default=0.05
        Standard deviation of the radius, in units of X.
    noise : float, default=0.02
        Standard deviation added to all coordinates, in units of X; positive.

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
    make_concentric_shells : Rows of this distribution.
    concentric_shells_log_density : Its mean, negated, is the entropy.

    Notes
    -----
    Gauss-Legendre quadrature over the distance from the origin, in panels as wide as the noise
    along the radius; accurate to about ten digits. Time is proportional to the largest radius over
    this noise.

    Examples
    --------
    >>> from sklvebm.datasets import concentric_shells_entropy
    >>> round(concentric_shells_entropy(), 4)
    1.9307
    """
    radii = positive_vector(radii, "radii")
    width = np.hypot(radial_noise, noise)
    low, high = max(0.0, radii.min() - _CUTOFF * width), radii.max() + _CUTOFF * width
    edges = np.linspace(low, high, int(np.ceil((high - low) / width)) + 1)
    node, weight = np.polynomial.legendre.leggauss(_N_NODES)
    half = 0.5 * np.diff(edges)[:, None]
    distance = (edges[:-1, None] + half * (1.0 + node)).ravel()
    value = _log_density(distance, radii, radial_noise, noise)
    area = 4.0 * np.pi * distance**2
    return -float((half * weight).ravel() @ (area * np.exp(value) * value))


def _log_density(
    distance: np.ndarray, radii: np.ndarray, radial_noise: float, noise: float
) -> np.ndarray:
    """Return log densities at distances (n,) from the origin, in nats."""
    variance = radial_noise**2 + noise**2
    rho = distance[:, None]
    quadratic = 0.5 * rho**2 * (radial_noise / noise) ** 2 / variance * np.ones_like(radii)
    linear = rho * radii / variance
    along = -0.5 * (rho - radii) ** 2 / variance - 0.5 * np.log(2.0 * np.pi * variance)
    across = np.log(_cosine_integral(quadratic, linear)) - np.log(4.0 * np.pi * noise**2)
    return logsumexp(along + across, axis=1) - np.log(len(radii))


def _cosine_integral(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the integral of exp(a (t² - 1) + b (t - 1)) over [-1, 1], elementwise; a, b >= 0."""
    # for small a and b, where the closed forms below divide zero by zero, the integrand is smooth
    node, weight = np.polynomial.legendre.leggauss(_N_NODES)
    small = a + b < 1.0
    shallow = np.minimum(a, 1.0)[..., None], np.minimum(b, 1.0)[..., None]
    smooth = np.exp(shallow[0] * (node**2 - 1.0) + shallow[1] * (node - 1.0)) @ weight
    safe_b = np.where(small, 1.0, b)
    flat = -np.expm1(-2.0 * safe_b) / np.where(safe_b > 0.0, safe_b, 1.0)
    root = np.sqrt(np.where(small | (a == 0.0), 1.0, a))
    centre = 0.5 * safe_b / root
    curved = (dawsn(centre + root) - np.exp(-2.0 * safe_b) * dawsn(centre - root)) / root
    return np.where(small, smooth, np.where(a == 0.0, flat, curved))
