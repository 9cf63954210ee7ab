"""Baselines that train in a fraction of a second, and densities computed independently of them."""

import warnings

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning

from sklvebm.baselines import (
    VAE,
    HardEM,
    LatentEBM,
    NonAmortizedVI,
    ParticleGradientDescent,
)

BASELINES = [VAE, NonAmortizedVI, HardEM, ParticleGradientDescent, LatentEBM]
SMALL = {
    "hidden_layer_sizes": (16,),
    "learning_rate_init": 0.02,
    "max_iter": 15,
    "n_importance_samples": 64,
    "random_state": 0,
}


def pytest_generate_tests(metafunc):
    if "baseline" in metafunc.fixturenames:
        metafunc.parametrize("baseline", BASELINES, ids=lambda c: c.__name__, scope="session")


def quiet_fit(estimator, X):
    """Fit without the warning that a few epochs do not reach a plateau."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(X)


def rings(n, seed):
    """Draw two noisy circles in the plane."""
    rng = np.random.default_rng(seed)
    angle = 2.0 * np.pi * rng.uniform(size=n)
    radius = rng.choice([1.0, 2.0], size=n) + 0.05 * rng.standard_normal(n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def factors(n, seed):
    """Draw four features that are linear in two latents, with noise of its own for each."""
    rng = np.random.default_rng(seed)
    loadings = np.array([[1.0, 0.8, 0.0, 0.3], [0.0, 0.5, 1.2, -0.6]])
    noise = rng.standard_normal((n, 4)) * [0.3, 0.4, 0.5, 0.6]
    return rng.standard_normal((n, 2)) @ loadings + noise + [1.0, -2.0, 0.0, 3.0]


def linear_parameters(model):
    """Return loadings (D, L), offset and noise variance of an affine decoder, in units of X."""
    decoder = model._model.network.decoder
    weight, bias = decoder.mean.weights[-1].numpy(), decoder.mean.biases[-1].numpy()
    return model.scale_[:, None] * weight, model.mean_ + model.scale_ * bias, model.noise_variance_


def factor_analysis_log_density(model, X):
    """Return the exact log-density of rows under an affine decoder and a normal prior."""
    W, offset, noise = linear_parameters(model)
    return multivariate_normal(offset, W @ W.T + np.diag(noise)).logpdf(X)


def factor_analysis_means(model, X):
    """Return the exact posterior means of the latents in the same model."""
    W, offset, noise = linear_parameters(model)
    precision = np.eye(W.shape[1]) + (W.T / noise) @ W
    return (X - offset) / noise @ W @ np.linalg.inv(precision)


@pytest.fixture(scope="session")
def small(baseline):
    """The baseline with two latents, fitted to two hundred rows of two rings."""
    return quiet_fit(baseline(2, **SMALL), rings(200, seed=1))


@pytest.fixture(scope="session")
def affine(baseline):
    """The baseline with an affine decoder, fitted to rows that are linear in two latents."""
    settings = {**SMALL, "hidden_layer_sizes": (), "n_importance_samples": 256, "max_iter": 60}
    return quiet_fit(baseline(2, initial_variance=0.1, **settings), factors(400, seed=2))


@pytest.fixture(scope="session")
def curved(baseline):
    """The baseline with one latent and a curved decoder, fitted to rows along a parabola."""
    rng = np.random.default_rng(3)
    t = rng.standard_normal(300)
    X = np.stack([t, 0.5 * t**2], 1) + 0.2 * rng.standard_normal((300, 2))
    settings = {**SMALL, "n_importance_samples": 256, "max_iter": 40}
    return quiet_fit(baseline(1, **settings), X)
