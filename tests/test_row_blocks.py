"""Rows in blocks give the numbers of NumPy's operations on all rows, to the last bit."""

import numpy as np
import pytest

from sklvebm import row_blocks
from sklvebm.preprocessing import scaling
from sklvebm.preprocessing.scaling import fit_standardisation, without_outliers
from sklvebm.preprocessing.splitting import repeats_together, split_rows
from sklvebm.row_blocks import MappedRows, has_copies, has_missing, sum_of_blocks
from sklvebm.row_weights import distinct_rows

RANDOM = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_blocks, "_NUMBERS_IN_A_BLOCK", 1000)


def rows(n_rows, n_features, dtype=np.float64):
    return (RANDOM.standard_cauchy((n_rows, n_features)) * 3.0 + 1.0).astype(dtype)


@pytest.mark.filterwarnings("ignore:.*scales from the others:UserWarning")
@pytest.mark.parametrize("n_features", [1, 2, 3, 8, 17, 300, 1200])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_units_are_those_of_whole_arrays(n_features, dtype):
    for n_rows in (2, 999, 5003):
        X = rows(n_rows, n_features, dtype)
        mean, scale = scaling._moments(np.asarray(X, dtype=np.float64), None)
        units = fit_standardisation(X)
        np.testing.assert_array_equal(units.mean, mean)
        np.testing.assert_array_equal(units.scale, scale)


@pytest.mark.parametrize("n_features", [1, 2, 5, 64])
def test_sums_are_those_of_whole_arrays(n_features):
    X = rows(20000, n_features)
    blocks = [X[part] for part in row_blocks.row_blocks(X)]
    assert n_features == 1 or len(blocks) > 10
    np.testing.assert_array_equal(sum_of_blocks(blocks), X.sum(axis=0))


def test_limits_are_those_of_whole_arrays():
    X = rows(3001, 4)
    X[:2000, 2] = 7.0
    low, _, high = np.quantile(X[:, :2], [0.25, 0.5, 0.75], axis=0)
    reach = scaling._MAX_QUARTILE_RANGES * (high - low)
    middle = np.median(X[:, :2], axis=0)
    expected = np.clip(X[:, :2], middle - reach, middle + reach)
    np.testing.assert_array_equal(without_outliers(X)[:, :2], expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_copies_are_found(dtype):
    X = RANDOM.normal(size=(4000, 3)).astype(dtype)
    assert not has_copies(X)
    for first, second in [
        ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)),
        ((0.0, np.nan, 1), (-0.0, -np.nan, 1)),
    ]:
        Y = X.copy()
        Y[5], Y[3990] = first, second
        assert has_copies(Y)
        Y[5, 2] = 5.0
        assert not has_copies(Y)


def test_a_grid_has_no_copies():
    # numbers with few bits, whose keys could collide if they were mixed badly
    grid = np.stack(np.meshgrid(*[np.arange(40.0) / 8.0] * 4), -1).reshape(-1, 4)[:, ::-1]
    assert not has_copies(grid)
    assert not has_copies(np.ascontiguousarray(grid[:, 1:][:64000:40]))


def sorted_rows(X, row_weights):
    """Join copies by sorting all rows, as is done where there are some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklvebm.row_weights.has_copies", lambda X: True)
        return distinct_rows(X, row_weights)


@pytest.mark.parametrize("kind", ["distinct", "one copy", "missing", "equal", "zeros"])
def test_distinct_rows_are_those_of_a_sort(kind):
    X = RANDOM.normal(size=(900, 3))
    if kind == "one copy":
        X[17] = X[800]
    if kind == "missing":
        X[RANDOM.uniform(size=X.shape) < 0.2] = np.nan
    if kind == "equal":
        X[:] = X[0]
    if kind == "zeros":
        X[3], X[4] = (0.0, 1.0, 2.0), (-0.0, 1.0, 2.0)
    for ours, theirs in zip(distinct_rows(X, None), sorted_rows(X, None), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.99])
@pytest.mark.parametrize("n_rows", [2, 3, 10, 3001])
def test_splits_without_copies_are_those_of_groups_of_one(share, n_rows, monkeypatch):
    X = RANDOM.normal(size=(n_rows, 2))
    ours = split_rows(X, share, np.random.RandomState(3))
    monkeypatch.setattr("sklvebm.preprocessing.splitting.has_copies", lambda X: True)
    theirs = split_rows(X, share, np.random.RandomState(3))
    np.testing.assert_array_equal(ours.fitted, theirs.fitted)
    np.testing.assert_array_equal(ours.monitor, theirs.monitor)
    order = np.random.RandomState(4).permutation(n_rows)
    assert repeats_together(X, order) is order


def test_rows_without_copies_are_not_sorted(monkeypatch):
    X, order = RANDOM.normal(size=(50, 2)), np.arange(50)[::-1]
    monkeypatch.setattr(np, "unique", None)
    assert repeats_together(X, order) is order
    assert distinct_rows(X, None).X is X


def test_mapped_rows_are_computed_when_asked_for():
    X, calls = np.arange(12.0).reshape(6, 2), []

    def double(part):
        calls.append(len(part))
        return 2.0 * part

    view = MappedRows(X, double)
    assert (len(view), view.shape, calls) == (6, (6, 2), [])
    np.testing.assert_array_equal(view[2:4], 2.0 * X[2:4])
    np.testing.assert_array_equal(view[[5, 0]], 2.0 * X[[5, 0]])
    assert calls == [2, 2]
    assert not has_missing(view)
    X[5, 1] = np.nan
    assert has_missing(view)
    assert calls == [2, 2]
