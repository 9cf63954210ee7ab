"""Mode coverage on rings, where everything that can go missing is known."""

import numpy as np
import pytest

from sklvebm.datasets import make_concentric_rings
from sklvebm.metrics import mode_coverage

SIGMAS = 4.0


@pytest.fixture(scope="module")
def rings():
    """Rows of three rings with the ring of each."""
    X, factors = make_concentric_rings(6000, return_factors=True, random_state=0)
    return X, np.abs(factors[:, :1] - [0.5, 1.0, 1.5]).argmin(1)


def test_fresh_rows_cover_all_modes_in_proportion_and_few_lie_outside(rings):
    result = mode_coverage(*rings, make_concentric_rings(4000, random_state=1))
    assert result.covered == 1.0
    assert np.abs(result.shares - 1.0 / 3.0).max() < SIGMAS * np.sqrt(2.0 / 9.0 / 4000 * 5.0 / 3.0)
    # one per cent, known from as many rows as the quantile was found from
    error = np.sqrt(0.01 * 0.99 * (1.0 / 4000 + 1.0 / 6000))
    assert abs(result.outlying - 0.01) < SIGMAS * error


def test_a_missing_ring_is_missed(rings):
    Y = make_concentric_rings(2000, radii=[0.5, 1.5], random_state=1)
    result = mode_coverage(*rings, Y)
    assert result.covered == pytest.approx(2.0 / 3.0)
    rightful = np.bincount(rings[1]) / 6000
    assert result.shares[1] == 0.0
    expected = 0.5 * np.abs(rightful - result.shares).sum()
    assert result.total_variation == pytest.approx(expected)
    assert result.total_variation == pytest.approx(1.0 / 3.0, abs=0.03)


def test_a_thin_ring_counts_from_the_threshold_on(rings):
    X, ring = rings
    Y = np.concatenate([X[ring == 0], X[ring == 1][::10], X[ring == 2]])
    assert mode_coverage(X, ring, Y).covered == pytest.approx(2.0 / 3.0)
    assert mode_coverage(X, ring, Y, threshold=0.1).covered == 1.0


def test_rows_between_the_rings_are_outlying(rings):
    Y = make_concentric_rings(1000, random_state=1)
    Y[:300] *= 1.25 / np.hypot(*Y[:300].T)[:, None]
    result = mode_coverage(*rings, Y, quantile=0.999)
    assert result.outlying == pytest.approx(0.3, abs=0.02)


def test_labels_may_be_anything_that_sorts():
    X, Y = [[0.0], [1.0], [2.0]], [[0.1], [0.9], [1.9], [2.5]]
    result = mode_coverage(X, ["b", "c", "a"], Y)
    assert result.shares.tolist() == [0.5, 0.25, 0.25]


def test_illegal_references_are_refused():
    with pytest.raises(ValueError, match="one entry for each, got 2 rows and 3 labels"):
        mode_coverage([[0.0], [1.0]], [0, 1, 2], [[0.0]])
    with pytest.raises(ValueError, match="at least two rows"):
        mode_coverage([[0.0]], [0], [[0.0]])
