r"""Losses of a potential flow: flow matching, its covariance form, and the published variant.

A row x1, noise e and a time t give a point `x = t x1 + (1 - t) e`. The velocity of the flow should
be the mean of `u = x1 - e` given x. The variational loss of [1]_ is

.. math:: \tfrac12 E |\nabla \Phi|^2 - \int \Phi\, \partial_t q_t
          = \tfrac12 E |\nabla \Phi - u|^2 + \mathrm{const}
          \qquad \text{(docs/theory/potential_flow.md, eq. 3)}

References
----------
.. [1] J. Loo et al., "Variational Potential Flow: A Novel Probabilistic Framework for Energy-Based
   Generative Modelling", arXiv:2504.16262, 2025.
"""

import math
from collections.abc import Hashable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sklvebm.flows.interpolant import InterpolantMarginals, NoisedValues
from sklvebm.flows.potentials import AnchoredPotential, flow_density, trace_directions
from sklvebm.mcmc.state import Batch
from sklvebm.row_weights import mean_on_device

LOSSES = ("flow-matching", "covariance", "vapo")
_LATE = 0.05  # added to 1 - t in the density of times, which bounds it
_N_TIMES = 8  # strata of the unit interval, with one time each
_MONITOR_STEPS = 6  # of the integrator; enough to compare epochs
_MONITOR_PROBES = 8
# features up to which the Laplacian of the inconsistency is exact, and directions beyond
_EXACT_UP_TO, _PROBES = 3, 2
_VAPO_NORM, _VAPO_DRIFT = 0.5, 0.1  # weights of the published penalties


class Points(NamedTuple):
    """Noised rows of one update, B at each of G times.

    The second half of the B points has the rows of the first half and the opposite noise.
    """

    x: Tensor  # (G, B, D)
    row: Tensor  # (G, B, D), without noise
    noise: Tensor  # (G, B, D)
    times: Tensor  # (G,)
    reference: NoisedValues  # of the potential's mixture, (G, B)

    @property
    def target(self) -> Tensor:
        """The velocity of each point's straight path, (G, B, D)."""
        return self.row - self.noise


def draw_points(
    mixture: InterpolantMarginals, rows: Tensor, n_draws: int, generator: torch.Generator
) -> Points:
    """Add noise to rows (N, D) at stratified random times: `n_draws` opposite pairs for each row.

    The density of times is proportional to `1 / (1 - t + 0.05)`. An error of the velocity costs
    likelihood in proportion to `t / (1 - t)` (docs/theory/potential_flow.md, eq. 6), but close to
    time 1 the variance of the targets would dominate the loss. Opposite noise reduces this
    variance: at late times, the two points of a pair are close to each other, and their targets far
    apart.
    """
    options: dict[str, Any] = {
        "generator": generator,
        "device": rows.device,
        "dtype": torch.float64,
    }
    n_each = math.ceil(len(rows) * n_draws / _N_TIMES)
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    picked = torch.arange(_N_TIMES * n_each, device=rows.device) % len(rows)
    row = rows[order[picked]].double().reshape(_N_TIMES, n_each, -1)
    share = torch.arange(_N_TIMES, device=rows.device) + torch.rand(_N_TIMES, **options)
    times = (1.0 + _LATE) * -torch.expm1(math.log1p(-1.0 / (1.0 + _LATE)) * share / _N_TIMES)
    noise = torch.randn(row.shape, **options)
    row, noise = torch.cat([row, row], 1), torch.cat([noise, -noise], 1)
    t = times[:, None, None]
    x = t * row + (1.0 - t) * noise
    return Points(x, row, noise, times, mixture.values(x, times))


def flow_matching_loss(potential: AnchoredPotential, points: Points) -> Tensor:
    """Return the mean of `|w|^2 / 2 - w . (u - v)`.

    v is the velocity of the reference and w that of the correction. The value is the flow matching
    loss minus the loss of the reference: it is negative where the potential is better.
    """
    residual = points.target - points.reference.velocity
    pull = _pull(potential, points)
    return (pull * (0.5 * pull - residual.to(pull))).sum(-1).mean()


def covariance_loss(potential: AnchoredPotential, points: Points) -> Tensor:
    r"""Return an estimate of the same loss without targets, by the covariance of Φ and Γ.

    .. math:: \Gamma = |e|^2 - e \cdot x_1 - d, \qquad
              E[\Phi \Gamma] / (1 - t) = -E[\nabla\Phi \cdot u]
              \qquad \text{(docs/theory/potential_flow.md, eq. 4)}

    Γ has mean zero given the row. Subtracting the potential at the point without noise therefore
    changes no expectation, and reduces the variance.
    """
    velocity = points.reference.velocity
    pull = _pull(potential, points)
    t = points.times[:, None].expand(points.x.shape[:2])
    bare = t.unsqueeze(-1) * points.row
    here, there = (
        potential.correction(at.flatten(0, 1), t.flatten()).reshape(t.shape)
        for at in (points.x, bare)
    )
    energy = (pull * (0.5 * pull + velocity.to(pull))).sum(-1)
    return (energy + (here - there) * _gamma(points).to(here)).mean()


def vapo_loss(potential: AnchoredPotential, points: Points) -> Tensor:
    """Return the published variant: a correlation, an alignment of velocities, and penalties.

    The alignment becomes a cosine at time 1. Only penalties and early times determine the scale of
    the potential, and its change in time is penalised: the minimiser is not the velocity of the
    noised data.
    """
    n_features = points.x.shape[-1]
    x, target = points.x.flatten(0, 1), points.target.flatten(0, 1)
    t = points.times[:, None].expand(points.x.shape[:2]).flatten().clamp(1e-3, 1.0 - 1e-3)
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = potential(x, t)
        (change,) = torch.autograd.grad(value.sum(), t, create_graph=True)
    pull = _pull(potential, points).flatten(0, 1)
    velocity = points.reference.velocity.flatten(0, 1).to(pull) + pull
    time = t.detach()
    gamma = (1.0 - time) * _gamma(points).flatten() / n_features
    gamma = (gamma - gamma.mean()) / gamma.std()
    correlation = (value * gamma).mean() / value.std().detach()
    size = velocity.square().sum(1).sqrt() * target.square().sum(1).sqrt()
    alignment = -(velocity * target).sum(1) / size.clamp(min=1e-6).pow(time) / n_features
    norm = velocity.square().mean(1)
    loss = alignment + _VAPO_NORM * norm + _VAPO_DRIFT * change.square() / n_features
    return correlation + loss.mean()


_LOSSES = dict(zip(LOSSES, (flow_matching_loss, covariance_loss, vapo_loss), strict=True))


def inconsistency(potential: AnchoredPotential, points: Points, directions: Tensor) -> Tensor:
    r"""Return how much the energies violate the continuity equation of the flow.

    `log q_t + t G + c(t)` solves this equation with the velocity of the potential if

    .. math:: R = G + t (\partial_t G + \nabla \Phi \cdot \nabla G)
                  + (1 - t) (\Delta G + \nabla G \cdot \nabla \log q_t)
              \qquad \text{(docs/theory/potential_flow.md, eq. 7)}

    does not depend on x. This holds for the minimiser of flow matching, and approximately for a
    trained network.

    Parameters
    ----------
    potential : AnchoredPotential
        The potential.
    points : Points
        Points at which R is evaluated.
    directions : Tensor of shape (S, K, D)
        Directions of the Laplacian. One set if they give the exact trace, else two independent
        sets: their product estimates the square of R without bias.

    Returns
    -------
    penalty : Tensor
        Mean over times of `1 - t` times the variance of R, 0-d.
    """
    values = points.reference
    t = points.times[:, None].expand(points.x.shape[:2]).flatten()
    jet = potential.jet(points.x.flatten(0, 1), t, directions)
    velocity, score = (part.flatten(0, 1).to(jet.grad) for part in (values.velocity, values.score))
    t = t.to(jet.grad)
    left = 1.0 - t
    along = ((velocity + left[:, None] * jet.grad) * jet.grad).sum(1)
    moved = jet.value + t * (jet.rate + along)
    residual = moved[:, None] + left[:, None] * (
        cast(Tensor, jet.second) + (jet.grad * score).sum(1, keepdim=True)
    )
    residual = residual.reshape(*points.x.shape[:2], -1)
    residual = residual - residual.mean(1, keepdim=True)
    squared = residual[..., 0] * residual[..., -1]
    return ((1.0 - points.times)[:, None].to(squared) * squared).mean()


def _gamma(points: Points) -> Tensor:
    """Return Γ, (G, B)."""
    noise = points.noise
    return (noise * (noise - points.row)).sum(-1) - noise.shape[-1]


def _pull(potential: AnchoredPotential, points: Points) -> Tensor:
    """Return the correction's velocity `(1 - t) grad G`, (G, B, D), in the network's precision."""
    t = points.times[:, None].expand(points.x.shape[:2])
    grad = potential.jet(points.x.flatten(0, 1), t.flatten()).grad
    return (1.0 - t).unsqueeze(-1).to(grad) * grad.reshape(points.x.shape)


class PotentialFlow:
    """Objective of `sklvebm.training.train` for a potential flow.

    Parameters
    ----------
    loss : {"flow-matching", "covariance", "vapo"}, default="flow-matching"
        The loss.
    consistency : float, default=0.1
        Weight of `inconsistency`; 0 omits it.
    """

    loss_name, has_total_bound = "loss", False

    def __init__(self, loss: str = "flow-matching", *, consistency: float = 0.1) -> None:
        self.loss, self.consistency = _LOSSES[loss], consistency
        self._row_share = 1.0  # of this rank's rows in the mean over all ranks

    def share(self, row_share: float) -> None:
        """Share rows among ranks: losses are such that their mean over ranks is the loss."""
        self._row_share = row_share

    def step(
        self, potential: AnchoredPotential, batch: Batch, state: Any, generator: torch.Generator
    ) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Return the loss, the unchanged state, and the inconsistency as a metric."""
        return self.update(potential, batch, state, generator)

    def works_in_place(self, energy: Any, state: Any, device: torch.device) -> bool:
        """Return whether updates on a device can be recorded: all make the same operations."""
        return device.type != "cpu"

    def completed(self, energy: Any, state: Any) -> Any:
        """Return the state, which is nothing."""
        return state

    def before_update(
        self, energy: Any, index: Tensor, state: Any, generator: torch.Generator
    ) -> Any:
        """Return the unchanged state."""
        return state

    def after_update(self, state: Any) -> Any:
        """Return the unchanged state."""
        return state

    def kind_of_update(self, state: Any) -> Hashable:
        """Return nothing: no number of the host changes operations."""
        return None

    def update(
        self, potential: AnchoredPotential, batch: Batch, state: Any, generator: torch.Generator
    ) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Return what `step` does."""
        points = draw_points(potential.mixture, batch.x, 1, generator)
        loss = self.loss(potential, points)
        if self.consistency == 0.0:
            return self._row_share * loss, state, {}
        d = batch.x.shape[1]
        exact = d <= _EXACT_UP_TO or potential.trace_is_free
        directions = trace_directions(
            d, d if exact else _PROBES, generator, 1 if exact else 2, like=points.x
        )
        penalty = inconsistency(potential, points, directions)
        metrics = {"inconsistency": penalty.detach()}
        return self._row_share * (loss + self.consistency * penalty), state, metrics

    def lower_bound(
        self,
        potential: AnchoredPotential,
        state: Any,
        target: AnchoredPotential,
        x: Tensor,
        generator: torch.Generator,
        *,
        row_weights: Tensor | None = None,
    ) -> float:
        """Return the mean log-likelihood of `target` on rows x (N, D), in nats.

        In many dimensions the Laplacian of a deep network is estimated without bias from a few
        directions. They are the same in every epoch, so that epochs can be compared.
        """
        probes = torch.Generator(device=x.device).manual_seed(0)
        n_probes = x.shape[1] if target.trace_is_free else _MONITOR_PROBES
        directions = trace_directions(x.shape[1], n_probes, probes, like=x)
        density = flow_density(target, x, _MONITOR_STEPS, directions)
        return float(mean_on_device(density.log_density, row_weights))

    def measures(self, energy: Any, state: Any) -> dict[str, Tensor]:
        """Return nothing: there are no particles."""
        return {}

    def problem(self, state: Any, metrics: dict[str, float]) -> str | None:
        """Return None: there are no particles."""
        return None
