"""White coordinates of posterior and joint particles, and an affine map from each to its row.

A joint particle (y, e) has the coordinates in which its component of the mixture is N(0, I). A
posterior particle of a row has D coordinates that nothing depends on, and its latents e. Either way
the particle's row (x, z) is an affine function of its coordinates, whose matrix is gathered once
and serves as long as components are kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.mixtures.components import MAX_KEPT_NUMBERS
from sklvebm.mixtures.reference import MixtureReference

OF_A_ROW = -1  # in place of a component: the last table is that of posterior particles


class RowFrames(NamedTuple):
    """Maps of B particles between positions, white coordinates s and rows, all (B, D + L)."""

    means: Tensor  # (B, 1, P), positions at s = 0
    factors: Tensor  # (B, P, P), positions -> s
    roots: Tensor  # (B, P, P), their inverses
    centres: Tensor  # (B, 1, P), rows at s = 0
    maps: Tensor  # (B, P, P), s -> rows

    def whiten(self, position: Tensor) -> Tensor:
        """Return the white coordinates of positions."""
        return torch.bmm(position.unsqueeze(1) - self.means, self.factors).squeeze(1)

    def colour(self, s: Tensor) -> Tensor:
        """Return the positions of white coordinates."""
        return torch.baddbmm(self.means, s.unsqueeze(1), self.roots).squeeze(1)

    def rows(self, s: Tensor) -> Tensor:
        """Return the rows (x, z) of white coordinates."""
        return torch.baddbmm(self.centres, s.unsqueeze(1), self.maps).squeeze(1)

    def pull(self, grad: Tensor) -> Tensor:
        """Return gradients in white coordinates, given those in rows."""
        return torch.bmm(grad.unsqueeze(1), self.maps.mT).squeeze(1)

    def behind(self, n: int) -> "RowFrames":
        """Return the maps without those of the first n particles."""
        return RowFrames(*(part[n:] for part in self))


def numbers_of_frames(reference: MixtureReference, n_particles: int) -> int:
    """Return how many numbers `row_frames` gathers, or keeps of all components if these are more.

    Parameters
    ----------
    reference : MixtureReference
        The mixture.
    n_particles : int
        Particles.
    """
    width = reference.n_features + reference.n_latents
    return max(n_particles, len(reference.means) + 1) * (2 + 3 * width) * width


def row_frames(reference: MixtureReference, component: Tensor, offset: Tensor) -> RowFrames:
    """Return the maps of n posterior particles, and of joint particles behind them.

    Parameters
    ----------
    reference : MixtureReference
        The mixture.
    component : Tensor of shape (B,)
        Component of each joint particle; `OF_A_ROW` for posterior particles.
    offset : Tensor of shape (n, D + L)
        What the rows of the posterior particles add; see `MixtureReference.offset_of`.
    """
    frames = _gathered(_tables(reference), component)
    torch.add(offset, reference.joint_map()[1], out=frames.centres[: len(offset), 0])
    return frames


def draw_joint(reference: MixtureReference, out: Tensor, generator: torch.Generator) -> None:
    """Draw exact particles (y, e) into `out` (B, D + L): the numbers of `reference.sample`."""
    component = reference.draw_from_weights(len(out), generator)
    s = torch.randn(out.shape, generator=generator, dtype=out.dtype, device=out.device)
    frames = _gathered(_tables(reference), component)
    torch.baddbmm(frames.means, s.unsqueeze(1), frames.roots, out=out.unsqueeze(1))


def densities_in_frames(reference: MixtureReference) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the density of particles (y, e) follows from, component by component.

    The logarithm of a component's weighted density at a position u is its peak minus half the
    squared length of `(u - mean) W`, up to a constant that all components share.

    Parameters
    ----------
    reference : MixtureReference
        The mixture.

    Returns
    -------
    means : Tensor of shape (M, D + L)
        Means.
    whitening : Tensor of shape (M, D + L, D + L)
        Matrices W, lower or upper triangular.
    log_peaks : Tensor of shape (M,)
        Nats.
    """
    own = _tables(reference), reference.log_weights
    means, whitening, peaks = reference._kept("densities", own, lambda: _densities(*own))
    return means, whitening, peaks


def _densities(tables: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what `densities_in_frames` keeps."""
    width = tables.shape[2]
    whitening = tables[:-1, 1 : 1 + width].contiguous()
    log_scale = torch.diagonal(whitening, dim1=1, dim2=2).double().log().sum(1)
    peaks = (log_weights.double() + log_scale).to(tables.dtype)
    return tables[:-1, 0].contiguous(), whitening, peaks


def _gathered(tables: Tensor, which: Tensor) -> RowFrames:
    width = tables.shape[2]
    return RowFrames(*tables[which].split([1, width, width, 1, width], 1))


def _tables(reference: MixtureReference) -> Tensor:
    """Return the maps of every component, and last those of posterior particles.

    The shape is (M + 1, 2 + 3 P, P): matrices one below the other.
    """
    own = (
        *(reference.means, reference.factors, reference.scales, reference.covariance_of),
        *(reference.root, reference.location, reference.latent_map, reference.latent_scale),
    )
    return reference._kept("row frames", own, lambda: _joined(reference), MAX_KEPT_NUMBERS)[0]


def _joined(reference: MixtureReference) -> tuple[Tensor]:
    """Compute what `_tables` keeps."""
    d, m = reference.n_features, len(reference.means)
    scale = reference.scales.double()[:, None, None]
    factors, roots = (
        torch.diag_embed(own) if reference.is_diagonal else own
        for own in (reference.factors.double(), reference.roots.double())
    )
    matrix, shift = (part.double() for part in reference.joint_map())
    width = len(shift)
    identity = torch.eye(width, dtype=matrix.dtype, device=matrix.device).repeat(m + 1, 1, 1)
    whitening, colouring = identity, identity.clone()
    whitening[:m, :d, :d] = factors[reference.covariance_of] / scale
    colouring[:m, :d, :d] = (scale * roots[reference.covariance_of]).mT
    means = matrix.new_zeros(m + 1, 1, width)
    means[:m, 0, :d] = reference.means.double()
    maps = colouring @ matrix
    maps[m, :d] = 0.0  # nothing depends on these coordinates of posterior particles
    centres = means @ matrix + shift
    joined = torch.cat([means, whitening, colouring, centres, maps], 1)
    return (joined.to(reference.means.dtype),)
