"""Gaps and entropies whose values follow from the construction."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from sklvebm.metrics import dci, mutual_information_gap, sap_score

SIGMAS = 4.0


def binary_entropy(p):
    return -p * np.log(p) - (1.0 - p) * np.log(1.0 - p)


def test_gap_of_a_flipped_bit_is_the_capacity_of_the_channel():
    generator = np.random.RandomState(0)
    n, p = 20_000, 0.1
    bit = generator.randint(2, size=n)
    latents = np.stack([bit ^ (generator.uniform(size=n) < p), generator.randint(2, size=n)], 1)
    exact = 1.0 - binary_entropy(p) / np.log(2.0)
    # dI / dp = log(p / (1 - p)), and p is known to sqrt(p (1 - p) / n)
    error = np.log((1.0 - p) / p) / np.log(2.0) * np.sqrt(p * (1.0 - p) / n)
    assert abs(mutual_information_gap(latents, bit[:, None]) - exact) < SIGMAS * error


def test_rare_values_of_discrete_columns_keep_bins_of_their_own():
    factor = np.repeat([0.0, 1.0, 2.0], [980, 10, 10])
    latents = np.stack([-factor, np.tile([0.0, 1.0], 500)], 1)
    assert mutual_information_gap(latents, factor[:, None]) == pytest.approx(1.0)


def test_gap_is_one_for_the_factors_themselves_and_zero_for_two_copies():
    factors = np.random.RandomState(0).randn(20_000, 2)
    # independent bins share about 19² / (2 n) nats of log 20
    bias = 19**2 / (2 * 20_000) / np.log(20.0)
    value = mutual_information_gap(factors[:, ::-1] ** 3, factors)
    assert value == pytest.approx(1.0 - bias, abs=0.2 * bias)
    copies = np.concatenate([factors, factors], 1)
    assert mutual_information_gap(copies, factors) == pytest.approx(0.0, abs=1e-12)


def test_gap_of_correlated_normals_approaches_their_information():
    generator = np.random.RandomState(0)
    factor = generator.randn(100_000, 1)
    latents = np.concatenate([0.8 * factor + 0.6 * generator.randn(100_000, 1), 0.0 * factor], 1)
    information = -0.5 * np.log(1.0 - 0.8**2)
    value = mutual_information_gap(latents, factor, n_bins=40) * np.log(40.0)
    # bins lose a few per cent of it
    assert 0.95 * information < value < information


def test_separated_predictability_is_the_difference_of_squared_correlations():
    generator = np.random.RandomState(0)
    n = 20_000
    factor = generator.randn(n, 1)
    latents = factor + generator.randn(n, 3) * [0.5, 1.0, 3.0]
    # 1 / 1.25 - 1 / 2; each known to 2 r (1 - r²) / sqrt(n)
    error = np.hypot(2 * 0.8**0.5 * 0.2, 2 * 0.5**0.5 * 0.5) / np.sqrt(n)
    assert abs(sap_score(latents, factor) - 0.3) < SIGMAS * error
    squared = np.sort(np.corrcoef(latents.T, factor[:, 0])[-1, :-1] ** 2)
    assert sap_score(latents, factor) == pytest.approx(squared[-1] - squared[-2], rel=1e-9)


def test_one_latent_explains_half_of_an_angle():
    angle = 2.0 * np.pi * (np.arange(1000)[:, None] + 0.5) / 1000
    latents = np.concatenate([np.cos(angle), np.cos(2.0 * angle)], 1)
    assert sap_score(latents, angle, circular=(0,)) == pytest.approx(0.5, abs=1e-9)
    both = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    assert sap_score(both, angle, circular=(0,)) == pytest.approx(0.0, abs=1e-9)


def test_constant_latents_predict_nothing():
    factor = np.random.RandomState(0).randn(500, 1)
    latents = np.concatenate([factor, np.ones((500, 1))], 1)
    assert sap_score(latents, factor) == pytest.approx(1.0)


def test_entropies_of_linear_importances_are_those_by_hand():
    z = np.random.RandomState(0).randn(200, 3)
    factors = np.stack([z[:, 0], z[:, 0] - z[:, 1] + 2.0 * z[:, 2]], 1)
    result = dci(z, factors, estimator=LinearRegression(), random_state=0)
    assert np.allclose(result.importance, [[1.0, 0.25], [0.0, 0.25], [0.0, 0.5]])
    # the first latent serves both, four to one, and has 1.25 of the 2 of all importance
    first = 1.0 - binary_entropy(0.2) / np.log(2.0)
    assert result.disentanglement == pytest.approx(0.625 * first + 0.375)
    # the second factor has entropy 1.5 log 2 over three latents
    assert result.completeness == pytest.approx(1.0 - 0.5 * 1.5 * np.log(2.0) / np.log(3.0))
    assert result.informativeness == pytest.approx(1.0)


def test_forests_tell_one_latent_for_each_factor_from_a_mixture():
    z = np.random.RandomState(0).uniform(-1.0, 1.0, (400, 2))
    own = dci(z, z**3, random_state=0)
    assert own.disentanglement > 0.9
    assert own.completeness > 0.9
    assert own.informativeness > 0.95
    rotated = dci(z @ [[1.0, 1.0], [-1.0, 1.0]], z, random_state=0)
    assert rotated.disentanglement < 0.2
    assert rotated.informativeness > 0.8


def test_angles_and_useless_latents_are_handled():
    generator = np.random.RandomState(0)
    angle = generator.uniform(0.0, 2.0 * np.pi, 300)
    other = generator.randn(300)
    latents = np.stack([np.cos(angle), np.sin(angle), other, np.zeros(300)], 1)
    factors = np.stack([angle, other], 1)
    result = dci(latents, factors, circular=(0,), random_state=0)
    assert np.allclose(result.importance.sum(0), 1.0)
    assert np.allclose(result.importance[3], 0.0)
    assert result.importance[:2, 0].sum() > 0.95
    assert result.informativeness > 0.95
    # the angle needs two of four latents: half of the entropy
    assert result.completeness == pytest.approx(0.75, abs=0.05)
    assert dci(latents, factors, random_state=0).informativeness < result.informativeness


def test_folds_keep_memorised_rows_from_counting_as_information():
    generator = np.random.RandomState(0)
    result = dci(generator.randn(80, 2), generator.randn(80, 2), random_state=0)
    assert result.informativeness < 0.1


@pytest.mark.parametrize("function", [mutual_information_gap, sap_score, dci])
def test_a_single_latent_has_no_rival(function):
    factors = np.random.RandomState(0).randn(20, 2)
    with pytest.raises(ValueError, match="latents must have at least two columns, got 1"):
        function(factors[:, :1], factors)
