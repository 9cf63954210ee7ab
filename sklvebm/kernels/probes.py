"""How wrong a GPU kernel is on random weights and rows, against plain operations in float64.

Weights of a model are no test before training, when its output is zero and any kernel agrees.
"""

import copy
import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from sklvebm.kernels.mlp import mlp_correction_and_grad
from sklvebm.kernels.plain_steps import numbers_at, plain_walk, plain_white_step
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.reach import Reach
from sklvebm.models.targets import CorrectionAndGrad, Walk, Walkers, WhiteMove, WhiteStep

_N_ROWS = 45  # several programs of a kernel, the last of them partly filled
_N_POSTERIOR, _N_STEPS = 20, (2, 5)  # of a walk, the rest of the rows are joint particles
_STEP_SIZES = 0.05, 0.03
_CPU = torch.device("cpu")


def largest_error(
    kernel: Callable[[AnchoredEnergy], CorrectionAndGrad], energy: AnchoredEnergy
) -> float:
    """Return the largest error of corrections and gradients, relative to the largest of them.

    Parameters
    ----------
    kernel : callable
        Maps an energy to its function of rows.
    energy : AnchoredEnergy
        Its network gives shape and device.
    """
    device, source = _device_of(energy), _Source()
    rows = source.normal(_N_ROWS, energy.n_features + energy.n_latents)
    expected = mlp_correction_and_grad(_probe(energy, torch.float64, _CPU))(rows.double())
    return _difference(kernel(_probe(energy, torch.float32, device))(rows.to(device)), expected)


def largest_error_of_walk(
    kernel: Callable[[AnchoredEnergy], Walk], energy: AnchoredEnergy
) -> float:
    """Return the largest error of positions and rows after a few steps, as `largest_error`."""
    device, source = _device_of(energy), _Source()
    n, d = _N_POSTERIOR, energy.n_features
    exact, twin = _probe(energy, torch.float64, _CPU), _probe(energy, torch.float32, device)
    for probe, of in ((exact, torch.float64), (twin, torch.float32)):
        probe.reference = copy.deepcopy(energy.reference).to(_device_of(probe), of)
    position = source.normal(_N_ROWS, d + energy.n_latents)
    position[:n, :d] = 0.0
    offset = exact.reference.offset_of(source.normal(n, d).double()).float()
    numbers = source.normal(_N_STEPS[1], *position.shape)
    walkers = Walkers(position, offset, position.new_tensor(_STEP_SIZES), _N_STEPS)
    found = kernel(twin)(walkers.to(numbers.to(device)), numbers.to(device))
    return _difference(found, plain_walk(exact)(walkers.to(numbers.double()), numbers.double()))


def largest_error_of_white_step(
    kernel: Callable[[AnchoredEnergy], WhiteStep], energy: AnchoredEnergy
) -> float:
    """Return the largest error of chains and acceptances after a step, as `largest_error`.

    Uniform numbers are such that every second chain accepts whatever its proposal, and the others
    reject: a ratio that differs by rounding decides nothing.
    """
    device, source, width = _device_of(energy), _Source(), energy.n_features + energy.n_latents
    exact = _probe(energy, torch.float64, _CPU)
    maps = torch.eye(width) + 0.2 * source.normal(_N_ROWS, width, width)
    centres, s = 0.3 * source.normal(_N_ROWS, 1, width), source.normal(_N_ROWS, width)
    function = mlp_correction_and_grad(exact)
    numbers = numbers_at(s.double(), centres.double(), maps.double(), function).float()
    minus_beta = -torch.linspace(0.0, 1.0, _N_ROWS, dtype=torch.float32)[:, None]
    group, sizes = torch.arange(_N_ROWS) % 2, numbers.new_tensor(_STEP_SIZES)
    uniform = 2.0 * (torch.arange(_N_ROWS) % 3 == 0).float()
    move = WhiteMove(
        *(numbers, centres, maps.float(), minus_beta),
        *(sizes, group, source.normal(_N_ROWS, width), uniform),
    )
    step = kernel(_probe(energy, torch.float32, device))
    found, ratio = step(WhiteMove(*(part.to(device) for part in move)))
    as_doubles = (part.double() if part.is_floating_point() else part for part in move)
    expected, exact_ratio = plain_white_step(exact)(WhiteMove(*as_doubles))
    acceptances = ratio.clamp(max=1.0), exact_ratio.clamp(max=1.0)
    return _difference((found, acceptances[0]), (expected, acceptances[1]))


class _Source:
    """A source of normal numbers in float32, whatever torch's default is."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Return the next numbers."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32)


def _device_of(energy: AnchoredEnergy) -> torch.device:
    return cast(MLPEnergy, energy.network).output.device


def _probe(energy: AnchoredEnergy, dtype: torch.dtype, device: torch.device) -> AnchoredEnergy:
    """Return an energy of the same shape with random weights and, if it has one, another reach."""
    shape, bound = cast(MLPEnergy, energy.network), energy.bound
    generator = torch.Generator().manual_seed(0)
    sizes = shape.n_features, shape.n_latents, shape.hidden_layer_sizes
    network = MLPEnergy(*sizes, shape.activation, generator)
    with torch.no_grad():
        # corrections both far below the bound and close to it
        network.output.normal_(0.0, bound * len(network.output) ** -0.5, generator=generator)
    reach = None if energy.reach is None else probe_reach(energy.n_features).to(device, dtype)
    return AnchoredEnergy(energy.reference, network.to(device, dtype), bound, reach)


def probe_reach(n_features: int) -> Reach:
    """Return a reach whose edge is where rows of a standard normal distribution are."""
    matrix = torch.eye(n_features, dtype=torch.float64)
    matrix += 0.2 * torch.ones_like(matrix).triu(1) / n_features
    return Reach(torch.full_like(matrix[0], 0.1), matrix * n_features**-0.5)


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest difference of tensors, relative to the largest number of each."""
    pairs = list(zip(found, expected, strict=True))
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return math.inf
    errors = [
        (ours.cpu() - theirs).abs().max() / theirs.abs().max()
        for ours, theirs in pairs
        if theirs.numel() > 0
    ]
    return float(torch.stack(errors).max())
