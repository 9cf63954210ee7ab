"""An exact step of chains in white coordinates in one launch of a GPU kernel (Triton).

Each program proposes, evaluates, and accepts or rejects a block of chains, by the functions of
`triton_mlp`. The step sizes of the next step follow from the acceptance of all chains. Programs
cannot wait for each other, so that every step is a launch of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sklvebm.kernels.tiling import ROWS_OF_STEPS
from sklvebm.kernels.triton_mlp import correction_and_grad_of_tiles, network_arguments
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.targets import WhiteMove, WhiteStep


@triton.jit
def _rows_of(s, centre, maps, inside, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Return the rows (ROWS, TILE) of white coordinates; each chain has a map of its own."""
    column = tl.arange(0, TILE)[None, :]
    rows = tl.load(centre + column, mask=inside, other=0.0)
    for i in range(WIDTH):
        own = tl.sum(tl.where(column == i, s, 0.0), 1)[:, None]
        rows += own * tl.load(maps + i * WIDTH + column, mask=inside, other=0.0)
    return rows


@triton.jit
def _pulled(grad, maps, inside, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Return gradients in white coordinates, given those in rows (ROWS, TILE)."""
    column = tl.arange(0, TILE)[None, :]
    pulled = tl.zeros_like(grad)
    for i in range(WIDTH):
        own = tl.sum(grad * tl.load(maps + i * WIDTH + column, mask=inside, other=0.0), 1)
        pulled = tl.where(column == i, own[:, None], pulled)
    return pulled


# one binary for all numbers of chains and all places in memory
@triton.jit(
    do_not_specialize=["n_rows", "centre_step", "map_step", "bound"],
    do_not_specialize_on_alignment=[
        *("numbers", "centres", "maps", "minus_beta", "sizes", "group", "normal", "uniform"),
        *("chosen", "ratio"),
    ],
)
def _step_kernel(
    numbers,
    centres,
    maps,
    minus_beta,
    sizes,
    group,
    normal,
    uniform,
    chosen,
    ratio,
    weights,
    biases,
    output,
    reach,
    reach_shift,
    n_rows,
    centre_step,
    map_step,
    bound,
    WIDTHS: tl.constexpr,
    N_FEATURES: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the numbers of a block of chains after a step, and their Metropolis ratios.

    The formulas are those of `white_step`. The steps are from one chain to the next, in memory.
    """
    WIDTH: tl.constexpr = WIDTHS[0]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, TILE)[None, :]
    is_chain = row < n_rows
    inside = is_chain[:, None] & (column < WIDTH)
    # coordinates, gradients, the correction, rows
    at = row[:, None] * (3 * WIDTH + 1) + column
    of_correction = row * (3 * WIDTH + 1) + 2 * WIDTH
    s = tl.load(numbers + at, mask=inside, other=0.0)
    grad = tl.load(numbers + at + WIDTH, mask=inside, other=0.0)
    correction = tl.load(numbers + of_correction, mask=is_chain, other=0.0)
    rows = tl.load(numbers + at + 2 * WIDTH + 1, mask=inside, other=0.0)
    mb = tl.load(minus_beta + row, mask=is_chain, other=0.0)
    h = tl.load(sizes + tl.load(group + row, mask=is_chain, other=0))[:, None]
    xi = tl.load(normal + row[:, None] * WIDTH + column, mask=inside, other=0.0)
    mean = grad * mb[:, None]
    mean += (s - mean) * ((2.0 - h) / (2.0 + h))
    moved = mean + tl.sqrt(8.0 * h) / (2.0 + h) * xi
    own_maps, centre = maps + row[:, None] * map_step, centres + row[:, None] * centre_step
    new_rows = _rows_of(moved, centre, own_maps, inside, WIDTH, TILE)
    network = weights, biases, output, reach, reach_shift, bound
    value, of_rows = correction_and_grad_of_tiles(
        (new_rows,), *network, WIDTHS, N_FEATURES, KIND, ROWS, TILE, PRECISION
    )
    new_grad = _pulled(of_rows[0], own_maps, inside, WIDTH, TILE)
    both, difference = grad + new_grad, new_grad - grad
    slopes = (s + moved - mb[:, None] * both) * difference
    terms = (moved - s) * both - 0.5 * h * slopes
    own_ratio = tl.exp((value - correction - 0.5 * tl.sum(terms, 1)) * mb)
    # False for NaN
    accepted = tl.load(uniform + row, mask=is_chain, other=0.0) < own_ratio
    column_of = accepted[:, None]
    tl.store(chosen + at, tl.where(column_of, moved, s), mask=inside)
    tl.store(chosen + at + WIDTH, tl.where(column_of, new_grad, grad), mask=inside)
    tl.store(chosen + of_correction, tl.where(accepted, value, correction), mask=is_chain)
    tl.store(chosen + at + 2 * WIDTH + 1, tl.where(column_of, new_rows, rows), mask=inside)
    tl.store(ratio + row, own_ratio, mask=is_chain)


def triton_white_step(energy: AnchoredEnergy) -> WhiteStep:
    """Return the step of `white_step` as one kernel launch on a GPU.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy` in float32 that `suits_steps` accepts.

    Returns
    -------
    step : callable
        A `WhiteStep`; same numbers as the plain version up to rounding.
    """
    network, options = network_arguments(energy)
    options["ROWS"] = ROWS_OF_STEPS

    @torch.no_grad()
    def step(move: WhiteMove) -> tuple[Tensor, Tensor]:
        n_rows = len(move.numbers)
        steps = move.centres.stride(0), move.maps.stride(0)
        chosen, ratio = torch.empty_like(move.numbers), torch.empty_like(move.uniform)
        # Triton launches on the current device, which need not be that of the chains
        with torch.cuda.device_of(ratio):
            _step_kernel[(triton.cdiv(n_rows, ROWS_OF_STEPS),)](
                *move, chosen, ratio, *network, n_rows, *steps, energy.bound, **options
            )
        return chosen, ratio

    return step
