"""Every kernel's contract, its stationary law on Gaussians and mixtures, and its bias in PCD."""

import math

import pytest
import torch
from torch import nn

from sklvebm.backends import select_correction_and_grad
from sklvebm.mcmc.adaptation import adapt_step_size
from sklvebm.mcmc.langevin import (
    KERNELS,
    crank_nicolson_step,
    leimkuhler_matthews_readout,
    leimkuhler_matthews_step,
    mala_step,
    reference_step,
    start,
    ula_step,
)
from sklvebm.mcmc.state import (
    STANDARD_FRAME,
    IndependentNoise,
    SharedNoise,
    Target,
    Value,
)
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.targets import joint_target

SIGMAS = 5.0
PRECISION = torch.tensor([[2.0, 0.6], [0.6, 0.7]], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh_noise(seed=0):
    return IndependentNoise(generator(seed))


def flat_base(u):
    return torch.zeros_like(u[:, 0]), torch.zeros_like(u)


def normal_base(u):
    return 0.5 * u.square().sum(1), u


def quadratic(precision):
    """Return the path whose correction is u' precision u / 2."""
    return lambda u: Value(0.5 * ((u @ precision) * u).sum(1), u @ precision)


def gaussian_target(is_flat):
    """Return N(0, PRECISION^-1) at b = 1, on a flat or a standard normal base."""
    if is_flat:
        return Target(quadratic(PRECISION), flat_base, None)
    excess = PRECISION - torch.eye(2, dtype=torch.float64)
    return Target(quadratic(excess), normal_base, lambda u, noise: STANDARD_FRAME)


class Ripples(nn.Module):
    """A smooth correction without symmetry that couples x and z."""

    def forward(self, x, z):
        return 1.5 * torch.sin(1.3 * x[:, 0] + 0.4) * torch.cos(z[:, 0]) + 0.6 * x[:, 0] * z[:, 0]


def mixture_energy():
    """Return an energy on three well overlapping components with D = L = 1."""
    reference = MixtureReference(
        torch.tensor([0.4, 0.35, 0.25]),
        torch.tensor([[-1.0], [0.8], [1.5]]),
        torch.tensor([[[0.6]], [[1.0]], [[2.0]]]),
        latent_map=torch.tensor([[0.7]]),
        latent_variance=torch.tensor([0.5]),
        location=torch.tensor([0.2]),
    )
    return AnchoredEnergy(reference, Ripples(), bound=5.0)


def mixture_target():
    energy = mixture_energy()
    return joint_target(energy, select_correction_and_grad(energy))


def tensors(value, like):
    return torch.full((len(like),), value, dtype=like.dtype)


def run(step, target, position, *, beta, step_size, n_steps, noise):
    chains = start(position, target)
    for _ in range(n_steps):
        chains, info = step(
            chains,
            target,
            beta=tensors(beta, position),
            step_size=tensors(step_size, position),
            noise=noise,
        )
    return chains, info


def assert_mean(statistic, expected):
    """Compare the mean over independent chains (B, ...) with its expectation."""
    error = statistic.std(0) / math.sqrt(len(statistic))
    assert torch.all((statistic.mean(0) - expected).abs() < SIGMAS * error)


def assert_covariance(u, expected):
    assert_mean(u, torch.zeros_like(u[0]))
    assert_mean(torch.einsum("bi,bj->bij", u, u), expected)


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


def one_step(kernel, seed=0, n=6):
    target = mixture_target()
    position = torch.randn(n, 2, generator=generator(3), dtype=torch.float64)
    chains = start(position, target)
    noise = fresh_noise(seed)
    beta, step_size = tensors(0.8, position), tensors(kernel.default_step_size, position)
    return chains, target, noise, {"beta": beta, "step_size": step_size}


def test_kernels_leave_their_inputs_alone(kernel):
    chains, target, noise, options = one_step(kernel)
    copies = [t.clone() for t in (chains.position, *chains.value, *options.values())]
    kernel.step(chains, target, noise=noise, **options)
    for tensor, copy in zip(
        (chains.position, *chains.value, *options.values()), copies, strict=True
    ):
        assert torch.equal(tensor, copy)


def test_kernels_return_finite_chains_of_the_same_shape_and_type(kernel):
    chains, target, noise, options = one_step(kernel)
    moved, info = kernel.step(chains, target, noise=noise, **options)
    assert moved.position.shape == chains.position.shape
    assert moved.position.dtype == chains.position.dtype
    assert all(bool(torch.isfinite(t).all()) for t in (moved.position, *moved.value))
    assert not any(t.requires_grad for t in (moved.position, *moved.value))
    assert info.acceptance.shape == (6,)
    assert bool(((info.acceptance >= 0.0) & (info.acceptance <= 1.0)).all())
    assert not torch.equal(moved.position, chains.position)


def test_same_seed_gives_the_same_step_and_the_generator_advances(kernel):
    results = []
    for seed in (0, 0, 1):
        chains, target, noise, options = one_step(kernel, seed)
        before = noise.generator.get_state()
        results.append(kernel.step(chains, target, noise=noise, **options)[0].position)
        assert not torch.equal(before, noise.generator.get_state())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"leimkuhler-matthews"}))
def test_values_returned_belong_to_the_positions(name):
    # the value of Leimkuhler-Matthews belongs to the point read out, not to the chain
    kernel = KERNELS[name]
    chains, target, noise, options = one_step(kernel, n=200)
    moved, _ = kernel.step(chains, target, noise=noise, **options)
    expected = target.evaluate(moved.position)
    torch.testing.assert_close(moved.value.correction, expected.correction)
    torch.testing.assert_close(moved.value.grad, expected.grad)


def test_a_chain_moves_alike_alone_and_in_company(kernel):
    chains, target, _, options = one_step(kernel)
    together, info = kernel.step(chains, target, noise=SharedNoise(generator(), 1), **options)
    for row in range(len(chains.position)):
        alone, alone_info = kernel.step(
            start(chains.position[row : row + 1], target),
            target,
            noise=SharedNoise(generator(), 1),
            **{name: value[:1] for name, value in options.items()},
        )
        torch.testing.assert_close(
            alone.position[0], together.position[row], rtol=1e-10, atol=1e-10
        )
        torch.testing.assert_close(
            alone_info.acceptance[0], info.acceptance[row], rtol=1e-10, atol=1e-10
        )


class NoNoise:
    """Zeros in place of normal numbers."""

    def normal(self, like):
        return torch.zeros_like(like)


def test_unadjusted_step_without_noise_is_gradient_descent():
    target = gaussian_target(is_flat=False)
    position = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    moved, info = run(
        ula_step, target, position, beta=1.0, step_size=0.1, n_steps=1, noise=NoNoise()
    )
    torch.testing.assert_close(moved.position, position - 0.1 * position @ PRECISION)
    assert torch.equal(info.acceptance, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("step", [ula_step, leimkuhler_matthews_step, mala_step])
def test_flat_targets_give_brownian_motion(step):
    target = Target(quadratic(torch.zeros(2, 2, dtype=torch.float64)), flat_base, None)
    position = torch.ones(4, 2, dtype=torch.float64)
    moved, info = run(
        step, target, position, beta=1.0, step_size=0.5, n_steps=1, noise=fresh_noise(2)
    )
    # the root of twice the step is one
    torch.testing.assert_close(moved.position - position, fresh_noise(2).normal(position))
    torch.testing.assert_close(info.acceptance, torch.ones(4, dtype=torch.float64))


def test_proposals_of_infinite_energy_are_rejected():
    def walled(u):
        value = quadratic(PRECISION)(u)
        outside = u[:, 0] > 0.5
        correction = torch.where(outside, torch.nan, value.correction)
        return Value(correction, torch.where(outside[:, None], torch.nan, value.grad))

    for step in (mala_step, crank_nicolson_step):
        target = Target(walled, normal_base, lambda u, noise: STANDARD_FRAME)
        position = torch.zeros(500, 2, dtype=torch.float64)
        moved, _ = run(
            step, target, position, beta=1.0, step_size=0.5, n_steps=20, noise=fresh_noise()
        )
        assert float(moved.position[:, 0].max()) <= 0.5
        assert bool(torch.isfinite(moved.position).all())
        assert not torch.equal(moved.position, position)


def log_normal(u, mean, variance):
    return -0.5 * ((u - mean).square() / variance + math.log(2.0 * math.pi * variance)).sum(1)


def quartic(u):
    return Value((u.pow(4) / 4.0 + u).sum(1), u.pow(3) + 1.0)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_acceptance_of_mala_is_the_metropolis_ratio(beta):
    h = 0.3
    target = Target(quartic, normal_base, None)
    u = torch.randn(50, 2, generator=generator(), dtype=torch.float64)

    def energy_and_grad(v):
        value = quartic(v)
        return 0.5 * v.square().sum(1) + beta * value.correction, v + beta * value.grad

    _, info = run(mala_step, target, u, beta=beta, step_size=h, n_steps=1, noise=fresh_noise(4))
    energy, grad = energy_and_grad(u)
    moved = u - h * grad + math.sqrt(2.0 * h) * fresh_noise(4).normal(u)
    new_energy, new_grad = energy_and_grad(moved)
    log_ratio = (
        energy
        - new_energy
        + log_normal(u, moved - h * new_grad, 2.0 * h)
        - log_normal(moved, u - h * grad, 2.0 * h)
    )
    torch.testing.assert_close(info.acceptance, torch.exp(log_ratio.clamp(max=0.0)))
    assert 0.05 < float(info.acceptance.mean()) < 0.99


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_acceptance_of_crank_nicolson_is_the_metropolis_ratio(beta):
    h = 0.5
    target = Target(quartic, normal_base, lambda u, noise: STANDARD_FRAME)
    u = torch.randn(50, 2, generator=generator(), dtype=torch.float64)

    def energy(v):
        return 0.5 * v.square().sum(1) + beta * quartic(v).correction

    def proposal_mean(v):
        return ((2.0 - h) * v - 2.0 * h * beta * quartic(v).grad) / (2.0 + h)

    _, info = run(
        crank_nicolson_step, target, u, beta=beta, step_size=h, n_steps=1, noise=fresh_noise(4)
    )
    variance = 8.0 * h / (2.0 + h) ** 2
    moved = proposal_mean(u) + math.sqrt(variance) * fresh_noise(4).normal(u)
    log_ratio = (
        energy(u)
        - energy(moved)
        + log_normal(u, proposal_mean(moved), variance)
        - log_normal(moved, proposal_mean(u), variance)
    )
    torch.testing.assert_close(info.acceptance, torch.exp(log_ratio.clamp(max=0.0)))
    assert 0.05 < float(info.acceptance.mean()) < 0.99


N_CHAINS = 20_000  # independent, so that the standard error is plain


def far_start():
    """Twice too wide and away from the centre: what is found later is the kernel's own law."""
    return 1.0 + 2.0 * torch.randn(N_CHAINS, 2, generator=generator(11), dtype=torch.float64)


@pytest.mark.parametrize("is_flat", [True, False])
def test_unadjusted_covariance_has_the_predicted_excess(is_flat):
    h = 0.3
    chains, _ = run(
        ula_step,
        gaussian_target(is_flat),
        far_start(),
        beta=1.0,
        step_size=h,
        n_steps=120,
        noise=fresh_noise(1),
    )
    identity = torch.eye(2, dtype=torch.float64)
    exact = torch.linalg.inv(PRECISION)
    predicted = exact @ torch.linalg.inv(identity - 0.5 * h * PRECISION)
    assert_covariance(chains.position, predicted)
    squares = chains.position.square()
    error = squares.std(0) / math.sqrt(N_CHAINS)
    assert torch.all(squares.mean(0) - torch.diagonal(exact) > SIGMAS * error)


@pytest.mark.parametrize("is_flat", [True, False])
def test_leimkuhler_matthews_readout_is_exact_on_gaussians(is_flat):
    h = 0.5
    chains, _ = run(
        leimkuhler_matthews_step,
        gaussian_target(is_flat),
        far_start(),
        beta=1.0,
        step_size=h,
        n_steps=80,
        noise=fresh_noise(2),
    )
    exact = torch.linalg.inv(PRECISION)
    sizes = tensors(h, chains.position)
    assert_covariance(leimkuhler_matthews_readout(chains.position, sizes, fresh_noise(3)), exact)
    # the chain itself is narrower, by the variance that the readout adds
    assert_covariance(chains.position, exact - 0.5 * h * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("h", [0.2, 0.9])
def test_mala_is_exact_on_gaussians(h, is_flat):
    chains, _ = run(
        mala_step,
        gaussian_target(is_flat),
        far_start(),
        beta=1.0,
        step_size=h,
        n_steps=200,
        noise=fresh_noise(4),
    )
    assert_covariance(chains.position, torch.linalg.inv(PRECISION))


@pytest.mark.parametrize("h", [0.5, 2.0])
def test_crank_nicolson_is_exact_on_gaussians(h):
    chains, _ = run(
        crank_nicolson_step,
        gaussian_target(is_flat=False),
        far_start(),
        beta=1.0,
        step_size=h,
        n_steps=150,
        noise=fresh_noise(5),
    )
    assert_covariance(chains.position, torch.linalg.inv(PRECISION))


def features_of(u):
    """Return statistics (B, 7) that a wrong component, drift or ratio would move."""
    y, e = u[:, 0], u[:, 1]
    return torch.stack([y, e, y * y, e * e, y * e, torch.sin(2.0 * y), (y > 0.5).double()], 1)


def quadrature(target, beta):
    """Return expectations of `features_of` at inverse temperature beta."""
    # the half step keeps nodes symmetric around the jump of the last statistic
    y = 0.5 + 0.02 * (torch.arange(-700, 700, dtype=torch.float64) + 0.5)
    e = torch.linspace(-9.0, 9.0, 361, dtype=torch.float64)
    nodes = torch.cartesian_prod(y, e)
    energy = target.base(nodes)[0] + beta * target.evaluate(nodes).correction
    return torch.softmax(-energy, 0) @ features_of(nodes)


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize(
    ("name", "step_size"),
    [("crank-nicolson", 0.6), ("crank-nicolson", 2.0), ("mala", 0.3)],
)
def test_adjusted_kernels_are_exact_on_a_tempered_mixture(name, step_size, beta):
    target = mixture_target()
    position = mixture_energy().reference.sample(N_CHAINS, generator(12))
    chains, info = run(
        KERNELS[name].step,
        target,
        position,
        beta=beta,
        step_size=step_size,
        n_steps=80,
        noise=fresh_noise(6),
    )
    assert_mean(features_of(chains.position), quadrature(target, beta))
    assert 0.05 < float(info.acceptance.mean()) < 0.999


def test_the_tempered_laws_of_the_previous_test_can_be_told_apart():
    target = mixture_target()
    draws = features_of(mixture_energy().reference.sample(N_CHAINS, generator(12)))
    error = draws.std(0) / math.sqrt(N_CHAINS)
    laws = [quadrature(target, beta) for beta in (0.0, 0.5, 1.0)]
    assert_mean(draws, laws[0])
    for first, second in [(0, 1), (1, 2)]:
        assert float(((laws[first] - laws[second]).abs() / error).max()) > 4.0 * SIGMAS


@pytest.mark.parametrize("h", [0.1, 1.0, 2.0])
def test_crank_nicolson_accepts_every_proposal_on_the_reference(h):
    target = mixture_target()
    position = mixture_energy().reference.sample(N_CHAINS, generator(12))
    chains, info = run(
        crank_nicolson_step,
        target,
        position,
        beta=0.0,
        step_size=h,
        n_steps=5,
        noise=fresh_noise(7),
    )
    assert torch.equal(info.acceptance, torch.ones(N_CHAINS, dtype=torch.float64))
    assert_mean(features_of(chains.position), quadrature(target, 0.0))


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_offering_reference_draws_is_exact(beta):
    target, reference = mixture_target(), mixture_energy().reference
    noise = fresh_noise(8)
    chains = start(reference.sample(N_CHAINS, noise.generator), target)
    for _ in range(60):
        proposal = reference.sample(N_CHAINS, noise.generator)
        chains, info = reference_step(
            chains, target, proposal, beta=tensors(beta, proposal), noise=noise
        )
    assert_mean(features_of(chains.position), quadrature(target, beta))
    expected = target.evaluate(chains.position)
    torch.testing.assert_close(chains.value.correction, expected.correction)
    assert float(info.acceptance.mean()) < 0.9


def test_reference_draws_are_always_taken_where_the_correction_is_constant():
    target = Target(quadratic(torch.zeros(2, 2, dtype=torch.float64)), normal_base, None)
    position, proposal = torch.zeros(4, 2).double(), torch.ones(4, 2).double()
    chains, _ = reference_step(
        start(position, target), target, proposal, beta=tensors(1.0, position), noise=fresh_noise()
    )
    assert torch.equal(chains.position, proposal)


N_REPLICAS, N_POOL = 10, 2000


def fit_scale(name, h, n_updates, learning_rate=0.05, v=1.0, n_steps=3):
    """Fit E = scale u^2 / 2 to data of variance v by persistent contrastive divergence."""
    kernel = KERNELS[name]
    noise = fresh_noise(21)
    scale = torch.ones(N_REPLICAS, dtype=torch.float64)
    position = noise.normal(torch.empty(N_REPLICAS * N_POOL, 1, dtype=torch.float64))
    ones, sizes = tensors(1.0, position), tensors(h, position)
    history = []
    for _ in range(n_updates):
        wide = scale.repeat_interleave(N_POOL)[:, None]
        target = Target(
            lambda u, wide=wide: Value(0.5 * (wide * u * u).sum(1), wide * u), flat_base, None
        )
        chains = start(position, target)
        for _ in range(n_steps):
            chains, _ = kernel.step(chains, target, beta=ones, step_size=sizes, noise=noise)
        position = chains.position
        seen = kernel.readout(position, sizes, noise)
        variance = seen.square().reshape(N_REPLICAS, N_POOL).mean(1)
        # derivative of the mean log-likelihood: (E_model u^2 - v) / 2
        scale = scale + learning_rate * 0.5 * (variance - v)
        history.append(scale)
        if not bool(torch.isfinite(position).all()):
            break
    return torch.stack(history)


@pytest.mark.parametrize(
    ("name", "h", "expected"),
    [
        # the scale whose unadjusted variance 1 / (s (1 - h s / 2)) is that of the data
        ("ula", 0.2, (1.0 - math.sqrt(1.0 - 2.0 * 0.2)) / 0.2),
        ("leimkuhler-matthews", 0.2, 1.0),
        ("leimkuhler-matthews", 0.6, 1.0),
        ("mala", 0.6, 1.0),
    ],
)
def test_persistent_contrastive_divergence_settles_where_the_kernel_says(name, h, expected):
    history = fit_scale(name, h, n_updates=500)
    settled = history[250:].mean(0)  # (replicas,)
    error = float(settled.std()) / math.sqrt(N_REPLICAS)
    assert abs(float(settled.mean()) - expected) < SIGMAS * error
    # the prediction with bias and the one without are far apart on this scale
    assert error < 0.004


def test_unadjusted_dynamics_run_away_beyond_half_the_variance():
    h = 0.6  # > v / 2: no scale has the variance of the data
    history = fit_scale("ula", h, n_updates=3000, learning_rate=0.2)
    assert bool((history.diff(dim=0)[:50].mean(0) > 0.0).all())
    # beyond 2 / h the chains explode, and not-a-number is beyond it as well
    assert not bool((history[-1].abs() < 2.0 / h).any())


def test_step_sizes_without_a_target_acceptance_stay():
    sizes = torch.tensor([0.1, 0.2])
    for name in ("ula", "leimkuhler-matthews"):
        assert torch.equal(adapt_step_size(KERNELS[name], sizes, torch.zeros(2)), sizes)


@pytest.mark.parametrize("name", ["mala", "crank-nicolson"])
def test_step_sizes_follow_the_acceptance_up_to_their_maximum(name):
    kernel = KERNELS[name]
    sizes = torch.full((3,), 0.1)
    acceptance = torch.tensor([0.0, kernel.target_acceptance, 1.0])
    adapted = adapt_step_size(kernel, sizes, acceptance)
    assert float(adapted[0]) < 0.1 < float(adapted[2])
    assert float(adapted[1]) == pytest.approx(0.1)
    for _ in range(300):
        adapted = adapt_step_size(kernel, adapted, torch.tensor([0.0, 0.0, 1.0]))
    assert float(adapted[2]) == kernel.max_step_size
    assert float(adapted[0]) > 0.0
