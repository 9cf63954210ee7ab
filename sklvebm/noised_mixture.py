r"""A Gaussian mixture on its way from noise: the law of `t x + (1 - t) e` for every time t.

With x from the mixture and standard normal noise e, the law q_t is a mixture again,

.. math:: q_t = \sum_m w_m N(t \mu_m, S_m), \quad S_m = t^2 C_m + (1 - t)^2 I
          \qquad \text{(docs/potential_flow.md, eq. 1)}

so that its density, its score and the velocity that carries noise into data are closed forms. They
stay finite on the closed interval of times: each is computed from a form without the factor that
vanishes there, t or 1 - t.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.reference import MixtureReference

LOG_2PI = math.log(2.0 * math.pi)
_LEAST_VARIANCE = 1e-12  # standardised units squared
_EARLY = 0.5  # before this time the velocity is computed and the score follows, later vice versa


class NoisedValues(NamedTuple):
    """What a noised mixture says at points, float64."""

    log_ratio: Tensor  # (G, B), log q_t(x) - log N(x; 0, I), nats
    score: Tensor  # (G, B, D), gradient of log q_t
    velocity: Tensor  # (G, B, D), carries q_t along as t grows


class NoisedMixture(NamedTuple):
    """Components in their own axes; float64.

    Attributes
    ----------
    log_weights : Tensor of shape (M,)
        Log of the mixture weights.
    means : Tensor of shape (M, D)
        Component means.
    variances : Tensor of shape (M, D)
        Variances along each component's axes.
    axes : Tensor of shape (M, D, D) or None
        Axes of each component in columns; None if all are those of the coordinates.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor | None

    @property
    def n_features(self) -> int:
        """Width D of x."""
        return self.means.shape[1]

    def to(self, device: torch.device) -> "NoisedMixture":
        """Return a copy on a device."""
        return NoisedMixture(*(None if part is None else part.to(device) for part in self))

    def moments(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (M,), means (M, D) and covariances (M, D, D) of q_t."""
        variances = t**2 * self.variances + (1.0 - t) ** 2
        return self.log_weights.exp(), t * self.means, self._with_axes(variances)

    def _with_axes(self, values: Tensor) -> Tensor:
        """Return matrices (..., M, D, D) with the given eigenvalues (..., M, D)."""
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
        features = _features(x, self.axes is None)
        # relative to N(0, I), which all components have in common at t = 0
        log_components = forms.constant.unsqueeze(1) + features @ forms.quadratic.transpose(1, 2)
        log_ratio = torch.logsumexp(log_components, -1)
        responsibility = torch.exp(log_components - log_ratio.unsqueeze(-1))
        slope = responsibility @ forms.slope.flatten(2)
        if self.axes is None:
            field = responsibility @ forms.offset + slope * x
        else:
            slope = slope.unflatten(-1, (self.n_features, self.n_features))
            field = responsibility @ forms.offset + (slope @ x.unsqueeze(-1)).squeeze(-1)
        t = t[:, None, None]
        early = t < _EARLY
        # velocity = (x + (1 - t) score) / t; clamped where the other branch is taken
        velocity = torch.where(early, field, (x + (1.0 - t) * field) / t.clamp(min=_EARLY))
        score = torch.where(early, (t * field - x) / (1.0 - t).clamp(min=1.0 - _EARLY), field)
        return NoisedValues(log_ratio, score, velocity)

    def _forms(self, t: Tensor) -> "_Forms":
        """Return the coefficients of components (G, M, ...) at times t (G,)."""
        t = t[:, None, None]
        noised = t.square() * self.variances + (1.0 - t).square()  # (G, M, D)
        # 1 - noised has the factor t
        deficit = t * (2.0 - t - t * self.variances)
        precision = noised.reciprocal()
        means = self.means if self.axes is None else _apply(self.axes.transpose(1, 2), self.means)
        scaled = precision * means  # in the components' axes
        constant = self.log_weights - 0.5 * (
            torch.log1p(-deficit).sum(-1) + (t.square() * scaled * means).sum(-1)
        )
        # x' (I - precision) x / 2 + t x' precision mean, as weights of products and of x
        growth = (t * self.variances - (1.0 - t)) * precision  # slope of the velocity
        slope = torch.where(t < _EARLY, growth, -precision)
        offset = torch.where(t < _EARLY, means - t * growth * means, t * scaled)
        bend = -0.5 * deficit * precision
        linear = t * scaled
        if self.axes is None:
            quadratic = torch.cat([bend, linear], -1)
            return _Forms(constant, quadratic, offset, slope)
        first, second = torch.triu_indices(self.n_features, self.n_features, device=t.device)
        # off the diagonal, each product stands for two entries
        twice = 2.0 - (first == second).to(bend)
        bend = self._with_axes(bend)[..., first, second] * twice
        quadratic = torch.cat([bend, _apply(self.axes, linear)], -1)
        return _Forms(constant, quadratic, _apply(self.axes, offset), self._with_axes(slope))


class _Forms(NamedTuple):
    """Coefficients of all components at G times."""

    constant: Tensor  # (G, M)
    quadratic: Tensor  # (G, M, F), weights of the features
    offset: Tensor  # (G, M, D): velocity (early) or score (late) at x = 0
    slope: Tensor  # (G, M, D) or (G, M, D, D): its derivative


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return `matrix @ vector` for matrices (M, D, D) and vectors (..., M, D)."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _features(x: Tensor, diagonal: bool) -> Tensor:
    """Return squares, or all products, of x (..., D), followed by x itself."""
    if diagonal:
        return torch.cat([x.square(), x], -1)
    first, second = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    return torch.cat([x[..., first] * x[..., second], x], -1)


def noised_mixture(reference: MixtureReference) -> NoisedMixture:
    """Return the mixture of a reference, prepared for noise.

    Parameters
    ----------
    reference : MixtureReference
        Its marginal of the features is used, in the units of the features.

    Returns
    -------
    mixture : NoisedMixture
        Float64, on the reference's device.
    """
    roots = reference.roots.double()
    if reference.is_diagonal:
        roots = torch.diag_embed(roots)
    roots = reference.root.double() @ roots
    covariances = roots @ roots.transpose(1, 2)
    means = reference.to_features(reference.means).double()
    diagonal = torch.diagonal(covariances, dim1=1, dim2=2)
    off = covariances - torch.diag_embed(diagonal)
    if bool(off.abs().max() <= 1e-10 * diagonal.max()):
        variances, axes = diagonal, None
    else:
        variances, axes = torch.linalg.eigh(covariances)
    return NoisedMixture(
        reference.log_weights.double(), means, variances.clamp(min=_LEAST_VARIANCE), axes
    )
