"""k-means++ starts that are drawn once for all numbers of components."""

import numpy as np
import pytest
from sklearn.cluster import kmeans_plusplus

from sklvebm.mixtures.starts import Starts


def rows(n=200, seed=0):
    return np.random.RandomState(seed).standard_normal((n, 3))


def test_the_first_centres_of_a_longer_draw_are_those_of_a_shorter_one():
    X = rows()
    longer = Starts(X, 0)
    longer.labels(24)
    for k in (1, 2, 5, 24):
        np.testing.assert_array_equal(longer.labels(k), Starts(X, 0).labels(k))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["continuous", "repeated", "wide"])
def test_centres_are_those_of_scikit_learn(kind, weighted):
    source = np.random.RandomState(3)
    X = source.standard_normal((40, 100) if kind == "wide" else (150, 3))
    X = np.round(X) if kind == "repeated" else X
    row_weights = source.exponential(size=len(X)) if weighted else None
    starts = Starts(X, 5, row_weights)
    starts.labels(4)  # a draw that is continued
    starts.labels(30)
    places = kmeans_plusplus(X, 30, sample_weight=row_weights, random_state=5, n_local_trials=4)[1]
    np.testing.assert_array_equal(starts._places, places)


def test_labels_are_those_of_the_nearest_centre_and_depend_on_the_seed():
    X = rows()
    starts = Starts(X, 1)
    labels = starts.labels(6)
    centres = X[starts._places]
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
