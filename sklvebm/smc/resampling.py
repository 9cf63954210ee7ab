"""Weights of particles: effective sample size, systematic resampling, log of the mean."""

import math

import torch
from torch import Tensor

from sklvebm.mcmc.state import Chains, IndependentNoise, Noise, take_chains


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Return `(sum w)^2 / sum w^2` along the last axis of log weights, shape (..., n)."""
    total = torch.logsumexp(log_weights, -1)
    return torch.exp(2.0 * total - torch.logsumexp(2.0 * log_weights, -1))


def systematic_resample(log_weights: Tensor, noise: Noise, n: int | None = None) -> Tensor:
    """Draw `n` indices (default: as many as weights) with one uniform number; shape (n,)."""
    n = len(log_weights) if n is None else n
    cumulative = torch.cumsum(torch.softmax(log_weights, 0), 0)
    offset = noise.uniform(log_weights[:1])
    at = (torch.arange(n, dtype=cumulative.dtype, device=cumulative.device) + offset) / n
    return torch.searchsorted(cumulative, at).clamp(max=len(log_weights) - 1)


def resample_chains(chains: Chains, log_weights: Tensor, noise: IndependentNoise, n: int) -> Chains:
    """Draw n chains by their log weights (B,), in random order."""
    index = systematic_resample(log_weights, noise, n)
    order = torch.randperm(n, generator=noise.generator, device=index.device)
    return take_chains(chains, index[order])


def log_mean_exp(log_weights: Tensor) -> float:
    """Return the logarithm of the mean weight, in nats."""
    return float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))
