"""Recovery of factors that are in the latents linearly, bent, as angles, or not at all."""

import numpy as np
import pytest

from sklvebm.metrics import factor_recovery

SIGMAS = 4.0


def test_noise_in_the_latents_leaves_the_share_of_the_signal():
    generator = np.random.RandomState(0)
    factors = generator.randn(4000, 2)
    latents = factors @ [[1.0, 2.0], [-1.0, 1.0]] * 5.0 + 3.0
    result = factor_recovery(latents, factors, random_state=0)
    assert np.allclose(result.linear, 1.0, atol=1e-12)
    noisy = factors[:, :1] + 0.5 * generator.randn(4000, 1)
    result = factor_recovery(noisy, factors, random_state=0)
    # the sampling error of a squared correlation r² is about 2 r (1 - r²) / sqrt(n)
    error = 2.0 * np.sqrt(0.8) * 0.2 / np.sqrt(4000)
    assert abs(result.linear[0] - 0.8) < SIGMAS * error
    # a tenth of the noise remains in the vote of ten neighbours, and some bias
    assert 0.7 < result.nearest_neighbours[0] < 0.8
    assert result.linear[1] < SIGMAS / 4000
    assert result.nearest_neighbours[1] < 0.0


def test_bent_factors_are_found_by_neighbours_only():
    factor = np.random.RandomState(0).uniform(-1.0, 1.0, (2000, 1))
    latents = np.concatenate([np.cos(9.0 * factor), np.sin(9.0 * factor), 0.05 * factor**3], 1)
    result = factor_recovery(latents, factor, random_state=0)
    assert result.linear[0] < 0.9
    assert result.nearest_neighbours[0] > 0.95


def test_angles_are_points_on_the_circle():
    angle = np.random.RandomState(0).uniform(0.0, 2.0 * np.pi, (2000, 1))
    latents = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    declared = factor_recovery(latents, angle, circular=(0,), random_state=0)
    plain = factor_recovery(latents, angle, random_state=0)
    assert declared.linear[0] == pytest.approx(1.0)
    assert declared.nearest_neighbours[0] > 0.9999
    # best linear prediction of an angle: its correlation with the sine is -sqrt(6) / pi
    error = 2.0 * (np.sqrt(6.0) / np.pi) * (1.0 - 6.0 / np.pi**2) / np.sqrt(2000)
    assert abs(plain.linear[0] - 6.0 / np.pi**2) < SIGMAS * error
    # a different start of the turn is the same angle
    turned = factor_recovery(latents, (angle + 2.0) % (2.0 * np.pi), circular=[0], random_state=0)
    assert turned.linear[0] == pytest.approx(1.0)
    half = factor_recovery(latents[:, :1], angle, circular=(0,), random_state=0)
    # the sine is lost with its half of the variance
    assert half.linear[0] == pytest.approx(0.5, abs=0.02)


def test_an_arc_that_latents_know_nothing_of_is_not_explained_by_where_it_lies():
    generator = np.random.RandomState(0)
    angle = generator.uniform(0.0, 0.5, (500, 1))
    result = factor_recovery(generator.randn(500, 2), angle, circular=(0,), random_state=0)
    assert max(result.linear[0], result.nearest_neighbours[0]) < 0.02


def test_nearer_neighbours_have_more_of_a_vote():
    latents = np.linspace(0.0, 1.0, 50)[:, None]
    # all rows of the other folds vote: without weights their mean
    result = factor_recovery(latents, latents, n_neighbors=40, random_state=0)
    assert result.nearest_neighbours[0] > 0.2


def test_rows_are_judged_by_regressors_that_did_not_see_them():
    generator = np.random.RandomState(0)
    latents, factors = generator.randn(60, 20), generator.randn(60, 1)
    # in-sample, twenty coefficients explain a third of sixty rows' noise
    assert factor_recovery(latents, factors, random_state=0).linear[0] < 0.0
    near = factor_recovery(factors, factors, n_neighbors=1, random_state=0)
    assert near.nearest_neighbours[0] < 1.0


def test_latents_of_different_scales_count_alike():
    generator = np.random.RandomState(0)
    latents = generator.uniform(size=(1000, 2))
    plain = factor_recovery(latents, latents, random_state=0)
    scaled = factor_recovery(latents * [1e-6, 1e6], latents, random_state=0)
    assert np.allclose(plain.nearest_neighbours, scaled.nearest_neighbours, atol=1e-9)


def test_illegal_columns_are_refused():
    latents = np.random.RandomState(0).randn(20, 2)
    with pytest.raises(ValueError, match=r"columns \[1\] are constant"):
        factor_recovery(latents, latents * [1.0, 0.0])
    with pytest.raises(ValueError, match=r"from 0 to 1, got \[2, -1\]"):
        factor_recovery(latents, latents, circular=(0, 2, -1))
    with pytest.raises(ValueError, match="equally many rows, got 20 and 19"):
        factor_recovery(latents, latents[1:])
