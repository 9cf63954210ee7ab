r"""Gaussian posteriors, and the evidence bounds that they give.

In the reference's coordinates, with the correction f, the posterior of a row is proportional to
`N(e; 0, I) exp(-f(x, z(e)))`. Any density q(e) bounds the row's evidence from below,

.. math:: \log \int N(e) e^{-f} de \ge -E_q[f] - KL(q \| N(0, I)).
                                                            (docs/theory/normalisation.md, eq. 11)

The families, from large to small, are: a full covariance per row, a diagonal one per row, and a
diagonal one that a network computes from the row (an encoder: amortised inference).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sklvebm.adam import Adam
from sklvebm.backends import select_correction_and_grad
from sklvebm.mcmc.state import stack_rows
from sklvebm.models.energies import PathEnergy
from sklvebm.models.targets import CorrectionAndGrad
from sklvebm.smc.quasi_random import latent_nodes

_N_FIT_NODES, _LEARNING_RATE = 32, 0.05  # quasi-random nodes, and the first step of Adam
_N_REPLICATES, _N_NODES = 8, 32  # scramblings, and evaluation nodes in each


class Gaussians(NamedTuple):
    """A Gaussian over whitened latents for each row: mean and lower triangular factor."""

    mean: Tensor  # (N, L)
    factor: Tensor  # (N, L, L), positive diagonal

    def place(self, nodes: Tensor) -> Tensor:
        """Map standard normal nodes (K, L) to draws of every row, (N, K, L)."""
        return self.mean[:, None] + torch.einsum("nij,kj->nki", self.factor, nodes)

    def divergence(self) -> Tensor:
        """Return `KL(q || N(0, I))` of each row, (N,), nats."""
        log_det = torch.log(torch.diagonal(self.factor, dim1=1, dim2=2)).sum(1)
        squares = self.mean.square().sum(1) + self.factor.square().sum((1, 2))
        return 0.5 * (squares - self.mean.shape[1]) - log_det


class Bound(NamedTuple):
    """A bound on the log evidence of rows relative to the reference's marginal."""

    value: Tensor  # (N,), nats
    standard_error: Tensor  # (N,), nats, over independent scramblings


def evidence_bound(energy: PathEnergy, x: Tensor, q: Gaussians, *, seed: int) -> Bound:
    """Return an unbiased estimate of the bound that Gaussians q give for rows x (N, D)."""
    correction_and_grad = select_correction_and_grad(energy)
    values = []
    for replicate in range(_N_REPLICATES):
        nodes = latent_nodes(_N_NODES, energy.n_latents, seed * _N_REPLICATES + replicate).to(x)
        f, _ = _correction(energy, x, q.place(nodes), correction_and_grad)
        values.append(-f.mean(1) - q.divergence())
    stacked = torch.stack(values)
    return Bound(stacked.mean(0), stacked.std(0) / _N_REPLICATES**0.5)


def _correction(
    energy: PathEnergy, x: Tensor, e: Tensor, correction_and_grad: CorrectionAndGrad
) -> tuple[Tensor, Tensor]:
    """Return corrections (N, K) and gradients in e (N, K, L) at e (N, K, L)."""
    reference = energy.reference
    rows = stack_rows(x, e.shape[1])
    z = reference.to_latents(rows, e.reshape(len(rows), -1))
    f, grad = correction_and_grad(torch.cat([rows, z], 1))
    grad_z = grad[:, energy.n_features :]
    return f.reshape(e.shape[:2]), (grad_z * reference.latent_scale).reshape(e.shape)


def fit_gaussians(
    energy: PathEnergy,
    x: Tensor,
    *,
    diagonal: bool,
    start: Gaussians | None = None,
    n_steps: int = 300,
    seed: int = 0,
) -> Gaussians:
    """Maximise the bound over one Gaussian per row (non-amortised variational inference).

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model.
    x : Tensor of shape (N, D)
        Standardised rows.
    diagonal : bool
        Restrict covariances to diagonal ones.
    start : Gaussians or None, default=None
        Start; None is the reference posterior N(0, I).
    n_steps : int, default=300
        Steps of Adam; the step falls to zero linearly.
    seed : int, default=0
        Seed of the quasi-random nodes.

    Returns
    -------
    q : Gaussians
        One for each row.
    """
    n_rows, n_latents = len(x), energy.n_latents
    identity = torch.eye(n_latents, dtype=x.dtype, device=x.device)
    if start is None:
        start = Gaussians(x.new_zeros(n_rows, n_latents), identity.expand(n_rows, -1, -1))
    mask = identity if diagonal else torch.tril(torch.ones_like(identity))
    mean = start.mean.clone()
    # the logarithm of the diagonal keeps it positive
    diagonal_part = torch.diagonal(start.factor, dim1=1, dim2=2)
    raw = torch.tril(start.factor, -1) * mask + torch.diag_embed(torch.log(diagonal_part))
    optimizer = Adam([mean, raw], learning_rate=_LEARNING_RATE, betas=(0.9, 0.99))
    nodes = latent_nodes(_N_FIT_NODES, n_latents, seed).to(x)
    correction_and_grad = select_correction_and_grad(energy)
    for step in range(n_steps):
        q = Gaussians(mean, _factor(raw))
        _, grad = _correction(energy, x, q.place(nodes), correction_and_grad)
        optimizer.learning_rate = _LEARNING_RATE * (1.0 - step / n_steps)
        mean.grad = grad.mean(1) + mean
        outer = torch.einsum("nki,kj->nij", grad, nodes) / len(nodes) + q.factor
        scale = torch.diagonal(q.factor, dim1=1, dim2=2)
        slope = torch.diagonal(outer, dim1=1, dim2=2) * scale - 1.0
        raw.grad = torch.tril(outer, -1) * mask + torch.diag_embed(slope)
        optimizer.step()
    return Gaussians(mean, _factor(raw))


def _factor(raw: Tensor) -> Tensor:
    """Return the lower triangular factor whose diagonal is the exponential of raw's."""
    diagonal = torch.diagonal(raw, dim1=1, dim2=2)
    return torch.tril(raw, -1) + torch.diag_embed(torch.exp(diagonal.clamp(-12.0, 4.0)))


class AmortisedGaussian(nn.Module):
    """A network that computes a diagonal Gaussian over e from the row: an encoder.

    Parameters
    ----------
    n_features, n_latents : int
        Widths of x and z.
    n_hidden : int, default=128
        Units of each of its two hidden layers.
    generator : torch.Generator or None, default=None
        Source of the initial weights.
    """

    def __init__(
        self,
        n_features: int,
        n_latents: int,
        n_hidden: int = 128,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        widths = [n_features, n_hidden, n_hidden]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            weight = torch.empty(fan_out, fan_in, dtype=torch.float32)
            weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(fan_out, dtype=torch.float32)))
        # starts at the reference posterior N(0, I)
        self.output = nn.Parameter(torch.zeros(2 * n_latents, n_hidden, dtype=torch.float32))
        self.offset = nn.Parameter(torch.zeros(2 * n_latents, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations of rows x (N, D), each (N, L)."""
        hidden = x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            hidden = nn.functional.silu(torch.addmm(bias, hidden, weight.T))
        mean, log_scale = torch.addmm(self.offset, hidden, self.output.T).chunk(2, dim=1)
        return mean, torch.exp(log_scale.clamp(-12.0, 4.0))

    def gaussians(self, x: Tensor) -> Gaussians:
        """Return the Gaussians of rows x, without gradients."""
        with torch.no_grad():
            mean, scale = self(x)
        return Gaussians(mean, torch.diag_embed(scale))


def negative_evidence_bound(
    energy: PathEnergy, x: Tensor, mean: Tensor, scale: Tensor, noise: Tensor
) -> Tensor:
    """Return the loss of diagonal Gaussians, 0-d, nats; differentiable in mean and scale (N, L).

    `noise` (N, K, L) is standard normal: the reparameterisation trick.
    """
    e = mean[:, None] + scale[:, None] * noise
    rows = stack_rows(x, noise.shape[1])
    f = energy.correction(rows, energy.reference.to_latents(rows, e.flatten(0, 1)))
    divergence = 0.5 * (mean.square() + scale.square() - 1.0).sum(1) - torch.log(scale).sum(1)
    return f.mean() + divergence.mean()


def fit_amortised(
    energy: PathEnergy,
    x: Tensor,
    *,
    n_steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    generator: torch.Generator,
) -> AmortisedGaussian:
    """Maximise the mean bound over rows x (N, D) for an encoder at a fixed energy.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The model; its parameters receive no gradients.
    x : Tensor of shape (N, D)
        Standardised training rows.
    n_steps : int, default=2000
        Steps of Adam; the step falls to zero linearly.
    batch_size : int, default=256
        Rows per step.
    learning_rate : float, default=0.003
        First step size.
    generator : torch.Generator
        Source of weights, batches and noise.

    Returns
    -------
    encoder : AmortisedGaussian
        In the dtype of x.
    """
    seed = int(torch.randint(2**31, (), generator=generator, device=x.device))
    weights = torch.Generator().manual_seed(seed)
    encoder = AmortisedGaussian(x.shape[1], energy.n_latents, generator=weights).to(x)
    optimizer = Adam(encoder.parameters(), learning_rate=learning_rate)
    for step in range(n_steps):
        optimizer.learning_rate = learning_rate * (1.0 - step / n_steps)
        size = (min(batch_size, len(x)),)
        index = torch.randint(len(x), size, generator=generator, device=x.device)
        noise = torch.randn(
            (len(index), 4, energy.n_latents), generator=generator, dtype=x.dtype, device=x.device
        )
        with torch.enable_grad():
            rows = x[index]
            mean, scale = encoder(rows)
            loss = negative_evidence_bound(energy, rows, mean, scale, noise)
            gradients = torch.autograd.grad(loss, list(encoder.parameters()))
        for parameter, gradient in zip(encoder.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return encoder
