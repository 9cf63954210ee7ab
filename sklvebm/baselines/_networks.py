"""Perceptrons whose Jacobian is a closed form, for decoders, encoders and energies of priors."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sklvebm.models.energies import ACTIVATIONS


def _silu_slope(h: Tensor) -> Tensor:
    gate = torch.sigmoid(h)
    return gate * (1.0 + h * (1.0 - gate))


_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": _silu_slope,
    "softplus": torch.sigmoid,
    "tanh": lambda h: 1.0 - torch.tanh(h).square(),
}


class Perceptron(nn.Module):
    """A multilayer perceptron; without hidden layers, an affine map.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Widths.
    hidden_layer_sizes : sequence of int
        Units of each hidden layer; may be empty.
    activation : {"silu", "softplus", "tanh"}
        Activation of the hidden layers.
    generator : torch.Generator or None, default=None
        Source of the initial weights; required unless they are loaded afterwards.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        widths = [n_inputs, *hidden_layer_sizes, n_outputs]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            weight = torch.zeros(fan_out, fan_in, dtype=torch.float32)
            bias = torch.zeros(fan_out, dtype=torch.float32)
            if generator is not None:
                is_last = layer == len(widths) - 2
                # outputs have about unit scale; biases spread the thresholds of hidden units
                gain = 1.0 if is_last else 2.0
                weight.normal_(0.0, math.sqrt(gain / fan_in), generator=generator)
                if not is_last:
                    bias.uniform_(-1.0, 1.0, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs (..., n_outputs) of inputs (..., n_inputs)."""
        activate = ACTIVATIONS[self.activation]
        *hidden_weights, last_weight = self.weights
        *hidden_biases, last_bias = self.biases
        h = inputs
        for weight, bias in zip(hidden_weights, hidden_biases, strict=True):
            h = activate(nn.functional.linear(h, weight, bias))
        return nn.functional.linear(h, last_weight, last_bias)

    def with_jacobian(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (B, n_outputs) and d output / d input, (B, n_outputs, n_inputs)."""
        activate, slope = ACTIVATIONS[self.activation], _SLOPES[self.activation]
        *hidden_weights, last_weight = self.weights
        *hidden_biases, last_bias = self.biases
        h = inputs
        # one tangent per input, carried forward: (B, n_inputs, width)
        tangents = torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
        tangents = tangents.expand(len(inputs), -1, -1)
        for weight, bias in zip(hidden_weights, hidden_biases, strict=True):
            h = nn.functional.linear(h, weight, bias)
            tangents = nn.functional.linear(tangents, weight) * slope(h).unsqueeze(1)
            h = activate(h)
        jacobian = nn.functional.linear(tangents, last_weight).transpose(1, 2)
        return nn.functional.linear(h, last_weight, last_bias), jacobian
