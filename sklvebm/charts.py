r"""Nonlinear coordinates of the latents: which z belongs to which row, up to noise.

.. math:: z = g(x) + S_c^{1/2} e, \qquad e \sim N(0, I) \text{ under the reference}
                                                                    (docs/theory.md, eq. 12)

The likelihood leaves p(z | x) free, so any smooth g gives the same density of rows. Energies are
trained with the linear map of the reference; a chart renames their latents afterwards.
"""

import torch
from torch import Tensor, nn


class KernelChart(nn.Module):
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
    """

    def __init__(
        self,
        landmarks: Tensor,
        width: float,
        offset: Tensor,
        linear: Tensor,
        coefficients: Tensor,
        variance: Tensor,
    ) -> None:
        super().__init__()
        self.register_buffer("landmarks", landmarks.double())
        self.register_buffer("width", torch.tensor(width, dtype=torch.float64))
        self.register_buffer("offset", offset.double())
        self.register_buffer("linear", linear.double())
        self.register_buffer("coefficients", coefficients.double())
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

    def to_latents(self, x: Tensor, e: Tensor) -> Tensor:
        """Map whitened latents e (B, L) at rows x (B, D) to z (B, L)."""
        return torch.addcmul(self.mean(x), e, self.scale)

    def from_latents(self, x: Tensor, z: Tensor) -> Tensor:
        """Map z (B, L) at rows x (B, D) to whitened latents e (B, L)."""
        return (z - self.mean(x)) / self.scale
