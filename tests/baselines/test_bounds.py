"""Proposals and importance-weighted bounds against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from sklvebm.baselines._bounds import GaussianMixtures, diagonal_gaussians, weighted_latents
from sklvebm.baselines._decoder import Architecture, LatentModel
from sklvebm.smc.quasi_random import latent_nodes


@pytest.fixture
def linear():
    """A model with an affine decoder, and its exact log-density and posterior."""
    architecture = Architecture(3, 2, (), "tanh", 0.3, 1e-4)
    model = LatentModel(architecture, torch.Generator().manual_seed(0)).double()
    model.requires_grad_(False)
    W = model.decoder.mean.weights[0].numpy()
    noise = model.decoder.variance().numpy()
    x = np.random.default_rng(1).standard_normal((4, 3))
    covariance = np.linalg.inv(np.eye(2) + (W.T / noise) @ W)
    mean = x / noise @ W @ covariance
    log_density = multivariate_normal(np.zeros(3), W @ W.T + np.diag(noise)).logpdf(x)
    return model, torch.from_numpy(x), torch.from_numpy(mean), covariance, log_density


def gaussians(mean, covariance):
    factor = torch.from_numpy(np.linalg.cholesky(covariance)).expand(len(mean), 1, 2, 2)
    return GaussianMixtures(mean.unsqueeze(1), factor)


def test_density_of_a_mixture_is_that_of_scipy():
    rng = np.random.default_rng(0)
    mean, factor = rng.standard_normal((2, 3, 2)), rng.standard_normal((2, 3, 2, 2)) + 2 * np.eye(2)
    z = rng.standard_normal((2, 5, 2))
    q = GaussianMixtures(torch.from_numpy(mean), torch.from_numpy(factor))
    expected = [
        np.log(
            sum(
                multivariate_normal(mean[n, m], factor[n, m] @ factor[n, m].T).pdf(z[n]) / 3
                for m in range(3)
            )
        )
        for n in range(2)
    ]
    np.testing.assert_allclose(q.log_density(torch.from_numpy(z)), expected, rtol=1e-10)


def test_components_take_blocks_of_nodes_and_their_mirror_images():
    mean = torch.tensor([[[0.0], [100.0]]])
    q = GaussianMixtures(mean, torch.ones(1, 2, 1, 1))
    half = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    offset = torch.tensor([[0.0], [0.0], [100.0], [100.0]])
    expected = torch.cat([half + offset, -half + offset])
    torch.testing.assert_close(q.place(torch.cat([half, -half]))[0], expected)


def test_nodes_cover_every_component_evenly():
    # for a single component quasi-random nodes integrate a square to a thousandth; the share of
    # nodes that a component of a mixture gets must do nearly as well
    q = GaussianMixtures(torch.zeros(1, 8, 2), torch.eye(2).expand(1, 8, 2, 2))
    z = q.place(latent_nodes(256, 2, seed=0).float()).reshape(2, 8, 16, 2)
    # sixteen independent pairs of mirror images would have an error of sqrt(2 / 16) = 0.35
    assert (z.square().mean((0, 2)) - 1.0).abs().max() < 0.35


def test_the_bound_with_the_exact_posterior_is_the_log_density(linear):
    model, x, mean, covariance, log_density = linear
    weighted = weighted_latents(model, x, gaussians(mean, covariance), 16, seed=0)
    np.testing.assert_allclose(weighted.log_evidence(), log_density, rtol=0, atol=1e-10)
    np.testing.assert_allclose(weighted.mean(), mean, rtol=0, atol=1e-10)


def test_with_another_proposal_weights_are_unbiased_and_the_bound_is_below(linear):
    model, x, mean, covariance, log_density = linear
    q = gaussians(mean + 0.5, 3.0 * covariance)
    bounds = np.stack(
        [weighted_latents(model, x, q, 4, seed).log_evidence().numpy() for seed in range(800)]
    )
    ratios = np.exp(bounds - log_density)  # mean weights, in units of the truth
    error = ratios.std(0) / math.sqrt(len(ratios))
    assert (error > 0).all()
    assert (np.abs(ratios.mean(0) - 1.0) < 4.0 * error).all()
    # Jensen's gap must be seen: more than three standard errors below
    gap = log_density - bounds.mean(0)
    assert (gap > 3.0 * bounds.std(0) / math.sqrt(len(bounds))).all()


def test_more_draws_make_the_bound_tighter(linear):
    model, x, mean, covariance, log_density = linear
    q = gaussians(mean + 0.5, 3.0 * covariance)
    gaps = [
        np.mean(
            [
                (log_density - weighted_latents(model, x, q, n, seed).log_evidence().numpy()).mean()
                for seed in range(100)
            ]
        )
        for n in (2, 8, 32)
    ]
    assert gaps[0] > 2.0 * gaps[1] > 4.0 * gaps[2]


def test_diagonal_gaussians_have_the_given_moments():
    mean, scale = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    q = diagonal_gaussians(mean, scale)
    torch.testing.assert_close(q.place(torch.eye(2)), mean + torch.diag(scale[0]).unsqueeze(0))
