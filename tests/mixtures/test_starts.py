"""k-means++ starts that are drawn once for all numbers of components."""

import numpy as np

from sklvebm.mixtures.starts import Starts


def rows(n=200, seed=0):
    return np.random.RandomState(seed).standard_normal((n, 3))


def test_the_first_centres_of_a_longer_draw_are_those_of_a_shorter_one():
    X = rows()
    longer = Starts(X, 0)
    longer.labels(24)
    for k in (1, 2, 5, 24):
        np.testing.assert_array_equal(longer.labels(k), Starts(X, 0).labels(k))


def test_labels_are_those_of_the_nearest_centre_and_depend_on_the_seed():
    X = rows()
    starts = Starts(X, 1)
    labels = starts.labels(6)
    centres = starts._centres[:6]
    expected = ((X[:, None] - centres) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(labels)) == 6
    assert (labels != Starts(X, 2).labels(6)).any()


def test_copies_of_a_distant_row_take_one_centre_only():
    X = rows()
    X[:5] = 1e9
    labels = Starts(X, 0).labels(3)
    assert len(np.unique(labels[:5])) == 1
    assert len(np.unique(labels[5:])) >= 2
