"""Quasi-random standard normal nodes, the same for every row."""

import torch
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor


def latent_nodes(n_nodes: int, n_latents: int, seed: int) -> Tensor:
    """Return quasi-random standard normal nodes in antithetic pairs, (n_nodes, L), float64.

    Parameters
    ----------
    n_nodes : int
        A power of two, at least 2.
    n_latents : int
        Width L.
    seed : int
        Seed of the scrambling, which makes every node an exact draw.

    Notes
    -----
    Node k and node k + n_nodes / 2 are mirror images, so linear functions are integrated exactly.
    Without latents, the result is one node of width zero.
    """
    if n_latents == 0:
        return torch.zeros(1, 0, dtype=torch.float64)
    uniform = qmc.Sobol(n_latents, scramble=True, rng=seed).random(n_nodes // 2)
    half = torch.from_numpy(ndtri(uniform.clip(1e-12, 1.0 - 1e-12)))
    return torch.cat([half, -half])
