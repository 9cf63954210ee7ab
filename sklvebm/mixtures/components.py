"""Linear algebra of mixture components: covariance factors, conditionals, products."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklvebm.kept_results import KeepsResults
from sklvebm.mcmc.state import Frame, Noise
from sklvebm.notebook import report_as_html

LOG_2PI = math.log(2.0 * math.pi)
MAX_KEPT_NUMBERS = 2**20  # of results that a reference keeps
_MAX_GATHERED_FRAME = 2**20  # entries of matrices that a frame gathers once, for all its uses
# `products_by_component` gathers one matrix per row up to these numbers of gathered entries, per
# component and in all. Otherwise it multiplies once per component, which costs about as much as
# reading 10,000 numbers twice.
_MAX_GATHERED_PER_COMPONENT = 10_000
_MAX_GATHERED_NUMBERS = 20_000_000
_MAX_ROUNDING_CORRELATION = 1e-8  # smaller correlations count as rounding
_BLOCK_NUMBERS = 2**20  # covariance entries processed at once
_TAIL = 4.0  # standard deviations of a component within which nearly all draws lie


class MixtureParts(KeepsResults, nn.Module):
    """The tensors of a `MixtureReference`, M components and C covariances, and its coordinates."""

    log_weights: Tensor  # (M,), nats
    means: Tensor  # (M, D), whitened features
    covariance_of: Tensor  # (M,), index of each component's factor
    scales: Tensor  # (M,), multiply the standard deviations
    factors: Tensor  # (C, D) or (C, D, D), precision = factor factor^T / scale^2
    roots: Tensor  # of the factors' shape, covariance = scale^2 root root^T
    root: Tensor  # (D, D), whitened features -> features
    inverse_root: Tensor  # (D, D)
    location: Tensor  # (D,), units of the features
    latent_map: Tensor  # (L, D)
    latent_scale: Tensor  # (L,)
    far: Tensor  # (F,), components whose expanded quadratic forms cancel
    is_diagonal: bool  # of all covariances, in whitened features
    n_defensive: int  # components with wide tails, which are the last ones

    def report(self) -> str:
        """Return sizes and weights as readable text."""
        weights = self.log_weights.double().exp()
        n_effective = torch.exp(-(weights * self.log_weights.double()).nansum())
        shape = "diagonal" if self.is_diagonal else "full"
        n_own = len(weights) - self.n_defensive
        defensive = float(weights[n_own:].sum())
        return (
            f"features            {self.n_features}, standardised\n"
            f"latents             {self.n_latents}\n"
            f"components          {n_own}, as many as {n_effective:.0f} of equal weight\n"
            f"covariances         {len(self.factors)}, {shape}\n"
            f"defensive           {self.n_defensive} components of weight {defensive:.2g} together"
        )

    def extra_repr(self) -> str:
        """Return sizes for `repr`."""
        return (
            f"n_components={len(self.log_weights)}, n_covariances={len(self.factors)}, "
            f"n_features={self.n_features}, n_latents={self.n_latents}"
        )

    def _repr_html_(self) -> str:
        return report_as_html(type(self).__name__, self.report())

    @property
    def n_features(self) -> int:
        """Width of x."""
        return self.location.shape[0]

    @property
    def n_latents(self) -> int:
        """Width of z."""
        return self.latent_scale.shape[0]

    def split(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Map each `position` (B, D + L) in the reference's coordinates to `(x, z)`."""
        y, e = position[:, : self.n_features], position[:, self.n_features :]
        x = self.to_features(y)
        return x, self.to_latents(x, e)

    def rows(self, position: Tensor) -> Tensor:
        """Map each `position` (B, D + L) in the reference's coordinates to `(x, z)`, (B, D + L)."""
        matrix, shift = self.joint_map()
        return torch.addmm(shift, position, matrix)

    def offset_of(self, x: Tensor) -> Tensor:
        """Return what is added to `rows` of `(0, e)` to have the particles of x (B, D)."""
        matrix, shift = self._kept("offset", (self.location, self.latent_map), self._offset_map)
        return torch.addmm(shift, x, matrix)

    def _offset_map(self) -> tuple[Tensor, Tensor]:
        location, latent_map = self.location.double(), self.latent_map.double()
        identity = torch.eye(len(location), dtype=location.dtype, device=location.device)
        matrix = torch.cat([identity, latent_map.T], 1)
        return matrix.to(self.location), (-location @ matrix).to(self.location)

    def parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts x (B, D) and z (B, L) of rows (x, z), (B, D + L)."""
        return rows[:, : self.n_features], rows[:, self.n_features :]

    def joint_map(self) -> tuple[Tensor, Tensor]:
        """Return M (P, P) and c (P,) with `(x, z) = (y, e) M + c`, kept for these tensors."""
        own = self.root, self.latent_map, self.latent_scale, self.location
        matrix, shift = self._kept("joint map", own, self._joint_map)
        return matrix, shift

    def _joint_map(self) -> tuple[Tensor, Tensor]:
        root, latent_map, scale = (
            tensor.double() for tensor in (self.root, self.latent_map, self.latent_scale)
        )
        top = torch.cat([root.T, (latent_map @ root).T], 1)
        bottom = torch.cat([scale.new_zeros(len(scale), len(root)), torch.diag(scale)], 1)
        shift = torch.cat([self.location, torch.zeros_like(self.latent_scale)])
        return torch.cat([top, bottom]).to(self.root), shift

    def pulls(self) -> Tensor:
        """Return every component's precision times its mean, (M, D), in double precision."""
        own = self.means, self.factors, self.scales, self.covariance_of
        return self._kept("pulls", own, self._pulls, MAX_KEPT_NUMBERS)[0]

    def _pulls(self) -> tuple[Tensor]:
        means, factors = self.means.double(), self.factors.double()
        if self.is_diagonal:
            return (means * factors.square(),)
        # components may share a factor, but each has its own scale
        white = products_by_component(means, factors, self.covariance_of)
        pull = products_by_component(white, factors.transpose(1, 2), self.covariance_of)
        return (pull / self.scales.double().square()[:, None],)

    def farthest_draw(self) -> Tensor:
        """Return the largest coordinate `(y, e)` of draws that are likely in any component, 0-d.

        Weights play no part: a component that draws miss today can be drawn tomorrow.
        """
        own = self.means, self.roots, self.scales, self.covariance_of
        return self._kept("farthest draw", own, self._farthest_draw)[0]

    def _farthest_draw(self) -> tuple[Tensor]:
        deviations = self.roots if self.is_diagonal else torch.linalg.vector_norm(self.roots, dim=2)
        widths = self.scales.unsqueeze(1) * deviations[self.covariance_of]
        farthest = torch.addcmul(self.means.abs(), widths, torch.full_like(widths, _TAIL))
        return (farthest.max().clamp(min=_TAIL),)  # of latents, which are standard normal

    def linear_pull(self) -> tuple[Tensor, Tensor] | None:
        """Return the gradient of the base energy at particles (y, e) as an affine function.

        Returns
        -------
        pull : tuple of Tensor or None
            Slopes (D + L,) and shifts (D + L,): the gradient is `shift + slope * position`. None
            unless the mixture is a single Gaussian with a diagonal covariance.
        """
        if len(self.means) > 1 or not self.is_diagonal or len(self.far):
            return None
        own = self.means, self.factors, self.latent_scale
        slope, shift = self._kept("linear pull", own, self._linear_pull)
        return slope, shift

    def _linear_pull(self) -> tuple[Tensor, Tensor]:
        of_latents = torch.zeros_like(self.latent_scale)
        slope = torch.cat([self.factors[0].double().square().to(of_latents), of_latents + 1.0])
        return slope, torch.cat([-self.pulls()[0].to(of_latents), of_latents])

    def frame_of(self, component: Tensor) -> Frame:
        """Return frames in which `component` (B,) is N(0, I)."""
        if self.is_diagonal:
            means, factors = self.means[component], self.factors[component]
            return Frame(
                whiten=lambda u: (u - means) * factors,
                colour=lambda s: means + s / factors,
                pull=lambda grad: grad / factors,
            )
        n_features = self.n_features
        # factor = root^{-T}: a row u is whitened as u factor, and s is coloured as s root^T
        if len(component) * n_features**2 <= _MAX_GATHERED_FRAME:
            maps = self._component_maps()[component]
            means, factors, roots = maps.split([1, n_features, n_features], 1)
            return Frame(
                whiten=lambda u: torch.bmm(u.unsqueeze(1) - means, factors).squeeze(1),
                colour=lambda s: torch.baddbmm(means, s.unsqueeze(1), roots.mT).squeeze(1),
                pull=lambda grad: torch.bmm(grad.unsqueeze(1), roots).squeeze(1),
            )
        means, which = self.means[component], self.covariance_of[component]
        factors, roots, scale = self.factors, self.roots, self.scales[component, None]
        return Frame(
            whiten=lambda u: products_by_component((u - means) / scale, factors, which),
            colour=lambda s: means + scale * products_by_component(s, roots.transpose(1, 2), which),
            pull=lambda grad: scale * products_by_component(grad, roots, which),
        )

    def _component_maps(self) -> Tensor:
        """Return every component's mean, factor and root, (M, 1 + 2 D, D), one below the other."""
        own = self.means, self.factors, self.roots, self.scales, self.covariance_of
        return self._kept("component maps", own, self._joined_maps, MAX_KEPT_NUMBERS)[0]

    def _joined_maps(self) -> tuple[Tensor]:
        scale = self.scales[:, None, None]
        factors, roots = (own[self.covariance_of] for own in (self.factors, self.roots))
        return (torch.cat([self.means.unsqueeze(1), factors / scale, scale * roots], 1),)

    def to_features(self, y: Tensor) -> Tensor:
        """Map y (B, D) to x (B, D)."""
        return torch.addmm(self.location, y, self.root.T)

    def from_features(self, x: Tensor) -> Tensor:
        """Map x (B, D) to y (B, D)."""
        return (x - self.location) @ self.inverse_root.T

    def latent_mean(self, x: Tensor) -> Tensor:
        """Return the reference posterior mean of z given x, (B, L)."""
        return (x - self.location) @ self.latent_map.T

    def to_latents(self, x: Tensor, e: Tensor) -> Tensor:
        """Map whitened latents e (B, L) at rows x (B, D) to z (B, L)."""
        return torch.addcmul(self.latent_mean(x), e, self.latent_scale)

    def from_latents(self, x: Tensor, z: Tensor) -> Tensor:
        """Map z (B, L) at rows x (B, D) to whitened latents e (B, L)."""
        return (z - self.latent_mean(x)) / self.latent_scale


class LinearGauge(NamedTuple):
    """Latents given whitened features y in component m: `N(design_m y + offset_m, variance)`."""

    design: Tensor  # (M, L, D), or (1, L, D) for all components
    offset: Tensor  # (M, L) or (1, L)
    variance: Tensor  # (L,)

    def log_density(self, y: Tensor, z: Tensor) -> Tensor:
        """Return the log density of z (B, L) at y (B, D) in each component, (B, 1 or M), nats."""
        residual = z[:, None] - torch.einsum("mld,bd->bml", self.design, y) - self.offset
        squares = (residual.square() / self.variance).sum(2)
        return -0.5 * (squares + torch.log(self.variance).sum() + z.shape[1] * LOG_2PI)


class FeatureConditional(NamedTuple):
    """Gaussian mixtures of y given z, one for each z; double precision."""

    log_weights: Tensor  # (N, M), normalised
    means: Tensor  # (N, M, D)
    roots: Tensor  # (M, D, D), lower triangular square roots of the covariances
    inverse_roots: Tensor  # (M, D, D)

    def mean(self) -> Tensor:
        """Return `E[y | z]`, (N, D)."""
        return torch.einsum("nm,nmd->nd", self.log_weights.exp(), self.means)

    def frame(self, row: Tensor, component: Tensor) -> Frame:
        """Return frames in which `component` (B,) of the mixture of `row` (B,) is N(0, I)."""
        means = self.means[row, component]
        back, roots = self.inverse_roots.transpose(1, 2), self.roots
        return Frame(
            whiten=lambda u: products_by_component(u - means, back, component),
            colour=lambda s: means + products_by_component(s, roots.transpose(1, 2), component),
            pull=lambda grad: products_by_component(grad, roots, component),
        )

    def sample(self, row: Tensor, noise: Noise) -> Tensor:
        """Draw one y given each row (B,) of z; (B, D)."""
        frame = self.frame(row, draw_categorical(self.log_weights[row], noise))
        return frame.colour(noise.normal(self.means[row, 0]))


def condition_on_latents(reference: Any, z: Tensor, gauge: LinearGauge) -> FeatureConditional:
    """Return the mixture of y given latents z (N, L); see `MixtureReference.feature_conditional`.

    Let `R R^T` be a component's covariance, and U and s the left singular vectors and singular
    values of `R^T design^T variance^{-1/2}`. The conditional covariance has the root
    `R (I - U diag(1 - (1 + s^2)^{-1/2}) U^T)`. This form inverts no covariance and is accurate for
    components of any width.
    """
    z = z.double()
    design, offset, variance = gauge
    means, roots = reference.means.double(), reference.roots.double()
    if reference.is_diagonal:
        roots = torch.diag_embed(roots)
    roots = roots[reference.covariance_of] * reference.scales.double()[:, None, None]
    seen = design @ roots  # (M, L, D)
    left, values, _ = torch.linalg.svd(seen.transpose(1, 2) / variance.sqrt(), full_matrices=False)
    kept = 1.0 - (1.0 + values.square()).rsqrt()
    square = roots - (roots @ left) * kept.unsqueeze(1) @ left.transpose(1, 2)
    # the triangular root with a positive diagonal
    lower = torch.linalg.qr(square.transpose(1, 2), mode="r").R.transpose(1, 2)
    signs = torch.diagonal(lower, dim1=1, dim2=2).sign()
    root = lower * torch.where(signs == 0.0, torch.ones_like(signs), signs).unsqueeze(1)
    weighted = design / variance[:, None]  # (1 or M, L, D)
    shift = reference.pulls() - torch.einsum("mld,ml->md", weighted, offset)
    pull = torch.einsum("bl,mld->bmd", z, weighted)
    linear = shift[None] + pull  # (N, M, D)
    conditional_means = torch.einsum("mde,bme->bmd", root @ root.transpose(1, 2), linear)
    factor = torch.linalg.cholesky(seen @ seen.transpose(1, 2) + torch.diag(variance))  # (M, L, L)
    expected = (design @ means[:, :, None]).squeeze(2) + offset  # (M, L)
    residual = z[:, None] - expected[None]  # (N, M, L)
    scaled = torch.linalg.solve_triangular(factor, residual.permute(1, 2, 0), upper=False)
    log_det = torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(1)
    log_weights = reference.log_weights.double() - log_det - 0.5 * scaled.square().sum(1).T
    identity = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
    inverse_root = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
    return FeatureConditional(
        torch.log_softmax(log_weights, 1), conditional_means, root, inverse_root
    )


def draw_categorical(log_weights: Tensor, noise: Noise) -> Tensor:
    """Draw an index for each row of unnormalised log weights (B, M); (B,)."""
    cumulative = torch.softmax(log_weights, 1).cumsum_(1)
    threshold = noise.uniform(cumulative[:, -1]) * cumulative[:, -1]
    return torch.searchsorted(cumulative, threshold.unsqueeze(1)).squeeze(1)


def products_by_component(rows: Tensor, matrices: Tensor, component: Tensor) -> Tensor:
    """Return `row @ matrices[component]` for rows (B, D), matrices (M, D, D), components (B,)."""
    gathered = rows.shape[0] * rows.shape[1] ** 2
    if gathered <= min(_MAX_GATHERED_PER_COMPONENT * len(matrices), _MAX_GATHERED_NUMBERS):
        return torch.bmm(rows.unsqueeze(1), matrices[component]).squeeze(1)
    if rows.device.type != "cpu":
        return _products_without_waiting(rows, matrices, component)
    order = torch.argsort(component)
    counts = torch.bincount(component, minlength=len(matrices)).tolist()
    parts = zip(rows[order].split(counts), matrices, strict=True)
    products = torch.empty_like(rows)
    products[order] = torch.cat([part @ matrix for part, matrix in parts if len(part)])
    return products


def _products_without_waiting(rows: Tensor, matrices: Tensor, component: Tensor) -> Tensor:
    """Return `products_by_component`, without the number of rows of each on the host.

    Every row takes its own matrix or the products with all matrices, whichever are fewer numbers.
    Both are done in parts, because of memory.
    """
    width, n_matrices = rows.shape[1], len(matrices)
    size = max(1, _MAX_GATHERED_NUMBERS // (width * min(width, n_matrices)))
    products = []
    for part, own in zip(rows.split(size), component.split(size), strict=True):
        if width <= n_matrices:
            products.append(torch.bmm(part.unsqueeze(1), matrices[own]).squeeze(1))
        else:
            places = own.view(1, -1, 1).expand(1, -1, width)
            products.append(torch.matmul(part, matrices).gather(0, places)[0])
    return torch.cat(products)


def check_covariance_of(covariance_of: Tensor, n_components: int, n_covariances: int) -> None:
    """Raise ValueError unless `covariance_of` holds an index of a covariance per component."""
    if covariance_of.shape != (n_components,) or not (
        int(covariance_of.min()) >= 0 and int(covariance_of.max()) < n_covariances
    ):
        raise ValueError(
            f"covariance_of must name one of {n_covariances} covariances for each of "
            f"{n_components} components, got {covariance_of.tolist()}."
        )


def are_diagonal(covariances: Tensor) -> bool:
    """Return whether covariances (M, D, D) are diagonal, each relative to its own variances."""

    def off_diagonal_is_zero(some: Tensor) -> bool:
        variances = torch.diagonal(some, dim1=1, dim2=2)
        off_diagonal = some - torch.diag_embed(variances)
        size = (variances.unsqueeze(1) * variances.unsqueeze(2)).clamp(min=0.0).sqrt()
        return bool((off_diagonal.abs() <= _MAX_ROUNDING_CORRELATION * size).all())

    return all(off_diagonal_is_zero(some) for some in _blocks(covariances))


def in_coordinates(covariances: Tensor, matrix: Tensor, n_more: int = 0) -> Tensor:
    """Return `A C A^T` of covariances C (M, D, D), (M + n_more, D, D); the last are not set."""
    shape = len(covariances) + n_more, *covariances.shape[1:]
    moved = covariances.new_empty(shape)
    for some, out in zip(_blocks(covariances), _blocks(moved[: len(covariances)]), strict=True):
        out.copy_(matrix @ some @ matrix.T)
    return moved


def factors_and_roots(covariances: Tensor, is_diagonal: bool) -> tuple[Tensor, Tensor]:
    """Return factors F of the precisions, F F^T, and lower triangular roots R of C = R R^T.

    Diagonal covariances give (M, D): inverse standard deviations and standard deviations. Others
    give (M, D, D), and the roots overwrite the covariances.
    """
    if is_diagonal:
        variances = torch.diagonal(covariances, dim1=1, dim2=2)
        return variances.rsqrt(), variances.sqrt()
    factors = torch.empty_like(covariances)
    identity = torch.eye(covariances.shape[1], dtype=factors.dtype, device=factors.device)
    for some, out in zip(_blocks(covariances), _blocks(factors), strict=True):
        some.copy_(torch.linalg.cholesky(some))
        out.copy_(torch.linalg.solve_triangular(some, identity.expand_as(some), upper=False).mT)
    return factors, covariances


def _blocks(matrices: Tensor) -> tuple[Tensor, ...]:
    """Return views of matrices (M, D, D) in blocks of limited size."""
    return matrices.split(max(1, _BLOCK_NUMBERS // max(1, matrices.shape[1] ** 2)))
