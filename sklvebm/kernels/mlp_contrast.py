"""Weighted sum of an anchored perceptron's corrections, and its gradient in the parameters.

The gradient is derived by hand. Automatic differentiation would record a graph of every operation
and walk it once: twice as many operations for the same numbers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sklvebm.kernels.mlp import activation_backward_, layer
from sklvebm.kernels.products import product
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy

# rows (x, z), (B, D + L), and weights (B,) -> their weighted sum, 0-d, differentiable in the
# parameters only
Contrast = Callable[[Tensor, Tensor], Tensor]

_BLOCK_NUMBERS = 2**19  # activations of one layer of a block: a core's cache holds a few layers
_tanh_backward = torch.ops.aten.tanh_backward


def mlp_contrast(energy: AnchoredEnergy) -> Contrast:
    """Return the weighted sum of corrections as a function of rows and weights.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy`. The values of its parameters are read at each call.

    Returns
    -------
    contrast : callable
        Takes rows (B, D + L) and weights (B,), of any sign; a row of weight zero has no effect.
        The sum is in nats, and its gradient in the parameters is computed together with it.
    """
    network = cast(MLPEnergy, energy.network)
    parameters = [*network.weights, *network.biases, network.output]

    def contrast(rows: Tensor, weights: Tensor) -> Tensor:
        # torch has no annotations for `apply`
        value: Tensor = _Contrast.apply(  # type: ignore[no-untyped-call]
            energy, rows, weights, *parameters
        )
        return value

    return contrast


class _Contrast(torch.autograd.Function):
    """One node of the graph; on the way back, the gradient is there already."""

    @staticmethod
    def forward(
        ctx: Any, energy: AnchoredEnergy, rows: Tensor, weights: Tensor, *parameters: Tensor
    ) -> Tensor:
        value, ctx.gradients = _value_and_gradients(energy, rows, weights)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *torch._foreach_mul(ctx.gradients, grad))


def _value_and_gradients(
    energy: AnchoredEnergy, rows: Tensor, weights: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the weighted sum, 0-d, and its gradients: of weights, of biases, of the output."""
    network = cast(MLPEnergy, energy.network)
    n_blocks = math.ceil(len(rows) * max(network.hidden_layer_sizes) / _BLOCK_NUMBERS)
    blocks = zip(rows.tensor_split(n_blocks), weights.tensor_split(n_blocks), strict=True)
    value, gradients = _of_block(energy, *next(blocks))
    for block in blocks:
        further, theirs = _of_block(energy, *block)
        value += further
        torch._foreach_add_(gradients, theirs)
    return value, gradients


def _of_block(energy: AnchoredEnergy, rows: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    network, bound = cast(MLPEnergy, energy.network), energy.bound
    matrices: Sequence[Tensor] = list(network.weights)
    kind, inputs, kept = network.activation, [rows], []
    for matrix, bias in zip(matrices, network.biases, strict=True):
        hidden, slope = layer(kind, inputs[-1], matrix, bias)
        inputs.append(hidden)
        kept.append(slope)
    hidden = inputs.pop()
    scaled = torch.addmv(hidden[:, 0], hidden, network.output, beta=0.0, alpha=1.0 / bound)
    saturation = scaled.tanh_()
    if energy.reach is not None:
        weights = weights * energy.reach(rows[:, : energy.n_features]).to(weights.dtype)
    # with beta = 0 the first argument gives nothing but the shape
    value = torch.addmv(weights[:1], weights[None], saturation, beta=0.0, alpha=bound)[0]
    of_units = _tanh_backward(weights, saturation)
    of_output = torch.mv(hidden.T, of_units)
    grad = torch.outer(of_units, network.output)
    of_matrices, of_biases = [], []
    for number in reversed(range(len(kept))):
        # overwrites the layer's activations, which the layer above has used already
        grad = activation_backward_(kind, grad, kept[number])
        of_matrices.append(torch.mm(grad.T, inputs[number]))
        of_biases.append(grad.sum(0))
        if number:
            grad = product(grad, matrices[number])
    return value, [*reversed(of_matrices), *reversed(of_biases), of_output]
