"""Networks for tables: every column passes through learned periodic functions first.

A dense network on a few standardised columns learns slowly what varies on small scales. Sines and
cosines of one column, with learned frequencies, make such variation linear.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sklvebm.models.energies import Energy, MLPEnergy

_N_OUTPUTS = 8  # of each column
# standard deviations of the first and of the last frequency at the start, periods per standardised
# unit; the others lie between them, evenly in the logarithm
_FREQUENCY_SCALES = 0.1, 1.0


class PeriodicEnergy(Energy):
    r"""A multilayer perceptron on periodic embeddings of single columns, which starts at zero.

    .. math:: h_j(x_j) = \mathrm{silu}(W_j (\sin 2\pi c_j x_j, \cos 2\pi c_j x_j) + b_j)

    with frequencies `c_j`, weights and biases of every column's own, all of them learned [1]_. The
    perceptron takes the embeddings of all columns, and the latents as they are.

    Parameters
    ----------
    n_features, n_latents : int
        Widths of x and z.
    hidden_layer_sizes : sequence of int, default=(128, 128)
        Units of each hidden layer of the perceptron.
    activation : {"silu", "softplus", "tanh"}, default="silu"
        Activation of the perceptron.
    generator : torch.Generator or None, default=None
        Source of the initial weights; required unless the weights are loaded afterwards.
    n_frequencies : int, default=16
        Sines, and cosines, of each column.

    See Also
    --------
    EnsembleEnergy : The mean of several networks, for which fewer frequencies suffice.
    MLPEnergy : The same without embeddings.
    AnchoredEnergy : Bounds the network and adds it to a reference.

    References
    ----------
    .. [1] Y. Gorishniy, I. Rubachev, A. Babenko, "On Embeddings for Numerical Features in Tabular
       Deep Learning", NeurIPS 2022.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import PeriodicEnergy
    >>> energy = PeriodicEnergy(3, 1, (8,), generator=torch.Generator().manual_seed(0))
    >>> energy(torch.ones(5, 3), torch.ones(5, 1)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        n_features: int,
        n_latents: int,
        hidden_layer_sizes: Sequence[int] = (128, 128),
        activation: str = "silu",
        generator: torch.Generator | None = None,
        *,
        n_frequencies: int = 16,
    ) -> None:
        super().__init__()
        self.n_features, self.n_latents = n_features, n_latents
        frequencies = torch.empty(n_features, n_frequencies, dtype=torch.float32)
        weights = torch.empty(n_features, 2 * n_frequencies, _N_OUTPUTS, dtype=torch.float32)
        if generator is not None:
            low, high = (math.log(scale) for scale in _FREQUENCY_SCALES)
            scales = torch.linspace(low, high, n_frequencies, dtype=torch.float32).exp()
            frequencies.normal_(0.0, 1.0, generator=generator).mul_(scales)
            # the mean square of sines and cosines is one half
            weights.normal_(0.0, math.sqrt(1.0 / n_frequencies), generator=generator)
        self.frequencies, self.weights = nn.Parameter(frequencies), nn.Parameter(weights)
        self.biases = nn.Parameter(torch.zeros(n_features, 1, _N_OUTPUTS, dtype=torch.float32))
        self.perceptron = MLPEnergy(
            n_features * _N_OUTPUTS, n_latents, hidden_layer_sizes, activation, generator
        )

    @property
    def hidden_layer_sizes(self) -> tuple[int, ...]:
        """Units of each hidden layer of the perceptron."""
        return self.perceptron.hidden_layer_sizes

    @property
    def activation(self) -> str:
        """Activation of the perceptron."""
        return self.perceptron.activation

    @property
    def output(self) -> Tensor:
        """Weights of the last layer, which are zero at first."""
        return self.perceptron.output

    def embedded(self, x: Tensor) -> Tensor:
        """Return the embeddings of rows x (B, D), (B, D * n_outputs)."""
        angles = 2.0 * math.pi * x.T.unsqueeze(2) * self.frequencies.unsqueeze(1)
        waves = torch.cat([angles.sin(), angles.cos()], 2)  # (D, B, 2 * n_frequencies)
        hidden = nn.functional.silu(torch.baddbmm(self.biases, waves, self.weights))
        return hidden.transpose(0, 1).reshape(len(x), -1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        return self.perceptron(self.embedded(x), z)
