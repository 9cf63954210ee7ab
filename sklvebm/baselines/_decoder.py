r"""The generative model of all baselines: a prior over latents and a Gaussian decoder.

.. math:: p(x, z) = p(z)\, N(x; g(z), \mathrm{diag}(\sigma^2))

`g` is a perceptron; the variances are parameters with a lower limit, one per feature. Rows are
standardised; all densities are in nats, in standardised units.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklvebm.baselines._networks import Perceptron
from sklvebm.mixtures.components import LOG_2PI


def standard_normal_log_density(z: Tensor) -> Tensor:
    """Return `log N(z; 0, I)` of z (..., L), shape (...), nats."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * LOG_2PI)


class Architecture(NamedTuple):
    """Sizes and settings of a latent-variable model."""

    n_features: int
    n_latents: int
    hidden_layer_sizes: tuple[int, ...]
    activation: str
    initial_variance: float  # of the decoder, standardised units
    variance_floor: float
    has_encoder: bool = False
    prior_layer_sizes: tuple[int, ...] | None = None  # None: a standard normal prior


class GaussianDecoder(nn.Module):
    """`N(x; g(z), diag(variance))` with a perceptron g and one variance per feature.

    Parameters
    ----------
    n_latents, n_features : int
        Widths of z and x.
    hidden_layer_sizes : sequence of int
        Hidden layers of g; none makes g affine.
    activation : str
        Activation of g.
    initial_variance : float
        Below the variance of the rows, so that the decoder depends on its latents at first, too.
    variance_floor : float
        Added to the exponential of the free parameter.
    generator : torch.Generator or None
        Source of the initial weights.
    """

    def __init__(
        self,
        n_latents: int,
        n_features: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        initial_variance: float,
        variance_floor: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.mean = Perceptron(n_latents, n_features, hidden_layer_sizes, activation, generator)
        excess = max(initial_variance - variance_floor, 0.1 * initial_variance)
        self.log_excess = nn.Parameter(torch.full((n_features,), math.log(excess)))
        self.variance_floor = variance_floor

    def variance(self) -> Tensor:
        """Return the variance of each feature, (D,)."""
        return torch.exp(self.log_excess) + self.variance_floor

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return `log p(x | z)` of x (..., D) and z (..., L), broadcast, shape (...), nats."""
        variance = self.variance()
        squares = ((x - self.mean(z)).square() / variance).sum(-1)
        return -0.5 * (squares + torch.log(variance).sum() + x.shape[-1] * LOG_2PI)


class EnergyPrior(nn.Module):
    r"""`p(z) = exp(-U(z)) N(z; 0, I) / Z` with a bounded perceptron U that starts at zero.

    Parameters
    ----------
    n_latents : int
        Width of z.
    hidden_layer_sizes : sequence of int
        Hidden layers of U.
    activation : str
        Activation of U.
    generator : torch.Generator or None
        Source of the initial weights.
    """

    BOUND = 15.0  # nats; Z is finite and annealing possible for any weights

    def __init__(
        self,
        n_latents: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.network = Perceptron(n_latents, 1, hidden_layer_sizes, activation, generator)
        with torch.no_grad():
            self.network.weights[-1].zero_()

    def forward(self, z: Tensor) -> Tensor:
        """Return U(z) of z (..., L), shape (...), nats."""
        return self.BOUND * torch.tanh(self.network(z).squeeze(-1) / self.BOUND)


class LatentModel(nn.Module):
    """Prior and decoder, with an encoder if the architecture has one.

    Parameters
    ----------
    architecture : Architecture
        Sizes and starting values.
    generator : torch.Generator or None, default=None
        Source of the initial weights; required unless they are loaded afterwards.
    """

    def __init__(
        self, architecture: Architecture, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.decoder = GaussianDecoder(
            a.n_latents,
            a.n_features,
            a.hidden_layer_sizes,
            a.activation,
            a.initial_variance,
            a.variance_floor,
            generator,
        )
        self.prior: Any = None  # or an `EnergyPrior`
        if a.prior_layer_sizes is not None:
            self.prior = EnergyPrior(a.n_latents, a.prior_layer_sizes, a.activation, generator)
        self.encoder: Any = None  # or a `Perceptron`
        if a.has_encoder:
            self.encoder = Perceptron(
                a.n_features, 2 * a.n_latents, a.hidden_layer_sizes, a.activation, generator
            )

    @property
    def n_latents(self) -> int:
        """Width L of z."""
        return self.architecture.n_latents

    def log_prior(self, z: Tensor) -> Tensor:
        """Return `log p(z) + log Z` of z (..., L), shape (...); Z is 1 for a normal prior."""
        log_normal = standard_normal_log_density(z)
        return log_normal if self.prior is None else log_normal - self.prior(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Return `log p(x, z) + log Z` of x (..., D) and z (..., L), broadcast, shape (...)."""
        return self.decoder.log_likelihood(x, z) + self.log_prior(z)
