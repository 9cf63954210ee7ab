"""Weights of rows: means, errors, quantiles and passes, against repeated rows and closed forms."""

import numpy as np
import pytest
import torch

from sklvebm.confidence import lower_confidence_limit, upper_confidence_limit
from sklvebm.estimators._common.validation import checked_weights
from sklvebm.row_weights import (
    distinct_rows,
    mean_of,
    mean_on_device,
    pass_over,
    positive_rows,
    quantiles_of,
    resampled,
    standard_error_of,
)

RANDOM = np.random.RandomState(0)
VALUES, COUNTS = RANDOM.normal(size=40), RANDOM.randint(1, 6, size=40)


def test_only_ratios_of_weights_matter():
    X, weights = np.zeros((3, 1)), np.array([1.0, 2.0, 3.0])
    for factor in (1.0, 1e-300, 1e300):
        found = checked_weights(factor * weights, X)
        np.testing.assert_allclose(found, [0.5, 1.0, 1.5], rtol=1e-14)
    assert checked_weights([7.0, 7.0, 7.0], X) is None
    assert checked_weights(None, X) is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0, 1.0], "Negative values"),
        ([1.0, np.nan, 1.0], "NaN"),
        ([1.0, np.inf, 1.0], "infinity"),
        ([1.0, 1.0], r"sample_weight.shape must be \(3,\)"),
        ([0.0, 0.0, 1.0], "above zero for at least 2 rows, and is for 1 of 3"),
        (["a", "b", "c"], "could not convert"),
    ],
)
def test_unusable_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        checked_weights(weights, np.zeros((3, 1)), least=2)


def test_rows_of_weight_zero_are_left_out():
    X = np.arange(4.0)[:, None]
    rows, weights = positive_rows(X, checked_weights([0.0, 1.0, 3.0, 0.0], X))
    np.testing.assert_array_equal(rows, [[1.0], [2.0]])
    np.testing.assert_allclose(weights, [0.5, 1.5])
    assert positive_rows(X, checked_weights([0.0, 2.0, 2.0, 0.0], X))[1] is None


def test_copies_are_one_row_of_their_weight_in_an_order_of_its_own():
    X = RANDOM.normal(size=(20, 3))
    X[3, 1] = X[5, 0] = np.nan
    counts = RANDOM.randint(1, 5, size=20)
    repeated = distinct_rows(np.repeat(X, counts, axis=0), None)
    order = RANDOM.permutation(20)
    weighted = distinct_rows(X[order], counts[order].astype(float))
    np.testing.assert_array_equal(repeated.X, weighted.X)
    np.testing.assert_array_equal(repeated.row_weights, weighted.row_weights)
    assert repeated.row_weights.mean() == pytest.approx(1.0, abs=1e-14)
    assert repeated.repeated_share == pytest.approx(1.0 - 20 / counts.sum())
    assert weighted.repeated_share == 0.0


def test_rows_without_copies_and_copies_of_one_row_stay_as_they_are():
    X = RANDOM.normal(size=(20, 3))
    assert distinct_rows(X, None).X is X
    same = np.ones((5, 2))
    assert distinct_rows(same, None).X is same
    signed = np.array([[0.0], [-0.0], [1.0]])
    assert len(distinct_rows(signed, None).X) == 2


def test_means_and_quantiles_are_those_of_repeated_values():
    repeated = np.repeat(VALUES, COUNTS)
    assert mean_of(VALUES, COUNTS) == pytest.approx(repeated.mean(), abs=1e-14)
    on_device = mean_on_device(torch.from_numpy(VALUES), torch.from_numpy(COUNTS))
    assert float(on_device) == pytest.approx(repeated.mean(), abs=1e-14)
    levels = np.array([0.0, 0.01, 0.3, 0.5, 0.77, 1.0])
    expected = np.quantile(repeated, levels, method="inverted_cdf")
    np.testing.assert_array_equal(quantiles_of(VALUES, levels, COUNTS), expected)
    np.testing.assert_array_equal(quantiles_of(VALUES, levels), np.quantile(VALUES, levels))


def test_the_standard_error_has_its_expectation():
    """Of residuals from the mean of normal values: sum s² (1 - 2 s + sum s²), s being shares."""
    shares = COUNTS / COUNTS.sum()
    draws = np.random.RandomState(1).normal(size=(4000, 40))
    found = np.array([standard_error_of(x, 3.0 * shares) ** 2 for x in draws])
    expected = (shares**2 * (1.0 - 2.0 * shares + (shares**2).sum())).sum()
    assert abs(found.mean() - expected) < 4.0 * found.std() / np.sqrt(len(found))
    assert standard_error_of(VALUES, np.ones(40)) == pytest.approx(standard_error_of(VALUES))


def test_limits_of_equal_weights_are_those_without_and_few_heavy_rows_widen_them():
    gains = torch.from_numpy(VALUES)
    ones = torch.ones(40, dtype=torch.float64)
    for limit in (lower_confidence_limit, upper_confidence_limit):
        assert limit(gains, row_weights=ones) == pytest.approx(limit(gains), abs=1e-12)
    heavy = torch.where(torch.arange(40) < 3, 1000.0, 1.0).double()
    mean = float(mean_on_device(gains, heavy))
    assert upper_confidence_limit(gains, row_weights=heavy) - mean > 3.0 * (
        upper_confidence_limit(gains) - float(gains.mean())
    )


def test_a_limit_of_weighted_rows_has_its_level():
    """One-sided level of two standard errors: 2.3 % of limits are on the wrong side of zero."""
    random, n_repeats = np.random.RandomState(2), 4000
    weights = torch.from_numpy(random.exponential(size=60) + 0.1)
    gains = torch.from_numpy(random.normal(size=(n_repeats, 60)))
    share = np.mean([upper_confidence_limit(g, row_weights=weights) < 0.0 for g in gains])
    error = np.sqrt(0.0228 * 0.9772 / n_repeats)
    assert abs(share - 0.0228) < 4.0 * error + 0.005  # the estimated variance has no t law


def test_a_pass_without_weights_is_a_permutation():
    generator = torch.Generator().manual_seed(3)
    found = pass_over(50, generator, torch.device("cpu"))
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found, expected)


def test_a_pass_has_each_row_as_often_as_its_weight_says():
    weights = COUNTS / COUNTS.mean()
    counts = []
    for seed in range(2000):
        generator = torch.Generator().manual_seed(seed)
        order = pass_over(40, generator, torch.device("cpu"), torch.from_numpy(weights))
        assert len(order) == 40
        counts.append(np.bincount(order.numpy(), minlength=40))
    counts = np.array(counts)
    assert (counts >= np.floor(weights)).all()
    assert (counts <= np.ceil(weights)).all()
    part = weights - np.floor(weights)
    errors = np.sqrt(part * (1.0 - part) / len(counts)) + 1e-12
    assert (np.abs(counts.mean(0) - weights) < 4.0 * errors).all()


def test_resampled_rows_follow_the_same_rule():
    weights = COUNTS / COUNTS.mean()
    found = np.bincount(resampled(weights, np.random.RandomState(0)), minlength=40)
    assert (found >= np.floor(weights)).all()
    assert (found <= np.ceil(weights)).all()
    assert resampled(None, np.random.RandomState(0)) is None
