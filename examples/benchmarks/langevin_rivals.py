"""Langevin samplers of one density, which `langevin_step.py` times: ours, two libraries', a loop.

Density: exp(-E), E(u) = 0.5 |u|^2 + c tanh(g(u) / c), g a perceptron with two hidden layers and
c = 15. Every contestant gets the same weights, in the form that its library calls its own: ours an
`AnchoredEnergy`, the others an `nn.Sequential` of linear layers with frozen parameters, which is
what a user of these libraries would write and saves them gradients that nobody needs.
"""

import math
from types import SimpleNamespace

import torch
from torch import nn

from sklvebm.backends import select_correction_and_grad
from sklvebm.kernels.mlp import mlp_correction_and_grad
from sklvebm.mcmc.langevin import mala_step, start, ula_step
from sklvebm.mcmc.state import STANDARD_FRAME, IndependentNoise, Target, Value
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy

BOUND = 15.0
STEP_SIZE = 0.01
LAYERS = {"tanh": nn.Tanh, "silu": nn.SiLU}


def our_energy(width, hidden, activation, device):
    """Return the anchored energy on `width` coordinates, the last of which counts as a latent."""
    generator = torch.Generator().manual_seed(0)
    network = MLPEnergy(width - 1, 1, (hidden, hidden), activation, generator)
    with torch.no_grad():
        network.output.normal_(0.0, 1.0 / math.sqrt(hidden), generator=generator)
    # the gradient of the correction needs widths, but no densities, of the reference
    shape = SimpleNamespace(n_features=width - 1, n_latents=1)
    return AnchoredEnergy(shape, network, BOUND).to(device)


class PlainEnergy(nn.Module):
    """The same energy as torch users write it."""

    def __init__(self, energy):
        super().__init__()
        mlp = energy.network
        layers = []
        for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
            linear = nn.Linear(*weight.T.shape, device=weight.device)
            linear.weight.data.copy_(weight.data)
            linear.bias.data.copy_(bias.data)
            layers += [linear, LAYERS[mlp.activation]()]
        last = nn.Linear(len(mlp.output), 1, bias=False, device=mlp.output.device)
        last.weight.data.copy_(mlp.output.data)
        self.network = nn.Sequential(*layers, last).requires_grad_(False)

    def forward(self, u):
        """Return energies in nats, (B,)."""
        correction = BOUND * torch.tanh(self.network(u).squeeze(-1) / BOUND)
        return 0.5 * u.square().sum(1) + correction


def energy_and_gradient(energy, u):
    """Return energies and gradients by automatic differentiation."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        values = energy(u)
        (gradient,) = torch.autograd.grad(values.sum(), u)
    return values.detach(), gradient


def ours(energy, step, select=select_correction_and_grad):
    """Return a runner of the package's own kernel `step` on the package's own gradient."""
    correction_and_grad = select(energy)

    def evaluate(u):
        return Value(*correction_and_grad(u))

    def base(u):
        return 0.5 * u.square().sum(1), u

    target = Target(evaluate, base, lambda u, noise: STANDARD_FRAME)

    @torch.no_grad()
    def run(u, n_steps, generator):
        noise = IndependentNoise(generator)
        chains = start(u, target)
        beta, sizes = u.new_ones(len(u)), u.new_full((len(u),), STEP_SIZE)
        for _ in range(n_steps):
            chains, _ = step(chains, target, beta=beta, step_size=sizes, noise=noise)
        return chains.position

    return run


def torchebm_ula(energy):
    """Return a runner of torchebm's Langevin sampler."""
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.plain = PlainEnergy(energy)

        def forward(self, u):
            """Return energies in nats, (B,)."""
            return self.plain(u)

    # noise_scale 1 is noise sqrt(2 step)
    sampler = LangevinDynamics(
        Model(), step_size=STEP_SIZE, noise_scale=1.0, device=energy.network.output.device
    )
    return lambda u, n_steps, generator: sampler.sample(u, n_steps=n_steps, generator=generator)


def ebmkit(energy, name):
    """Return a runner of one of ebmkit's samplers, which draw from torch's global generator."""
    import ebm

    plain, sampler = PlainEnergy(energy), getattr(ebm, name)(step_size=STEP_SIZE)
    return lambda u, n_steps, generator: sampler.sample(plain, u, steps=n_steps)


def plain_ula(energy):
    """Return a runner of the shortest loop: gradient by autograd, one line of update."""
    plain = PlainEnergy(energy)

    def run(u, n_steps, generator):
        for _ in range(n_steps):
            _, gradient = energy_and_gradient(plain, u)
            xi = torch.randn(u.shape, generator=generator, device=u.device)
            u = u - STEP_SIZE * gradient + math.sqrt(2.0 * STEP_SIZE) * xi
        return u

    return run


def plain_mala(energy):
    """Return a runner of a Metropolis-adjusted loop that keeps energies and gradients."""
    plain = PlainEnergy(energy)

    def run(u, n_steps, generator):
        h = STEP_SIZE
        value, gradient = energy_and_gradient(plain, u)
        for _ in range(n_steps):
            xi = torch.randn(u.shape, generator=generator, device=u.device)
            moved = u - h * gradient + math.sqrt(2.0 * h) * xi
            new_value, new_gradient = energy_and_gradient(plain, moved)
            back = u - moved + h * new_gradient
            log_ratio = value - new_value + 0.5 * xi.square().sum(1)
            log_ratio = log_ratio - back.square().sum(1) / (4.0 * h)
            uniform = torch.rand(len(u), generator=generator, device=u.device)
            accepted = uniform.log() < log_ratio
            u = torch.where(accepted[:, None], moved, u)
            value = torch.where(accepted, new_value, value)
            gradient = torch.where(accepted[:, None], new_gradient, gradient)
        return u

    return run


def contestants(kernel, energy):
    """Return runners `(u, n_steps, generator) -> u` by name, ours first; torchebm has no MALA.

    On a GPU ours comes twice: as the package picks it, and as one launch per operation.
    """
    step = {"ULA": ula_step, "MALA": mala_step}[kernel]
    own = {"sklvebm": ours(energy, step)}
    if energy.network.output.is_cuda:
        own["in operations"] = ours(energy, step, mlp_correction_and_grad)
    if kernel == "ULA":
        return {
            **own,
            "torchebm": torchebm_ula(energy),
            "ebmkit": ebmkit(energy, "LangevinDynamics"),
            "plain loop": plain_ula(energy),
        }
    return {
        **own,
        "ebmkit": ebmkit(energy, "MALA"),
        "plain loop": plain_mala(energy),
    }


def largest_disagreement(energy, u):
    """Return how far our gradient is from the rivals', relative to its largest entry."""
    _, own = select_correction_and_grad(energy)(u)
    _, gradient = energy_and_gradient(PlainEnergy(energy), u)
    return float((own + u - gradient).abs().max() / gradient.abs().max())
