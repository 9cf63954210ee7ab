r"""Importance-weighted lower bounds of the log-density of rows.

For any density q of the latents of a row and draws `z_1 ... z_K` of it,

.. math:: \log \frac1K \sum_k \frac{p(x, z_k)}{q(z_k)}

is in expectation at most `log p(x)`, by Jensen's inequality, and increases with K [1]_. All rows
use the same standard normal numbers, so that a row's bound depends on that row alone.

References
----------
.. [1] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.baselines._decoder import LatentModel, standard_normal_log_density
from sklvebm.smc.quasi_random import latent_nodes


class GaussianMixtures(NamedTuple):
    """For every row an equally weighted mixture of M Gaussians over its latents."""

    mean: Tensor  # (N, M, L)
    factor: Tensor  # (N, M, L, L), invertible; covariances are factor @ factor.T

    def place(self, nodes: Tensor) -> Tensor:
        """Map standard normal nodes (K, L), K a multiple of 2 M, to K / M draws of each component.

        Parameters
        ----------
        nodes : Tensor of shape (K, L)
            Quasi-random nodes whose second half mirrors the first. Each component uses a block of
            consecutive nodes and their mirror images, because every M-th node of a Sobol sequence
            can be in one strip of the space.

        Returns
        -------
        z : Tensor of shape (N, K, L)
            In the order of the nodes.
        """
        n_rows, n_components, width = self.mean.shape
        nodes = nodes.reshape(2, n_components, -1, width)
        z = torch.einsum("nmij,hmkj->nhmki", self.factor, nodes)
        z = z + self.mean[:, None, :, None]
        return z.reshape(n_rows, -1, width)

    def log_density(self, z: Tensor) -> Tensor:
        """Return `log q(z)` of z (N, K, L), shape (N, K), nats."""
        n_components = self.mean.shape[1]
        log_det = torch.linalg.slogdet(self.factor).logabsdet
        parts = []
        for m in range(n_components):
            offset = (z - self.mean[:, m, None]).transpose(1, 2)
            white = torch.linalg.solve(self.factor[:, m], offset).transpose(1, 2)
            parts.append(standard_normal_log_density(white) - log_det[:, m, None])
        return torch.logsumexp(torch.stack(parts), 0) - math.log(n_components)


def diagonal_gaussians(mean: Tensor, scale: Tensor) -> GaussianMixtures:
    """Return one Gaussian per row from means and standard deviations, each (N, L)."""
    return GaussianMixtures(mean.unsqueeze(1), torch.diag_embed(scale).unsqueeze(1))


class WeightedLatents(NamedTuple):
    """Draws of q with their importance weights."""

    position: Tensor  # (N, K, L)
    log_weights: Tensor  # (N, K), nats

    def log_evidence(self) -> Tensor:
        """Return the importance-weighted bound of each row, (N,), nats."""
        return torch.logsumexp(self.log_weights, 1) - math.log(self.log_weights.shape[1])

    def mean(self) -> Tensor:
        """Return the self-normalised estimate of `E[z | x]`, (N, L)."""
        return torch.einsum("nk,nkl->nl", torch.softmax(self.log_weights, 1), self.position)


def weighted_latents(
    model: LatentModel, x: Tensor, q: GaussianMixtures, n_samples: int, seed: int
) -> WeightedLatents:
    """Weight draws of q by the model.

    Parameters
    ----------
    model : LatentModel
        Prior and decoder.
    x : Tensor of shape (N, D)
        Standardised rows.
    q : GaussianMixtures
        Proposal for the latents of these rows; it must not depend on the same nodes.
    n_samples : int
        Draws K per row, a power of two, at least twice the number of components.
    seed : int
        Seed of the nodes.
    """
    z = q.place(latent_nodes(n_samples, model.n_latents, seed).to(x))
    return WeightedLatents(z, model.log_joint(x.unsqueeze(1), z) - q.log_density(z))
