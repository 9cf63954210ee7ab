r"""The reference: a normalised joint density with exact evaluation and exact draws.

.. math:: \exp(-E_{ref}(x, z)) = r(x)\, N(z; A(x - \mu), S)          (docs/theory/model.md, eq. 2)

`r` is a Gaussian mixture; probabilistic PCA gives `A` and `S`. Positions of particles are in the
reference's own coordinates `(y, e)`,

.. math:: x = \mu + P y, \qquad z = A P y + S^{1/2} e,                (docs/theory/model.md, eq. 3)

with `P` a square root of the pooled within-component covariance. Here, mixture components have
about unit scale, and the reference posterior of the latents is `e ~ N(0, I)` for every row.
"""

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from sklvebm.deprecation import Renamed, RenamedAttribute, renamed_parameters
from sklvebm.mcmc.state import Frame, Noise
from sklvebm.mixtures.components import (
    LOG_2PI,
    MAX_KEPT_NUMBERS,
    FeatureConditional,
    LinearGauge,
    MixtureParts,
    are_diagonal,
    check_covariance_of,
    condition_on_latents,
    draw_categorical,
    factors_and_roots,
    in_coordinates,
)

# largest `mean^T precision mean` of expanded quadratic forms: cancellation gives 1e-5 nats there
_MAX_EXPANDED_FORM = 1e10
# features of which all products of two are computed, each twice: cheaper than choosing them
_MOST_SQUARED = 6
_COLOURED_AT_A_TIME = 2**20  # numbers of draws
_DEFENSIVE_PARAMETERS = ("weight", "covariance", "scales")
RENAMED_PARAMETERS = {
    f"wide_{name}": Renamed(f"defensive_{name}", "0.3") for name in _DEFENSIVE_PARAMETERS
}


class MixtureReference(MixtureParts):
    r"""Gaussian mixture over the features with a linear-Gaussian posterior over the latents.

    Parameters
    ----------
    weights : Tensor of shape (n_mixture_components,)
        Mixture weights, positive, summing to one.
    means : Tensor of shape (n_mixture_components, n_features)
        Component means, in the units of the features.
    covariances : Tensor of shape (n_covariances, n_features, n_features)
        Covariances of the components, positive definite.
    latent_map : Tensor of shape (n_latents, n_features)
        The matrix A of the posterior mean `A (x - location)`.
    latent_variance : Tensor of shape (n_latents,)
        Diagonal of the posterior covariance S, positive.
    location : Tensor of shape (n_features,)
        The point where the posterior mean is zero.
    covariance_of : Tensor of shape (n_mixture_components,) or None, default=None
        Index of each component's covariance; None if each has its own, in order.
    defensive_weight : float or Tensor of shape (n_defensive,), default=0.0
        Weights of defensive components at `location`. They make the tails of the reference wider
        than the data, so that negative particles reach wells of an energy there. The other weights
        are multiplied by one minus their sum. A number stands for one component.
    defensive_covariance : Tensor of shape (n_features, n_features) or None, default=None
        Covariance of the first defensive component; required when `defensive_weight` is positive.
    defensive_scales : Tensor of shape (n_defensive,) or None, default=None
        Factors on its standard deviations; None is 1. Components of one shape and growing scales
        form a Student-like tail: log densities fall with the logarithm of the distance.

    Attributes
    ----------
    n_defensive : int
        Number of defensive components, which are the last ones.

    Raises
    ------
    ValueError
        If `covariance_of` does not hold an index of a covariance for every component.

    See Also
    --------
    AnchoredEnergy : An energy that corrects a reference.
    sklearn.mixture.GaussianMixture : Fits mixtures that a reference can be made of.

    Notes
    -----
    The log normaliser is zero. Covariances that are all diagonal after the change of coordinates
    (diagonal, tied and single components) are stored as variances and evaluated by two matrix
    products. Others are stored as triangular factors, which components can share.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import MixtureReference
    >>> one, two = torch.eye(1), torch.eye(2)
    >>> maps = {"latent_map": torch.ones(1, 2), "latent_variance": one[0], "location": two[0]}
    >>> reference = MixtureReference(torch.ones(1), torch.zeros(1, 2), two[None], **maps)
    >>> reference.log_marginal(torch.zeros(1, 2))
    tensor([-1.8379])
    """

    n_wide = RenamedAttribute("n_wide", "n_defensive", "0.3")

    @renamed_parameters("MixtureReference", RENAMED_PARAMETERS)
    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        *,
        latent_map: Tensor,
        latent_variance: Tensor,
        location: Tensor,
        covariance_of: Tensor | None = None,
        defensive_weight: float | Tensor = 0.0,
        defensive_covariance: Tensor | None = None,
        defensive_scales: Tensor | None = None,
    ) -> None:
        super().__init__()
        weights, means, covariances = weights.double(), means.double(), covariances.double()
        location = location.double().clone()  # in torch's memory: see `tensor_of`
        if covariance_of is None:
            covariance_of = torch.arange(len(covariances), device=means.device)
        check_covariance_of(covariance_of, len(means), len(covariances))
        shares = weights.new_zeros(len(covariances)).index_add_(0, covariance_of, weights)
        pooled = torch.einsum("k,kde->de", shares, covariances)
        # the symmetric root does not depend on the order of the columns
        variances, vectors = torch.linalg.eigh(pooled)
        root = (vectors * variances.clamp(min=1e-300).sqrt()) @ vectors.T
        inverse_root = torch.linalg.inv(root)
        means = (means - location) @ inverse_root.T
        shares = torch.as_tensor(defensive_weight, dtype=torch.float64).to(weights).reshape(-1)
        n_given, is_defended = len(covariances), bool(shares.sum() > 0.0)
        covariances = in_coordinates(covariances, inverse_root, n_more=int(is_defended))
        self.is_diagonal = are_diagonal(covariances[:n_given])
        scales, self.n_defensive = torch.ones_like(weights), 0
        if is_defended:
            self.n_defensive = len(shares)
            shape = inverse_root @ cast(Tensor, defensive_covariance).double() @ inverse_root.T
            covariances[n_given] = torch.diag(shape.diagonal()) if self.is_diagonal else shape
            weights = torch.cat([weights * (1.0 - shares.sum()), shares])
            means = torch.cat([means, means.new_zeros(self.n_defensive, len(location))])
            last = torch.full_like(covariance_of[:1], n_given).expand(self.n_defensive)
            covariance_of = torch.cat([covariance_of, last])
            factors = torch.ones_like(shares) if defensive_scales is None else defensive_scales
            scales = torch.cat([scales, factors.to(scales)])
        factors, roots = factors_and_roots(covariances, self.is_diagonal)
        if self.is_diagonal:  # cheap enough for each component to have its own
            factors = factors[covariance_of] / scales[:, None]
            roots = roots[covariance_of] * scales[:, None]
            covariance_of = torch.arange(len(means), device=means.device)
            scales = torch.ones_like(scales)
        self._set_buffers(
            log_weights=torch.log(weights),
            **{"means": means, "covariance_of": covariance_of, "scales": scales},
            **{"factors": factors, "roots": roots, "root": root, "inverse_root": inverse_root},
            location=location,
            latent_map=latent_map.double().clone(),
            latent_scale=torch.sqrt(latent_variance.double()),
            far=torch.zeros(0, dtype=torch.long, device=means.device),
        )
        self._find_far()

    def _find_far(self) -> None:
        """Find the components so far from zero that their expanded quadratic forms cancel."""
        forms = (self.pulls() * self.means).sum(1)
        self.far = torch.nonzero(forms > _MAX_EXPANDED_FORM)[:, 0]

    def _set_buffers(self, **buffers: Tensor) -> None:
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "MixtureReference":
        """Return another module on the same tensors, which are never modified."""
        twin = MixtureReference.__new__(MixtureReference)
        nn.Module.__init__(twin)
        twin.is_diagonal, twin.n_defensive = self.is_diagonal, self.n_defensive
        twin._set_buffers(**dict(self.named_buffers()))
        memo[id(self)] = twin
        return twin

    def without_latents(self) -> "MixtureReference":
        """Return the marginal of the features as a reference with `L = 0`."""
        marginal = copy.deepcopy(self)
        marginal.latent_map = self.latent_map[:0]
        marginal.latent_scale = self.latent_scale[:0]
        return marginal

    def reweighted(self, log_weights: Tensor) -> "MixtureReference":
        """Return the same components and coordinates with other `log_weights` (M,), nats."""
        twin = copy.deepcopy(self)
        twin.log_weights = log_weights.to(self.log_weights)
        twin._share_results(self)
        return twin

    def with_components(
        self, weights: Tensor, means: Tensor, covariances: Tensor, share: float
    ) -> "MixtureReference":
        """Return the reference with further components, in the same coordinates.

        Parameters
        ----------
        weights : Tensor of shape (n_new,)
            Weights of the new components among themselves, summing to one.
        means : Tensor of shape (n_new, n_features)
            Their means, in the units of the features.
        covariances : Tensor of shape (n_new, n_features, n_features)
            Their covariances, positive definite.
        share : float
            Their share of the density, between zero and one.
        """
        own = copy.deepcopy(self).double()
        weights, means = weights.to(own.means), own.from_features(means.to(own.means))
        covariances = in_coordinates(covariances.to(own.means), own.inverse_root)
        new_factors, new_roots = factors_and_roots(covariances, is_diagonal=False)
        first = len(own.means) - self.n_defensive
        factors, roots = own.factors, own.roots
        if self.is_diagonal:  # the new components may have correlations
            factors, roots = torch.diag_embed(factors), torch.diag_embed(roots)
        of_new = len(factors) + torch.arange(len(means), device=means.device)

        def joined(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old[:first], new, old[first:]])

        log_weights = own.log_weights + math.log1p(-share)
        own.is_diagonal = False
        own._set_buffers(
            log_weights=joined(log_weights, torch.log(weights) + math.log(share)),
            means=joined(own.means, means),
            covariance_of=joined(own.covariance_of, of_new),
            scales=joined(own.scales, torch.ones_like(weights)),
            factors=torch.cat([factors, new_factors]),
            roots=torch.cat([roots, new_roots]),
        )
        own._find_far()
        return own

    def defensive_share(self) -> float:
        """Return the weight of all defensive components together."""
        return float(torch.exp(self.log_weights[len(self.log_weights) - self.n_defensive :]).sum())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of `log_components` per row."""
        n_components, d = self.means.shape
        if self.is_diagonal:
            return 2 * d * n_components
        if self._has_few_covariances:
            return d * (d * len(self.factors) + n_components)
        return d * (d + 3) // 2 * n_components

    @property
    def _has_few_covariances(self) -> bool:
        """Whether rows whitened by every factor are fewer numbers than products of features."""
        return self.n_features + 1 > 2 * len(self.factors)

    def log_components(self, y: Tensor) -> Tensor:
        """Return `log w_m N(y; m_m, C_m)`, (B, M), nats, in double precision.

        The quadratic forms of narrow components lose many digits by cancellation.
        """
        y, (constant, forms) = y.double(), self._expanded_forms()
        if self.is_diagonal:
            products = y.square()
        elif self._has_few_covariances:
            squares = torch.matmul(y, self.factors.double()).square().sum(-1).T
            half = 0.5 * self.scales.double().square().reciprocal()
            squares = half * squares[:, self.covariance_of]
            return self._with_far(torch.addmm(constant, y, forms.T) - squares, y)
        elif self.n_features <= _MOST_SQUARED:
            products = (y.unsqueeze(2) * y.unsqueeze(1)).flatten(1)
        else:
            first, second = self._pairs()
            products = y[:, first] * y[:, second]
        # one matrix product, because a pass over (B, M) numbers costs as much as the product
        return self._with_far(torch.addmm(constant, torch.cat([products, y], 1), forms.T), y)

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Return the features of all products of two, (D (D + 1) / 2,) each."""
        size, device = self.n_features, self.means.device
        first, second = self._kept(
            "pairs", (self.means,), lambda: torch.triu_indices(size, size, device=device).unbind()
        )
        return first, second

    def _expanded_forms(self) -> tuple[Tensor, Tensor]:
        """Return constants (M,) and coefficients of `log_components`, kept for these buffers."""
        own = self.means, self.scales, self.factors, self.covariance_of
        constant, forms = self._kept("forms", own, self._expand, MAX_KEPT_NUMBERS)
        weighted = constant, self.log_weights
        return self._kept("constants", weighted, lambda: (constant + self.log_weights,))[0], forms

    def _expand(self) -> tuple[Tensor, Tensor]:
        """Compute what `_expanded_forms` keeps: constants without weights, and coefficients."""
        means, factors = self.means.double(), self.factors.double()
        diagonals = factors if self.is_diagonal else torch.diagonal(factors, dim1=1, dim2=2)
        scales = self.scales.double()
        log_scale = torch.log(diagonals).sum(1)[self.covariance_of]
        log_scale = log_scale - self.n_features * torch.log(scales)
        constant = log_scale - 0.5 * self.n_features * LOG_2PI
        pull = self.pulls()
        constant = constant - 0.5 * (pull * means).sum(1)
        if self.is_diagonal:
            weights = factors.square()
        elif self._has_few_covariances:
            return constant, pull
        else:
            precision = factors @ factors.transpose(1, 2)
            if self.n_features <= _MOST_SQUARED:
                weights = precision.flatten(1)
            else:
                first, second = self._pairs()
                # an off-diagonal product occurs twice in the form
                weights = precision[:, first, second] * (2.0 - (first == second).double())
            weights = weights[self.covariance_of] / scales.square()[:, None]
        return constant, torch.cat([-0.5 * weights, pull], 1)

    def _with_far(self, log_components: Tensor, y: Tensor) -> Tensor:
        """Replace the columns of components far from zero by forms that do not cancel; (B, M)."""
        if len(self.far) == 0:
            return log_components
        white = self._whitened_by_far(y)[0]
        factors = self.factors.double()[self.covariance_of[self.far]]
        diagonals = factors if self.is_diagonal else torch.diagonal(factors, dim1=1, dim2=2)
        scales = self.scales.double()[self.far]
        constant = self.log_weights.double()[self.far] + torch.log(diagonals).sum(1)
        constant = constant - self.n_features * (torch.log(scales) + 0.5 * LOG_2PI)
        return log_components.index_copy(1, self.far, constant - 0.5 * white.square().sum(2))

    def _whitened_by_far(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (B, D) whitened by each far component, (B, F, D), and the factors, (F, D, D)."""
        factors = self.factors.double()[self.covariance_of[self.far]]
        factors = torch.diag_embed(factors) if self.is_diagonal else factors
        factors = factors / self.scales.double()[self.far, None, None]
        residuals = y.double().unsqueeze(1) - self.means.double()[self.far]
        return torch.einsum("bfd,fde->bfe", residuals, factors), factors

    def log_marginal(self, x: Tensor) -> Tensor:
        """Return `log r(x)`, (B,), in nats."""
        log_components = self.log_components(self.from_features(x))
        log_det = torch.linalg.slogdet(self.root.double())[1]
        return (torch.logsumexp(log_components, 1) - log_det).to(x.dtype)

    def log_peak(self) -> Tensor:
        """Return an upper bound of `log r`: the log sum of all components' peaks, 0-d, nats."""
        factors = self.factors.double()
        diagonals = factors if self.is_diagonal else torch.diagonal(factors, dim1=1, dim2=2)
        log_scale = torch.log(diagonals).sum(1)[self.covariance_of]
        log_scale = log_scale - self.n_features * torch.log(self.scales.double())
        peaks = self.log_weights.double() + log_scale - 0.5 * self.n_features * LOG_2PI
        return torch.logsumexp(peaks, 0) - torch.linalg.slogdet(self.root.double())[1]

    def local_mean(self, x: Tensor) -> Tensor:
        """Return the mean of the components' means, weighted by their posterior at x, (B, D)."""
        shares = torch.softmax(self.log_components(self.from_features(x)), 1)
        return self.to_features(shares.to(x.dtype) @ self.means)

    def log_conditional(self, x: Tensor, z: Tensor) -> Tensor:
        """Return `log N(z; A (x - location), S)`, (B,), in nats."""
        e = self.from_latents(x, z)
        log_det = torch.log(self.latent_scale).sum()
        return -0.5 * (e.square().sum(1) + self.n_latents * LOG_2PI) - log_det

    def energy(self, x: Tensor, z: Tensor) -> Tensor:
        """Return `E_ref(x, z)`, (B,), in nats; its partition function is one."""
        return -self.log_marginal(x) - self.log_conditional(x, z)

    def marginal_energy_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy of y under the mixture and its gradient.

        Parameters
        ----------
        y : Tensor of shape (B, D)
            Whitened features.

        Returns
        -------
        energy : Tensor of shape (B,)
            `-log` density of y (not of x: no Jacobian), in nats.
        grad : Tensor of shape (B, D)
            Its gradient with respect to y.
        """
        log_components = self.log_components(y)
        log_density = torch.logsumexp(log_components, 1)
        responsibility = torch.softmax(log_components, 1)  # (B, M)
        if len(self.far):
            of_far = responsibility[:, self.far]
            responsibility = responsibility.index_fill(1, self.far, 0.0)
        y64, factors = y.double(), self.factors.double()
        if self.is_diagonal:
            grad = self._diagonal_grad(y64, responsibility)
        else:
            shares = responsibility.new_zeros(len(y), len(factors))
            precision = responsibility / self.scales.double().square()
            shares.index_add_(1, self.covariance_of, precision)
            white = torch.matmul(y64, factors) * shares.T[:, :, None]
            grad = torch.einsum("kbd,ked->be", white, factors) - responsibility @ self.pulls()
        if len(self.far):
            white, whitening = self._whitened_by_far(y64)
            grad = grad + torch.einsum("bf,bfe,fde->bd", of_far, white, whitening)
        return -log_density.to(y.dtype), grad.to(y.dtype)

    def marginal_grad(self, y: Tensor) -> Tensor:
        """Return the gradient of `marginal_energy_and_grad` at y (B, D) alone, (B, D)."""
        if not self.is_diagonal or len(self.far):
            return self.marginal_energy_and_grad(y)[1]
        responsibility = torch.softmax(self.log_components(y), 1)
        return self._diagonal_grad(y.double(), responsibility).to(y.dtype)

    def _diagonal_grad(self, y: Tensor, responsibility: Tensor) -> Tensor:
        """Return the gradient of minus the log density at y (B, D), given components' shares."""
        own = self.means, self.factors
        (slopes,) = self._kept("diagonal slopes", own, self._diagonal_slopes, MAX_KEPT_NUMBERS)
        precision, shift = (responsibility @ slopes).tensor_split(2, 1)
        return torch.addcmul(shift, precision, y)

    def _diagonal_slopes(self) -> tuple[Tensor]:
        return (torch.cat([self.factors.double().square(), -self.pulls()], 1),)

    def sample(self, n: int, generator: torch.Generator, *, stratified: bool = False) -> Tensor:
        """Draw exact particles `(y, e)`, (n, D + L), in the reference's coordinates.

        Parameters
        ----------
        n : int
            Number of draws.
        generator : torch.Generator
            Source of the draws, on the reference's device.
        stratified : bool, default=False
            Draw components by systematic sampling instead of independently. Each draw remains
            exact, and sums over draws vary less. Draws are then in the order of the components.
        """
        like = self.means
        if stratified:
            weights = self._weights()
            offset = torch.rand((), generator=generator, dtype=like.dtype, device=like.device)
            at = (torch.arange(n, dtype=like.dtype, device=like.device) + offset) / n
            component = torch.searchsorted(torch.cumsum(weights, 0), at)
            component = component.clamp(max=len(weights) - 1)
        else:
            component = self.draw_from_weights(n, generator)
        return self.draws_of(component, generator)

    def draw_from_weights(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n components by their weights, (n,), from `generator`."""
        return torch.multinomial(self._weights(), n, replacement=True, generator=generator)

    def _weights(self) -> Tensor:
        own = (self.log_weights,)
        return self._kept("weights", own, lambda: (torch.exp(self.log_weights),))[0]

    def draws_of(self, component: Tensor, generator: torch.Generator) -> Tensor:
        """Draw `(y, e)`, (n, D + L), exactly, one of each `component` (n,), from `generator`."""
        like = self.means
        shape = len(component), self.n_features + self.n_latents
        noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        y = noise[:, : self.n_features]
        size = max(1, _COLOURED_AT_A_TIME // self.n_features)
        for some, of_some in zip(y.split(size), component.split(size), strict=True):
            some.copy_(self.frame_of(of_some).colour(some))
        return noise

    def draw_components(self, y: Tensor, noise: Noise) -> Tensor:
        """Draw a component for each y (B, D) from its posterior given y, by `noise`; (B,)."""
        return draw_categorical(self.log_components(y), noise)

    def frame(self, y: Tensor, noise: Noise) -> Frame:
        """Return frames for y (B, D) in which a component, drawn given y by `noise`, is N(0, I)."""
        return self.frame_of(self.draw_components(y, noise))

    def linear_gauge(self) -> LinearGauge:
        """Return the distribution of z given y, the same for all components."""
        design = (self.latent_map @ self.root).double()
        variance = self.latent_scale.double().square()
        return LinearGauge(design[None], torch.zeros_like(variance)[None], variance)

    def feature_conditional(
        self, z: Tensor, gauge: LinearGauge | None = None
    ) -> FeatureConditional:
        """Return the distribution of y given latents z (N, L): a Gaussian mixture.

        Parameters
        ----------
        z : Tensor of shape (N, L)
            Latents.
        gauge : LinearGauge or None, default=None
            Distribution of z given y, linear and Gaussian within each component; None is the
            reference's own.
        """
        return condition_on_latents(self, z, gauge or self.linear_gauge())
