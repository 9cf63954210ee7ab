"""All unadjusted Langevin steps of an update in one launch of a GPU kernel (Triton).

Each program keeps a block of particles in registers from the first step to the last. A step needs
the gradient of the correction, by the functions of `triton_mlp`, and that of the reference, a
mixture of few components, in the coordinates in which each of them is a standard normal.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sklvebm.kernels.tiling import ROWS_OF_STEPS
from sklvebm.kernels.triton_mlp import correction_and_grad_of_tiles, network_arguments
from sklvebm.mixtures.row_frames import densities_in_frames
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.targets import Walk, Walkers


@triton.jit
def _product(
    rows, matrix, TRANSPOSED: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, PRECISION
):
    """Return rows (ROWS, TILE) times a matrix (WIDTH, WIDTH) or its transpose."""
    i, j = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    place = j * WIDTH + i if TRANSPOSED else i * WIDTH + j
    tile = tl.load(matrix + place, mask=(i < WIDTH) & (j < WIDTH), other=0.0)
    return tl.dot(rows, tile, input_precision=PRECISION)


@triton.jit
def _base_grad(
    position,
    means,
    whitening,
    log_peaks,
    n_components,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the gradient (ROWS, TILE) of the energy of a mixture at positions.

    Components are added one after the other, relative to the largest so far.
    """
    column = tl.arange(0, TILE)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    grad = tl.zeros((ROWS, TILE), tl.float32)
    for m in range(n_components):
        mean = tl.load(means + m * WIDTH + column, mask=column < WIDTH, other=0.0)[None, :]
        matrix = whitening + m * WIDTH * WIDTH
        white = _product(position - mean, matrix, False, WIDTH, TILE, PRECISION)
        log_density = tl.load(log_peaks + m) - 0.5 * tl.sum(white * white, 1)
        own = _product(white, matrix, True, WIDTH, TILE, PRECISION)
        new = tl.maximum(largest, log_density)
        kept, share = tl.exp(largest - new), tl.exp(log_density - new)
        total = total * kept + share
        grad = grad * kept[:, None] + own * share[:, None]
        largest = new
    return grad / total[:, None]


@triton.jit
def _moved(pointers, n_places):
    """Return pointers to places that are further on."""
    moved = ()
    for i in tl.static_range(len(pointers)):
        moved = moved + (pointers[i] + n_places,)
    return moved


# one binary for all numbers of particles, steps and components
@triton.jit(
    do_not_specialize=[
        "n_rows",
        "n_first",
        "n_first_steps",
        "n_steps",
        "n_components",
        "zero",
        "bound",
    ],
    do_not_specialize_on_alignment=["position", "offset", "numbers", "moved", "rows"],
)
def _walk_kernel(
    position,
    offset,
    numbers,
    step_size,
    moved,
    rows,
    mapping,
    location,
    means,
    whitening,
    log_peaks,
    weights,
    biases,
    output,
    reach,
    reach_shift,
    n_rows,
    n_first,
    n_first_steps,
    n_steps,
    n_components,
    zero,
    bound,
    N_FIXED: tl.constexpr,
    WIDTHS: tl.constexpr,
    N_FEATURES: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write positions and rows (x, z) of a block of particles after their last step.

    The first `n_first` particles are posterior particles, whose first `N_FIXED` coordinates stay.
    """
    WIDTH: tl.constexpr = WIDTHS[0]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, TILE)[None, :]
    place = row[:, None] * WIDTH + column
    inside = (row < n_rows)[:, None] & (column < WIDTH)
    is_first = (row < n_first)[:, None]
    u = tl.load(position + place, mask=inside, other=0.0)
    own = tl.load(offset + place, mask=inside & is_first, other=0.0)
    own += tl.load(location + column, mask=column < WIDTH, other=0.0)
    size = tl.where(is_first, tl.load(step_size), tl.load(step_size + 1))
    size = tl.where(is_first & (column < N_FIXED), 0.0, size)
    spread = tl.sqrt(2.0 * size)
    own_steps = tl.where(is_first, n_first_steps, n_steps)
    is_only_first = (tl.program_id(0) + 1) * ROWS <= n_first
    for k in range(tl.where(is_only_first, n_first_steps, n_steps)):
        # places that depend on the step, as far as the compiler can see: it would read the weights
        # once, and hold all of them in shared memory, which few GPUs have enough of
        network = _moved(weights, k * zero), biases, output, reach, reach_shift, bound
        tiles = (_product(u, mapping, False, WIDTH, TILE, PRECISION) + own,)
        _, grad = correction_and_grad_of_tiles(
            tiles, *network, WIDTHS, N_FEATURES, KIND, ROWS, TILE, PRECISION
        )
        slope = _product(grad[0], mapping, True, WIDTH, TILE, PRECISION)
        slope += _base_grad(
            u, means, whitening, log_peaks, n_components, WIDTH, ROWS, TILE, PRECISION
        )
        # `backends` limits the numbers of all steps, so that 32 bits count them
        xi = tl.load(numbers + k * n_rows * WIDTH + place, mask=inside, other=0.0)
        u = tl.where(k < own_steps, u - size * slope + spread * xi, u)
    tl.store(moved + place, u, mask=inside)
    tl.store(rows + place, _product(u, mapping, False, WIDTH, TILE, PRECISION) + own, mask=inside)


def triton_walk(energy: AnchoredEnergy) -> Walk:
    """Return the walk of `plain_walk` as one kernel launch on a GPU.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy` in float32 that `suits_steps` accepts.

    Returns
    -------
    walk : callable
        Same positions as the plain version up to rounding; takes float32 tensors on the device of
        the energy.
    """
    reference = energy.reference
    network, options = network_arguments(energy)
    tables = *reference.joint_map(), *densities_in_frames(reference)
    constants: dict[str, Any] = {**options, "N_FIXED": energy.n_features, "ROWS": ROWS_OF_STEPS}

    @torch.no_grad()
    def walk(walkers: Walkers, numbers: Tensor) -> tuple[Tensor, Tensor]:
        position, offset, step_size, n_steps = walkers
        moved, rows = torch.empty_like(position), torch.empty_like(position)
        inputs = (part.contiguous() for part in (position, offset, numbers, step_size))
        counts = len(position), len(offset), *n_steps, len(reference.means), 0
        # Triton launches on the current device, which need not be that of the rows
        with torch.cuda.device_of(position):
            _walk_kernel[(triton.cdiv(len(position), ROWS_OF_STEPS),)](
                *inputs, moved, rows, *tables, *network, *counts, energy.bound, **constants
            )
        return moved, rows

    return walk
