"""Acceptance of a trained model: one-sided confidence limits of its gain on held-out rows."""

import math

import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

_CONFIDENCE = float(ndtr(2.0))  # one-sided level of two standard errors, normal distribution
_GAIN_CAP_QUANTILE = 0.95  # larger gains of single rows are capped at this quantile


def lower_confidence_limit(gains: Tensor) -> float:
    """Return a one-sided lower confidence limit of the mean gain of held-out rows (N,), nats.

    The limit is two standard errors below the mean, with Student's t for few rows: three rows need
    a mean of 4.5 standard errors, and for one row the limit is -inf. Gains above their 95 %
    quantile are capped, so that no single row decides; negative gains are not.
    """
    n = len(gains)
    if n < 2:
        return -math.inf
    capped = torch.minimum(gains, torch.quantile(gains, _GAIN_CAP_QUANTILE))
    margin = float(stdtrit(n - 1, _CONFIDENCE)) * float(capped.std()) / math.sqrt(n)
    return float(capped.mean()) - margin


def upper_confidence_limit(gains: Tensor, standard_error: float = 0.0) -> float:
    """Return a one-sided upper confidence limit of the mean gain of held-out rows (N,), nats.

    As `lower_confidence_limit`, above the mean and without a cap; for one row the limit is inf. A
    further, independent `standard_error` is that of a constant in all gains.
    """
    n = len(gains)
    if n < 2:
        return math.inf
    error = math.hypot(float(gains.std()) / math.sqrt(n), standard_error)
    return float(gains.mean()) + float(stdtrit(n - 1, _CONFIDENCE)) * error
