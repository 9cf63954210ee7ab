"""Correction and gradient of an anchored `MLPEnergy` in one launch of a GPU kernel (Triton).

Each program makes the forward and the backward pass of a block of rows. The activations of a layer
are a tuple of square tiles, because Triton tensors cannot be sliced. They stay in registers and
shared memory; only rows, weights, corrections and gradients pass through the GPU's memory. Loops
over layers and tiles are unrolled when the kernel is compiled, once per configuration.

`backends` compares the kernel with the plain function before its first use on a device.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sklvebm.kernels.tiling import choose_tiling
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.targets import CorrectionAndGrad

# "tf32" keeps 11 bits of each factor. Unadjusted samplers would have another stationary
# distribution. MALA corrects wrong gradients, but needs energies that are exact to a small part of
# a nat.
_PRECISION = "ieee"


@triton.jit
def _tanh(a):
    """Return tanh, correct to rounding relative to itself also near zero."""
    square = a * a
    # the first five terms, to 1e-8 where they are used: 2 sigmoid(2 a) - 1 cancels there
    series = 62.0 / 2835.0 * square - 17.0 / 315.0
    series = (series * square + 2.0 / 15.0) * square - 1.0 / 3.0
    return tl.where(tl.abs(a) < 0.25, a + a * square * series, 2.0 * tl.sigmoid(2.0 * a) - 1.0)


@triton.jit
def _activated(a, KIND: tl.constexpr):
    """Return the activation of a tile."""
    if KIND == "tanh":
        value = _tanh(a)
    elif KIND == "silu":
        value = a * tl.sigmoid(a)
    else:
        value = tl.maximum(a, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(a)))
    return value


@triton.jit
def _slope(a, KIND: tl.constexpr):
    """Return the derivative of the activation of a tile."""
    if KIND == "tanh":
        value = _tanh(a)
        slope = 1.0 - value * value
    elif KIND == "silu":
        gate = tl.sigmoid(a)
        slope = gate * (1.0 + a * (1.0 - gate))
    else:
        slope = tl.sigmoid(a)
    return slope


@triton.jit
def _read_rows(rows, row, n_rows, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Return the tiles of rows (n_rows, WIDTH); zeros beyond the edges."""
    tiles = ()
    for i in tl.static_range((WIDTH + TILE - 1) // TILE):
        column = (i * TILE + tl.arange(0, TILE))[None, :]
        inside = (row < n_rows)[:, None] & (column < WIDTH)
        tiles = tiles + (tl.load(rows + row[:, None] * WIDTH + column, mask=inside, other=0.0),)
    return tiles


@triton.jit
def _read_units(vector, j, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Return tile j of a vector with one number per unit; zeros beyond its end."""
    unit = j * TILE + tl.arange(0, TILE)
    return tl.load(vector + unit, mask=unit < WIDTH, other=0.0)[None, :]


@triton.jit
def _read_weights(
    weight,
    unit,
    fan,
    FIRST_UNIT: tl.constexpr,
    FIRST_FAN: tl.constexpr,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return a tile of a weight matrix (FAN_OUT, FAN_IN); zeros beyond its edges.

    `unit` and `fan` count within the tile, whose offset is one constant. This needs fewer
    addresses: a thread takes 198 registers instead of 216 for two layers of 256 units.
    """
    place = weight + (FIRST_UNIT * FAN_IN + FIRST_FAN) + (unit * FAN_IN + fan)
    if FAN_OUT % TILE == 0 and FAN_IN % TILE == 0:
        tile = tl.load(place)
    else:
        inside = (unit < FAN_OUT - FIRST_UNIT) & (fan < FAN_IN - FIRST_FAN)
        tile = tl.load(place, mask=inside, other=0.0)
    return tile


@triton.jit
def layer(
    hidden,
    weight,
    bias,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the tiles of one layer before its activation."""
    tiles, index = (), tl.arange(0, TILE)
    for j in tl.static_range((FAN_OUT + TILE - 1) // TILE):
        tiles = tiles + (tl.zeros((ROWS, TILE), tl.float32) + _read_units(bias, j, FAN_OUT, TILE),)
    # input tiles in the outer loop: each is spread over registers for products only once
    for i in tl.static_range((FAN_IN + TILE - 1) // TILE):
        sums = ()
        for j in tl.static_range(len(tiles)):
            # read transposed: the compiler would merge reads equal to those of the backward pass,
            # and hold the tile in registers and shared memory until then
            tile = _read_weights(
                weight, index[None, :], index[:, None], j * TILE, i * TILE, FAN_OUT, FAN_IN, TILE
            )
            sums = sums + (tl.dot(hidden[i], tile, tiles[j], input_precision=PRECISION),)
        tiles = sums
    if FAN_OUT % TILE != 0:
        # zeros beyond the last unit: an infinite input would make NaN there, which spreads
        kept = ()
        for j in tl.static_range(len(tiles)):
            kept = kept + (tl.where((index < FAN_OUT - j * TILE)[None, :], tiles[j], 0.0),)
        tiles = kept
    return tiles


@triton.jit
def layer_backward(
    grad,
    weight,
    FAN_OUT: tl.constexpr,
    FAN_IN: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the tiles of the gradient at a layer's inputs, given those before its activation."""
    tiles, index = (), tl.arange(0, TILE)
    for _ in tl.static_range((FAN_IN + TILE - 1) // TILE):
        tiles = tiles + (tl.zeros((ROWS, TILE), tl.float32),)
    for j in tl.static_range((FAN_OUT + TILE - 1) // TILE):
        sums = ()
        for i in tl.static_range(len(tiles)):
            tile = _read_weights(
                weight, index[:, None], index[None, :], j * TILE, i * TILE, FAN_OUT, FAN_IN, TILE
            )
            sums = sums + (tl.dot(grad[j], tile, tiles[i], input_precision=PRECISION),)
        tiles = sums
    return tiles


@triton.jit
def _all_activated(tiles, KIND: tl.constexpr):
    """Return the activations of all tiles of a layer."""
    values = ()
    for j in tl.static_range(len(tiles)):
        values = values + (_activated(tiles[j], KIND),)
    return values


@triton.jit
def _through(grad, tiles, KIND: tl.constexpr):
    """Return the gradient before the activations of a layer, given that after them."""
    values = ()
    for j in tl.static_range(len(tiles)):
        values = values + (grad[j] * _slope(tiles[j], KIND),)
    return values


@triton.jit
def _network_value_and_grad(
    hidden,
    weights,
    biases,
    output,
    bound,
    WIDTHS: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return bounded corrections (ROWS,) of tiles of rows, and the tiles of their gradients.

    `WIDTHS` are those of the rows and of all hidden layers.
    """
    kept = ()
    for k in tl.static_range(len(WIDTHS) - 1):
        a = layer(hidden, weights[k], biases[k], WIDTHS[k + 1], WIDTHS[k], ROWS, TILE, PRECISION)
        kept = kept + (a,)
        hidden = _all_activated(a, KIND)
    value = tl.zeros((ROWS,), tl.float32)
    grad = ()
    for j in tl.static_range(len(hidden)):
        unit = _read_units(output, j, WIDTHS[len(WIDTHS) - 1], TILE)
        value += tl.sum(hidden[j] * unit, 1)
        grad = grad + (tl.zeros((ROWS, TILE), tl.float32) + unit,)
    saturation = _tanh(value / bound)
    for k in tl.static_range(len(WIDTHS) - 2, -1, -1):
        grad = _through(grad, kept[k], KIND)
        grad = layer_backward(grad, weights[k], WIDTHS[k + 1], WIDTHS[k], ROWS, TILE, PRECISION)
    # the bound's derivative is a factor per row, cheapest to apply to the narrowest tensor
    return bound * saturation, _scaled(grad, 1.0 - saturation * saturation)


@triton.jit
def _scaled(tiles, factor):
    """Return the tiles with each row multiplied by its factor (ROWS,)."""
    values = ()
    for j in tl.static_range(len(tiles)):
        values = values + (tiles[j] * factor[:, None],)
    return values


@triton.jit
def _reach_at(
    hidden,
    whitening,
    shift,
    N_FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return how far rows are beyond the edge of a reach (ROWS,), and tiles of half its gradient.

    `whitening` is the matrix W of the reach, `shift` is `-W c`; see `Reach.scale`. This is done
    before the network is evaluated: the other way round it needs more registers.
    """
    white = layer(hidden, whitening, shift, N_FEATURES, N_FEATURES, ROWS, TILE, PRECISION)
    distance = tl.zeros((ROWS,), tl.float32)
    for j in tl.static_range(len(white)):
        distance += tl.sum(white[j] * white[j], 1)
    # not the maximum of Triton, which drops NaN
    beyond = tl.where(distance <= 1.0, 0.0, distance - 1.0)
    half = layer_backward(white, whitening, N_FEATURES, N_FEATURES, ROWS, TILE, PRECISION)
    return beyond, half


@triton.jit
def _within_reach(correction, grad, beyond, half):
    """Return corrections (ROWS,) and the tiles of their gradients, multiplied by a reach."""
    share = tl.exp(-beyond * beyond)
    value = share * correction
    factor = (-4.0 * beyond * value)[:, None]
    values = ()
    for j in tl.static_range(len(grad)):
        tile = share[:, None] * grad[j]
        if j < len(half):
            tile += factor * half[j]
        values = values + (tile,)
    return value, values


@triton.jit
def correction_and_grad_of_tiles(
    tiles,
    weights,
    biases,
    output,
    whitening,
    shift,
    bound,
    WIDTHS: tl.constexpr,
    N_FEATURES: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return corrections (ROWS,) of tiles of rows, and the tiles of their gradients.

    `N_FEATURES` is zero where the correction has no reach.
    """
    if N_FEATURES > 0:
        beyond, half = _reach_at(tiles, whitening, shift, N_FEATURES, ROWS, TILE, PRECISION)
    value, grad = _network_value_and_grad(
        tiles, weights, biases, output, bound, WIDTHS, KIND, ROWS, TILE, PRECISION
    )
    if N_FEATURES > 0:
        value, grad = _within_reach(value, grad, beyond, half)
    return value, grad


# One binary per configuration, for any number of rows and any alignment: `backends` has tested the
# binary that runs.
@triton.jit(
    do_not_specialize=["n_rows", "bound"],
    do_not_specialize_on_alignment=["rows", "correction", "grad_rows"],
)
def _value_and_grad_kernel(
    rows,
    weights,
    biases,
    output,
    whitening,
    shift,
    correction,
    grad_rows,
    n_rows,
    bound,
    WIDTHS: tl.constexpr,
    N_FEATURES: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write corrections (n_rows,) and their gradients, of the rows' shape, of a block of rows."""
    # 64 bits: rows times columns may exceed 2^31
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tiles = _read_rows(rows, row, n_rows, WIDTHS[0], TILE)
    network = weights, biases, output, whitening, shift, bound
    value, grad = correction_and_grad_of_tiles(
        tiles, *network, WIDTHS, N_FEATURES, KIND, ROWS, TILE, PRECISION
    )
    tl.store(correction + row, value, mask=row < n_rows)
    for i in tl.static_range(len(grad)):
        column = (i * TILE + tl.arange(0, TILE))[None, :]
        inside = (row < n_rows)[:, None] & (column < WIDTHS[0])
        tl.store(grad_rows + row[:, None] * WIDTHS[0] + column, grad[i], mask=inside)


def network_arguments(energy: AnchoredEnergy) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what kernels need of an energy: tensors, and constants of the compilation.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy` in float32 whose widths `choose_tiling` accepts.

    Returns
    -------
    tensors : tuple
        Weights, biases, output, and the matrix and the shift of the reach.
    options : dict of str to object
        Constants, and options of the compiler.
    """
    mlp, reach = energy.network, energy.reach
    widths = (mlp.n_features + mlp.n_latents, *mlp.hidden_layer_sizes)
    tiling = choose_tiling(widths)
    options: dict[str, Any] = {
        "WIDTHS": widths,
        "N_FEATURES": 0 if reach is None else mlp.n_features,
        "KIND": mlp.activation,
        "ROWS": tiling.rows,
        "TILE": tiling.tile,
        "PRECISION": _PRECISION,
        "num_warps": tiling.n_warps,
        "enable_fp_fusion": True,  # multiply-adds round once; Triton's default may change
    }
    # without a reach the kernel reads no matrix, but has the argument
    of_reach = mlp.output, mlp.output
    if reach is not None:
        of_reach = tuple(part.to(mlp.output.dtype) for part in reach.affine_map())
    return (tuple(mlp.weights), tuple(mlp.biases), mlp.output, *of_reach), options


def triton_mlp_correction_and_grad(energy: AnchoredEnergy) -> CorrectionAndGrad:
    """Return the correction of an energy and its gradients as one kernel launch on a GPU.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy` in float32 whose widths `choose_tiling` accepts. The
        values of its parameters are read at each call.

    Returns
    -------
    correction_and_grad : callable
        Same values as the plain version up to rounding, the reach of the energy included; takes
        float32 rows on the device of the energy.
    """
    inputs, options = network_arguments(energy)
    bound, n_rows_of_program = energy.bound, options["ROWS"]

    @torch.no_grad()
    def correction_and_grad(rows: Tensor) -> tuple[Tensor, Tensor]:
        n_rows = len(rows)
        correction, grad = rows.new_empty(n_rows), rows.new_empty(rows.shape)
        if n_rows > 0:
            tensors = (rows.contiguous(), *inputs, correction, grad)
            # Triton launches on the current device, which need not be that of the rows
            with torch.cuda.device_of(rows):
                grid = (triton.cdiv(n_rows, n_rows_of_program),)
                _value_and_grad_kernel[grid](*tensors, n_rows, bound, **options)
        return correction, grad

    return correction_and_grad
