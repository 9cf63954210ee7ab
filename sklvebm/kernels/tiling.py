"""How the GPU kernel of a perceptron is cut up, and which perceptrons it is for.

Nothing here needs Triton: `backends` asks before it loads any of it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

# side of the square tiles of weights and activations. Smaller ones compile into more code; with
# larger ones a product's operands no longer fit into a program's registers
_TILE = 32
_N_WARPS = 8
# columns of rows and hidden layers up to which a program takes 32 rows instead of 16
_FEW_UNITS = 192
# What a program holds without spilling registers to memory, and how much is unrolled: at the limits
# Triton compiles for some 20 s, once for each shape and device, and keeps the result on disk
_MAX_UNITS = 704
_MAX_PRODUCTS = 160


class Tiling(NamedTuple):
    """The blocks that one program of the kernel works on."""

    rows: int  # rows of a program
    tile: int  # side of a tile
    n_warps: int  # groups of 32 threads of a program


def choose_tiling(widths: Sequence[int]) -> Tiling | None:
    """Return the blocks for a perceptron, or None where it is too large for a single launch.

    Parameters
    ----------
    widths : sequence of int
        Columns of the rows, then units of each hidden layer.

    Returns
    -------
    tiling : Tiling or None
        Sides are powers of two from 16 on, as matrix products in Triton want them.
    """
    n_tiles = [math.ceil(width / _TILE) for width in widths]
    there_and_back = 2 * sum(a * b for a, b in zip(n_tiles[:-1], n_tiles[1:], strict=True))
    n_units = _TILE * sum(n_tiles)
    if len(widths) < 2 or there_and_back > _MAX_PRODUCTS or n_units > _MAX_UNITS:
        return None
    return Tiling(32 if n_units <= _FEW_UNITS else 16, _TILE, _N_WARPS)
