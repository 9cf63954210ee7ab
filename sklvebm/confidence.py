"""Whether a trained model is kept: a one-sided confidence limit of its gain on held-out rows."""

import math

import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

_CONFIDENCE = float(ndtr(2.0))  # one-sided: that of two standard errors under a normal distribution
_LUCKY = 0.95  # quantile at which the gains of the luckiest rows are capped


def lower_confidence_limit(gains: Tensor) -> float:
    """Return a one-sided lower confidence limit of the mean gain of held-out rows (N,), nats.

    Two standard errors below the mean, with Student's t for few rows: three rows need a mean of
    4.5 standard errors, and one row proves nothing. Gains are capped at their 95 % quantile, so
    that no single row decides; losses count in full.
    """
    n = len(gains)
    if n < 2:
        return -math.inf
    capped = torch.minimum(gains, torch.quantile(gains, _LUCKY))
    margin = float(stdtrit(n - 1, _CONFIDENCE)) * float(capped.std()) / math.sqrt(n)
    return float(capped.mean()) - margin
