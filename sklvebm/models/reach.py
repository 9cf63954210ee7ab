r"""How far a correction reaches: one where rows and draws of the reference are, zero beyond.

.. math:: s(x) = \exp(-\max(0, u - 1)^2), \qquad u = (x - c)^T \Lambda (x - c)
                                                                    (docs/theory/model.md, eq. 1a)

Where neither rows nor negative particles come, nothing holds an energy up or down, and a well there
is one that no walker of a normaliser starts in. A correction times `s` leaves the reference as it
is there, by construction.
"""

import numpy as np
import torch
from torch import Tensor, nn

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.preprocessing.scaling import (
    without_outliers,
)

_N_REACH_DRAWS, _REACH_SHARE = 4096, 0.99  # of the reference, and of rows or draws
_MAX_DISTANCE = 28.0  # of u: s is zero in double precision, and its square still finite


class Reach(nn.Module):
    """A smooth indicator of an ellipsoid.

    Parameters
    ----------
    centre : Tensor of shape (n_features,)
        The vector c, in standardised units.
    whitening : Tensor of shape (n_features, n_features)
        A matrix W with `u = |W (x - c)|^2`, per standardised unit: u is one at the edge.
    """

    centre: Tensor
    whitening: Tensor

    def __init__(self, centre: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre.double())
        self.register_buffer("whitening", whitening.double())

    def distance(self, x: Tensor) -> Tensor:
        """Return u of rows x (B, D), (B,)."""
        return ((x - self.centre) @ self.whitening.T).square().sum(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return s of rows x (B, D), (B,), between zero and one."""
        beyond = (self.distance(x) - 1.0).clamp(0.0, _MAX_DISTANCE)
        return torch.exp(-beyond.square())

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return s of rows x (B, D), (B,), and its gradient (B, D), per standardised unit."""
        white = (x - self.centre) @ self.whitening.T
        beyond = (white.square().sum(1) - 1.0).clamp(0.0, _MAX_DISTANCE)
        value = torch.exp(-beyond.square())
        # zero on the clamp's far side, where rows may be too large for a product with zero
        slope = torch.where(beyond < _MAX_DISTANCE, -4.0 * beyond * value, torch.zeros_like(value))
        inner = torch.where(slope[:, None] != 0.0, white, torch.zeros_like(white))
        return value, slope[:, None] * (inner @ self.whitening)


def reach_of(rows: Tensor, draws: Tensor, share: float) -> Reach:
    """Return the ellipsoid that holds a share of the rows, and one of the draws of the reference.

    Parameters
    ----------
    rows : Tensor of shape (N, D)
        Training rows, standardised, single ones far out moved in.
    draws : Tensor of shape (M, D)
        Draws of the reference.
    share : float
        Of either sample that lies within.

    Returns
    -------
    reach : Reach
        Shaped like the covariance of the rows, float64.
    """
    rows, draws = rows.double(), draws.double()
    centre = rows.mean(0)
    centred = rows - centre
    covariance = centred.T @ centred / len(rows)
    variances, vectors = torch.linalg.eigh(covariance)
    # a direction without spread has the reference's, which has a floor: draws decide the scale
    across = ((draws - centre) @ vectors).square().median(0).values
    scale = torch.maximum(variances, across).clamp(min=1e-300).rsqrt()
    whitening = scale[:, None] * vectors.T
    radius = max(
        float(torch.quantile(((part - centre) @ whitening.T).norm(dim=1), share))
        for part in (rows[: len(draws)], draws)
    )
    return Reach(centre, whitening / max(radius, 1e-300))


def reach_of_rows(rows: np.ndarray, reference: MixtureReference, seed: int) -> Reach:
    """Return how far a correction reaches: where rows (N, D) and the reference's draws are."""
    generator = torch.Generator().manual_seed(seed)
    y = reference.sample(_N_REACH_DRAWS, generator)[:, : reference.n_features]
    inner = torch.from_numpy(without_outliers(rows))
    return reach_of(inner, reference.to_features(y), _REACH_SHARE)
