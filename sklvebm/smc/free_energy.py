"""Ratios of normalisers with standard errors: Bennett's estimate and multistate weights (MBAR)."""

import functools
import math
from collections.abc import Callable, Iterable

import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

_N_GROUPS = 16  # of the jackknife
_CHUNK_SAMPLES = 2**14  # samples whose multistate weights are computed at a time


def mbar(
    correction: Tensor,
    betas: Tensor,
    guess: Tensor,
    *,
    max_iter: int = 200,
    tol: float | None = 1e-7,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Estimate log normalisers of all rungs of a ladder from samples of all rungs.

    Solves the self-consistent equations of the multistate Bennett acceptance ratio,
    `Z_s = sum_i exp(-b_s f_i) / sum_t n_t exp(-b_t f_i) / Z_t`  (docs/theory/model.md, eq. 7),
    where rung t has n_t samples.

    Parameters
    ----------
    correction : Tensor of shape (T, C)
        Correction f of C samples at each of T inverse temperatures, in nats.
    betas : Tensor of shape (T,)
        Inverse temperatures, ascending from 0.
    guess : Tensor of shape (T,), float64
        Log normalisers to start from, in nats.
    max_iter : int, default=200
        Fixed-point iterations at most.
    tol : float or None, default=1e-7
        Largest change, in nats, at which the iteration stops. None makes all iterations, which
        avoids a synchronisation of host and device in each.
    base : Tensor of shape (M,) or None, default=None
        Correction of further samples of the first rung, in nats.

    Returns
    -------
    log_partitions : Tensor of shape (T,), float64
        Log normalisers relative to the first rung, in nats.
    log_mixture : Tensor of shape (T * C + M,), float64
        Logarithm of the pooled density of the samples relative to the base:
        `logsumexp(-g - log_mixture)` estimates the log normaliser of any correction g.
    """
    f = correction.detach().double().reshape(-1)
    betas = betas.double()
    log_n = math.log(correction.shape[1])
    log_surplus = None  # of the rungs' samples over those of the last rung
    if base is not None:
        f = torch.cat([f, base.detach().double()])
        log_surplus = torch.zeros_like(betas)
        log_surplus[0] = math.log1p(len(base) / correction.shape[1])
    # potentials take T times the memory of the samples, hence chunks
    parts = f.split(_CHUNK_SAMPLES)
    log_mixture = torch.empty_like(f)
    pooled = log_mixture.split(_CHUNK_SAMPLES)
    kept = [-betas[:, None] * f] if len(parts) == 1 else None

    def potentials() -> Iterable[Tensor]:
        return kept or (-betas[:, None] * part for part in parts)

    def pool(log_z: Tensor) -> None:
        offset = log_z if log_surplus is None else log_z - log_surplus
        for out, p in zip(pooled, potentials(), strict=True):
            torch.logsumexp(p - offset[:, None], 0, out=out)

    log_z = guess.double()
    pool(log_z)
    for _ in range(max_iter):
        implied = [torch.logsumexp(p - m, 1) for p, m in zip(potentials(), pooled, strict=True)]
        new = functools.reduce(torch.logaddexp, implied)
        new = new - new[0]
        is_near = tol is not None and float((new - log_z).abs().max()) < tol
        log_z = new
        pool(log_z)
        if is_near:
            break
    # the number of samples is a constant that the iteration does not see
    return log_z, log_mixture.add_(log_n)


def multistate_weights(
    correction: Tensor, betas: Tensor, guess: Tensor, n_iterations: int
) -> tuple[Tensor, Tensor]:
    """Return weights of a ladder's samples for the last rung, and log normalisers of all rungs.

    The fixed-point iteration of `mbar` in few operations: it normalises the matrix of log
    potentials over rungs and over samples in turn, and what has been subtracted from a rung is its
    log normaliser.

    Parameters
    ----------
    correction, betas, guess
        As for `mbar`.
    n_iterations : int
        Fixed-point iterations.

    Returns
    -------
    weights : Tensor of shape (T * C,), float64
        Summing to one.
    log_partitions : Tensor of shape (T,), float64
        Log normalisers relative to the first rung, in nats.
    """
    if correction.numel() > _CHUNK_SAMPLES:  # without a matrix for all samples
        log_z, log_mixture = mbar(correction, betas, guess, max_iter=n_iterations, tol=None)
        log_potential = correction.detach().double().reshape(-1).mul(-betas[-1].double())
        log_potential.sub_(log_mixture)
        del log_mixture  # with many chains, each of these is as large as a part of the pool
        return torch.softmax(log_potential, 0), log_z
    f = correction.detach().double()
    potentials = -betas.unsqueeze(1) * f.reshape(1, -1)
    normalised = potentials - guess.unsqueeze(1)
    for _ in range(n_iterations):
        normalised = torch.log_softmax(torch.log_softmax(normalised, 0), 1)
    log_z = potentials[:, 0] - normalised[:, 0]
    shares = torch.log_softmax(normalised, 0)[-1]
    return torch.softmax(shares, 0), log_z - log_z[0]


def bennett(forward: Tensor, reverse: Tensor) -> tuple[float, float]:
    """Return Bennett's estimate of log Z from log weights of annealing in both directions.

    Parameters
    ----------
    forward : Tensor of shape (n_forward,)
        Log weights from the base to the target; their mean weight estimates Z.
    reverse : Tensor of shape (n_reverse,)
        Log weights from the target to the base; their mean weight estimates 1 / Z.

    Returns
    -------
    value : float
        log Z, in nats.
    standard_error : float
        Asymptotic standard error for independent weights, in nats.
    """
    f, r = (part.double().cpu().numpy() for part in (forward, reverse))
    shift = math.log(len(f) / len(r))

    def imbalance(log_z: float) -> float:
        return float(expit(-shift + f - log_z).sum() - expit(shift + r + log_z).sum())

    low = min(f.min(), (-r).min()) - 50.0
    high = max(f.max(), (-r).max()) + 50.0
    value = brentq(imbalance, low, high, xtol=1e-10)
    ahead, back = expit(-shift + f - value), expit(shift + r + value)
    variance = (ahead.var() / ahead.mean() ** 2) / len(ahead) + (
        back.var() / back.mean() ** 2
    ) / len(back)
    return float(value), float(math.sqrt(variance))


def jackknife(
    statistic: Callable[..., float], *log_weights: Tensor, n_groups: int = _N_GROUPS
) -> float:
    """Return the jackknife standard error of a statistic of log weights of walkers.

    Parameters
    ----------
    statistic : callable
        Maps the tensors of log weights to a number.
    *log_weights : Tensor of shape (n,)
        Group g holds walkers g, g + n_groups, ... of each tensor.
    n_groups : int, default=16
        Groups, one of which is left out at a time.

    Returns
    -------
    standard_error : float
        In the statistic's unit.
    """
    groups = [torch.arange(len(w), device=w.device) % n_groups for w in log_weights]
    values = torch.tensor(
        [
            statistic(*(w[own != group] for w, own in zip(log_weights, groups, strict=True)))
            for group in range(n_groups)
        ],
        dtype=torch.float64,
    )
    return math.sqrt((n_groups - 1) * float(values.var(correction=0)))
