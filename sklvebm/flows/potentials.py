r"""Scalar potentials whose gradient carries noise to data, anchored on a Gaussian mixture.

.. math:: \Phi(x, t) = \tfrac12 |x|^2
              + (1 - t) \left( \tfrac1t \log \frac{q_t(x)}{N(x; 0, I)} + G(x, t) \right)
          \qquad \text{(docs/theory/potential_flow.md, eq. 2)}

q_t are the marginals of the interpolant between noise and the reference. Without the correction G,
the gradient of the potential carries N(0, I) exactly along them. With it, `log q_t + t G` is the
log-density at time t up to a constant, which has a limit at t = 1. G is a network with a soft
bound, in nats, and starts at zero.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sklvebm.flows.interpolant import InterpolantMarginals
from sklvebm.flows.ode import Carried, Field, Rates, Step, graded_times, integrate, runge_kutta_step
from sklvebm.models.convolutions import ConvLayerEnergy
from sklvebm.models.energies import MLPEnergy

_MIN_TIME = 1e-6  # lower limit of t in the division of log q_t - log N, which is of order t

PotentialNetwork = MLPEnergy | ConvLayerEnergy


class Jet(NamedTuple):
    """A scalar function of x at rows (B, D), with derivatives in x."""

    value: Tensor  # (B,)
    grad: Tensor  # (B, D)
    rate: Tensor  # (B,), derivative in time
    second: Tensor | None  # (B, S), second derivatives summed over each set of directions


class AnchoredPotential(nn.Module):
    """The potential of the interpolant's marginals plus a softly bounded correction.

    Parameters
    ----------
    mixture : InterpolantMarginals
        The reference.
    network : MLPEnergy, ConvLayerEnergy or None
        The function g of x and, in place of a latent, the time; None is no correction.
    bound : float, default=15.0
        The number c of `G = c tanh(g / c)`, in nats. Up to a constant, log-densities differ from
        the reference's by at most c, so that they are normalisable for any network.
    """

    def __init__(
        self, mixture: InterpolantMarginals, network: PotentialNetwork | None, bound: float = 15.0
    ) -> None:
        super().__init__()
        self.mixture, self.network, self.bound = mixture, network, bound

    @property
    def n_features(self) -> int:
        """Width D of x."""
        return self.mixture.n_features

    @property
    def trace_is_free(self) -> bool:
        """Whether the exact Laplacian costs as much as the gradient: with one hidden layer."""
        return self.network is None or len(self.network.weights) == 1

    def correction(self, x: Tensor, t: Tensor) -> Tensor:
        """Return G at rows x (B, D) and their times t (B,); (B,), nats."""
        if self.network is None:
            return torch.zeros_like(x[:, 0])
        like = self.network.output
        value = self.network(x.to(like), t.to(like).unsqueeze(1))
        return self.bound * torch.tanh(value / self.bound)

    def jet(self, x: Tensor, t: Tensor, directions: Tensor | None = None) -> Jet:
        """Return G with derivatives.

        Parameters
        ----------
        x : Tensor of shape (B, D)
            Points.
        t : Tensor of shape (B,)
            Times.
        directions : Tensor of shape (S, K, D) or None, default=None
            S sets of K directions along which second derivatives are summed; None is no set.

        Returns
        -------
        jet : Jet
            In the network's precision, differentiable in its parameters.
        """
        if self.network is None:
            second = None if directions is None else x.new_zeros(len(x), len(directions))
            none = torch.zeros_like(x[:, 0])
            return Jet(none, torch.zeros_like(x), none, second)
        like = self.network.output
        directions = None if directions is None else directions.to(like)
        inner = network_jet(self.network, x.to(like), t.to(like), directions)
        saturation = torch.tanh(inner.value / self.bound)
        slope = 1.0 - saturation.square()
        second = inner.second
        if directions is not None and second is not None:
            along = torch.einsum("bd,skd->bsk", inner.grad, directions).square().sum(-1)
            second = second - (2.0 / self.bound) * saturation[:, None] * along
            second = slope[:, None] * second
        value, grad = self.bound * saturation, slope[:, None] * inner.grad
        return Jet(value, grad, slope * inner.rate, second)

    def log_reference(self, x: Tensor, t: float) -> Tensor:
        """Return the reference's `log q_t` at rows x (B, D); (B,), nats."""
        time = torch.tensor([t], dtype=torch.float64, device=x.device)
        return self.mixture.values(x.unsqueeze(0), time).log_density[0]

    def energy(self, x: Tensor, t: float) -> Tensor:
        r"""Return the explicit energy at time t, unnormalised: `-(t Φ - |x|^2 / 2) / (1 - t)`.

        Parameters
        ----------
        x : Tensor of shape (B, D)
            Points at time t, standardised units.
        t : float
            Time in [0, 1]; at 1 the limit.

        Returns
        -------
        energy : Tensor of shape (B,)
            Nats, up to a constant that depends on t.
        """
        times = torch.full_like(x[:, 0], t)
        return -self.log_reference(x, t) - t * self.correction(x, times)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return Φ at rows x (B, D) and times t (B,), up to a function of t; (B,)."""
        log_ratio = self.mixture.values(x.unsqueeze(1), t).log_ratio.squeeze(1)
        anchored = log_ratio / t.double().clamp(min=_MIN_TIME) + self.correction(x, t)
        return 0.5 * x.square().sum(1) + (1.0 - t) * anchored

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """Return the gradient of Φ at rows x (B, D) and one time; (B, D), float64."""
        return flow_field(self)(x, t).velocity


def _derivatives(activation: str, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an activation with its first and second derivative at a."""
    if activation == "tanh":
        value = torch.tanh(a)
        slope = 1.0 - value.square()
        return value, slope, -2.0 * value * slope
    gate = torch.sigmoid(a)
    bend = gate * (1.0 - gate)
    if activation == "softplus":
        return nn.functional.softplus(a), gate, bend
    return a * gate, gate + a * bend, bend * (2.0 + a * (1.0 - 2.0 * gate))


def network_jet(
    network: PotentialNetwork, x: Tensor, t: Tensor, directions: Tensor | None = None
) -> Jet:
    """Return a network of x and the time with derivatives; shapes as in `AnchoredPotential.jet`.

    Gradients use reverse mode, second derivatives forward mode. K directions cost about K
    evaluations. In a network with one hidden layer they cost almost nothing, because all rows share
    the tangents.
    """
    d = x.shape[1]
    hidden = torch.cat([x, t.unsqueeze(1)], 1)
    slopes, weights = [], list(network.weights)
    for layer, (weight, bias) in enumerate(zip(weights, network.biases, strict=True)):
        hidden, slope, bend = _derivatives(network.activation, torch.addmm(bias, hidden, weight.T))
        slopes.append(slope)
        if directions is None:
            continue
        if layer == 0:  # the same tangents for all rows; no second derivatives yet
            tangent = (directions @ weight[:, :d].T).unsqueeze(0)  # (1, S, K, H)
            second = bend[:, None] * tangent.square().sum(-2)  # (B, S, H)
        else:
            tangent = tangent @ weight.T
            second = slope[:, None] * (second @ weight.T)
            second = second + bend[:, None] * tangent.square().sum(-2)
        if layer + 1 < len(weights):
            tangent = slope[:, None, None] * tangent
    grad = slopes[-1] * network.output
    for layer in range(len(slopes) - 1, 0, -1):
        grad = slopes[layer - 1] * (grad @ weights[layer])
    grad = grad @ weights[0]
    value = hidden @ network.output
    second = None if directions is None else second @ network.output
    return Jet(value, grad[:, :d], grad[:, d], second)


def trace_directions(
    n_features: int,
    n_probes: int,
    generator: torch.Generator,
    n_sets: int = 1,
    *,
    like: Tensor | None = None,
) -> Tensor:
    r"""Return directions whose second derivatives sum to an unbiased estimate of the Laplacian.

    Parameters
    ----------
    n_features : int
        Width D.
    n_probes : int
        Directions K of each set; D or more give the exact trace.
    generator : torch.Generator
        Source of the probes.
    n_sets : int, default=1
        Independent sets S.
    like : Tensor or None, default=None
        A tensor on the generator's device; None is the CPU.

    Returns
    -------
    directions : Tensor of shape (S, min(K, D), D)
        Orthogonal within a set, of squared length D / K. The estimate has a smaller variance than
        with independent probes, and none for K = D.
    """
    options: dict[str, Any] = {
        "dtype": torch.float64,
        "device": None if like is None else like.device,
    }
    if n_probes >= n_features:
        return torch.eye(n_features, **options).expand(n_sets, -1, -1)
    normal = torch.randn((n_sets, n_features, n_probes), generator=generator, **options)
    # a CUDA graph may refuse a decomposition, which another library makes
    orthonormal = _by_qr(normal) if normal.device.type == "cpu" else _by_gram_schmidt(normal)
    return orthonormal.transpose(1, 2) * math.sqrt(n_features / n_probes)


def _by_qr(columns: Tensor) -> Tensor:
    """Return orthonormal columns (S, D, K) that span what the first ones of `columns` span."""
    orthonormal, triangle = torch.linalg.qr(columns)
    # with random signs, the rotations are uniform; those of QR alone are not
    signs = torch.sign(torch.diagonal(triangle, dim1=1, dim2=2))
    return orthonormal * signs[:, None]


def _by_gram_schmidt(columns: Tensor) -> Tensor:
    """Return the same by one column after another: a few operations for a few columns."""
    found: list[Tensor] = []
    for column in columns.unbind(2):
        for own in found:
            column = column - (own * column).sum(1, keepdim=True) * own
        found.append(column / torch.linalg.vector_norm(column, dim=1, keepdim=True))
    return torch.stack(found, 2)


def flow_field(potential: AnchoredPotential, directions: Tensor | None = None) -> Field:
    r"""Return the gradient of the potential and, with directions, the rate of its log-density.

    Along a path of the flow, the log-density p_t changes relative to the reference's q_t by

    .. math:: \frac{d}{dt} \log \frac{p_t}{q_t}
                  = -(1 - t) (\Delta G + \nabla G \cdot \nabla \log q_t)
              \qquad \text{(docs/theory/potential_flow.md, eq. 5)}

    which is zero without a correction, so that the reference's density has no integration error.

    Parameters
    ----------
    potential : AnchoredPotential
        The potential.
    directions : Tensor of shape (S, K, D) or None, default=None
        Directions of the Laplacian (`trace_directions`); each set gives an estimate.

    Returns
    -------
    field : callable
        Maps positions (B, D) and a time to velocity (B, D) and gain (B, S), nats per unit of time.
    """
    mixture = potential.mixture

    def field(x: Tensor, t: float) -> Rates:
        time = torch.tensor([t], dtype=torch.float64, device=x.device)
        values = mixture.values(x.unsqueeze(0), time)
        velocity, score = values.velocity[0], values.score[0]
        if potential.network is None:
            gain = None if directions is None else x.new_zeros(len(x), len(directions))
            return Rates(velocity, gain)
        jet = potential.jet(x, torch.full_like(x[:, 0], t), directions)
        grad = jet.grad.double()
        velocity = torch.add(velocity, grad, alpha=1.0 - t)
        if jet.second is None:
            return Rates(velocity, None)
        stein = jet.second.double() + (grad * score).sum(1, keepdim=True)
        return Rates(velocity, (t - 1.0) * stein)

    return field


def finest_scale(mixture: InterpolantMarginals) -> float:
    """Return the smallest standard deviation of a component, at least 0.001, for `graded_times`."""
    return max(1e-3, math.sqrt(float(mixture.variances.min())))


def transport(
    potential: AnchoredPotential, x: Tensor, times: list[float], step: Step = runge_kutta_step
) -> Tensor:
    """Carry rows x (B, D) through the times, ascending towards data or descending towards noise."""
    return integrate(Carried(x.double(), None), flow_field(potential), times, step).position


class FlowDensity(NamedTuple):
    """Log-densities of rows under the flow, and their noise."""

    log_density: Tensor  # (B,), nats, standardised units; mean over the sets of directions
    gains: Tensor  # (B, S), log-density minus the reference's, one for each set
    noise: Tensor  # (B, D), the rows carried back to time 0


def flow_density(
    potential: AnchoredPotential,
    x: Tensor,
    n_steps: int,
    directions: Tensor,
    *,
    stop: float = 1.0,
    step: Step = runge_kutta_step,
) -> FlowDensity:
    """Return log-densities of rows by the instantaneous change of variables.

    Parameters
    ----------
    potential : AnchoredPotential
        The potential whose gradient is the velocity.
    x : Tensor of shape (B, D)
        Rows at time `stop`, standardised units.
    n_steps : int
        Steps of the integrator.
    directions : Tensor of shape (S, K, D)
        Directions of the Laplacian (`trace_directions`).
    stop : float, default=1.0
        Time of the density; 1 is that of the data.
    step : callable, default=runge_kutta_step
        The integrator.
    """
    x = x.double()
    times = graded_times(n_steps, finest_scale(potential.mixture), stop)[::-1]
    start = Carried(x, x.new_zeros(len(x), len(directions)))
    end = integrate(start, flow_field(potential, directions), times, step)
    gains = -cast(Tensor, end.integral)  # integrated backwards in time
    return FlowDensity(potential.log_reference(x, stop) + gains.mean(1), gains, end.position)
