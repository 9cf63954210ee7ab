"""Images of a single bar or ellipse with known position, size and angle."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from sklvebm.datasets._sample import Sample
from sklvebm.validation import Interval, StrOptions, check_random_state, validate_params

HALF_LENGTHS = (0.15, 0.3)  # range for the longer axis, in sides of the image
ASPECT = 0.45  # shorter over longer axis
MARGIN = 0.35  # smallest distance of centres from the border, in sides
SOFTNESS = 0.4  # of the edge, in pixels
NOISE = 0.05


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "size": [Interval(Integral, 4, None, closed="left")],
        "shape": [StrOptions(frozenset({"bar", "ellipse", "both"}))],
        "noise": [Interval(Real, 0, None, closed="left")],
        "return_factors": ["boolean"],
        "random_state": ["random_state"],
    }
)
def make_shape_images(
    n_samples: int = 100,
    *,
    size: int = 16,
    shape: str = "both",
    noise: float = NOISE,
    return_factors: bool = False,
    random_state: Any = None,
) -> Sample:
    r"""Draw flattened images of one bright bar or ellipse on a dark ground.

    .. math:: x_{ij} = \sigma(-d_{ij} / s) + \sigma_x \xi_{ij}

    with the logistic function σ, the distance d of a pixel from the edge (negative inside), and the
    softness of the edge s, 0.4 pixels: pixels are smooth functions of all factors. For an ellipse,
    d is exact on the shorter axis and too small elsewhere.

    Parameters
    ----------
    n_samples : int, default=100
        Number of rows; they are independent.
    size : int, default=16
        Side of the square images, in pixels; at least 4. Rows have `size**2` features.
    shape : {"bar", "ellipse", "both"}, default="both"
        The shape; "both" draws one of them with equal probabilities.
    noise : float, default=0.05
        Standard deviation added to every pixel; the shape itself is between 0 and 1.
    return_factors : bool, default=False
        Whether to return the factors of each row.
    random_state : int, RandomState, Generator or None, default=None
        Source of the draws; an int gives the same rows again.

    Returns
    -------
    X : ndarray of shape (n_samples, size * size)
        Rows, float64: pixels line by line, from the top.
    factors : ndarray of shape (n_samples, 5)
        Centre from the left and from the top, uniform in [0.35, 0.65] sides; half-length of the
        longer axis, uniform in [0.15, 0.3] sides (the shorter one is 0.45 times that); angle of
        the longer axis to the horizontal in [0, π), in radians, uniform; 0 for a bar, 1 for an
        ellipse. Only returned with `return_factors=True`.

    Raises
    ------
    ValueError
        If a parameter is not legal.

    See Also
    --------
    sklvebm.metrics.factor_recovery : Prediction of the factors from latents.

    Examples
    --------
    >>> from sklvebm.datasets import make_shape_images
    >>> X, factors = make_shape_images(5, size=32, return_factors=True, random_state=0)
    >>> X.shape, factors.shape
    ((5, 1024), (5, 5))
    """
    random_state = check_random_state(random_state)
    factors = np.stack(
        [
            random_state.uniform(MARGIN, 1.0 - MARGIN, n_samples),
            random_state.uniform(MARGIN, 1.0 - MARGIN, n_samples),
            random_state.uniform(*HALF_LENGTHS, n_samples),
            random_state.uniform(0.0, np.pi, n_samples),
            # always drawn, so that other factors do not depend on `shape`
            random_state.randint(2, size=n_samples),
        ],
        1,
    )
    if shape != "both":
        factors[:, 4] = shape == "ellipse"
    X = rendered(factors, size)
    X += noise * random_state.standard_normal(X.shape)
    return (X, factors) if return_factors else X


def rendered(factors: np.ndarray, size: int) -> np.ndarray:
    """Return images without noise, (n_samples, size * size), of factors (n_samples, 5)."""
    left, top, half_length, angle, round_ = factors.T[:, :, None]
    middle = (np.arange(size) + 0.5) / size
    across, down = np.tile(middle, size), np.repeat(middle, size)
    right, below = across - left, down - top
    # rows count downwards, angles upwards
    along = np.abs(right * np.cos(angle) - below * np.sin(angle))
    beside = np.abs(right * np.sin(angle) + below * np.cos(angle))
    half_width = ASPECT * half_length
    bar = np.maximum(along - half_length, beside - half_width)
    ellipse = half_width * (np.hypot(along / half_length, beside / half_width) - 1.0)
    distance = np.where(round_ == 1.0, ellipse, bar)
    # the logistic function, without overflow
    return 0.5 - 0.5 * np.tanh(0.5 * distance * size / SOFTNESS)
