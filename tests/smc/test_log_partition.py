"""Estimates of log normalisers against closed forms, quadrature and their own error bars."""

import math

import numpy as np
import pytest
import torch

import sklvebm.smc.free_energy
from sklvebm.backends import select_correction_and_grad
from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import STANDARD_FRAME, IndependentNoise, Target, Value
from sklvebm.mcmc.tempering import respaced_ladder
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.targets import joint_target
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.smc.annealing import Ladder, anneal, annealing_schedule
from sklvebm.smc.free_energy import bennett, jackknife, mbar
from sklvebm.smc.log_partition import estimate_log_partition
from sklvebm.smc.quasi_random import latent_nodes
from sklvebm.smc.resampling import effective_sample_size, log_mean_exp, systematic_resample

SIGMAS = 5.0
PRECISION = torch.tensor([[3.0, 0.8], [0.8, 0.6]], dtype=torch.float64)
LOG_Z = -0.5 * float(torch.logdet(PRECISION))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_target():
    """Return the path from N(0, I) to N(0, PRECISION^-1)."""
    excess = PRECISION - torch.eye(2, dtype=torch.float64)
    return Target(
        lambda u: Value(0.5 * ((u @ excess) * u).sum(1), u @ excess),
        lambda u: (0.5 * u.square().sum(1), u),
        lambda u, noise: STANDARD_FRAME,
    )


def gaussian_draws(n, precision, seed):
    normal = torch.randn(n, 2, generator=generator(seed), dtype=torch.float64)
    return normal @ torch.linalg.cholesky(torch.linalg.inv(precision)).T


def annealed(n, n_steps, *, forward, seed=0, resample_below=0.0):
    """Return log weights (n,) of annealing from the base to the model, or back."""
    noise = IndependentNoise(generator(seed))
    precision = torch.eye(2, dtype=torch.float64) if forward else PRECISION
    betas = torch.linspace(0.0, 1.0, n_steps + 1, dtype=torch.float64)
    target = gaussian_target()
    log_weights, chains = anneal(
        start(gaussian_draws(n, precision, 1000 + seed), target),
        target,
        betas if forward else betas.flip(0),
        step_sizes=torch.full((n_steps + 1,), 0.8, dtype=torch.float64),
        noise=noise,
        resample_below=resample_below,
    )
    return log_weights, chains


def log_mean_and_error(log_weights):
    weights = torch.exp(log_weights - log_weights.max())
    error = float(weights.std() / weights.mean()) / math.sqrt(len(weights))
    return log_mean_exp(log_weights), error


@pytest.mark.parametrize("n_steps", [1, 4, 16])
@pytest.mark.parametrize("forward", [True, False])
def test_annealing_gives_the_normaliser_of_gaussians(forward, n_steps):
    log_weights, _ = annealed(20_000, n_steps, forward=forward)
    value, error = log_mean_and_error(log_weights)
    assert error < 0.05
    assert abs(value - (LOG_Z if forward else -LOG_Z)) < 4.0 * error


def test_annealing_tells_the_normaliser_from_its_neighbourhood():
    log_weights, _ = annealed(20_000, 16, forward=True)
    _, error = log_mean_and_error(log_weights)
    assert abs(LOG_Z) > 10.0 * error


def test_weighted_walkers_represent_the_model():
    n_groups = 40
    log_weights, chains = annealed(20_000, 4, forward=True)
    weights = torch.softmax(log_weights.reshape(n_groups, -1), 1)
    squares = chains.position.square().reshape(n_groups, -1, 2)
    estimates = torch.einsum("gn,gnp->gp", weights, squares)
    error = estimates.std(0) / math.sqrt(n_groups)
    expected = torch.diagonal(torch.linalg.inv(PRECISION))
    assert torch.all((estimates.mean(0) - expected).abs() < SIGMAS * error)


def test_annealing_both_ways_brackets_the_normaliser_in_expectation():
    n_groups = 4000
    ahead = annealed(8 * n_groups, 2, forward=True)[0].reshape(n_groups, 8)
    back = annealed(8 * n_groups, 2, forward=False, seed=1)[0].reshape(n_groups, 8)
    lower = torch.logsumexp(ahead, 1) - math.log(8)
    upper = math.log(8) - torch.logsumexp(back, 1)
    # Jensen's gap with eight walkers is far larger than the error of the mean
    for gap in (LOG_Z - lower, upper - LOG_Z):
        assert float(gap.mean()) > SIGMAS * float(gap.std()) / math.sqrt(n_groups)


def test_more_annealing_steps_spread_the_weights_less():
    spreads = [float(annealed(4000, n, forward=True)[0].std()) for n in (1, 4, 16)]
    assert spreads[0] > 1.3 * spreads[1] > 1.3**2 * spreads[2]


def test_resampling_keeps_the_normaliser_unbiased():
    n_runs = 60
    ratios = torch.tensor(
        [
            math.exp(
                log_mean_exp(annealed(128, 8, forward=True, seed=s, resample_below=0.95)[0]) - LOG_Z
            )
            for s in range(n_runs)
        ]
    )
    assert abs(float(ratios.mean()) - 1.0) < SIGMAS * float(ratios.std()) / math.sqrt(n_runs)
    log_weights, _ = annealed(128, 8, forward=True, resample_below=0.95)
    plain, _ = annealed(128, 8, forward=True)
    assert effective_sample_size(log_weights) > effective_sample_size(plain)


def test_annealing_along_a_constant_correction_is_exact():
    constant = Target(
        lambda u: Value(torch.full_like(u[:, 0], 2.5), torch.zeros_like(u)),
        lambda u: (0.5 * u.square().sum(1), u),
        lambda u, noise: STANDARD_FRAME,
    )
    betas = torch.tensor([0.0, 0.1, 0.6, 1.0], dtype=torch.float64)
    log_weights, _ = anneal(
        start(gaussian_draws(10, torch.eye(2).double(), 0), constant),
        constant,
        betas,
        step_sizes=torch.ones(4, dtype=torch.float64),
        noise=IndependentNoise(generator()),
    )
    torch.testing.assert_close(log_weights, torch.full((10,), -2.5, dtype=torch.float64))


def normal_work(n_forward, n_reverse, seed, variance=2.0, log_z=0.7):
    """Return log weights that obey Crooks' theorem exactly: normal work of equal variance."""
    random = np.random.RandomState(seed)
    scale = math.sqrt(variance)
    forward = random.normal(log_z - variance / 2.0, scale, n_forward)
    reverse = random.normal(-log_z - variance / 2.0, scale, n_reverse)
    return torch.from_numpy(forward), torch.from_numpy(reverse)


@pytest.mark.parametrize(("n_forward", "n_reverse"), [(20_000, 20_000), (20_000, 2000)])
def test_bennett_finds_the_normaliser_of_normal_work(n_forward, n_reverse):
    value, error = bennett(*normal_work(n_forward, n_reverse, seed=0))
    assert error < 0.03
    assert abs(value - 0.7) < SIGMAS * error


def test_bennett_is_exact_without_spread():
    value, error = bennett(
        torch.full((5,), 1.3, dtype=torch.float64), torch.full((3,), -1.3, dtype=torch.float64)
    )
    assert value == pytest.approx(1.3, abs=1e-8)
    assert error == pytest.approx(0.0, abs=1e-8)


def test_bennett_beats_either_direction():
    values, ahead = [], []
    for seed in range(100):
        forward, reverse = normal_work(200, 200, seed)
        values.append(bennett(forward, reverse)[0])
        ahead.append(log_mean_exp(forward))
    assert np.std(values) < 0.8 * np.std(ahead)


@pytest.mark.parametrize(("n_forward", "n_reverse"), [(400, 400), (600, 150)])
def test_errors_of_bennett_are_calibrated_on_annealed_gaussians(n_forward, n_reverse):
    n_seeds = 30
    ahead = annealed(n_seeds * n_forward, 3, forward=True)[0].reshape(n_seeds, -1)
    back = annealed(n_seeds * n_reverse, 3, forward=False, seed=1)[0].reshape(n_seeds, -1)
    scores = []
    for forward, reverse in zip(ahead, back, strict=True):
        value, error = bennett(forward, reverse)
        scores.append((value - LOG_Z) / error)
    # with 30 seeds the standard deviation of a unit normal is 1 +- 0.13
    assert 0.6 < np.std(scores, ddof=1) < 1.5
    assert abs(np.mean(scores)) < SIGMAS / math.sqrt(n_seeds)


def gaussian_ladder(n_chains, seed):
    """Return betas (5,), exact corrections (5, C) of their rungs and the rungs' log Z."""
    betas = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0], dtype=torch.float64)
    identity = torch.eye(2, dtype=torch.float64)
    excess = PRECISION - identity
    rungs = [identity + b * excess for b in betas]
    draws = torch.stack(
        [gaussian_draws(n_chains, rung, 10 * seed + k) for k, rung in enumerate(rungs)]
    )
    correction = 0.5 * torch.einsum("tcp,pq,tcq->tc", draws, excess, draws)
    exact = torch.stack([-0.5 * torch.logdet(rung) for rung in rungs])
    return betas, correction, exact, draws


def test_multistate_estimates_match_the_closed_form_of_every_rung():
    n_seeds = 30
    errors = []
    for seed in range(n_seeds):
        betas, correction, exact, _ = gaussian_ladder(1000, seed)
        log_z, _ = mbar(correction, betas, torch.zeros(5, dtype=torch.float64))
        assert float(log_z[0]) == 0.0
        errors.append(log_z - exact)
    errors = torch.stack(errors)[:, 1:]
    standard_error = errors.std(0) / math.sqrt(n_seeds)
    assert float(standard_error.max()) < 0.01
    assert torch.all(errors.mean(0).abs() < SIGMAS * standard_error)


def test_multistate_estimates_satisfy_their_equations_from_any_guess():
    betas, correction, _, _ = gaussian_ladder(500, 0)
    guess = torch.tensor([0.0, 3.0, -2.0, 1.0, 5.0], dtype=torch.float64)
    log_z, log_mixture = mbar(correction, betas, guess, tol=1e-12, max_iter=5000)
    f = correction.reshape(-1)
    denominator = torch.logsumexp(
        -betas[:, None] * f - log_z[:, None] + math.log(correction.shape[1]), 0
    )
    torch.testing.assert_close(log_mixture, denominator, rtol=1e-9, atol=1e-9)
    again = torch.logsumexp(-betas[:, None] * f - denominator, 1)
    torch.testing.assert_close(again, log_z, rtol=1e-8, atol=1e-8)


def test_pooled_density_estimates_the_normaliser_of_another_correction():
    n_seeds = 30
    excess = torch.tensor([[1.2, -0.3], [-0.3, 0.4]], dtype=torch.float64)
    exact = -0.5 * float(torch.logdet(torch.eye(2).double() + excess))
    errors = []
    for seed in range(n_seeds):
        betas, correction, _, draws = gaussian_ladder(1000, seed)
        _, log_mixture = mbar(correction, betas, torch.zeros(5, dtype=torch.float64))
        other = 0.5 * torch.einsum("tcp,pq,tcq->tc", draws, excess, draws).reshape(-1)
        errors.append(float(torch.logsumexp(-other - log_mixture, 0)) - exact)
    error = np.std(errors, ddof=1) / math.sqrt(n_seeds)
    assert error < 0.01
    assert abs(np.mean(errors)) < SIGMAS * error


def test_more_draws_of_the_first_rung_leave_the_estimates_unbiased_and_make_them_better():
    """Twenty particles a rung and 4,000 draws of the base, beside the same particles alone."""
    excess = torch.tensor([[0.6, 0.2], [0.2, 0.3]], dtype=torch.float64)
    betas = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    rungs = [torch.eye(2).double() + b * excess for b in betas]
    exact = -0.5 * float(torch.logdet(rungs[-1]))
    alone, together = [], []
    for seed in range(60):
        draws = torch.stack([gaussian_draws(20, r, 10 * seed + k) for k, r in enumerate(rungs)])
        more = gaussian_draws(4000, rungs[0], 10 * seed + 9)
        f, base = (0.5 * torch.einsum("...p,pq,...q->...", x, excess, x) for x in (draws, more))
        start = torch.zeros(3, dtype=torch.float64)
        alone.append(float(mbar(f, betas, start)[0][-1]) - exact)
        log_z, log_mixture = mbar(f, betas, start, base=base)
        # the estimate of the last rung's own correction is its log normaliser
        again = torch.logsumexp(-torch.cat([f.reshape(-1), base]) - log_mixture, 0)
        torch.testing.assert_close(again, log_z[-1], rtol=0.0, atol=1e-5)
        together.append(float(log_z[-1]) - exact)
    error = np.std(together, ddof=1) / math.sqrt(len(together))
    assert error < 0.002
    assert abs(np.mean(together)) < SIGMAS * error
    assert np.std(together) < 0.3 * np.std(alone)


def test_multistate_estimates_are_exact_for_a_constant_correction():
    betas = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    log_z, log_mixture = mbar(
        torch.full((3, 7), 2.0, dtype=torch.float64), betas, torch.zeros(3, dtype=torch.float64)
    )
    torch.testing.assert_close(log_z, -2.0 * betas)
    torch.testing.assert_close(log_mixture.exp(), torch.full((21,), 21.0, dtype=torch.float64))


def test_effective_sample_size_counts_equal_weights():
    log_weights = torch.full((3, 8), -700.0, dtype=torch.float64)
    log_weights[1, 4:] = -torch.inf
    log_weights[2, 1:] = -torch.inf
    sizes = effective_sample_size(log_weights)
    torch.testing.assert_close(sizes, torch.tensor([8.0, 4.0, 1.0], dtype=torch.float64))


class FixedUniform:
    """A source of one chosen uniform number."""

    def __init__(self, value):
        self.value = value

    def uniform(self, like):
        return torch.full_like(like, self.value)


def test_systematic_resampling_is_unbiased():
    log_weights = torch.log(torch.tensor([0.05, 0.4, 0.15, 0.3, 0.1], dtype=torch.float64))
    n, n_offsets = 7, 2000
    counts = torch.zeros(n_offsets, 5)
    for k in range(n_offsets):
        # 3.0 does not change normalised weights
        index = systematic_resample(log_weights + 3.0, FixedUniform((k + 0.5) / n_offsets), n)
        counts[k] = torch.bincount(index, minlength=5)
    expected = n * torch.exp(log_weights)
    # the average over equally spaced offsets is the expectation up to one part of the grid
    assert float((counts.double().mean(0) - expected).abs().max()) < 2.0 / n_offsets
    assert bool((counts >= torch.floor(expected)).all())
    assert bool((counts <= torch.ceil(expected)).all())


@pytest.mark.parametrize("n_latents", [1, 2, 5])
@pytest.mark.parametrize("n_nodes", [2, 64])
def test_nodes_come_in_mirrored_pairs(n_nodes, n_latents):
    nodes = latent_nodes(n_nodes, n_latents, seed=3)
    assert nodes.shape == (n_nodes, n_latents)
    assert nodes.dtype == torch.float64
    assert torch.equal(nodes[: n_nodes // 2], -nodes[n_nodes // 2 :])
    assert bool(torch.isfinite(nodes).all())
    assert torch.equal(nodes, latent_nodes(n_nodes, n_latents, seed=3))
    assert not torch.equal(nodes, latent_nodes(n_nodes, n_latents, seed=4))


def test_nodes_have_the_moments_of_the_standard_normal():
    n_seeds = 200
    nodes = torch.stack([latent_nodes(16, 2, seed=s) for s in range(n_seeds)])
    for function, expected in [
        (lambda e: e[..., 0].square(), 1.0),
        (lambda e: e[..., 1].pow(4), 3.0),
        (lambda e: e[..., 0] * e[..., 1], 0.0),
        (lambda e: torch.cos(2.0 * e[..., 0]), math.exp(-2.0)),
    ]:
        # seeds scramble independently, nodes of one seed do not
        estimates = function(nodes).mean(1)
        error = float(estimates.std()) / math.sqrt(n_seeds)
        assert abs(float(estimates.mean()) - expected) < SIGMAS * error


def test_schedules_follow_the_ladder():
    ladder = Ladder(
        torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64),
        torch.tensor([2.0, 0.5, 0.1], dtype=torch.float64),
        torch.tensor([50.0, 5.0, 1.0], dtype=torch.float64),
    )
    betas, step_sizes = annealing_schedule(ladder, 12)
    torch.testing.assert_close(betas, respaced_ladder(ladder.betas, ladder.spread, 13))
    expected = np.interp(betas.numpy(), ladder.betas.numpy(), torch.log(ladder.step_size).numpy())
    np.testing.assert_allclose(torch.log(step_sizes).numpy(), expected, rtol=1e-10, atol=1e-12)


def test_schedule_of_a_single_rung_is_uniform():
    ladder = Ladder(*(torch.full((1,), value).double() for value in (1.0, 0.3, 0.0)))
    betas, step_sizes = annealing_schedule(ladder, 4)
    assert betas.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert step_sizes.tolist() == pytest.approx([0.3] * 5)


def wavy_energy(n_features, n_latents, seed=0):
    """Return a mixture reference with a random network of output scale two."""
    g = generator(seed)
    roots = torch.eye(n_features) + 0.2 * torch.randn(2, n_features, n_features, generator=g)
    reference = MixtureReference(
        torch.tensor([0.4, 0.6]),
        torch.randn(2, n_features, generator=g),
        roots @ roots.transpose(1, 2),
        latent_map=0.5 * torch.randn(n_latents, n_features, generator=g),
        latent_variance=0.3 + torch.rand(n_latents, generator=g),
        location=torch.zeros(n_features),
    )
    network = MLPEnergy(n_features, n_latents, (16, 16), "tanh", g).double()
    with torch.no_grad():
        network.output.normal_(0.0, 1.0, generator=g)
        values = network(*reference.split(reference.sample(1000, g)))
        network.output.mul_(2.0 / values.std())
    return AnchoredEnergy(reference, network).requires_grad_(False)


def quadrature_log_z(energy):
    """Return log E_ref[exp(-f)] on a grid of the reference's own coordinates."""
    axes = [torch.linspace(-8.0, 8.0, 101, dtype=torch.float64)] * energy.n_features
    axes += [torch.linspace(-6.5, 6.5, 61, dtype=torch.float64)] * energy.n_latents
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    position = torch.cartesian_prod(*axes)
    target = joint_target(energy, select_correction_and_grad(energy))
    total = []
    for part in position.split(100_000):
        total.append(-target.base(part)[0] - energy.correction(*energy.reference.split(part)))
    constant = 0.5 * energy.n_latents * math.log(2.0 * math.pi)
    return float(torch.logsumexp(torch.cat(total), 0)) + math.log(cell) - constant


def estimated(energy, seed, tolerance=0.02, max_steps=256):
    objective = ParticleLikelihood(
        dynamics="crank-nicolson",
        n_particles=1,
        n_chains=64,
        n_temperatures=6,
        n_langevin_steps=5,
        step_size=None,
    )
    g = generator(seed)
    state = objective.init(energy, 0, generator=g)
    state, draws = objective.tempered.equilibrate(energy, state, 40, 8, g)
    result = estimate_log_partition(
        joint_target(energy, select_correction_and_grad(energy)),
        lambda: energy.reference.sample(len(draws), g, stratified=True),
        draws,
        objective.tempered.ladder(state),
        noise=IndependentNoise(g),
        tolerance=tolerance,
        max_steps=max_steps,
    )
    return result.estimate, result.n_steps


@pytest.mark.parametrize(("n_features", "n_latents"), [(1, 1), (2, 1), (1, 2)])
def test_estimates_on_a_random_network_agree_with_quadrature(n_features, n_latents):
    energy = wavy_energy(n_features, n_latents)
    exact = quadrature_log_z(energy)
    estimate, n_steps = estimated(energy, seed=0)
    assert abs(exact) > 0.15  # otherwise zero would be a fair guess
    assert 0.0 < estimate.standard_error <= 0.02
    assert abs(estimate.value - exact) < SIGMAS * estimate.standard_error
    assert estimate.lower <= estimate.value <= estimate.upper
    # six standard errors of 512 walkers wide: narrower only where the energy is smooth
    assert estimate.upper - estimate.lower <= max(0.02, 8.0 * estimate.standard_error)
    assert 128 <= estimate.effective_sample_size <= 512
    assert n_steps <= 256


def test_effort_ends_at_the_largest_number_of_steps():
    estimate, n_steps = estimated(wavy_energy(1, 1), seed=0, tolerance=1e-9, max_steps=20)
    assert n_steps == 20
    assert estimate.standard_error > 1e-9


def test_same_generator_seed_gives_identical_estimates():
    energy = wavy_energy(1, 1)
    first, second, other = (estimated(energy, seed, 0.2) for seed in (5, 5, 6))
    assert first == second
    assert first != other


def test_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(1600, generator=generator(), dtype=torch.float64)
    error = jackknife(lambda w: float(w.mean()), values, n_groups=1600)
    assert error == pytest.approx(float(values.std()) / 40.0, rel=1e-6)
    # with 16 groups the error itself is uncertain by 1 / sqrt(2 * 15) = 18 percent
    grouped = jackknife(lambda w: float(w.mean()), values)
    assert abs(grouped / error - 1.0) < SIGMAS * 0.18


def test_brackets_hold_the_closed_form_of_a_gaussian_in_thirty_of_thirty_runs():
    # the bracket allows for three standard errors on each side: expected misses 0.1 of 30
    target = gaussian_target()
    covariance_root = torch.linalg.cholesky(torch.linalg.inv(PRECISION))
    ladder = Ladder(
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        torch.tensor([1.0, 1.0], dtype=torch.float64),
        torch.tensor([1.0, 1.0], dtype=torch.float64),
    )
    for seed in range(30):
        g = generator(seed)
        draws = torch.randn(256, 2, generator=g, dtype=torch.float64)
        result = estimate_log_partition(
            target,
            lambda g=g: torch.randn(256, 2, generator=g, dtype=torch.float64),
            draws @ covariance_root.T,
            ladder,
            noise=IndependentNoise(g),
            tolerance=1e-3,
            max_steps=16,
        )
        assert result.estimate.lower <= LOG_Z <= result.estimate.upper
        assert result.estimate.lower <= result.forward
        assert result.reverse <= result.estimate.upper
        assert 0.0 < result.forward_error < 0.2


def test_multistate_weights_in_parts_are_the_same(monkeypatch):
    betas = torch.tensor([0.0, 0.4, 1.0])
    correction = torch.randn(3, 50, generator=generator())
    guess = torch.zeros(3, dtype=torch.float64)
    whole = mbar(correction, betas, guess)
    monkeypatch.setattr(sklvebm.smc.free_energy, "_CHUNK_SAMPLES", 40)
    for a, b in zip(whole, mbar(correction, betas, guess), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
