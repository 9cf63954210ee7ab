"""The estimator beside scikit-learn's own densities: untrained it is one, trained it meets another.

The untrained model must agree to rounding; linear-Gaussian training must reach the maximum of the
likelihood, of which `FactorAnalysis` is an independent witness.
"""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from sklvebm import LinearGaussianEnergy, ParticleLVEBM

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def rows():
    """Return 400 rows of a linear-Gaussian model with one latent and unequal scales."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(1, 3))
    return (rng.normal(size=(400, 1)) @ loadings + 0.5 * rng.normal(size=(400, 3))) * [1, 10, 0.1]


def untrained(X, **parameters):
    return ParticleLVEBM(max_iter=0, early_stopping=False, random_state=0, **parameters).fit(X)


def test_untrained_on_a_gaussian_it_is_probabilistic_pca(rows):
    model = untrained(rows, n_components=1, reference="gaussian")
    scaler = StandardScaler().fit(rows)
    pca = PCA(1).fit(scaler.transform(rows))
    expected = pca.score_samples(scaler.transform(rows)) - np.log(scaler.scale_).sum()
    np.testing.assert_allclose(model.score_samples(rows), expected, rtol=1e-9, atol=1e-9)
    # posterior mean of probabilistic PCA: scores times sqrt(l - s) / l
    shrinkage = np.sqrt(pca.explained_variance_ - pca.noise_variance_) / pca.explained_variance_
    scores = pca.transform(scaler.transform(rows)) * shrinkage
    latents = model.transform(rows)
    np.testing.assert_allclose(latents * np.sign(latents[0] * scores[0]), scores, atol=1e-9)


def test_untrained_on_a_mixture_it_is_that_mixture_with_its_tails(rows):
    given = GaussianMixture(3, random_state=0)
    model = untrained(rows, n_components=2, reference=given)
    scaled = StandardScaler().fit_transform(rows)
    plain = GaussianMixture(3, random_state=0).fit(scaled)
    assert not hasattr(given, "means_")
    # ten defensive components whose weights fall with the third power of their scales
    scales = 10.0 ** np.arange(10)
    shares = scales**-3.0 / np.sum(scales**-3.0)
    both = GaussianMixture(13)
    both.weights_ = np.append(0.95 * plain.weights_, 0.05 * shares)
    both.means_ = np.vstack([plain.means_, np.tile(scaled.mean(axis=0), (10, 1))])
    wide = 4.0 * (np.cov(scaled.T, bias=True) + 1e-6 * np.eye(3))
    covariances = np.concatenate([plain.covariances_, scales[:, None, None] ** 2 * wide])
    both.precisions_cholesky_ = np.linalg.inv(np.linalg.cholesky(covariances)).transpose(0, 2, 1)
    expected = both.score_samples(scaled) - np.log(rows.std(axis=0)).sum()
    np.testing.assert_allclose(model.score_samples(rows), expected, rtol=1e-9, atol=1e-9)


def test_draws_of_an_untrained_model_have_the_moments_of_the_reference(rows):
    model = untrained(rows, n_components=1, reference="gaussian")
    n = 20_000
    X, Z = model.sample(n, random_state=1, return_latents=True)
    pca = PCA(1).fit(StandardScaler().fit_transform(rows))
    covariance = pca.get_covariance() * np.outer(rows.std(axis=0), rows.std(axis=0))
    error = np.sqrt(np.diag(covariance) / n)
    assert np.all(np.abs(X.mean(axis=0) - rows.mean(axis=0)) < 5.0 * error)
    # a sample covariance of Gaussians has variance (c_ij^2 + c_ii c_jj) / n
    outer = np.outer(np.diag(covariance), np.diag(covariance))
    assert np.all(np.abs(np.cov(X.T) - covariance) < 5.0 * np.sqrt((covariance**2 + outer) / n))
    # latents of probabilistic PCA are standard normal
    assert abs(Z.mean()) < 5.0 / np.sqrt(n)
    assert abs(Z.var() - 1.0) < 5.0 * np.sqrt(2.0 / n)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"dynamics": "mala", "n_temperatures": 1},
        {"dynamics": "leimkuhler-matthews", "n_temperatures": 1},
    ],
)
def test_linear_gaussian_training_reaches_the_maximum_that_factor_analysis_finds(rows, parameters):
    # three features, one factor: factor analysis can represent every covariance
    maximum = multivariate_normal(rows.mean(axis=0), np.cov(rows.T, bias=True)).logpdf(rows).mean()
    witness = FactorAnalysis(1, tol=1e-8, max_iter=10_000).fit(rows).score(rows)
    assert witness == pytest.approx(maximum, abs=1e-3)
    model = ParticleLVEBM(
        1,
        energy=LinearGaussianEnergy,
        reference="gaussian",
        early_stopping=False,
        alpha=0.0,
        random_state=0,
        **parameters,
    ).fit(rows)
    energy = model.energy_.network
    scaled = torch.from_numpy((rows - model.mean_) / model.scale_)
    exact = float((-energy.free_energy(scaled) - energy.log_partition()).mean())
    assert maximum - (exact - np.log(model.scale_).sum()) < 0.01
    # the error of log Z is the estimate's own; three of its standard errors are in the bracket
    log_z = float(energy.log_partition())
    assert model.log_partition_.lower <= log_z <= model.log_partition_.upper
