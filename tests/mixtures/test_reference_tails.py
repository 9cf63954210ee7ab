"""Defensive components of one shape and many scales, components far out, and added ones."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sklvebm.flows.interpolant import interpolant_marginals
from sklvebm.inference.missed_components import is_outside
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference

SCALES = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
SHARES = torch.tensor([0.08, 0.015, 0.005], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


PARAMETERS = {"full": 3, "few covariances": 6, "diagonal": 3}


def tailed(kind, *, expanded=False):
    """Return a reference with three defensive components: of one shape, or each of its own."""
    d = PARAMETERS[kind]
    root = 0.5 * normal(d, d) + torch.eye(d, dtype=torch.float64)
    covariances = torch.stack([root @ root.T, torch.eye(d, dtype=torch.float64)])
    wide = 4.0 * (root @ root.T)
    if kind == "diagonal":
        covariances, wide = (m * torch.eye(d, dtype=torch.float64) for m in (covariances, wide))
    weights, means = torch.tensor([0.7, 0.3], dtype=torch.float64), normal(2, d, seed=1)
    location = normal(d, seed=2)
    maps = {
        "latent_map": 0.3 * normal(2, d, seed=3),
        "latent_variance": torch.tensor([0.5, 0.8], dtype=torch.float64),
        "location": location,
    }
    if not expanded:
        tails = {
            "defensive_weight": SHARES,
            "defensive_covariance": wide,
            "defensive_scales": SCALES,
        }
        return MixtureReference(weights, means, covariances, **maps, **tails)
    tails = SCALES[:, None, None] ** 2 * wide
    return MixtureReference(
        torch.cat([weights * (1.0 - SHARES.sum()), SHARES]),
        torch.cat([means, location.expand(3, d)]),
        torch.cat([covariances, tails]),
        **maps,
    )


every_kind = pytest.mark.parametrize("kind", PARAMETERS)


@every_kind
def test_tails_of_one_shape_are_components_of_several(kind):
    short, long = tailed(kind), tailed(kind, expanded=True)
    assert (short.n_defensive, len(short.means), len(long.means)) == (3, 5, 5)
    x = 20.0 * normal(40, PARAMETERS[kind], seed=4)
    torch.testing.assert_close(short.log_marginal(x), long.log_marginal(x))
    for own in (short, long):
        y = own.from_features(x).requires_grad_()
        energy, grad = own.marginal_energy_and_grad(y.detach())
        log_density = torch.logsumexp(own.log_components(y), 1)
        (expected,) = torch.autograd.grad(-log_density.sum(), y)
        torch.testing.assert_close(grad, expected)
        torch.testing.assert_close(energy, -log_density.detach())
    z = normal(5, 2, seed=5)
    means = [own.to_features(own.feature_conditional(z).mean()) for own in (short, long)]
    torch.testing.assert_close(*means)


@every_kind
def test_draws_of_a_defensive_component_have_its_covariance(kind):
    own = tailed(kind)
    n, d = 40_000, PARAMETERS[kind]
    for number, scale in enumerate(SCALES.tolist()):
        component = torch.full((n,), 2 + number)
        y = own.draws_of(component, generator(number))[:, :d]
        covariance = y.T @ y / n
        if own.is_diagonal:
            expected = torch.diag(own.roots[2 + number] ** 2)
        else:
            expected = scale**2 * own.roots[-1] @ own.roots[-1].T
        # the standard error of a covariance of normal draws, at five sigmas
        variances = torch.diagonal(expected)
        error = torch.sqrt((torch.outer(variances, variances) + expected**2) / n)
        assert bool(((covariance - expected).abs() < 5.0 * error).all())


@every_kind
def test_frames_whiten_the_component_they_drew(kind):
    own = tailed(kind)
    y = own.from_features(50.0 * normal(60, PARAMETERS[kind], seed=6))
    frame = own.frame(y, IndependentNoise(generator()))
    torch.testing.assert_close(frame.colour(frame.whiten(y)), y)
    grad = normal(*y.shape, seed=7).requires_grad_()
    inner = frame.whiten(y).requires_grad_()
    (expected,) = torch.autograd.grad((frame.colour(inner) * grad.detach()).sum(), inner)
    torch.testing.assert_close(frame.pull(grad.detach()), expected)


@every_kind
def test_the_mixture_on_its_way_from_noise_ends_with_these_tails(kind):
    own = tailed(kind)
    mixture = interpolant_marginals(own)
    x = 10.0 * normal(30, PARAMETERS[kind], seed=8)
    at_end = mixture.values(x[None], torch.ones(1, dtype=torch.float64)).log_ratio[0]
    standard = -0.5 * (x.square().sum(1) + x.shape[1] * math.log(2.0 * math.pi))
    torch.testing.assert_close(at_end + standard, own.log_marginal(x))


def test_a_far_row_costs_the_logarithm_of_its_distance():
    scales = 10.0 ** torch.arange(10, dtype=torch.float64)
    own = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 2),
        torch.eye(2)[None],
        latent_map=torch.zeros(0, 2),
        latent_variance=torch.zeros(0),
        location=torch.zeros(2),
        defensive_weight=1e-3 * scales**-3 / (scales**-3).sum(),
        defensive_covariance=4.0 * torch.eye(2),
        defensive_scales=scales,
    )
    distances = torch.logspace(1, 8, 8, dtype=torch.float64)
    rows = torch.stack([distances, torch.zeros(8, dtype=torch.float64)], 1)
    falls = own.log_marginal(rows).diff()
    # a decade of Student's t with three degrees of freedom in the plane: five times log 10
    torch.testing.assert_close(
        falls, torch.full_like(falls, -5.0 * math.log(10.0)), atol=1.0, rtol=0.0
    )
    assert float(falls[1:].std()) < 0.05


@pytest.mark.parametrize("diagonal", [True, False])
def test_components_far_from_zero_keep_their_digits(diagonal):
    covariances = torch.stack([torch.eye(2), torch.eye(2)]).double()
    if not diagonal:
        covariances[0] = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    means = torch.tensor([[0.0, 0.0], [1e12, -3e11]], dtype=torch.float64)
    own = MixtureReference(
        torch.tensor([0.9, 0.1]),
        means,
        covariances,
        latent_map=torch.zeros(1, 2),
        latent_variance=torch.ones(1),
        location=torch.zeros(2),
    )
    assert own.far.tolist() == [1]
    x = torch.tensor([[0.3, -0.2], [1e12 + 1.0, -3e11 + 0.5]], dtype=torch.float64)
    # distances from the means are given: SciPy's differences would cancel as well
    away = np.array([[0.3, -0.2], [1.0, 0.5]])
    expected = [
        math.log(weight) + stats.multivariate_normal([0.0, 0.0], covariance).logpdf(residual)
        for weight, covariance, residual in zip((0.9, 0.1), covariances.numpy(), away, strict=True)
    ]
    np.testing.assert_allclose(own.log_marginal(x).numpy(), expected, atol=1e-3)
    y = own.from_features(x)
    _, grad = own.marginal_energy_and_grad(y)
    pull = torch.linalg.solve(covariances[1], torch.tensor([1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(grad[1], own.root.T @ pull, atol=1e-3, rtol=1e-3)
    assert float(own.log_marginal(x).max()) <= float(own.log_peak())


def test_added_components_have_their_share_and_move_nothing():
    own = tailed("diagonal")
    covariance = torch.tensor([[0.2, 0.1, 0.0], [0.1, 0.3, 0.0], [0.0, 0.0, 0.1]]).double()
    mean = torch.tensor([[9.0, 9.0, 9.0]], dtype=torch.float64)
    more = own.with_components(torch.ones(1), mean, covariance[None], 0.25)
    assert (own.n_defensive, more.n_defensive, len(more.means)) == (3, 3, len(own.means) + 1)
    x = torch.cat([normal(20, 3, seed=9), mean + 0.3 * normal(20, 3, seed=10)])
    new = torch.from_numpy(stats.multivariate_normal(mean[0], covariance).logpdf(x.numpy()))
    expected = torch.logaddexp(own.log_marginal(x) + math.log(0.75), new + math.log(0.25))
    torch.testing.assert_close(more.log_marginal(x), expected)
    # coordinates stay, so that particles do
    torch.testing.assert_close(more.from_features(x), own.from_features(x))
    draws = more.sample(4000, generator())[:, :3]
    near = (more.to_features(draws) - mean).norm(dim=1) < 3.0
    assert abs(float(near.double().mean()) - 0.25) < 5.0 * math.sqrt(0.25 * 0.75 / 4000)


def test_rows_outside_are_those_that_only_the_tails_reach():
    own = tailed("full")
    assert not bool(is_outside(own, own.to_features(own.means[:2]), 0.01).any())
    far = own.to_features(own.means[:2]) + 60.0
    assert bool(is_outside(own, far, 0.01).all())
    assert own.defensive_share() == pytest.approx(0.1)
