"""The ladder of temperatures between the reference (b = 0) and the model (b = 1).

Metropolis moves exchange replicas at neighbouring inverse temperatures. The targets differ by
`(b' - b) * correction`, so that the ratio depends on the corrections alone.
"""

import math

import torch
from torch import Tensor

from sklvebm.mcmc.state import Noise


def swap_replicas(
    correction: Tensor, betas: Tensor, *, parity: int, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Exchange neighbouring replicas; pairs (0,1), (2,3), ... or (1,2), (3,4), ... by parity.

    Parameters
    ----------
    correction : Tensor of shape (T, C)
        Correction at every particle of a ladder, in nats.
    betas : Tensor of shape (T,)
        Inverse temperatures, ascending.
    parity : {0, 1}
        Which pairs are tried.
    noise : IndependentNoise
        Source of the acceptance draws.

    Returns
    -------
    index : Tensor of shape (T * C,), integer
        Particle that each place of the flattened ladder receives; a permutation.
    acceptance : Tensor of shape (T - 1,)
        Mean acceptance probability of each pair of neighbours; NaN for those not tried.
    """
    n_temperatures, n_chains = correction.shape
    index = torch.arange(n_temperatures * n_chains, device=correction.device)
    mean = correction.new_full((n_temperatures - 1,), math.nan)
    last = max(parity, n_temperatures - 1)
    low, high = slice(parity, last, 2), slice(parity + 1, last + 1, 2)
    if parity >= last:
        return index, mean
    log_ratio = (betas[high] - betas[low])[:, None] * (correction[high] - correction[low])
    acceptance = log_ratio.clamp_(max=0.0).exp_().nan_to_num_(nan=0.0)
    shift = n_chains * (noise.uniform(acceptance) < acceptance)
    places = index.view(n_temperatures, n_chains)
    places[low].add_(shift)
    places[high].sub_(shift)
    torch.mean(acceptance, 1, out=mean[low])
    return index, mean


def respaced_ladder(betas: Tensor, variance: Tensor, n_temperatures: int) -> Tensor:
    r"""Place inverse temperatures at equal steps of thermodynamic length.

    .. math:: \Lambda(b) = \int_0^b \sqrt{\mathrm{Var}_{b'}[f]}\, db'  (docs/theory/model.md, eq. 8)

    Parameters
    ----------
    betas : Tensor of shape (T,)
        Present inverse temperatures, ascending from 0 to 1.
    variance : Tensor of shape (T,)
        Variance of the correction f at each of them, nats squared.
    n_temperatures : int
        Number of rungs of the new ladder.

    Returns
    -------
    betas : Tensor of shape (n_temperatures,)
        From 0 to 1; equally spaced where the correction does not vary.
    """
    # the floor keeps rungs in regions whose variance is not known yet
    speed = torch.sqrt(variance.double()).clamp_(min=1e-6)
    speed = torch.add(speed, speed.mean(), alpha=0.1)
    grid = betas.double()
    length = torch.cumulative_trapezoid(speed, grid)
    length = torch.cat([torch.zeros_like(length[:1]), length])
    wanted = torch.linspace(0.0, 1.0, n_temperatures, dtype=length.dtype, device=length.device)
    return interpolate(wanted * length[-1], length, grid).to(betas.dtype)


def thermodynamic_length(betas: Tensor, variance: Tensor) -> float:
    """Return the length of the ladder (T,) in nats; see `respaced_ladder`."""
    return float(torch.trapezoid(torch.sqrt(variance.double()), betas.double()))


def interpolate(at: Tensor, grid: Tensor, values: Tensor) -> Tensor:
    """Interpolate linearly: `values` (T,) on the ascending `grid` (T,), read off `at` (n,)."""
    index = torch.searchsorted(grid, at.contiguous()).clamp(1, len(grid) - 1)
    left, right = grid[index - 1], grid[index]
    share = ((at - left) / (right - left).clamp(min=1e-300)).clamp(0.0, 1.0)
    return torch.lerp(values[index - 1], values[index], share)
