"""Which rows are held out of a fit."""

import numpy as np
import pytest

from sklvebm.preprocessing.splitting import split_rows


def rows_of(X, places):
    return {tuple(row) for row in X[places]}


@pytest.mark.parametrize(
    ("n_rows", "n_copies"), [(200, 1), (100, 2), (40, 5), (5, 40)], ids=lambda n: str(n)
)
def test_rows_that_repeat_each_other_fall_on_one_side(n_rows, n_copies):
    X = np.repeat(np.random.default_rng(0).normal(size=(n_rows, 2)), n_copies, axis=0)
    for seed in range(10):
        rows = split_rows(X, 0.1, np.random.RandomState(seed))
        assert sorted([*rows.fitted, *rows.monitor]) == list(range(len(X)))
        assert not rows_of(X, rows.fitted) & rows_of(X, rows.monitor)
        assert 20 <= len(rows.monitor) < 20 + n_copies


@pytest.mark.parametrize("n_others", [2, 19, 20, 80])
def test_copies_that_are_most_rows_are_never_held_out(n_others):
    others = np.random.default_rng(0).normal(size=(n_others, 2))
    X = np.concatenate([np.zeros((200 - n_others, 2)), others])
    for seed in range(10):
        rows = split_rows(X, 0.1, np.random.RandomState(seed))
        assert sorted([*rows.fitted, *rows.monitor]) == list(range(200))
        assert not rows_of(X, rows.fitted) & rows_of(X, rows.monitor)
        # some others remain, without which there would be nothing to fit
        assert len(rows.monitor) == min(20, n_others // 2)


def test_copies_of_one_row_are_held_out_all_the_same():
    rows = split_rows(np.zeros((50, 2)), 0.1, np.random.RandomState(0))
    assert (len(rows.fitted), len(rows.monitor)) == (45, 5)


def test_the_split_of_rows_that_all_differ_is_that_of_the_generator():
    X = np.random.default_rng(0).normal(size=(50, 2))
    rows = split_rows(X, 0.1, np.random.RandomState(3))
    order = np.random.RandomState(3).permutation(50)
    np.testing.assert_array_equal(rows.monitor, order[:5])
    np.testing.assert_array_equal(rows.fitted, np.sort(order[5:]))
