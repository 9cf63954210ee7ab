r"""Normalisers, evidence and posterior moments of a fitted two-dimensional model by quadrature.

No code of the package's estimates is used: only its energy and its reference are evaluated,

.. math:: p(x) = r(x) I(x) / Z, \quad I(x) = \int N(e; 0, I) e^{-f(x, z(e))} de,
          \quad Z = \int r(x) I(x) dx,

over e by a Gauss-Hermite product rule, over x by the trapezoidal rule. The box in x is the mean of
10,000 exact draws of the reference plus and minus 12 of their standard deviations, which is about
six of the reference's widest component. It holds all mass if the reference's own integral over it
is 1, which is returned. Points where `log r` is more than 40 nats below its maximum are left out.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch

_ROW_NODES = {1: 64, 2: 32}  # per latent
_CHECK_NODES = {1: 96, 2: 48}
_POINTS = 2**13  # evaluations at once: 8 MB per layer of 128 units in float64
_HALF_WIDTH = 12.0
_DEPTH = 40.0
_ENOUGH = 3e-4  # nats: change of log Z by half the grid above which the grid is refined


class Posterior(NamedTuple):
    """Posterior of e given rows, by quadrature."""

    log_evidence: np.ndarray  # (N,), log I, nats
    mean: np.ndarray  # (N, L)
    deviation: np.ndarray  # (N, L)


class GridIntegral(NamedTuple):
    """Integrals over x."""

    log_partition: float
    change: float  # nats, from a grid of half the resolution
    reference_error: float  # distance of the reference's integral from 1
    n_grid: int
    n_nodes: int


def latent_rule(n_nodes, n_latents):
    """Return nodes (K, L) and log weights (K,) for integrals over N(0, I)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_nodes)
    grids = np.meshgrid(*[nodes] * n_latents, indexing="ij")
    log_weights = np.log(weights) - 0.5 * np.log(2.0 * np.pi)
    total = sum(np.meshgrid(*[log_weights] * n_latents, indexing="ij"))
    stacked = np.stack([grid.ravel() for grid in grids], 1)
    return torch.from_numpy(stacked), torch.from_numpy(total.ravel())


@torch.no_grad()
def posterior(energy, x, n_nodes=None, *, single=False):
    """Return evidence and posterior moments of standardised rows x (N, 2).

    Parameters
    ----------
    energy : AnchoredEnergy
        Fitted energy, float64.
    x : Tensor of shape (N, 2)
        Standardised rows, float64.
    n_nodes : int or None, default=None
        Gauss-Hermite nodes per latent; None takes 64 for one latent and 32 for two.
    single : bool, default=False
        Evaluate the network in float32.
    """
    n_latents = energy.n_latents
    nodes, log_weights = latent_rule(n_nodes or _ROW_NODES[n_latents], n_latents)
    if single:
        energy = copy.deepcopy(energy).float()
    dtype = torch.float32 if single else torch.float64
    size = max(1, _POINTS // len(nodes))
    parts = []
    for first in range(0, len(x), size):
        rows = x[first : first + size].to(dtype)
        stacked = rows.repeat_interleave(len(nodes), 0)
        e = nodes.to(dtype).repeat(len(rows), 1)
        f = energy.correction(stacked, energy.reference.to_latents(stacked, e)).double()
        terms = log_weights - f.reshape(len(rows), -1)
        evidence = torch.logsumexp(terms, 1)
        weights = torch.exp(terms - evidence[:, None])
        mean = weights @ nodes
        variance = weights @ nodes.square() - mean.square()
        parts.append((evidence, mean, variance.clamp(min=0.0).sqrt()))
    return Posterior(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def check_nodes(energy, x, exact):
    """Return the nodes per latent that suffice for rows x, and the error of the full rule.

    The first of a quarter, half and all of the nodes whose log evidence is within 3e-4 nats of the
    full rule for every row. The error is the largest difference, over the first 200 rows, between
    the full rule (`exact`, (N,)) and one with half as many nodes again.
    """
    full = _ROW_NODES[energy.n_latents]
    finer = posterior(energy, x[:200], _CHECK_NODES[energy.n_latents]).log_evidence
    error = float(np.abs(finer - exact[:200]).max())
    for n_nodes in (full // 4, full // 2):
        if np.abs(posterior(energy, x, n_nodes).log_evidence - exact).max() < _ENOUGH:
            return n_nodes, error
    return full, error


@torch.no_grad()
def integrate(energy, n_nodes, n_grid=400):
    """Return log Z of a fitted energy on two features; the grid is refined until it settles."""
    draws = energy.reference.sample(10_000, torch.Generator().manual_seed(0))
    x, _ = energy.reference.split(draws)
    centre, width = x.mean(0), _HALF_WIDTH * x.std(0)
    while True:
        result = _integrate(energy, n_nodes, n_grid, centre, width)
        if result.change < _ENOUGH or n_grid >= 1200:
            return result
        n_grid = round(1.5 * n_grid)


def _integrate(energy, n_nodes, n_grid, centre, width):
    """Return the integrals on one grid of `n_grid` intervals a side.

    The integrand vanishes at the border, so that the trapezoidal rule is a plain sum.
    """
    ticks = torch.linspace(-1.0, 1.0, n_grid + 1, dtype=torch.float64)
    first, second = torch.meshgrid(ticks, ticks, indexing="ij")
    x = centre + width * torch.stack([first.reshape(-1), second.reshape(-1)], 1)
    log_r = torch.cat([energy.reference.log_marginal(part) for part in x.split(_POINTS)])
    inside = torch.nonzero(log_r > log_r.max() - _DEPTH).squeeze(1)
    integrand = torch.full_like(log_r, -torch.inf)
    evidence = posterior(energy, x[inside], n_nodes, single=True).log_evidence
    integrand[inside] = log_r[inside] + torch.from_numpy(evidence)
    log_cell = float(torch.log(2.0 * width / n_grid).sum())
    fine = float(torch.logsumexp(integrand, 0)) + log_cell
    half = integrand.reshape(n_grid + 1, -1)[::2, ::2].reshape(-1)
    coarse = float(torch.logsumexp(half, 0)) + log_cell + 2.0 * np.log(2.0)
    own = float(torch.exp(torch.logsumexp(log_r, 0) + log_cell))
    return GridIntegral(fine, float(abs(fine - coarse)), abs(own - 1.0), n_grid, n_nodes)
