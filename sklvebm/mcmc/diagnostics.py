"""Convergence of parallel chains: split and nested R-hat, effective sample size."""

import math

import torch
from torch import Tensor


def split_rhat(traces: Tensor) -> float:
    r"""Return the split potential scale reduction factor of a scalar in parallel chains.

    .. math:: \hat R = \sqrt{\frac{(n - 1) W / n + B / n}{W}}

    with `W` the mean variance within half-chains and `B / n` the variance of their means [1]_.

    Parameters
    ----------
    traces : Tensor of shape (n_chains, n_draws)
        A scalar along each chain; at least four draws.

    Returns
    -------
    rhat : float
        Near one if all halves of all chains sample the same law; `inf` if no half varies while
        their means differ, one if nothing varies at all.

    References
    ----------
    .. [1] A. Vehtari et al., "Rank-normalization, folding, and localization: an improved R-hat",
       Bayesian Analysis 16, 2021. (The split version, without rank normalisation.)
    """
    halves = _halves(traces)
    n = halves.shape[1]
    within = float(halves.var(1).mean())
    between = float(halves.mean(1).var())
    if within == 0.0:
        return 1.0 if between == 0.0 else math.inf
    return math.sqrt((n - 1) / n + between / within)


def nested_rhat(traces: Tensor) -> float:
    r"""Return the nested R-hat of many short chains in groups that share a start.

    .. math:: \hat R = \sqrt{1 + B / W}

    with `B` the variance of the groups' means and `W` the mean variance within groups, between and
    along their chains [1]_. Unlike `split_rhat` it does not ask each short chain to have seen
    everything, only that the groups agree.

    Parameters
    ----------
    traces : Tensor of shape (n_groups, n_chains, n_draws)
        A scalar along each chain; at least two groups.

    Returns
    -------
    rhat : float
        Near `sqrt(1 + 1 / n_chains)` if all groups sample the same law; `inf` if nothing varies
        within groups while their means differ, one if nothing varies at all.

    References
    ----------
    .. [1] C. C. Margossian et al., "Nested R-hat: assessing the convergence of Markov chain Monte
       Carlo when running many short chains", Bayesian Analysis, 2024.
    """
    # about one of the values: a constant then has no variance, not even from rounding
    traces = traces.double() - traces[0, 0, 0]
    chain_means = traces.mean(2)
    within = float((chain_means.var(1) + traces.var(2).mean(1)).mean())
    between = float(chain_means.mean(1).var())
    if within == 0.0:
        return 1.0 if between == 0.0 else math.inf
    return math.sqrt(1.0 + between / within)


def chain_sample_size(traces: Tensor) -> float:
    r"""Return the effective number of independent draws in parallel chains.

    .. math:: n_{eff} = m n / (1 + 2 \sum_t \rho_t)

    with multi-chain autocorrelations, summed while consecutive pairs stay positive (Geyer's
    initial monotone sequence).

    Parameters
    ----------
    traces : Tensor of shape (n_chains, n_draws)
        A scalar along each chain; at least four draws.

    Returns
    -------
    n_effective : float
        At most `n_chains * n_draws`.
    """
    halves = _halves(traces)
    m, n = halves.shape
    within = halves.var(1).mean()
    total = (n - 1) / n * within + halves.mean(1).var()
    if float(total) == 0.0:
        return float(m * n)
    centred = halves - halves.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=1)[:, :n].mean(0) / n
    correlation = 1.0 - (within - covariance * n / (n - 1)) / total
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(1)
    negative = torch.nonzero(pairs <= 0.0)
    pairs = pairs[: int(negative[0])] if len(negative) else pairs
    time = max(2.0 * float(torch.cummin(pairs, 0).values.sum()) - 1.0, 1.0 / math.log10(m * n + 2))
    return min(m * n / time, float(m * n))


def _halves(traces: Tensor) -> Tensor:
    """Cut every chain in two halves of equal length, (2 n_chains, n_draws // 2), float64."""
    traces = traces.double()
    # about one of the values: a constant then has no variance, not even from rounding
    traces = traces - traces[0, 0]
    half = traces.shape[1] // 2
    return torch.cat([traces[:, :half], traces[:, -half:]])
