"""The classifier's test against Bayes' accuracy, its own level, and the binomial law."""

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from sklvebm.metrics import classifier_two_sample_test

SIGMAS = 4.0


def test_accuracy_of_a_linear_classifier_on_shifted_normals_is_that_of_bayes():
    generator = np.random.RandomState(0)
    X, Y = generator.randn(3000, 2), generator.randn(3000, 2) + [1.0, 0.0]
    test = classifier_two_sample_test(X, Y, estimator=LogisticRegression(), random_state=0)
    best = norm.cdf(0.5)
    assert abs(test.accuracy - best) < SIGMAS * np.sqrt(best * (1.0 - best) / 6000)
    assert test.p_value < 1e-100


def test_a_true_hypothesis_is_rejected_no_more_often_than_the_level_says():
    generator = np.random.RandomState(0)
    p_values = np.array(
        [
            classifier_two_sample_test(
                generator.randn(40, 2),
                generator.randn(40, 2),
                estimator=LogisticRegression(),
                random_state=i,
            ).p_value
            for i in range(200)
        ]
    )
    # folds share rows: one more standard error than independent guesses would need
    for level in (0.05, 0.2):
        error = np.sqrt(level * (1.0 - level) / 200)
        assert (p_values <= level).mean() < level + SIGMAS * error
    assert 0.3 < np.median(p_values) < 0.9


def test_trees_see_a_difference_that_no_line_does():
    generator = np.random.RandomState(0)
    X, Y = generator.randn(300, 2), 3.0 * generator.randn(300, 2)
    assert classifier_two_sample_test(X, Y, random_state=0).p_value < 1e-6
    linear = classifier_two_sample_test(X, Y, estimator=LogisticRegression(), random_state=0)
    assert linear.accuracy < 0.6


def test_the_p_value_is_the_tail_of_the_binomial_law():
    generator = np.random.RandomState(0)
    X, Y = generator.randn(50, 1), generator.randn(50, 1) + 0.3
    test = classifier_two_sample_test(X, Y, estimator=LogisticRegression(), random_state=0)
    n_right = round(100 * test.accuracy)
    assert test.p_value == pytest.approx(binom.pmf(np.arange(n_right, 101), 100, 0.5).sum())


def test_the_larger_sample_is_thinned_so_that_guessing_is_right_half_of_the_time():
    X, Y = np.zeros((30, 1)), np.ones((300, 1))
    majority = DummyClassifier(strategy="most_frequent")
    assert classifier_two_sample_test(X, Y, estimator=majority).accuracy == 0.5
    assert classifier_two_sample_test(Y, X, estimator=majority).p_value > 0.5


def test_a_sample_must_reach_all_folds():
    with pytest.raises(ValueError, match="minimum of 5 is required"):
        classifier_two_sample_test(np.zeros((4, 1)), np.zeros((9, 1)))
