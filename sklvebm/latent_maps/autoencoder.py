"""Nonlinear principal components by an autoencoder, whose encoder becomes the latent map.

The decoder is discarded. The density of rows depends on neither.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklvebm.adam import Adam, one_cycle
from sklvebm.latent_maps.maps import PerceptronLatentMap, hidden_units
from sklvebm.threads import limited_threads

_N_UNITS, _N_UNITS_EXACT = 64, 128  # of each hidden layer, in a coarse and an exact fit
_N_STEPS, _BATCH_SIZE = 1000, 256  # steps of Adam and rows per step
N_TRIAL_STEPS = 150  # of a fit that only shows whether rows are curved
_MAX_LEARNING_RATE = 6e-3  # of the cycle
# Standard deviation of the noise on latents with variance 1. Without noise, the encoder may encode
# information in directions of tiny variance, in which nearest neighbours are meaningless.
_LATENT_NOISE = 0.1
_N_PROJECTION_STEPS, _PROJECTION_LEARNING_RATE = 60, 0.02  # Adam on the latents of all rows


class _ResidualPerceptron(nn.Module):
    """A linear map plus two hidden layers, whose output starts at zero."""

    def __init__(self, linear: Tensor, n_units: int, generator: torch.Generator) -> None:
        super().__init__()
        n_outputs, n_inputs = linear.shape

        # single precision, independent of torch's default
        single: dict[str, Any] = {"generator": generator, "dtype": torch.float32}

        def weight(n_in: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(n_units, n_in, **single) / n_in**0.5)

        def bias() -> nn.Parameter:
            return nn.Parameter(2.0 * torch.rand(n_units, **single) - 1.0)

        self.offset = nn.Parameter(torch.zeros(n_outputs, dtype=torch.float32))
        self.linear = nn.Parameter(linear.float())
        self.first_weight, self.first_bias = weight(n_inputs), bias()
        self.second_weight, self.second_bias = weight(n_units), bias()
        self.last_weight = nn.Parameter(linear.new_zeros(n_outputs, n_units).float())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs (B, n_outputs) of inputs (B, n_inputs)."""
        layers = self.first_weight, self.first_bias, self.second_weight, self.second_bias
        second = hidden_units(inputs, *layers)[1]
        linear = nn.functional.linear(inputs, self.linear, self.offset)
        return linear + nn.functional.linear(second, self.last_weight)


@limited_threads(1)  # operations are small, and threads wait for busy cores
@torch.enable_grad()  # `numerical_session` disables gradients
def fit_bottleneck(
    X: np.ndarray,
    linear: np.ndarray,
    seed: int,
    *,
    exact: bool = False,
    n_steps: int = _N_STEPS,
) -> PerceptronLatentMap:
    """Fit an autoencoder and return its encoder.

    The encoder gives latents of variance one; the decoder rebuilds rows from latents with noise.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    linear : ndarray of shape (n_latents, n_features)
        The linear map that training starts from.
    seed : int
        Seed of weights, batches and noise.
    exact : bool, default=False
        Whether the encoder is then fitted to the projection on a principal surface: the latents
        whose decoded points are nearest to the rows. Joint training alone is less accurate. The
        networks are wider, and the fit takes three times as long.
    n_steps : int, default=1000
        Updates.

    Returns
    -------
    latent_map : PerceptronLatentMap
        Float64, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(X).float()
    n_latents, n_features = linear.shape
    spread = (X @ linear.T).std(0)
    linear = linear / np.where(spread > 1e-6, spread, 1.0)[:, None]
    n_units = _N_UNITS_EXACT if exact else _N_UNITS
    encoder = _ResidualPerceptron(torch.from_numpy(linear), n_units, generator)
    decoder = _ResidualPerceptron(torch.zeros(n_features, n_latents), n_units, generator)

    def reconstruction_loss() -> Tensor:
        batch = rows[torch.randint(len(rows), (_BATCH_SIZE,), generator=generator)]
        latents = _standardised(encoder(batch))
        noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
        return (batch - decoder(latents + _LATENT_NOISE * noise)).square().sum(1).mean()

    _minimise(reconstruction_loss, [*encoder.parameters(), *decoder.parameters()], n_steps)
    if exact:
        first = encoder(rows).detach()
        mean, scale = first.mean(0), first.std(0, correction=0).clamp(min=1e-6)
        nearest = _nearest(decoder.requires_grad_(False), rows, (first - mean) / scale)

        def projection_loss() -> Tensor:
            drawn = torch.randint(len(rows), (_BATCH_SIZE,), generator=generator)
            latents = (encoder(rows[drawn]) - mean) / scale
            return (nearest[drawn] - latents).square().sum(1).mean()

        _minimise(projection_loss, [*encoder.parameters()], n_steps)
    return _unit_variance_map(encoder.double().requires_grad_(False), rows.double())


def _standardised(latents: Tensor) -> Tensor:
    return (latents - latents.mean(0)) / latents.std(0, correction=0).clamp(min=1e-6)


def _minimise(loss: Callable[[], Tensor], parameters: list[nn.Parameter], n_steps: int) -> None:
    """Run one cycle of Adam."""
    optimizer = Adam(parameters, learning_rate=_MAX_LEARNING_RATE)
    for step in range(n_steps):
        share, momentum = one_cycle(step, n_steps)
        optimizer.learning_rate, optimizer.betas = share * _MAX_LEARNING_RATE, (momentum, 0.999)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _nearest(decoder: _ResidualPerceptron, rows: Tensor, latents: Tensor) -> Tensor:
    """Return latents (B, L) whose decoded points are nearest to rows (B, D), from initial ones."""
    latents = latents.clone().requires_grad_(True)
    optimizer = Adam([latents], learning_rate=_PROJECTION_LEARNING_RATE)
    for _ in range(_N_PROJECTION_STEPS):
        optimizer.zero_grad()
        (rows - decoder(latents)).square().sum().backward()
        optimizer.step()
    return latents.detach()


def _unit_variance_map(encoder: _ResidualPerceptron, rows: Tensor) -> PerceptronLatentMap:
    """Return the trained map with latents of mean zero and variance one over the rows."""
    latents = encoder(rows)
    scale = latents.std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    # the sign of a latent is arbitrary, hence a positive largest slope
    slopes = encoder.linear
    signs = torch.sign(slopes.gather(1, slopes.abs().argmax(1, keepdim=True)).squeeze(1))
    factor = torch.where(signs < 0.0, -1.0, 1.0) / scale
    return PerceptronLatentMap(
        offset=factor * (encoder.offset - latents.mean(0)),
        linear=factor[:, None] * encoder.linear,
        first_weight=encoder.first_weight,
        first_bias=encoder.first_bias,
        second_weight=encoder.second_weight,
        second_bias=encoder.second_bias,
        last_weight=factor[:, None] * encoder.last_weight,
        variance=torch.full_like(scale, _LATENT_NOISE**2),
    )
