"""Marginals of the interpolant beside torch's distributions and the case of one Gaussian."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sklvebm import MixtureReference
from sklvebm.flows.interpolant import interpolant_marginals

TIMES = (0.0, 1e-6, 0.3, 0.499, 0.5, 0.8, 0.999, 1.0)


def as_distribution(mixture, t):
    weights, means, covariances = mixture.moments(t)
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("t", TIMES)
def test_density_and_score_are_those_of_the_noised_law(diagonal, t, mixture_reference):
    mixture = interpolant_marginals(mixture_reference(diagonal=diagonal))
    assert (mixture.axes is None) == diagonal
    x = torch.randn((7, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    log_density = as_distribution(mixture, t).log_prob(x)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    x = x.detach()
    values = mixture.values(x[None], torch.tensor([t], dtype=torch.float64))
    normal = -0.5 * (x.square().sum(1) + 3 * math.log(2.0 * math.pi))
    torch.testing.assert_close(values.log_ratio[0] + normal, log_density.detach())
    torch.testing.assert_close(values.score[0], score)


# three ways to the same numbers: axes of the coordinates, of few covariances, products of features
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("n_features", [2, 9])
def test_components_that_share_a_covariance_are_those_with_copies_of_it(
    n_features, t, mixture_reference
):
    covariances = interpolant_marginals(mixture_reference(n_features=n_features)).moments(1.0)[2][
        :2
    ]
    g = torch.Generator().manual_seed(2)
    means = torch.randn((5, n_features), generator=g, dtype=torch.float64)
    maps = {
        "latent_map": means.new_zeros(0, n_features),
        "latent_variance": means.new_ones(0),
        "location": means[0],
    }
    weights, covariance_of = means.new_full((5,), 0.2), torch.tensor([1, 0, 0, 1, 0])
    shared = interpolant_marginals(
        MixtureReference(weights, means, covariances, covariance_of=covariance_of, **maps)
    )
    copied = interpolant_marginals(
        MixtureReference(weights, means, covariances[covariance_of], **maps)
    )
    assert (len(shared.axes), len(copied.axes)) == (2, 5)
    x = 2.0 * torch.randn((1, 6, n_features), generator=g, dtype=torch.float64)
    times = torch.tensor([t], dtype=torch.float64)
    for ours, theirs in zip(shared.values(x, times), copied.values(x, times), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_density_at_time_one_is_the_reference(mixture_reference):
    reference = mixture_reference()
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = interpolant_marginals(reference).values(x[None], torch.tensor([1.0]))
    normal = -0.5 * (x.square().sum(1) + 3 * math.log(2.0 * math.pi))
    torch.testing.assert_close(values.log_ratio[0] + normal, reference.log_marginal(x))


@pytest.mark.parametrize("t", TIMES)
def test_velocity_of_one_gaussian_is_the_closed_form(t, mixture_reference):
    reference = mixture_reference(n_components=1, defensive_weight=0.0)
    mixture = interpolant_marginals(reference)
    _, means, covariances = mixture.moments(1.0)
    mean, covariance = means[0], covariances[0]
    identity = torch.eye(3, dtype=torch.float64)
    noised = t**2 * covariance + (1.0 - t) ** 2 * identity
    slope = (t * covariance - (1.0 - t) * identity) @ torch.linalg.inv(noised)
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    velocity = mixture.values(x[None], torch.tensor([t], dtype=torch.float64)).velocity[0]
    torch.testing.assert_close(velocity, mean + (x - t * mean) @ slope.T)


@pytest.mark.parametrize("t", [0.1, 0.45, 0.6, 0.95])
def test_velocity_and_score_say_the_same(t, mixture_reference):
    """The velocity is (x + (1 - t) score) / t, whichever of the two is computed."""
    mixture = interpolant_marginals(mixture_reference())
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = mixture.values(x[None], torch.tensor([t], dtype=torch.float64))
    wanted = (x + (1.0 - t) * values.score[0]) / t
    torch.testing.assert_close(values.velocity[0], wanted)


def test_velocity_is_the_mean_of_straight_paths_through_a_point(mixture_reference):
    """Importance sampling of `E[x1 - e | x]` from draws of the mixture; five standard errors."""
    reference = mixture_reference(n_components=2, n_features=2)
    mixture = interpolant_marginals(reference)
    t, x = 0.6, torch.tensor([0.3, -0.4], dtype=torch.float64)
    rows = reference.split(reference.sample(200_000, torch.Generator().manual_seed(0)))[0].double()
    noise = (x - t * rows) / (1.0 - t)
    weights = torch.softmax(-0.5 * noise.square().sum(1), 0)
    wanted = weights @ (rows - noise)
    error = (weights.square() @ (rows - noise - wanted).square()).sqrt()
    velocity = mixture.values(x[None, None], torch.tensor([t], dtype=torch.float64)).velocity[0, 0]
    assert ((velocity - wanted).abs() < 5.0 * error).all()
    assert (error < 0.02).all()


def test_several_times_are_handled_at_once(mixture_reference):
    mixture = interpolant_marginals(mixture_reference())
    x = torch.randn((3, 4, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    times = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    together = mixture.values(x, times)
    for group, t in enumerate(times):
        alone = mixture.values(x[group : group + 1], t.reshape(1))
        for part, own in zip(together, alone, strict=True):
            torch.testing.assert_close(part[group], own[0])


def test_narrow_components_keep_their_digits():
    """Standard deviation 0.001, where quadratic forms cancel."""
    reference = MixtureReference(
        torch.tensor([0.5, 0.5]),
        torch.tensor([[1.0, 2.0], [-1.0, 0.0]], dtype=torch.float64),
        torch.diag_embed(torch.tensor([[1e-6, 1.0], [1.0, 1e-6]], dtype=torch.float64)),
        latent_map=torch.zeros(0, 2),
        latent_variance=torch.zeros(0),
        location=torch.zeros(2),
    )
    mixture = interpolant_marginals(reference)
    x = torch.tensor([[1.001, 1.5], [-1.5, 0.0005]], dtype=torch.float64)
    for t in (0.99, 0.9999, 1.0):
        wanted = as_distribution(mixture, t).log_prob(t * x)
        normal = -0.5 * ((t * x).square().sum(1) + 2 * math.log(2.0 * math.pi))
        ratio = mixture.values(t * x[None], torch.tensor([t], dtype=torch.float64)).log_ratio[0]
        torch.testing.assert_close(ratio + normal, wanted, atol=1e-8, rtol=0.0)
