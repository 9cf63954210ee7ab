"""What every baseline promises: bounds below the truth, answers that are functions of the row."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm.baselines import VAE, HardEM, LatentEBM, NonAmortizedVI

from .conftest import (
    SMALL,
    factor_analysis_log_density,
    factor_analysis_means,
    factors,
    quiet_fit,
    rings,
)

N_SEEDS = 8


def scores_of_seeds(model, X):
    """Return mean scores under independent nodes and particles, (N_SEEDS,)."""
    twin = pickle.loads(pickle.dumps(model))
    scores = []
    for seed in range(N_SEEDS):
        twin._model = model._model._replace(seed=1000 * (seed + 1))
        scores.append(twin.score(X))
    return np.array(scores)


def assert_tight_lower_bound(scores, truth, slack):
    """Check that scores are at most `slack` below the truth and, in expectation, not above it."""
    error = scores.std(ddof=1) / math.sqrt(len(scores))
    assert scores.mean() <= truth + 4.0 * error + 1e-9
    assert scores.mean() >= truth - slack


# Closed forms ------------------------------------------------------------------------------------


def without_prior_energy(model):
    """Return the model with the energy of its prior, if any, set to zero: it is linear then."""
    twin = pickle.loads(pickle.dumps(model))
    if twin._model.network.prior is not None:
        twin._model.network.prior.network.weights[-1].data.zero_()
        twin._model.network.prior.network.biases[-1].data.zero_()
        zero = type(twin._model.log_partition)(0.0, 0.0, 0.0, 0.0, 1.0)
        twin._model = twin._model._replace(log_partition=zero)
    return twin


def test_score_of_an_affine_decoder_is_just_below_factor_analysis(affine):
    model, X = without_prior_energy(affine), factors(300, seed=4)
    exact = factor_analysis_log_density(model, X)
    # the proposals of 256 draws cover the posterior: measured gaps are below 0.01 nats
    assert_tight_lower_bound(scores_of_seeds(model, X), exact.mean(), slack=0.03)


def test_latents_of_an_affine_decoder_are_posterior_means(affine):
    model, X = without_prior_energy(affine), factors(300, seed=4)
    exact, Z = factor_analysis_means(model, X), model.transform(X)
    if isinstance(affine, VAE):
        # the encoder is trained, not exact; it must explain most of the posterior means
        assert ((Z - exact) ** 2).mean() < 0.05 * exact.var()
    elif isinstance(affine, HardEM | NonAmortizedVI):
        np.testing.assert_allclose(Z, exact, rtol=0, atol=5e-3)
    else:
        # independent draws would have errors of 1 / sqrt(256) posterior sds, which are below 1, in
        # each of 600 numbers; quasi-random ones must not be worse
        assert np.sqrt(((Z - exact) ** 2).mean()) < 1.0 / math.sqrt(256)


def quadrature_log_density(model, X):
    """Return log p(x) of a model with one latent, by the trapezoidal rule."""
    network, scale = model._model.network, model.scale_
    grid = np.linspace(-9.0, 9.0, 6001)
    mean = model.inverse_transform(grid[:, None])
    log_prior = norm.logpdf(grid)
    if network.prior is not None:
        energy = network.prior(torch.from_numpy(grid[:, None])).numpy()
        log_prior = log_prior - energy
        log_prior -= logsumexp(log_prior) + math.log(grid[1] - grid[0])
    sd = np.sqrt(model.noise_variance_)
    assert scale.shape == sd.shape
    log_likelihood = norm.logpdf(X[:, None], mean, sd).sum(2)
    return logsumexp(log_likelihood + log_prior, axis=1) + math.log(grid[1] - grid[0])


def parabola(n, seed):
    rng = np.random.default_rng(seed)
    t = rng.standard_normal(n)
    return np.stack([t, 0.5 * t**2], 1) + 0.2 * rng.standard_normal((n, 2))


def test_score_of_a_curved_decoder_is_just_below_quadrature(curved):
    X = parabola(200, seed=5)
    exact = quadrature_log_density(curved, X).mean()
    # rows between the arms have two modes: an encoder's Gaussian is loose there, and the one
    # around the likeliest latents sees one of them, which costs up to log 2 for such rows. How
    # many such rows there are depends on the fit: the largest gap over six seeds was 0.26 nats
    # for NonAmortizedVI, 0.22 for LatentEBM and 0.28 for ParticleGradientDescent
    slack = 0.5 * math.log(2.0)
    assert_tight_lower_bound(scores_of_seeds(curved, X), exact, slack)


def test_log_partition_of_the_prior_brackets_quadrature():
    model = quiet_fit(LatentEBM(1, **{**SMALL, "max_iter": 40}), parabola(300, seed=3))
    grid = np.linspace(-9.0, 9.0, 6001)
    energy = model._model.network.prior(torch.from_numpy(grid[:, None])).numpy()
    log_z = logsumexp(norm.logpdf(grid) - energy) + math.log(grid[1] - grid[0])
    # training must have moved the prior for this to say anything
    assert np.ptp(energy) > 0.1
    assert model.log_partition_.lower <= log_z <= model.log_partition_.upper
    assert model.log_partition_.upper - model.log_partition_.lower < 0.05


# Answers -----------------------------------------------------------------------------------------


def test_decoding_the_latents_beats_the_constant_predictor_threefold(small):
    X = rings(300, seed=6)
    residual = small.inverse_transform(small.transform(X)) - X
    constant = X - small.mean_
    assert np.sqrt((residual**2).mean()) < np.sqrt((constant**2).mean()) / 3.0


def test_answers_are_the_same_again_and_leave_global_generators_alone(small):
    X = rings(20, seed=7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    np.testing.assert_array_equal(small.score_samples(X), small.score_samples(X))
    np.testing.assert_array_equal(small.transform(X), small.transform(X))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_fits_with_the_same_seed_are_the_same(baseline):
    X = rings(60, seed=8)
    one, two, other = (
        quiet_fit(baseline(2, **{**SMALL, "max_iter": 2, "random_state": seed}), X)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.score_samples(X), two.score_samples(X))
    assert one.score(X) != other.score(X)


def test_the_default_device_of_torch_changes_nothing(baseline):
    X = rings(60, 0)
    expected = quiet_fit(baseline(1, **SMALL | {"max_iter": 2}), X)
    with torch.device("meta"):
        model = quiet_fit(baseline(1, **SMALL | {"max_iter": 2}), X)
        scores, draws = model.score_samples(X[:5]), model.sample(5, random_state=0)
    np.testing.assert_array_equal(scores, expected.score_samples(X[:5]))
    np.testing.assert_array_equal(draws, expected.sample(5, random_state=0))


def test_a_row_is_scored_the_same_whatever_its_companions(small):
    X = rings(30, seed=9)
    for answer in (small.score_samples, small.transform):
        alone = np.concatenate([answer(row[None]) for row in X])
        np.testing.assert_allclose(answer(X), alone, rtol=0, atol=1e-9)
        np.testing.assert_allclose(answer(X[::-1])[::-1], alone, rtol=0, atol=1e-9)


def test_density_follows_the_units_of_the_data(baseline):
    X = rings(100, seed=10)
    settings = {**SMALL, "max_iter": 3, "dtype": "float64"}
    plain = quiet_fit(baseline(2, **settings), X)
    scaled = quiet_fit(baseline(2, **settings), 8.0 * X + 1.0)
    expected = plain.score_samples(X) - 2.0 * math.log(8.0)
    # the offset rounds the rows in their last digits, which climbs far from convergence amplify
    np.testing.assert_allclose(scaled.score_samples(8.0 * X + 1.0), expected, rtol=0, atol=1e-3)
    monitored = np.array(plain.lower_bounds_) - 2.0 * math.log(8.0)
    np.testing.assert_allclose(scaled.lower_bounds_, monitored, rtol=0, atol=1e-5)


def test_samples_follow_the_decoder(affine):
    model = without_prior_energy(affine)
    X, Z = model.sample(20_000, random_state=0, return_latents=True)
    residual = X - model.inverse_transform(Z)
    # a variance estimate of n normal numbers has relative error sqrt(2 / n)
    np.testing.assert_allclose(
        residual.var(0), model.noise_variance_, rtol=4.0 * math.sqrt(2.0 / 20_000)
    )
    assert np.abs(residual.mean(0) / residual.std(0)).max() < 4.0 / math.sqrt(20_000)
    np.testing.assert_array_equal(X, model.sample(20_000, random_state=0))
    assert not np.array_equal(model.sample(3), model.sample(3))


def test_pickles_hold_arrays_and_answer_the_same(small):
    X = rings(10, seed=11)
    state = small.__getstate__()
    assert "_fitted" not in state
    assert all(isinstance(a, np.ndarray) for a in state["_plain"]["arrays"].values())
    twin = pickle.loads(pickle.dumps(small))
    np.testing.assert_array_equal(twin.score_samples(X), small.score_samples(X))
    np.testing.assert_array_equal(twin.sample(4, random_state=0), small.sample(4, random_state=0))


def test_history_has_an_entry_for_every_epoch(small):
    assert len(small.history_) == small.n_iter_ == len(small.lower_bounds_)
    assert [entry["epoch"] for entry in small.history_] == list(range(1, small.n_iter_ + 1))
    assert [entry["lower_bound"] for entry in small.history_] == small.lower_bounds_


# Composition and errors --------------------------------------------------------------------------


def test_works_in_a_pipeline_and_a_grid_search(baseline):
    X = rings(60, seed=12)
    pipeline = make_pipeline(StandardScaler(), baseline(2, **{**SMALL, "max_iter": 2}))
    name = baseline.__name__.lower()
    search = GridSearchCV(pipeline, {f"{name}__n_components": [1, 2]}, cv=2)
    search = quiet_fit(search, X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    expected = [f"{name}{i}" for i in range(search.best_params_[f"{name}__n_components"])]
    assert list(search.best_estimator_.get_feature_names_out()) == expected


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "n_components must be an integer >= 1, got 0"),
        ({"hidden_layer_sizes": (8, 0)}, ValueError, "hidden_layer_sizes must be"),
        ({"hidden_layer_sizes": "8"}, TypeError, "hidden_layer_sizes must be"),
        ({"n_importance_samples": 48}, ValueError, "must be a power of two >= 16, got 48"),
        ({"n_importance_samples": 8}, ValueError, "n_importance_samples must be an integer >= 16"),
        ({"initial_variance": 1e-5}, ValueError, "initial_variance must be above variance_floor"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction must be a number > 0"),
        ({"activation": "relu"}, ValueError, "activation must be one of"),
        ({"device": "tpu"}, ValueError, "device must be"),
    ],
)
def test_bad_parameters_are_named_with_rule_and_value(baseline, parameters, error, message):
    estimator = baseline(**parameters)
    with pytest.raises(error, match=message):
        estimator.fit(rings(20, seed=0))
    assert not hasattr(estimator, "n_features_in_")


def test_bad_rows_are_refused(small):
    with pytest.raises(ValueError, match="2 features"):
        small.score_samples(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="NaN"):
        small.transform(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match=r"2 columns \(n_components\), got 3"):
        small.inverse_transform(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="n_samples must be an integer >= 1, got 0"):
        small.sample(0)


def test_questions_before_fit_are_refused(baseline):
    for question in (baseline().score_samples, baseline().transform, baseline().inverse_transform):
        with pytest.raises(NotFittedError):
            question(np.zeros((2, 2)))
    with pytest.raises(NotFittedError):
        baseline().sample()


def test_epochs_that_do_not_reach_a_plateau_are_reported(baseline):
    with pytest.warns(ConvergenceWarning, match="max_iter=1 epochs"):
        baseline(2, **{**SMALL, "max_iter": 1}).fit(rings(30, seed=0))


def test_more_latents_than_features_are_allowed(baseline):
    model = quiet_fit(baseline(5, **{**SMALL, "max_iter": 3}), rings(60, seed=13))
    assert model.transform(rings(4, seed=14)).shape == (4, 5)
    assert math.isfinite(model.score(rings(20, seed=14)))
