"""The mean of several networks: what they learn by chance cancels."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sklvebm.models.energies import Energy


class EnsembleEnergy(Energy):
    r"""The mean of networks with different initial weights.

    .. math:: g(x, z) = \frac{1}{K} \sum_{k=1}^K g_k(x, z)

    Classification trains each network by its own loss. Each fits chance features of the rows in its
    own way, and the mean has less of them than any single network [1]_.

    Parameters
    ----------
    networks : sequence of Energy
        Networks of one kind and shape.

    See Also
    --------
    PeriodicEnergy : The usual network of an ensemble.
    AnchoredEnergy : Bounds the mean and adds it to a reference.

    References
    ----------
    .. [1] B. Lakshminarayanan, A. Pritzel, C. Blundell, "Simple and Scalable Predictive Uncertainty
       Estimation using Deep Ensembles", NeurIPS 2017.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import EnsembleEnergy, MLPEnergy
    >>> generator = torch.Generator().manual_seed(0)
    >>> energy = EnsembleEnergy([MLPEnergy(3, 1, (8,), generator=generator) for _ in range(4)])
    >>> energy(torch.ones(5, 3), torch.ones(5, 1)).shape
    torch.Size([5])
    """

    def __init__(self, networks: Sequence[Energy]) -> None:
        super().__init__()
        self.n_features, self.n_latents = networks[0].n_features, networks[0].n_latents
        self.n_networks = len(networks)
        self.networks = nn.ModuleList(networks)

    @property
    def output(self) -> Tensor:
        """Weights of all last layers, which are zero at first."""
        return torch.cat([cast(Tensor, network.output) for network in self.networks])

    def members(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies of single networks, (B, n_networks), of rows x (B, D), z (B, L)."""
        return torch.stack([network(x, z) for network in self.networks], 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        return self.members(x, z).mean(1)
