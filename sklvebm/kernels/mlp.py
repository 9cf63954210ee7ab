"""Correction and gradient of an anchored `MLPEnergy` by hand-derived back-propagation.

No autograd graph is recorded, activations and their derivatives share one sigmoid.
"""

import torch
from torch import Tensor

from sklvebm.energies import AnchoredEnergy
from sklvebm.gradients import CorrectionAndGrad


def _activation_and_slope(kind: str, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the activation of `a` and its derivative, both of the shape of `a`."""
    if kind == "silu":
        gate = torch.sigmoid(a)
        value = a * gate
        # silu' = s + a s (1 - s) = s + silu (1 - s)
        return value, torch.addcmul(gate, value, 1.0 - gate)
    if kind == "softplus":
        return torch.nn.functional.softplus(a), torch.sigmoid(a)
    value = torch.tanh(a)
    return value, 1.0 - value.square()


def mlp_correction_and_grad(energy: AnchoredEnergy) -> CorrectionAndGrad:
    """Return the function of `autograd_correction_and_grad` for an anchored MLP.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy`. Weights are read at each call.

    Returns
    -------
    correction_and_grad : callable
        Same values as the autograd version up to rounding.
    """
    network, bound = energy.network, energy.bound
    kind, n_features = network.activation, network.n_features

    @torch.no_grad()
    def correction_and_grad(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, slopes = torch.cat([x, z], 1), []
        for weight, bias in zip(network.weights, network.biases, strict=True):
            hidden, slope = _activation_and_slope(kind, torch.addmm(bias, hidden, weight.T))
            slopes.append(slope)
        saturation = torch.tanh((hidden @ network.output) / bound)
        grad = torch.outer(1.0 - saturation.square(), network.output)
        for weight, slope in zip(reversed(network.weights), reversed(slopes), strict=True):
            grad = grad.mul_(slope) @ weight
        return bound * saturation, grad[:, :n_features], grad[:, n_features:]

    return correction_and_grad
