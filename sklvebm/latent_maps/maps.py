r"""Nonlinear coordinates of the latents: a smooth map from rows to latents, with Gaussian noise.

.. math:: z = g(x) + S_c^{1/2} e, \qquad e \sim N(0, I) \text{ under the reference}
                                                                (docs/theory/latent_maps.md, eq. 12)

The likelihood does not determine p(z | x), and any smooth g gives the same density of rows.
Energies are trained with the linear map of the reference; a latent map changes the coordinates of
their latents afterwards.
"""

import abc

import torch
from torch import Tensor, nn


def hidden_units(
    x: Tensor, first_weight: Tensor, first_bias: Tensor, second_weight: Tensor, second_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the activations of two layers of tanh units at x (B, P), each (B, n_units)."""
    first = torch.tanh(nn.functional.linear(x, first_weight, first_bias))
    return first, torch.tanh(nn.functional.linear(first, second_weight, second_bias))


class LatentMap(nn.Module, abc.ABC):
    """Latents as a smooth map of the row plus Gaussian noise with standard deviations `scale`."""

    scale: Tensor

    @abc.abstractmethod
    def mean(self, x: Tensor) -> Tensor:
        """Return g at rows x (B, D), (B, L)."""

    @abc.abstractmethod
    def jacobian(self, x: Tensor) -> Tensor:
        """Return the derivatives of g at rows x (B, D), (B, L, D)."""

    def to_latents(self, x: Tensor, e: Tensor) -> Tensor:
        """Map whitened latents e (B, L) at rows x (B, D) to z (B, L)."""
        return torch.addcmul(self.mean(x), e, self.scale)

    def from_latents(self, x: Tensor, z: Tensor) -> Tensor:
        """Map z (B, L) at rows x (B, D) to whitened latents e (B, L)."""
        return (z - self.mean(x)) / self.scale


class KernelLatentMap(LatentMap):
    r"""A linear map plus Gaussian bumps, `g(x) = b + A x + \sum_j c_j k(x, x_j)`.

    Parameters
    ----------
    landmarks : Tensor of shape (n_landmarks, n_features)
        Centres x_j of the bumps, in standardised units.
    width : float
        Standard deviation of the bumps, standardised units.
    offset : Tensor of shape (n_latents,)
        The vector b.
    linear : Tensor of shape (n_latents, n_features)
        The matrix A.
    coefficients : Tensor of shape (n_landmarks, n_latents)
        The vectors c_j.
    variance : Tensor of shape (n_latents,)
        Variance of the latents around g under the reference, positive.

    See Also
    --------
    PerceptronLatentMap : The other nonlinear coordinates.
    MappedEnergy : An energy with a latent map.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import KernelLatentMap
    >>> bumps = {"landmarks": torch.zeros(1, 2), "coefficients": torch.ones(1, 1), "width": 1.0}
    >>> line = {"offset": torch.zeros(1), "linear": torch.ones(1, 2), "variance": torch.ones(1)}
    >>> KernelLatentMap(**bumps, **line).mean(torch.zeros(1, 2).double())
    tensor([[1.]], dtype=torch.float64)
    """

    landmarks: Tensor
    width: Tensor
    offset: Tensor
    linear: Tensor
    coefficients: Tensor

    def __init__(
        self,
        landmarks: Tensor,
        width: float,
        *,
        offset: Tensor,
        linear: Tensor,
        coefficients: Tensor,
        variance: Tensor,
    ) -> None:
        super().__init__()
        # copies in torch's memory: see `tensor_of`
        self.register_buffer("landmarks", landmarks.double().clone())
        self.register_buffer("width", torch.tensor(width, dtype=torch.float64))
        self.register_buffer("offset", offset.double().clone())
        self.register_buffer("linear", linear.double().clone())
        self.register_buffer("coefficients", coefficients.double().clone())
        self.register_buffer("scale", variance.double().sqrt())

    def _bumps(self, x: Tensor) -> Tensor:
        squares = (
            x.square().sum(1, keepdim=True)
            - 2.0 * (x @ self.landmarks.T)
            + self.landmarks.square().sum(1)
        )
        return torch.exp(-0.5 * squares.clamp(min=0.0) / self.width.square())

    def mean(self, x: Tensor) -> Tensor:
        """Return g at rows x (B, D), (B, L)."""
        return self.offset + x @ self.linear.T + self._bumps(x) @ self.coefficients

    def jacobian(self, x: Tensor) -> Tensor:
        """Return the derivatives of g at rows x (B, D), (B, L, D)."""
        bumps = self._bumps(x)
        towards = torch.einsum("bj,jl,jd->bld", bumps, self.coefficients, self.landmarks)
        away = (bumps @ self.coefficients)[:, :, None] * x[:, None]
        return self.linear + (towards - away) / self.width.square()


class PerceptronLatentMap(LatentMap):
    r"""A linear map plus a perceptron, `g(x) = b + A x + W_3 tanh(b_2 + W_2 tanh(b_1 + W_1 x))`.

    Parameters
    ----------
    offset : Tensor of shape (n_latents,)
        The vector b.
    linear : Tensor of shape (n_latents, n_features)
        The matrix A.
    first_weight, first_bias : Tensor of shape (n_units, n_features) and (n_units,)
        The layer next to the rows, standardised units.
    second_weight, second_bias : Tensor of shape (n_units, n_units) and (n_units,)
        The layer above it.
    last_weight : Tensor of shape (n_latents, n_units)
        The matrix W_3.
    variance : Tensor of shape (n_latents,)
        Variance of the latents around g under the reference, positive.

    See Also
    --------
    KernelLatentMap : The other nonlinear coordinates.
    MappedEnergy : An energy with a latent map.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import PerceptronLatentMap
    >>> line = {"offset": torch.zeros(1), "linear": torch.ones(1, 2), "variance": torch.ones(1)}
    >>> first = {"first_weight": torch.ones(3, 2), "first_bias": torch.zeros(3)}
    >>> second = {"second_weight": torch.ones(3, 3), "second_bias": torch.zeros(3)}
    >>> latent_map = PerceptronLatentMap(**line, **first, **second, last_weight=torch.ones(1, 3))
    >>> latent_map.jacobian(torch.zeros(5, 2).double()).shape
    torch.Size([5, 1, 2])
    """

    offset: Tensor
    linear: Tensor
    first_weight: Tensor
    first_bias: Tensor
    second_weight: Tensor
    second_bias: Tensor
    last_weight: Tensor

    def __init__(
        self,
        offset: Tensor,
        linear: Tensor,
        *,
        first_weight: Tensor,
        first_bias: Tensor,
        second_weight: Tensor,
        second_bias: Tensor,
        last_weight: Tensor,
        variance: Tensor,
    ) -> None:
        super().__init__()
        self.register_buffer("offset", offset.double().clone())
        self.register_buffer("linear", linear.double().clone())
        self.register_buffer("first_weight", first_weight.double().clone())
        self.register_buffer("first_bias", first_bias.double().clone())
        self.register_buffer("second_weight", second_weight.double().clone())
        self.register_buffer("second_bias", second_bias.double().clone())
        self.register_buffer("last_weight", last_weight.double().clone())
        self.register_buffer("scale", variance.double().sqrt())

    def _units(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the activations of both layers at rows (B, D), each (B, n_units)."""
        layers = self.first_weight, self.first_bias, self.second_weight, self.second_bias
        return hidden_units(x, *layers)

    def mean(self, x: Tensor) -> Tensor:
        """Return g at rows x (B, D), (B, L)."""
        second = self._units(x)[1]
        return self.offset + x @ self.linear.T + second @ self.last_weight.T

    def jacobian(self, x: Tensor) -> Tensor:
        """Return the derivatives of g at rows x (B, D), (B, L, D)."""
        first, second = self._units(x)
        behind = (self.last_weight * (1.0 - second.square())[:, None]) @ self.second_weight
        return self.linear + (behind * (1.0 - first.square())[:, None]) @ self.first_weight
