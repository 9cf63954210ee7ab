r"""Both particle systems at fixed parameters: how fast they forget their start, and what is left.

A Gaussian target with precision P has the log-Sobolev constant ρ = λ_min(P), hence along the
diffusion `KL(q_t || p) <= e^{-2ρt} KL_0` and `W2(q_t, p) <= sqrt(2/ρ) e^{-ρt} sqrt(KL_0)`. The
kernel's own law is known for every step: m <- (I - hP) m, C <- (I - hP) C (I - hP) + 2hI.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.mcmc.langevin import mala_step, start, ula_step
from sklvebm.mcmc.state import IndependentNoise, Target, stack_rows
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import BridgedEnergy, LinearGaussianEnergy
from sklvebm.models.targets import joint_target, latent_target

SIGMAS = 5.0
N_PARTICLES = 20_000
D, L = 2, 2
STEP_SIZES = (0.05, 0.2)
FINAL_TIME = 6.0
N_LOOKS = 6  # times at which the particles are compared with the exact law
N_REPLICAS = 400  # clouds drawn from the exact law


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Gaussian(NamedTuple):
    """A normal law."""

    mean: Tensor  # (P,)
    covariance: Tensor  # (P, P)


class System(NamedTuple):
    """Particles that move on one Gaussian target."""

    target: Target
    goal: Gaussian  # what the target is, in the coordinates of the particles
    precision: Tensor  # (P, P), its inverse covariance


def quadratic_energy():
    """Return a quadratic energy, correlated in all coordinates, on a reference unlike it."""
    network = LinearGaussianEnergy(D, L).double()
    noise = torch.randn(D + L, D + L, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        network.factor.add_(0.25 * noise)
        network.mean.copy_(torch.tensor([0.3, -0.5, 0.2, 0.4]))
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, D),
        torch.tensor([[[1.1, 0.3], [0.3, 0.8]]]),
        latent_map=torch.tensor([[0.4, -0.2], [0.1, 0.5]]),
        latent_variance=torch.tensor([0.7, 1.2]),
        location=torch.tensor([0.1, -0.1]),
    )
    return BridgedEnergy(reference, network).requires_grad_(False)


def system_of(target, precision, mean):
    return System(target, Gaussian(mean, torch.linalg.inv(precision)), precision)


def joint_pool():
    """Return the pool: `(x, z)` are linear in its coordinates, `u = origin + T position`."""
    energy = quadratic_energy()
    corners = torch.cat(
        [torch.zeros(1, D + L, dtype=torch.float64), torch.eye(D + L, dtype=torch.float64)]
    )
    images = torch.cat(energy.reference.split(corners), 1)
    origin, transform = images[0], (images[1:] - images[0]).T
    return system_of(
        joint_target(energy, select_correction_and_grad(energy)),
        transform.T @ energy.network.precision() @ transform,
        torch.linalg.solve(transform, energy.network.mean - origin),
    )


def posterior_particles():
    """Return the posterior particles of one row: their precision is that of z alone, whitened."""
    energy = quadratic_energy()
    x = torch.tensor([[0.8, -0.6]], dtype=torch.float64)
    scale = energy.reference.latent_scale
    mean, _ = energy.network.posterior(x)
    return system_of(
        latent_target(energy, stack_rows(x, N_PARTICLES), select_correction_and_grad(energy)),
        scale[:, None] * energy.network.precision()[D:, D:] * scale,
        energy.reference.from_latents(x, mean)[0],
    )


SYSTEMS = {"joint pool": joint_pool, "posterior particles": posterior_particles}


@pytest.fixture(params=SYSTEMS)
def system(request):
    return SYSTEMS[request.param]()


def first_law(system):
    """Return the law that particles start from: off along the slowest direction, and wide."""
    _, vectors = torch.linalg.eigh(system.precision)
    mean = system.goal.mean + 2.0 * vectors[:, 0] + 1.0 * vectors[:, -1]
    return Gaussian(mean, 3.0 * torch.eye(len(mean), dtype=torch.float64))


def next_law(law, system, h):
    """Return the exact law one unadjusted step later."""
    contraction = torch.eye(len(law.mean), dtype=torch.float64) - h * system.precision
    return Gaussian(
        system.goal.mean + contraction @ (law.mean - system.goal.mean),
        contraction @ law.covariance @ contraction
        + 2.0 * h * torch.eye(len(law.mean), dtype=torch.float64),
    )


def stationary_law(system, h):
    """Return what unadjusted steps converge to."""
    identity = torch.eye(len(system.precision), dtype=torch.float64)
    return Gaussian(
        system.goal.mean,
        torch.linalg.inv(system.precision @ (identity - 0.5 * h * system.precision)),
    )


def divergence(law, goal):
    """Return `KL(law || goal)` in nats; laws may be stacked."""
    return torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(*law), torch.distributions.MultivariateNormal(*goal)
    )


def symmetric_root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values.clamp(min=0.0).sqrt().unsqueeze(-1) * vectors.mT)


def transport(law, goal):
    """Return W2(law, goal) between Gaussians; laws may be stacked."""
    root = symmetric_root(goal.covariance)
    cross = torch.linalg.eigvalsh(root @ law.covariance @ root).clamp(min=0.0).sqrt().sum(-1)
    traces = torch.diagonal(law.covariance, dim1=-2, dim2=-1).sum(-1) + torch.trace(goal.covariance)
    square = (law.mean - goal.mean).square().sum(-1) + traces - 2.0 * cross
    return square.clamp(min=0.0).sqrt()


DISTANCES: dict[str, Callable] = {"divergence": divergence, "transport": transport}


def draw(law, n, seed):
    """Draw n particles."""
    noise = torch.randn(n, len(law.mean), generator=generator(seed), dtype=torch.float64)
    return law.mean + noise @ torch.linalg.cholesky(law.covariance).T


def matched(position):
    """Return the Gaussian with the moments of a cloud."""
    return Gaussian(position.mean(0), torch.cov(position.T))


def sampling_law(law, distance, goal, n, seed=0):
    """Return mean and standard deviation of a distance estimated from n exact draws.

    Particles of an unadjusted kernel that start normal stay normal and independent, so the moments
    of their cloud follow a normal and a Wishart law (Bartlett's decomposition) exactly. This
    includes the upward bias of a distance between estimated moments.
    """
    g, width = generator(seed), len(law.mean)
    factor = torch.linalg.cholesky(law.covariance)
    noise = torch.randn(N_REPLICAS, width, generator=g, dtype=torch.float64) / math.sqrt(n)
    lower = torch.tril(
        torch.randn(N_REPLICAS, width, width, generator=g, dtype=torch.float64), diagonal=-1
    )
    for i in range(width):
        degrees = torch.full((N_REPLICAS,), (n - 1 - i) / 2.0, dtype=torch.float64)
        lower[:, i, i] = torch.sqrt(2.0 * torch._standard_gamma(degrees, generator=g))
    lower = factor @ lower / math.sqrt(n - 1)
    values = distance(Gaussian(law.mean + noise @ factor.T, lower @ lower.mT), goal)
    return float(values.mean()), float(values.std())


def looks(h):
    """Return the numbers of steps after which to look."""
    return [round(FINAL_TIME * (k + 1) / N_LOOKS / h) for k in range(N_LOOKS)]


def run(system, step, h, at, seed=0):
    """Yield (steps, positions) of particles at the given numbers of steps."""
    position = draw(first_law(system), N_PARTICLES, seed)
    beta, step_size = torch.ones_like(position[:, 0]), torch.full_like(position[:, 0], h)
    noise = IndependentNoise(generator(seed + 1))
    chains = start(position, system.target)
    for k in range(1, max(at) + 1):
        chains, _ = step(chains, system.target, beta=beta, step_size=step_size, noise=noise)
        if k in at:
            yield k, chains.position


def laws(system, h, at):
    """Yield (steps, exact law) of the unadjusted kernel at the given numbers of steps."""
    law = first_law(system)
    for k in range(1, max(at) + 1):
        law = next_law(law, system, h)
        if k in at:
            yield k, law


@pytest.fixture(scope="module")
def clouds():
    """Positions of unadjusted particles, by system and step size, which several tests look at."""
    return {
        (name, h): list(run(make(), ula_step, h, looks(h)))
        for name, make in SYSTEMS.items()
        for h in STEP_SIZES
    }


cases = pytest.mark.parametrize(("name", "h"), [(name, h) for name in SYSTEMS for h in STEP_SIZES])


@cases
def test_unadjusted_particles_have_the_exact_moments_at_all_times(clouds, name, h):
    system = SYSTEMS[name]()
    for (_, position), (_, law) in zip(clouds[name, h], laws(system, h, looks(h)), strict=True):
        error = position.std(0) / math.sqrt(N_PARTICLES)
        assert torch.all((position.mean(0) - law.mean).abs() < SIGMAS * error)
        centred = position - law.mean
        outer = torch.einsum("bi,bj->bij", centred, centred)
        error = outer.std(0) / math.sqrt(N_PARTICLES)
        assert torch.all((outer.mean(0) - law.covariance).abs() < SIGMAS * error)


@pytest.mark.parametrize("distance", DISTANCES)
@cases
def test_distances_of_particles_agree_with_the_exact_law(clouds, name, h, distance):
    system, function = SYSTEMS[name](), DISTANCES[distance]
    for (_, position), (_, law) in zip(clouds[name, h], laws(system, h, looks(h)), strict=True):
        expected, error = sampling_law(law, function, system.goal, N_PARTICLES)
        assert abs(float(function(matched(position), system.goal)) - expected) < SIGMAS * error


def envelopes(system, h, t):
    """Return the bounds on the divergence and on W2 after the time t in steps of h.

    In the eigenbasis of the precision an isotropic start stays diagonal, and the variance of each
    direction mixes its first and its stationary value with weights a and 1 - a, where
    `a = (1 - h λ)^{2k} <= e^{-2ρt}` while `h λ <= 1`. The divergence is convex in it, and standard
    deviations obey the triangle inequality: both squares are at most the diffusion's envelope plus
    the value of the stationary law.
    """
    rho = float(torch.linalg.eigvalsh(system.precision)[0])
    decay = math.exp(-2.0 * rho * t)
    first = float(divergence(first_law(system), system.goal))
    bias = stationary_law(system, h)
    return (
        decay * first + float(divergence(bias, system.goal)),
        math.sqrt(2.0 / rho * decay * first + float(transport(bias, system.goal)) ** 2),
    )


@pytest.mark.parametrize("h", STEP_SIZES)
def test_the_exact_law_stays_below_the_envelope_plus_the_bias_of_the_step(system, h):
    assert h * float(torch.linalg.eigvalsh(system.precision)[-1]) <= 1.0
    at = range(1, looks(h)[-1] + 1)
    for k, law in laws(system, h, at):
        divergence_bound, transport_bound = envelopes(system, h, k * h)
        assert float(divergence(law, system.goal)) <= divergence_bound
        assert float(transport(law, system.goal)) <= transport_bound


@cases
def test_particles_stay_below_the_envelope_plus_the_bias_of_the_step(clouds, name, h):
    system = SYSTEMS[name]()
    laws_seen = laws(system, h, looks(h))
    for (k, position), (_, law) in zip(clouds[name, h], laws_seen, strict=True):
        for function, bound in zip(DISTANCES.values(), envelopes(system, h, k * h), strict=True):
            expected, error = sampling_law(law, function, system.goal, N_PARTICLES)
            # finitely many particles look further away than they are
            surplus = max(expected - float(function(law, system.goal)), 0.0)
            value = float(function(matched(position), system.goal))
            assert value < bound + surplus + SIGMAS * error


@cases
def test_the_slowest_direction_decays_at_the_log_sobolev_rate(clouds, name, h):
    system = SYSTEMS[name]()
    values, vectors = torch.linalg.eigh(system.precision)
    rho, slowest = float(values[0]), vectors[:, 0]
    offset = float((first_law(system).mean - system.goal.mean) @ slowest)
    k, position = clouds[name, h][1]
    along = (position - system.goal.mean) @ slowest
    remaining = float(along.mean()) / offset
    error = float(along.std()) / math.sqrt(N_PARTICLES) / offset
    t = k * h
    rate, rate_error = -math.log(remaining) / t, error / remaining / t
    assert rate_error < 0.02 * rho
    # an Euler step of a linear drift is a little fast: -log(1 - hρ) / h
    assert abs(rate + math.log(1.0 - h * rho) / h) < SIGMAS * rate_error
    assert rate >= rho - SIGMAS * rate_error


def test_posterior_particles_are_at_least_as_fast_as_the_joint_density():
    # eigenvalues of a principal block interlace those of the whole matrix (Cauchy)
    precision = quadratic_energy().network.precision()
    rho_joint = float(torch.linalg.eigvalsh(precision)[0])
    rho_latent = float(torch.linalg.eigvalsh(precision[D:, D:])[0])
    assert rho_latent > rho_joint


@pytest.mark.parametrize("h", STEP_SIZES)
def test_the_stationary_law_is_where_the_recursion_ends(system, h):
    (_, last), *_ = laws(system, h, [2000])
    for part, expected in zip(last, stationary_law(system, h), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-10, atol=1e-10)


def test_a_smaller_step_leaves_a_smaller_bias(system):
    small, large = (
        float(divergence(stationary_law(system, h), system.goal)) for h in sorted(STEP_SIZES)
    )
    # second order: the excess variance is proportional to h and the divergence to its square
    assert large > 0.5 * (STEP_SIZES[1] / STEP_SIZES[0]) ** 2 * small


def test_adjusted_particles_fall_below_the_bias_of_unadjusted_ones(system):
    h = max(STEP_SIZES)
    # rejections slow the decay down, so the particles get twice the time
    _, position = next(run(system, mala_step, h, [round(2.0 * FINAL_TIME / h)]))
    for function in DISTANCES.values():
        value = float(function(matched(position), system.goal))
        bias = float(function(stationary_law(system, h), system.goal))
        assert value < 0.5 * bias
        # nothing is left but the finite number of particles
        expected, error = sampling_law(system.goal, function, system.goal, N_PARTICLES)
        assert value < expected + SIGMAS * error


def test_adjusted_particles_approach_their_target_at_every_look(system):
    h = max(STEP_SIZES)
    seen = [
        float(divergence(matched(position), system.goal))
        for _, position in run(system, mala_step, h, looks(h)[:4])
    ]
    first = float(divergence(first_law(system), system.goal))
    assert all(later < earlier for earlier, later in zip([first, *seen], seen, strict=False))
