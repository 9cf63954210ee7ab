"""Which perceptrons the GPU kernel is for."""

import pytest

from sklvebm.kernels.tiling import choose_tiling, suits_steps


@pytest.mark.parametrize(
    "widths", [(1, 1), (2, 64, 64), (12, 128, 128), (64, 256, 256), (30, 17, 33, 5), (3, 512)]
)
def test_perceptrons_of_ordinary_sizes_get_blocks_that_triton_can_multiply(widths):
    tiling = choose_tiling(widths)
    for side in (tiling.rows, tiling.tile):
        assert side >= 16
        assert side & (side - 1) == 0


@pytest.mark.parametrize(
    "widths", [(4,), (12, 1024), (784, 256, 256), (12, 512, 512), (8, *[64] * 40)]
)
def test_what_a_program_cannot_hold_or_a_compiler_should_not_unroll_is_left_alone(widths):
    assert choose_tiling(widths) is None


def test_programs_of_more_units_take_fewer_rows():
    assert choose_tiling((2, 64, 64)).rows > choose_tiling((2, 256, 256)).rows


@pytest.mark.parametrize(
    ("widths", "n_components", "suits"),
    [
        ((4, 64, 64), 2, True),
        ((32, 128, 128), 16, True),
        ((33, 64, 64), 1, False),
        ((12, 256, 256), 1, False),
        ((12, 64, 64), 17, False),
    ],
)
def test_steps_are_for_few_columns_units_and_components(widths, n_components, suits):
    assert suits_steps(widths, n_components) is suits
