r"""Marginals of the interpolant `t x + (1 - t) e` between noise and a Gaussian mixture.

With x from the mixture and standard normal noise e, the marginal q_t at time t is a mixture again,

.. math:: q_t = \sum_m w_m N(t \mu_m, S_m), \quad S_m = t^2 C_m + (1 - t)^2 I
          \qquad \text{(docs/theory/potential_flow.md, eq. 1)}

with closed forms for its density, its score and the velocity that carries noise to data. The forms
used here do not divide by t or 1 - t where these vanish, and are finite for all times in [0, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.mixtures.components import LOG_2PI, products_by_component
from sklvebm.mixtures.reference import MixtureReference

_MIN_VARIANCE = 1e-12  # standardised units squared
_SWITCH_TIME = 0.5  # earlier, the score is computed from the velocity; later, the reverse


class NoisedValues(NamedTuple):
    """Values of the interpolant's marginals at points, float64."""

    log_density: Tensor  # (G, B), log q_t(x), nats
    log_ratio: Tensor  # (G, B), log q_t(x) - log N(x; 0, I), nats
    score: Tensor  # (G, B, D), gradient of log q_t
    velocity: Tensor  # (G, B, D), carries q_t along as t grows


class InterpolantMarginals(NamedTuple):
    """Mixture components with covariances in principal axes; float64.

    Attributes
    ----------
    log_weights : Tensor of shape (M,)
        Log of the mixture weights.
    means : Tensor of shape (M, D)
        Component means.
    variances : Tensor of shape (K, D)
        Variances along the axes of each covariance.
    covariance_of : Tensor of shape (M,)
        Index of each component's covariance, of K.
    axes : Tensor of shape (K, D, D) or None
        Axes of each covariance in columns; None if all are those of the coordinates.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    covariance_of: Tensor
    axes: Tensor | None

    @property
    def n_features(self) -> int:
        """Width D of x."""
        return self.means.shape[1]

    def to(self, device: torch.device) -> "InterpolantMarginals":
        """Return a copy on a device."""
        parts = {name: part.to(device) for name, part in self._asdict().items() if part is not None}
        return self._replace(**parts)

    def moments(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (M,), means (M, D) and distinct covariances (K, D, D) of q_t."""
        variances = t**2 * self.variances + (1.0 - t) ** 2
        return self.log_weights.exp(), t * self.means, self._with_axes(variances)

    def _with_axes(self, values: Tensor) -> Tensor:
        """Return matrices (..., K, D, D) with the given eigenvalues (..., K, D)."""
        if self.axes is None:
            return torch.diag_embed(values)
        return (self.axes * values.unsqueeze(-2)) @ self.axes.transpose(1, 2)

    def values(self, x: Tensor, times: Tensor) -> NoisedValues:
        """Return density, score and velocity.

        Parameters
        ----------
        x : Tensor of shape (G, B, D)
            Points, B for each time; any precision.
        times : Tensor of shape (G,)
            Times in [0, 1].

        Returns
        -------
        values : NoisedValues
            In float64: quadratic forms of narrow components cancel many digits.
        """
        x, t = x.double(), times.double()
        forms = self._forms(t)
        if self.axes is None:
            log_components, slope_at = self._along_coordinates(x, forms)
        elif self.n_features + 1 > 2 * len(self.axes):
            # rotating rows to all axes takes fewer numbers than products of features
            log_components, slope_at = self._along_axes(x, forms)
        else:
            log_components, slope_at = self._by_products(x, forms)
        log_density = torch.logsumexp(log_components, -1)
        responsibility = torch.exp(log_components - log_density.unsqueeze(-1))
        field = responsibility @ forms.offset + slope_at(responsibility)
        t = t[:, None, None]
        early = t < _SWITCH_TIME
        # velocity = (x + (1 - t) score) / t; clamped where the other branch is taken
        velocity = torch.where(early, field, (x + (1.0 - t) * field) / t.clamp(min=_SWITCH_TIME))
        score = torch.where(early, (t * field - x) / (1.0 - t).clamp(min=1.0 - _SWITCH_TIME), field)
        log_ratio = log_density + 0.5 * x.square().sum(-1)
        return NoisedValues(log_density - 0.5 * x.shape[-1] * LOG_2PI, log_ratio, score, velocity)

    # Three computations of the same values: log densities (G, B, M) without -D log sqrt(2 pi), and
    # a function from responsibilities (G, B, M) to the average slope times x (G, B, D). Densities
    # are not relative to N(0, I): for distant x, adding x^2 / 2 would round away the differences
    # between defensive components.

    def _along_coordinates(self, x: Tensor, forms: "_Forms") -> "_Pieces":
        """For components whose axes are those of the coordinates."""
        half, slope = (part[:, self.covariance_of] for part in (forms.half, forms.slope))
        weights = torch.cat([half, forms.linear], -1).transpose(1, 2)
        products = torch.cat([x.square(), x], -1) @ weights
        return forms.constant.unsqueeze(1) + products, lambda shares: (shares @ slope) * x

    def _along_axes(self, x: Tensor, forms: "_Forms") -> "_Pieces":
        """For few covariances of many features."""
        rotated = torch.einsum("gbd,kde->kgbe", x, self.axes)
        half, slope = (part.transpose(0, 1).unsqueeze(-1) for part in (forms.half, forms.slope))
        squares = (rotated.square() @ half).squeeze(-1).permute(1, 2, 0)  # (G, B, K)
        linear = x @ forms.linear.transpose(1, 2)
        log_components = forms.constant.unsqueeze(1) + linear + squares[..., self.covariance_of]

        def slope_at(shares: Tensor) -> Tensor:
            by_covariance = shares.new_zeros(*shares.shape[:2], len(self.variances))
            by_covariance.index_add_(2, self.covariance_of, shares)
            scaled = rotated * slope.transpose(2, 3) * by_covariance.permute(2, 0, 1).unsqueeze(-1)
            return torch.einsum("kgbe,kde->gbd", scaled, self.axes)

        return log_components, slope_at

    def _by_products(self, x: Tensor, forms: "_Forms") -> "_Pieces":
        """For many covariances of few features."""
        first, second = torch.triu_indices(self.n_features, self.n_features, device=x.device)
        # an off-diagonal product occurs twice in the form
        twice = 2.0 - (first == second).to(x)
        half = self._with_axes(forms.half)[..., first, second] * twice
        weights = torch.cat([half[:, self.covariance_of], forms.linear], -1).transpose(1, 2)
        products = torch.cat([x[..., first] * x[..., second], x], -1) @ weights
        slope = self._with_axes(forms.slope)[:, self.covariance_of].flatten(2)

        def slope_at(shares: Tensor) -> Tensor:
            average = (shares @ slope).unflatten(-1, (self.n_features, self.n_features))
            return (average @ x.unsqueeze(-1)).squeeze(-1)

        return forms.constant.unsqueeze(1) + products, slope_at

    def _forms(self, t: Tensor) -> "_Forms":
        """Return the coefficients of components and covariances at times t (G,)."""
        t = t[:, None, None]
        variances = t.square() * self.variances + (1.0 - t).square()  # (G, K, D)
        deficit = t * (2.0 - t - t * self.variances)  # 1 - variances, accurate for small t
        precision = variances.reciprocal()
        growth = (t * self.variances - (1.0 - t)) * precision  # slope of the velocity
        means = self.means if self.axes is None else self._rotated(self.means[None], self.axes)
        own_precision, own_growth = (part[:, self.covariance_of] for part in (precision, growth))
        scaled = own_precision * means  # (G, M, D), in the components' axes
        log_det = torch.log1p(-deficit).sum(-1)[:, self.covariance_of]
        constant = self.log_weights - 0.5 * (log_det + (t.square() * scaled * means).sum(-1))
        linear = t * scaled
        offset = torch.where(t < _SWITCH_TIME, means - t * own_growth * means, linear)
        if self.axes is not None:
            back = self.axes.transpose(1, 2)
            linear, offset = self._rotated(linear, back), self._rotated(offset, back)
        slope = torch.where(t < _SWITCH_TIME, growth, -precision)
        return _Forms(constant, linear, offset, -0.5 * precision, slope)

    def _rotated(self, vectors: Tensor, matrices: Tensor) -> Tensor:
        """Return vectors (G, M, D) times the matrix of their component's covariance."""
        covariance_of = self.covariance_of.repeat(len(vectors))
        return products_by_component(vectors.flatten(0, 1), matrices, covariance_of).view_as(
            vectors
        )


class _Forms(NamedTuple):
    """Coefficients at G times.

    The log density of a component is `constant + linear . x + x' H x - D log sqrt(2 pi)`. Its
    velocity (before `_SWITCH_TIME`) or score (later) is `offset + S x`. `half` and `slope` are the
    eigenvalues of H = -precision / 2 and of S.
    """

    constant: Tensor  # (G, M)
    linear: Tensor  # (G, M, D)
    offset: Tensor  # (G, M, D)
    half: Tensor  # (G, K, D)
    slope: Tensor  # (G, K, D)


_Pieces = tuple[Tensor, Callable[[Tensor], Tensor]]


def interpolant_marginals(reference: MixtureReference) -> InterpolantMarginals:
    """Return the marginals of the interpolant between noise and a reference.

    Parameters
    ----------
    reference : MixtureReference
        Its marginal of the features is used, in the units of the features.

    Returns
    -------
    mixture : InterpolantMarginals
        Float64, on the reference's device.
    """
    roots, covariance_of = reference.roots.double(), reference.covariance_of
    if reference.is_diagonal:
        roots = torch.diag_embed(roots)
    elif reference.n_defensive > 1:
        # with noise added, components of one shape and different scales differ in shape
        first = len(covariance_of) - reference.n_defensive
        scales = reference.scales[first:].double()[:, None, None]
        roots = torch.cat([roots[:-1], roots[-1:] * scales])
        own = torch.arange(len(roots) - reference.n_defensive, len(roots), device=roots.device)
        covariance_of = torch.cat([covariance_of[:first], own])
    roots = reference.root.double() @ roots
    covariances = roots @ roots.transpose(1, 2)
    means = reference.to_features(reference.means).double()
    diagonal = torch.diagonal(covariances, dim1=1, dim2=2)
    off = covariances - torch.diag_embed(diagonal)
    if bool(off.abs().max() <= 1e-10 * diagonal.max()):
        variances, axes = diagonal, None
    else:
        variances, axes = torch.linalg.eigh(covariances)
    variances = variances.clamp(min=_MIN_VARIANCE)
    return InterpolantMarginals(
        reference.log_weights.double(), means, variances, covariance_of, axes
    )
