"""Block sizes of the GPU kernel of a perceptron, and the largest perceptron it accepts.

This module works without Triton: `backends` calls it before it imports the kernel.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

# side of the square tiles of weights and activations: smaller tiles compile into more code, and the
# operands of larger ones do not fit into a program's registers
_TILE = 32
_N_WARPS = 8
# total of columns and hidden units up to which a program takes 32 rows instead of 16
_FEW_UNITS = 192
# units that fit into a program's registers, and unrolled products of tiles: at these limits Triton
# compiles for some 20 s, once per shape and device, and caches the result on disk
_MAX_UNITS = 704
_MAX_PRODUCTS = 160
# rows of a program that makes steps: particles are few, and a step needs registers of its own
ROWS_OF_STEPS = 16
# columns and hidden units up to which its registers were counted (docs/benchmarks/performance.md)
_MAX_UNITS_OF_STEPS = 320
# components that every step of a walk evaluates for every particle
_MAX_COMPONENTS = 16


class Tiling(NamedTuple):
    """Block sizes of one program of the kernel."""

    rows: int  # rows of a program
    tile: int  # side of a tile
    n_warps: int  # groups of 32 threads of a program


def choose_tiling(widths: Sequence[int]) -> Tiling | None:
    """Return the block sizes for a perceptron, or None if it is too large for one launch.

    Parameters
    ----------
    widths : sequence of int
        Columns of the rows, then units of each hidden layer.

    Returns
    -------
    tiling : Tiling or None
        Sides are powers of two, at least 16, as Triton's matrix products require.
    """
    n_tiles = [math.ceil(width / _TILE) for width in widths]
    n_products = 2 * sum(a * b for a, b in zip(n_tiles[:-1], n_tiles[1:], strict=True))
    n_units = _TILE * sum(n_tiles)
    if len(widths) < 2 or n_products > _MAX_PRODUCTS or n_units > _MAX_UNITS:
        return None
    return Tiling(32 if n_units <= _FEW_UNITS else 16, _TILE, _N_WARPS)


def suits_steps(widths: Sequence[int], n_components: int = 1) -> bool:
    """Return whether a step of a perceptron's particles, or all of a walk, fit into one launch.

    Parameters
    ----------
    widths : sequence of int
        As for `choose_tiling`. The coordinates of a particle must be one tile.
    n_components : int, default=1
        Components of the reference that a walk evaluates; an exact step evaluates none.
    """
    n_units = _TILE * sum(math.ceil(width / _TILE) for width in widths)
    is_small = widths[0] <= _TILE and n_units <= _MAX_UNITS_OF_STEPS
    return is_small and n_components <= _MAX_COMPONENTS
