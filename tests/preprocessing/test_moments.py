"""Units of rows that are read in parts equal those of the same rows in memory, to rounding."""

import warnings
from functools import reduce

import numpy as np
import pytest

from sklvebm.preprocessing.moments import (
    Extremes,
    Moments,
    extremes_of,
    moments_of,
    standardisation_of,
    summary_of_blocks,
)
from sklvebm.preprocessing.scaling import fit_standardisation

random = np.random.RandomState(0)
PLAIN = random.normal(3.0, [1.0, 20.0, 1e-3], size=(300, 3))
WITH_OUTLIERS = np.concatenate([PLAIN, [[1e9, 3.0, -1e12]]])
HOLES = np.where(random.uniform(size=PLAIN.shape) < 0.2, np.nan, PLAIN)
HOLES[:120, 1] = np.nan  # a block without an observed cell
TINY = PLAIN * 1e-200
SHIFTED = PLAIN + [1e6, 0.0, 1e3]
CONSTANT = np.where(np.arange(3) == 1, 0.1 + 0.2, PLAIN)


def in_blocks(X, row_weights=None, size=40):
    for first in range(0, len(X), size):
        part = slice(first, first + size)
        yield X[part], None if row_weights is None else row_weights[part]


def streamed(X, row_weights=None):
    extremes = reduce(Extremes.joined, (extremes_of(block) for block, _ in in_blocks(X)))
    return standardisation_of(summary_of_blocks(in_blocks(X, row_weights), X, extremes))


@pytest.mark.filterwarnings("ignore:.*scales from the others:UserWarning")
@pytest.mark.filterwarnings("ignore:.*million scales:UserWarning")
@pytest.mark.filterwarnings("ignore:.*are constant:UserWarning")
@pytest.mark.parametrize("X", [PLAIN, WITH_OUTLIERS, HOLES, TINY, SHIFTED, CONSTANT])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_units_of_blocks_are_those_of_all_rows(X, is_weighted):
    row_weights = random.uniform(0.1, 2.0, len(X)) if is_weighted else None
    units, expected = streamed(X, row_weights), fit_standardisation(X, row_weights)
    np.testing.assert_allclose(units.scale, expected.scale, rtol=1e-9)
    np.testing.assert_allclose(units.mean / expected.scale, expected.mean / expected.scale, 1e-9)


def test_warnings_name_the_columns():
    with pytest.warns(UserWarning, match=r"Columns \[1\] of X are constant"):
        streamed(CONSTANT)
    with pytest.warns(UserWarning, match=r"Columns \[0, 2\] of X have values more than a million"):
        streamed(WITH_OUTLIERS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        streamed(HOLES)


def test_moments_do_not_depend_on_how_rows_are_divided():
    weights = random.uniform(0.0, 2.0, len(HOLES))
    whole = moments_of(HOLES, weights)
    for size in (1, 7, 299):
        parts = (moments_of(*block) for block in in_blocks(HOLES, weights, size))
        for ours, theirs in zip(reduce(Moments.joined, parts), whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
