"""Posteriors of rows under a fixed model, against closed forms and quadrature."""

import math

import numpy as np
import pytest
import torch

from sklvebm.baselines._decoder import Architecture, LatentModel
from sklvebm.baselines._inference import (
    best_prior_draws,
    gauss_newton,
    langevin,
    laplace,
    maximise_posterior,
    most_likely_latents,
    posterior_target,
    whitened_target,
)
from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import IndependentNoise, stack_rows
from sklvebm.smc.quasi_random import latent_nodes


def make_model(n_features, n_latents, hidden, prior=None, seed=0):
    architecture = Architecture(
        n_features, n_latents, hidden, "tanh", 0.2, 1e-4, prior_layer_sizes=prior
    )
    model = LatentModel(architecture, torch.Generator().manual_seed(seed)).double()
    if prior is not None:
        # an energy that starts at zero would hide a term that is missing
        model.prior.network.weights[-1].data.normal_(
            generator=torch.Generator().manual_seed(seed + 1)
        )
    return model.requires_grad_(False)


@pytest.fixture
def rows():
    return torch.from_numpy(np.random.default_rng(1).standard_normal((5, 3)))


def exact_posterior(model, x):
    W = model.decoder.mean.weights[0].numpy()
    noise = model.decoder.variance().numpy()
    covariance = np.linalg.inv(np.eye(W.shape[1]) + (W.T / noise) @ W)
    return x.numpy() / noise @ W @ covariance, covariance


def test_with_an_affine_decoder_the_maximum_is_the_posterior_mean(rows):
    model = make_model(3, 2, ())
    z = maximise_posterior(model, rows, torch.full((5, 2), 3.0, dtype=torch.float64), 12)
    np.testing.assert_allclose(z, exact_posterior(model, rows)[0], rtol=0, atol=1e-9)


def test_with_an_affine_decoder_laplace_is_exact(rows):
    model = make_model(3, 2, ())
    mean, covariance = exact_posterior(model, rows)
    factor = laplace(model, rows, torch.from_numpy(mean).unsqueeze(1)).factor[:, 0]
    expected = np.broadcast_to(covariance, (5, 2, 2))
    np.testing.assert_allclose(factor @ factor.transpose(1, 2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prior", [None, (6,)])
def test_gradient_is_that_of_automatic_differentiation(rows, prior):
    model = make_model(3, 2, (8,), prior)
    z = torch.randn((5, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z.requires_grad_(True)
    (expected,) = torch.autograd.grad(model.log_joint(rows, z).sum(), z)
    actual = gauss_newton(model, rows, z.detach()).gradient
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prior", [None, (6,)])
def test_climbing_ends_where_the_gradient_vanishes(rows, prior):
    model = make_model(3, 2, (8,), prior)
    # far more steps than a row gets: rows far from the decoder's range converge linearly
    z = maximise_posterior(model, rows, best_prior_draws(model, rows, 0)[:, 0], 300)
    assert gauss_newton(model, rows, z).gradient.abs().max() < 1e-5


def test_climbing_never_lowers_a_row(rows):
    model = make_model(3, 2, (8,))
    z = torch.full((5, 2), 4.0, dtype=torch.float64)
    values = [model.log_joint(rows, maximise_posterior(model, rows, z, n)) for n in range(6)]
    assert all((after >= before).all() for before, after in zip(values, values[1:], strict=False))
    assert (values[-1] > values[0]).all()


def test_start_is_the_likeliest_of_the_shared_draws(rows):
    model = make_model(3, 2, (8,), prior=(6,))
    nodes = latent_nodes(64, 2, seed=4)
    expected = [nodes[model.log_joint(row, nodes).argmax()] for row in rows]
    torch.testing.assert_close(best_prior_draws(model, rows, 4, 64)[:, 0], torch.stack(expected))


def test_further_starts_lie_apart(rows):
    model = make_model(3, 2, (8,))
    starts = best_prior_draws(model, rows, 4, n_best=3)
    distances = torch.cdist(starts, starts)[:, *torch.triu_indices(3, 3, 1)]
    assert (distances >= 0.5).all()


@pytest.mark.parametrize("whitened", [False, True])
def test_particles_have_the_moments_of_quadrature(whitened):
    model = make_model(2, 1, (8,), prior=(6,))
    x = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    grid = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64).unsqueeze(1)
    weights = torch.softmax(model.log_joint(x, grid), 0)
    mean = float(weights @ grid[:, 0])
    sd = math.sqrt(float(weights @ (grid[:, 0] - mean) ** 2))

    n = 4000
    noise = IndependentNoise(torch.Generator().manual_seed(7))
    q = laplace(model, x, most_likely_latents(model, x, 0, thorough=True).unsqueeze(1))
    copies = type(q)(*(stack_rows(part, n) for part in q))
    z0 = noise.normal(torch.empty(n, 1, dtype=torch.float64))
    make = whitened_target if whitened else posterior_target
    target = make(model, stack_rows(x, n), *([copies] if whitened else []))
    # many short independent chains: the draws are independent, so the error is that of n draws
    z, acceptance = langevin(start(z0, target), target, 0.3 if whitened else 0.05, 300, noise)
    if whitened:
        z = copies.mean[:, 0] + copies.factor[:, 0, 0] * z
    assert 0.2 < acceptance <= 1.0
    assert abs(float(z.mean()) - mean) < 4.0 * sd / math.sqrt(n)
    # relative error of a standard deviation, for tails not far from normal ones
    assert abs(float(z.std()) / sd - 1.0) < 4.0 * math.sqrt(1.0 / n)
