"""What a density ratio of rows and reference lets one expect of an energy."""

import math

from torch import Tensor

from sklvebm.estimators._common.session import FitSession
from sklvebm.objectives.density_ratio import RatioStart
from sklvebm.row_weights import mean_on_device


def promised_gain(
    session: FitSession, ratio: RatioStart, expected: Tensor, row_weights: Tensor | None
) -> float:
    """Return the gain over the reference of all rows that `effort` asks for, nats, and report it.

    Parameters
    ----------
    session : FitSession
        The fit.
    ratio : RatioStart
        The trained ratio.
    expected : Tensor of shape (n_held_out,)
        Gain of the reference of all rows over that of the ratio, nats.
    row_weights : Tensor of shape (n_held_out,) or None
        Weights of the held-out rows.

    Returns
    -------
    gain : float
        Not positive where training is not worth its time: with effort="fast" a gain must be
        certain, by default likely, with "thorough" possible.
    """
    name, promised = {
        "fast": ("lower confidence limit", ratio.lower_limit),
        "default": ("mean", ratio.mean_gain),
        "thorough": ("upper confidence limit", ratio.upper_limit),
    }[session.config.effort]
    gain = promised(expected, row_weights)
    over_own = float(mean_on_device(ratio.gains, row_weights))
    session.report.stage(
        f"density ratio: gain over the reference {over_own:.3f} nats, over that of all rows "
        f"{gain:.3f} ({name})"
    )
    return gain


def needed_gain(session: FitSession, expected: Tensor, row_weights: Tensor | None) -> float:
    """Return the mean gain over its reference, nats, below which a ratio is of no use.

    Arguments are those of `promised_gain`, which is not positive for a smaller one. There is no
    such limit with effort="thorough", which asks for a possible gain only, and without `tol`, by
    which a fit ends early.
    """
    if session.config.effort == "thorough" or session.config.tol is None:
        return -math.inf
    return float(mean_on_device(expected, row_weights))
