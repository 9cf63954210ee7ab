"""Acceptance of a trained model: one-sided confidence limits of its gain on held-out rows."""

import math

import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

_CONFIDENCE = float(ndtr(2.0))  # one-sided level of two standard errors, normal distribution
_GAIN_CAP_QUANTILE = 0.95  # larger gains of single rows are capped at this quantile


def lower_confidence_limit(gains: Tensor, row_weights: Tensor | None = None) -> float:
    """Return a one-sided lower confidence limit of the mean gain of held-out rows (N,), nats.

    The limit is two standard errors below the mean, with Student's t for few rows: three rows need
    a mean of 4.5 standard errors, and for one row the limit is -inf. Gains above their 95 %
    quantile are capped, so that no single row decides; negative gains are not. With weights (N,),
    the mean is weighted, and few heavy rows count as few.
    """
    if len(gains) < 2:
        return -math.inf
    capped = torch.minimum(gains, torch.quantile(gains, _GAIN_CAP_QUANTILE))
    mean, error, n = _mean_and_error(capped, row_weights)
    return mean - float(stdtrit(max(n - 1.0, 1e-3), _CONFIDENCE)) * error


def upper_confidence_limit(
    gains: Tensor, standard_error: float = 0.0, row_weights: Tensor | None = None
) -> float:
    """Return a one-sided upper confidence limit of the mean gain of held-out rows (N,), nats.

    As `lower_confidence_limit`, above the mean and without a cap; for one row the limit is inf. A
    further, independent `standard_error` is that of a constant in all gains.
    """
    if len(gains) < 2:
        return math.inf
    mean, own_error, n = _mean_and_error(gains, row_weights)
    error = math.hypot(own_error, standard_error)
    return mean + float(stdtrit(max(n - 1.0, 1e-3), _CONFIDENCE)) * error


def _mean_and_error(values: Tensor, row_weights: Tensor | None) -> tuple[float, float, float]:
    """Return a weighted mean, its standard error and the effective number of rows."""
    n = len(values)
    if row_weights is None:
        return float(values.mean()), float(values.std()) / math.sqrt(n), n
    shares = row_weights.to(values) / row_weights.to(values).sum()
    mean, size = shares @ values, 1.0 / float(shares.square().sum())
    scatter = float((shares.square() * (values - mean).square()).sum())
    # the factor of an unbiased variance, as without weights
    return float(mean), math.sqrt(scatter * size / max(size - 1.0, 1e-3)), size
