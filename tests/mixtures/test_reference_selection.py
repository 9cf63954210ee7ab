"""Probabilistic PCA and the fitted reference against scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from sklvebm.datasets import make_shape_images
from sklvebm.mixtures.choice import choose_mixture
from sklvebm.mixtures.reference_selection import (
    fit_reference,
    probabilistic_pca,
)
from sklvebm.mixtures.search import TAIL_SCALES, TAIL_SHARES, Candidate
from sklvebm.mixtures.stacking import MixtureChoice, MixturePart, fit_ensemble


@pytest.fixture(autouse=True)
def _one_thread():
    # as in `fit`: k-means on two threads crawls where another process holds a core
    with threadpool_limits(1):
        yield


def rows(n=400, n_features=5, seed=0):
    random = np.random.RandomState(seed)
    X = random.standard_normal((n, 3)) @ random.standard_normal((3, n_features))
    X = X + 0.5 * random.standard_normal((n, n_features))
    return (X - X.mean(axis=0)) / X.std(axis=0)


def clusters(n_per_cluster=120, seed=0):
    """Return four clusters twenty standard deviations apart, and their centres."""
    random = np.random.RandomState(seed)
    centres = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    X = np.concatenate([c + random.standard_normal((n_per_cluster, 2)) for c in centres])
    return X, centres


def random_state():
    return np.random.RandomState(0)


@pytest.mark.parametrize("n_components", [1, 2, 4])
def test_gaussian_reference_scores_rows_like_pca(n_components):
    X = rows() + 0.3  # not centred: the mean has to be taken out
    reference = fit_reference(X, n_components, "gaussian", random_state())
    pca = PCA(n_components, svd_solver="full").fit(X)
    np.testing.assert_allclose(
        reference.log_marginal(torch.from_numpy(X)).numpy(), pca.score_samples(X), rtol=1e-9
    )


@pytest.mark.parametrize("n_components", [1, 2, 4])
def test_posterior_mean_is_the_scaled_transform_of_pca(n_components):
    X = rows() + 0.3
    latent = probabilistic_pca(X, n_components)
    pca = PCA(n_components, svd_solver="full").fit(X)
    mean = (X - latent.mean) @ latent.matrix.T
    scale = np.sqrt(pca.explained_variance_ - pca.noise_variance_) / pca.explained_variance_
    expected = pca.transform(X) * scale
    # eigenvectors have no sign
    np.testing.assert_allclose(np.abs(mean), np.abs(expected), rtol=1e-8, atol=1e-10)
    signs = np.sign((mean * expected).sum(axis=0))
    np.testing.assert_allclose(mean, expected * signs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n_components", [1, 2, 4])
def test_posterior_is_bayes_rule_in_the_factor_model(n_components):
    latent = probabilistic_pca(rows(), n_components)
    pca = PCA(n_components, svd_solver="full").fit(rows())
    signal = pca.explained_variance_ - pca.noise_variance_
    # x = loadings z + noise, z ~ N(0, I)
    loadings = np.sqrt(signal)[:, None] * pca.components_
    loadings *= np.sign((loadings * latent.matrix).sum(axis=1, keepdims=True))
    covariance = np.linalg.inv(np.eye(n_components) + loadings @ loadings.T / pca.noise_variance_)
    np.testing.assert_allclose(np.diag(latent.variance), covariance, atol=1e-10)
    np.testing.assert_allclose(
        latent.matrix, covariance @ loadings / pca.noise_variance_, rtol=1e-7, atol=1e-10
    )
    np.testing.assert_allclose(latent.covariance, pca.get_covariance(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_components", [5, 7])
def test_latents_beyond_the_features_keep_their_prior(n_components):
    X = rows()
    latent = probabilistic_pca(X, n_components)
    assert latent.matrix.shape == (n_components, 5)
    assert np.array_equal(latent.matrix[5:], np.zeros((n_components - 5, 5)))
    assert np.array_equal(latent.variance[5:], np.ones(n_components - 5))
    # nothing is left to estimate the noise from: scores are white, their variance a floor
    scores = (X - latent.mean) @ latent.matrix.T
    np.testing.assert_allclose(np.cov(scores[:, :5].T), np.eye(5), atol=1e-9)
    np.testing.assert_allclose(latent.variance[:5], 0.01)
    np.testing.assert_allclose(latent.covariance, np.cov(X.T) + 1e-6 * np.eye(5), atol=1e-9)
    reference = fit_reference(X, n_components, "gaussian", random_state())
    assert bool(torch.isfinite(reference.log_marginal(torch.from_numpy(X))).all())


@pytest.mark.parametrize("n_components", [1, 3, 6])
def test_data_of_low_rank_give_finite_references(n_components):
    random = np.random.RandomState(0)
    X = random.standard_normal((50, 2)) @ random.standard_normal((2, 6))
    latent = probabilistic_pca(X, n_components)
    n_used = min(n_components, 2)
    assert np.array_equal(latent.matrix[n_used:], np.zeros((n_components - n_used, 6)))
    assert np.array_equal(latent.variance[n_used:], np.ones(n_components - n_used))
    assert np.all(latent.variance > 0.0)
    assert np.linalg.eigvalsh(latent.covariance).min() > 0.0
    for kind in ("gaussian", "mixture"):
        reference = fit_reference(X, n_components, kind, random_state())
        log_marginal = reference.log_marginal(torch.from_numpy(X))
        assert bool(torch.isfinite(log_marginal).all())


@pytest.mark.parametrize("n_samples", [1, 2])
def test_one_or_two_rows_are_enough_for_a_finite_reference(n_samples):
    X = np.arange(3.0 * n_samples).reshape(n_samples, 3)
    latent = probabilistic_pca(X, 2)
    for part in latent:
        assert np.isfinite(part).all()
    reference = fit_reference(X, 2, "gaussian", random_state())
    assert bool(torch.isfinite(reference.log_marginal(torch.from_numpy(X))).all())


def test_largest_loading_of_every_direction_is_positive():
    matrix = probabilistic_pca(rows(), 3).matrix
    assert np.all(matrix[np.arange(3), np.abs(matrix).argmax(axis=1)] > 0.0)


def tails(X, mean, covariance, shares=TAIL_SHARES):
    """Return the density of defensive components of one shape, by SciPy."""
    parts = [multivariate_normal(mean, scale**2 * covariance) for scale in TAIL_SCALES]
    return sum(share * part.pdf(X) for share, part in zip(shares, parts, strict=True))


@pytest.mark.parametrize(
    "kind", ["mixture", GaussianMixture(2, covariance_type="full", random_state=0)]
)
def test_mixtures_get_student_like_tails(kind):
    X = rows(n_features=3)
    reference = fit_reference(X, 2, kind, random_state())
    shares = TAIL_SHARES
    if isinstance(kind, str):
        source = random_state()
        choice = choose_mixture(X, source)
        mixture, weight = fit_ensemble(X, choice, source), max(0.01, choice.defensive_weight)
        shares = choice.defensive_shares
    else:
        mixture = GaussianMixture(2, covariance_type="full", random_state=0).fit(X)
        weight = 0.05
    covariance = 4.0 * (np.cov(X.T, bias=True) + 1e-6 * np.eye(3))
    if reference.is_diagonal:
        root = reference.root.numpy()
        white = np.linalg.inv(root) @ covariance @ np.linalg.inv(root).T
        covariance = root @ np.diag(np.diag(white)) @ root.T
    expected = np.logaddexp(
        np.log1p(-weight) + mixture.score_samples(X),
        np.log(weight * tails(X, X.mean(axis=0), covariance, shares)),
    )
    np.testing.assert_allclose(
        reference.log_marginal(torch.from_numpy(X)).numpy(), expected, rtol=1e-8
    )


def test_a_reference_is_the_mean_of_its_members():
    X = rows(n_features=3)
    part = MixturePart(Candidate(3, "full", 1e-3), n_members=4, weight=1.0)
    choice = MixtureChoice((part,), defensive_weight=0.02)
    reference = fit_reference(X, 2, "mixture", random_state(), choice=choice)
    assert len(reference.log_weights) == 3 * 4 + len(TAIL_SCALES)
    members = fit_ensemble(X, choice, random_state()).members
    density = np.mean([np.exp(member.score_samples(X)) for member in members], axis=0)
    wide = tails(X, X.mean(axis=0), 4.0 * (np.cov(X.T, bias=True) + 1e-6 * np.eye(3)))
    np.testing.assert_allclose(
        np.exp(reference.log_marginal(torch.from_numpy(X)).numpy()),
        0.98 * density + 0.02 * wide,
        rtol=1e-8,
    )


def test_members_of_tied_mixtures_store_one_covariance_each():
    # rows on curved sheets in forty dimensions: two tied members with covariances of their own
    random = np.random.RandomState(0)
    angle = random.uniform(0.0, 2.0 * np.pi, 400)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1) @ random.standard_normal((2, 40))
    X = circle + 0.1 * random.standard_normal((400, 40)) @ random.standard_normal((40, 40)) / 6.0
    part = MixturePart(Candidate(6, "tied", 1e-3), n_members=2, weight=1.0)
    choice = MixtureChoice((part,), defensive_weight=0.02)
    reference = fit_reference(X, 2, "mixture", random_state(), choice=choice)
    assert not reference.is_diagonal
    assert (len(reference.means), len(reference.factors)) == (12 + len(TAIL_SCALES), 3)
    members = fit_ensemble(X, choice, random_state()).members
    density = np.mean([np.exp(member.score_samples(X)) for member in members], axis=0)
    wide = tails(X, X.mean(axis=0), 4.0 * (np.cov(X.T, bias=True) + 1e-6 * np.eye(40)))
    np.testing.assert_allclose(
        reference.log_marginal(torch.from_numpy(X)).numpy(),
        np.log(0.98 * density + 0.02 * wide),
        rtol=1e-8,
    )


def test_a_ridge_that_held_out_rows_chose_is_no_floor():
    # smooth images: covariances with directions far below any pixel's variance
    X = make_shape_images(600, size=10, noise=0.05, random_state=0)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    choice = choose_mixture(X, random_state())
    assert max(part.candidate.ridge for part in choice.parts) >= 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_reference(X, 2, "mixture", random_state(), choice=choice)


def test_given_mixture_is_cloned_and_left_unfitted():
    mixture = GaussianMixture(2, random_state=0)
    reference = fit_reference(rows(), 2, mixture, random_state())
    assert not hasattr(mixture, "means_")
    assert len(reference.log_weights) == 2 + len(TAIL_SCALES)


@pytest.mark.parametrize("kind", ["mixture", "gaussian"])
def test_latents_of_every_reference_are_those_of_pca(kind):
    X = rows()
    reference = fit_reference(X, 2, kind, random_state())
    latent = probabilistic_pca(X, 2)
    x = torch.from_numpy(X)
    np.testing.assert_allclose(
        reference.latent_mean(x).numpy(), (X - latent.mean) @ latent.matrix.T, atol=1e-12
    )
    np.testing.assert_allclose(reference.latent_scale.square().numpy(), latent.variance)
    assert (reference.n_features, reference.n_latents) == (5, 2)
    assert reference.location.dtype == torch.float64


def test_complete_reference_is_copied():
    given = fit_reference(rows(), 2, "gaussian", random_state()).float()
    reference = fit_reference(rows(), 2, given, random_state())
    assert reference is not given
    assert reference.location.dtype == torch.float64
    assert given.location.dtype == torch.float32
    assert reference.location.data_ptr() != given.location.data_ptr()


@pytest.mark.parametrize(("n_features", "n_components"), [(4, 2), (5, 3)])
def test_complete_reference_of_other_widths_is_refused(n_features, n_components):
    given = fit_reference(rows(), 2, "gaussian", random_state())
    with pytest.raises(ValueError, match="n_features=5 and n_latents=2"):
        fit_reference(rows(n_features=n_features), n_components, given, random_state())


def test_same_random_state_gives_the_same_reference():
    X, _ = clusters()
    first, second = (fit_reference(X, 1, "mixture", random_state()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
