"""Correction and gradient of an anchored `MLPEnergy` by hand-derived back-propagation.

No autograd graph is recorded. Rows are processed in blocks whose activations fit into the
processor's cache.
"""

import functools
import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from sklvebm.kernels.products import affine, affine_tanh, plain_product, product
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.targets import CorrectionAndGrad

# activations of one layer of a block: 1 MB in float32; a core's cache holds a few layers
_BLOCK_NUMBERS = 2**18
_KEPT_BYTES = 2**24  # several blocks; glibc adapts its thresholds up to 32 MB


@functools.cache
def _keep_freed_blocks() -> None:
    """Make glibc keep freed blocks for reuse; needed once per process.

    glibc returns freed memory to the system beyond twice the largest allocation that was mapped and
    freed. A few activations exceed that, and fresh pages at every step up to double its time. Other
    C libraries are not affected.
    """
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)


@functools.cache
def _one(dtype: torch.dtype) -> Tensor:
    """Return the number one on the CPU, 0-d; making it takes half as long as using it."""
    return torch.ones((), dtype=dtype)


def layer(kind: str, rows: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer's activations and what `activation_backward_` needs of them, each (B, W)."""
    if kind == "tanh":
        value = affine_tanh(rows, weight, bias)
        return value, value
    a = affine(rows, weight, bias)
    if kind == "silu" and a.device.type != "cpu":
        return torch.nn.functional.silu(a), a
    if kind == "silu":  # torch computes the exponential again on the way back
        share = a.sigmoid()
        value = a.mul_(share)
        return value, torch.lerp(value, _one(value.dtype), share, out=share)
    return torch.nn.functional.softplus(a), a.sigmoid_()


# autograd's own derivatives make one pass over memory; formulas in torch make three to five
_tanh_backward = torch.ops.aten.tanh_backward
_silu_backward = torch.ops.aten.silu_backward


def layer_backward(kind: str, grad: Tensor, kept: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient (B, K) at a layer's input, given that after its activation, (B, W)."""
    of_units = activation_backward_(kind, grad, kept)
    return product(of_units, weight) if kind == "tanh" else plain_product(of_units, weight)


def activation_backward_(kind: str, grad: Tensor, kept: Tensor) -> Tensor:
    """Return the gradient (B, W) at an activation's input, given that at its output; in `kept`."""
    if kind == "tanh":
        return _tanh_backward.grad_input(grad, kept, grad_input=kept)
    if kind == "silu" and kept.device.type != "cpu":
        return _silu_backward.grad_input(grad, kept, grad_input=kept)
    return kept.mul_(grad)


class _Network(NamedTuple):
    """The parameters of an `MLPEnergy`, without torch's containers, whose access is slow."""

    activation: str
    weights: list[Tensor]
    biases: list[Tensor]
    output: Tensor
    bound: float  # nats, of the correction


def _value_and_grad(network: _Network, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounded correction (B,) and its gradient (B, P) at rows (B, P)."""
    kind, hidden, kept = network.activation, rows, []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        hidden, slope = layer(kind, hidden, weight, bias)
        kept.append(slope)
    # with beta = 0 the first argument gives nothing but the shape
    scaled = torch.addmv(hidden[:, 0], hidden, network.output, beta=0.0, alpha=1.0 / network.bound)
    saturation = scaled.tanh_()
    grad = network.output.expand_as(hidden)
    for weight, slope in zip(reversed(network.weights), reversed(kept), strict=True):
        grad = layer_backward(kind, grad, slope, weight)
    # the bound's derivative is a factor per row, cheapest to apply to the narrowest tensor
    return network.bound * saturation, _tanh_backward(grad, saturation.unsqueeze(1))


def mlp_correction_and_grad(energy: AnchoredEnergy) -> CorrectionAndGrad:
    """Return the function of `autograd_correction_and_grad` for an anchored MLP.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy`. The values of its parameters are read at each call.

    Returns
    -------
    correction_and_grad : callable
        Same values as the autograd version up to rounding.
    """
    _keep_freed_blocks()
    mlp = cast(MLPEnergy, energy.network)
    network = _Network(
        mlp.activation, list(mlp.weights), list(mlp.biases), mlp.output, energy.bound
    )
    block_rows = max(1, _BLOCK_NUMBERS // max(mlp.hidden_layer_sizes))

    @torch.no_grad()
    def correction_and_grad(rows: Tensor) -> tuple[Tensor, Tensor]:
        if len(rows) <= block_rows:
            return _value_and_grad(network, rows)
        # nearly equal blocks, because oneDNN prepares a kernel for every new size
        blocks = rows.tensor_split(math.ceil(len(rows) / block_rows))
        parts = [_value_and_grad(network, block) for block in blocks]
        correction, grad = (torch.cat(part) for part in zip(*parts, strict=True))
        return correction, grad

    return _within_reach(energy, correction_and_grad)


def _within_reach(energy: AnchoredEnergy, inner: CorrectionAndGrad) -> CorrectionAndGrad:
    """Multiply the correction by the energy's reach, with the gradient of the product."""
    reach = energy.reach
    if reach is None:
        return inner

    @torch.no_grad()
    def correction_and_grad(rows: Tensor) -> tuple[Tensor, Tensor]:
        correction, grad = inner(rows)
        return reach.scale(rows[:, : energy.n_features], correction, grad), grad

    return correction_and_grad
