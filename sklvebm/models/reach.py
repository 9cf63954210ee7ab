r"""The reach of a correction: a factor that is one near rows and reference draws, zero beyond.

.. math:: s(x) = \exp(-\max(0, u - 1)^2), \qquad u = (x - c)^T \Lambda (x - c)
                                                                    (docs/theory/model.md, eq. 1a)

Training does not constrain an energy far from rows and negative particles, and no walker of the
normaliser would find a well there. The factor s makes the model equal to the reference there.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink

from sklvebm.kept_results import KeepsResults
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.preprocessing.scaling import without_outliers

_DIRECTIONS_AT_A_TIME = 128  # of which the distances of all draws are computed
_N_REACH_DRAWS, _REACH_SHARE = 4096, 0.99  # reference draws; share of rows and draws with u < 1
_INVERSE_E = math.exp(-1.0)


class Reach(KeepsResults, nn.Module):
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
        return _squared_lengths(self._white(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return s of rows x (B, D), (B,), between zero and one."""
        return torch.pow(_INVERSE_E, softshrink(self.distance(x), 1.0).square())

    def _white(self, x: Tensor) -> Tensor:
        """Return `W (x - c)` of rows x (B, D), (B, D)."""
        whitening, shift = self.affine_map()
        return torch.addmm(shift, x, whitening.T)

    def affine_map(self) -> tuple[Tensor, Tensor]:
        """Return W (D, D) and `-W c` (D,), with which `W (x - c)` is one product."""
        own = self.centre, self.whitening
        (shift,) = self._kept("shift", own, lambda: (-(self.whitening @ self.centre),))
        return self.whitening, shift

    def scale(self, x: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        """Multiply a function by s, given its values and gradients.

        Parameters
        ----------
        x : Tensor of shape (B, D)
            Rows.
        value : Tensor of shape (B,)
            The function's values there.
        grad : Tensor of shape (B, D + L)
            Its gradients in the rows, and in whatever else it depends on; overwritten by those of
            the product.

        Returns
        -------
        value : Tensor of shape (B,)
            Values of the product.
        """
        white = self._white(x)
        # max(0, u - 1) and exp(-max(0, u - 1)^2), in as few operations as there can be
        beyond = softshrink(_squared_lengths(white), 1.0)
        share = torch.pow(_INVERSE_E, beyond.square())
        value = share * value
        grad.mul_(share.unsqueeze(1))
        # the gradient of s is -4 s beyond W^T white
        white.mul_(beyond.mul_(value).unsqueeze(1))
        grad[:, : x.shape[1]].addmm_(white, self.whitening, alpha=-4.0)
        return value


def _squared_lengths(rows: Tensor) -> Tensor:
    """Return the squared length of each row (B, D), (B,), in one operation."""
    return torch.bmm(rows.unsqueeze(1), rows.unsqueeze(2)).flatten()


def reach_of(rows: Tensor, draws: Tensor, share: float) -> Reach:
    """Return the ellipsoid that contains a share of the rows and a share of the reference draws.

    Parameters
    ----------
    rows : Tensor of shape (N, D)
        Training rows, standardised, with outliers clipped.
    draws : Tensor of shape (M, D)
        Draws of the reference.
    share : float
        Share of each sample inside the ellipsoid.

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
    # a direction in which rows have no variance gets the scale of the draws, which is positive
    away, parts = draws - centre, vectors.split(_DIRECTIONS_AT_A_TIME, 1)
    across = torch.cat([(away @ part).square_().median(0).values for part in parts])
    del away  # takes as much memory as the draws
    scale = torch.maximum(variances, across).clamp(min=1e-300).rsqrt()
    whitening = scale[:, None] * vectors.T
    radius = max(
        float(torch.quantile(((part - centre) @ whitening.T).norm(dim=1), share))
        for part in (rows[: len(draws)], draws)
    )
    return Reach(centre, whitening / max(radius, 1e-300))


def reach_of_rows(rows: np.ndarray, reference: MixtureReference, seed: int) -> Reach:
    """Return the reach of a correction for standardised rows (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    y = reference.sample(_N_REACH_DRAWS, generator)[:, : reference.n_features]
    inner = torch.from_numpy(without_outliers(rows))
    return reach_of(inner, reference.to_features(y), _REACH_SHARE)
