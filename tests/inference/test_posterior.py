"""Posterior particles, conditional features and fresh draws against quadrature."""

import math

import pytest
import torch
from torch import nn

from sklvebm.inference.conditional import conditional_features
from sklvebm.inference.posterior import (
    ROW_PARTICLES,
    WeightedParticles,
    evidence_from_above,
    posterior_particles,
)
from sklvebm.inference.sampling import joint_draws, posterior_draws
from sklvebm.latent_maps.maps import KernelLatentMap
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, BridgedEnergy, MappedEnergy, MLPEnergy
from sklvebm.smc.annealing import Ladder
from sklvebm.smc.resampling import effective_sample_size

SIGMAS = 5.0
N_SEEDS = 24
STEP = 0.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def reference(n_features, n_latents, seed=0):
    g = generator(seed)
    roots = torch.eye(n_features) + 0.2 * torch.randn(2, n_features, n_features, generator=g)
    return MixtureReference(
        torch.tensor([0.4, 0.6]),
        torch.randn(2, n_features, generator=g),
        roots @ roots.transpose(1, 2),
        latent_map=0.7 * torch.randn(n_latents, n_features, generator=g),
        latent_variance=0.3 + torch.rand(n_latents, generator=g),
        location=0.3 * torch.ones(n_features),
    )


def wavy_energy(n_features, n_latents):
    """Return a mixture reference with a random network of output scale two."""
    base = reference(n_features, n_latents)
    g = generator(1)
    network = MLPEnergy(n_features, n_latents, (16, 16), "tanh", g).double()
    with torch.no_grad():
        network.output.normal_(0.0, 1.0, generator=g)
        values = network(*base.split(base.sample(1000, g)))
        network.output.mul_(2.0 / values.std())
    return AnchoredEnergy(base, network).requires_grad_(False)


class TwoLatentWells(nn.Module):
    """Wells at z = -1.5 and z = 1.5, seven nats deep; the row decides which one is likelier."""

    def forward(self, x, z):
        return 1.4 * (z[:, 0].square() - 2.25).square() - 0.5 * x[:, 0] * z[:, 0]


def bimodal_energy():
    base = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 1),
        torch.ones(1, 1, 1),
        latent_map=torch.zeros(1, 1),
        latent_variance=torch.ones(1),
        location=torch.zeros(1),
    )
    return AnchoredEnergy(base, TwoLatentWells(), bound=15.0)


ENERGIES = {
    "one latent": lambda: wavy_energy(2, 1),
    "two latents": lambda: wavy_energy(1, 2),
    "bimodal": bimodal_energy,
}


@pytest.fixture(params=ENERGIES)
def energy(request):
    return ENERGIES[request.param]()


def rows_of(energy, n=6):
    x, _ = energy.reference.split(energy.reference.sample(n, generator(2)))
    return x


def posterior_by_quadrature(energy, x):
    """Return free energies (N,), posterior means and second moments of z (N, L)."""
    free, means, squares = [], [], []
    axis = torch.linspace(-8.0, 8.0, 321, dtype=torch.float64)
    e = torch.cartesian_prod(*[axis] * energy.n_latents).reshape(-1, energy.n_latents)
    log_cell = energy.n_latents * math.log(float(axis[1] - axis[0]))
    for row in x:
        rows = row.expand(len(e), -1)
        z = energy.reference.to_latents(rows, e)
        log_joint = -energy(rows, z)
        jacobian = float(torch.log(energy.reference.latent_scale).sum())
        free.append(-float(torch.logsumexp(log_joint, 0)) - log_cell - jacobian)
        weights = torch.softmax(log_joint, 0)
        means.append(weights @ z)
        squares.append(weights @ z.square())
    return torch.tensor(free, dtype=torch.float64), torch.stack(means), torch.stack(squares)


def assert_mean_over_seeds(estimates, expected, largest_error):
    """Compare the mean of estimates (seeds, ...) with the truth; the error must be small too."""
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert float(error.max()) < largest_error
    assert torch.all((estimates.mean(0) - expected).abs() < SIGMAS * error)


def test_free_energy_of_posterior_particles_agrees_with_quadrature(energy):
    x = rows_of(energy)
    exact, _, _ = posterior_by_quadrature(energy, x)
    log_marginal = energy.reference.log_marginal(x)
    estimates = torch.stack(
        [
            -log_marginal
            - posterior_particles(energy, x, step_size=STEP, seed=s).log_total_weight()
            for s in range(N_SEEDS)
        ]
    )
    assert_mean_over_seeds(estimates, exact, largest_error=0.06)
    # a single call is what users get
    assert float((estimates - exact).square().mean().sqrt()) < 0.25


def test_posterior_mean_agrees_with_quadrature(energy):
    x = rows_of(energy)
    _, exact, _ = posterior_by_quadrature(energy, x)
    estimates = torch.stack(
        [
            energy.reference.to_latents(
                x, posterior_particles(energy, x, step_size=STEP, seed=s).mean()
            )
            for s in range(N_SEEDS)
        ]
    )
    assert_mean_over_seeds(estimates, exact, largest_error=0.15)


def test_the_correction_moves_the_posterior(energy):
    x = rows_of(energy)
    _, exact, _ = posterior_by_quadrature(energy, x)
    assert float((exact - energy.reference.latent_mean(x)).abs().max()) > 0.2


def tilted_energy(n_latents, precision, shift):
    """Return a model whose posterior in white latents e is Gaussian, by a tilt of the reference."""
    base = reference(2, n_latents)

    class Tilt(nn.Module):
        def forward(self, x, z):
            e = base.from_latents(x, z)
            return base.energy(x, z) + 0.5 * precision * (e - shift).square().sum(1)

    return BridgedEnergy(base, Tilt())


def tilted_posterior(n_latents, precision, shift):
    """Return the posterior's mean and deviation of each e, and the log total weight."""
    log_weight = (
        -0.5 * n_latents * (math.log1p(precision) + precision * shift**2 / (1.0 + precision))
    )
    return precision * shift / (1.0 + precision), (1.0 + precision) ** -0.5, log_weight


def tilted_errors(n_latents, precision, shift):
    """Return the errors of the mean, in posterior deviations, and of the weight, and the ESS."""
    energy = tilted_energy(n_latents, precision, shift)
    x = rows_of(energy, 3)
    particles = posterior_particles(energy, x, step_size=2.0 / (1.0 + precision), seed=0)
    mean, deviation, log_weight = tilted_posterior(n_latents, precision, shift)
    mean_error = float((particles.mean() - mean).abs().max()) / deviation
    weight_error = float((particles.log_total_weight() - log_weight).abs().max())
    return mean_error, weight_error, effective_sample_size(particles.log_weights)


@pytest.mark.parametrize(("n_latents", "largest"), [(1, 0.01), (2, 0.03), (3, 0.06)])
def test_rows_of_few_latents_that_64_nodes_serve_badly_get_many(n_latents, largest):
    mean_error, weight_error, sizes = tilted_errors(n_latents, precision=4.0, shift=1.0)
    assert float(sizes.min()) > ROW_PARTICLES
    # 64 independent particles, all effective, would leave an error of 0.125 deviations
    assert mean_error < largest
    assert weight_error < largest


@pytest.mark.parametrize(("n_latents", "largest"), [(2, 1024), (5, ROW_PARTICLES)])
def test_rows_that_nodes_cannot_serve_are_annealed(n_latents, largest):
    precision, shift = (20.0, 1.5) if n_latents == 2 else (3.0, 1.0)
    mean_error, weight_error, sizes = tilted_errors(n_latents, precision, shift)
    # without annealing hardly a particle would count
    assert 0.05 * largest < float(sizes.min()) <= largest
    error = float(sizes.min()) ** -0.5
    assert mean_error < SIGMAS * error
    assert weight_error < SIGMAS * error


@pytest.mark.parametrize("n_latents", [1, 2, 5])
def test_evidence_from_above_meets_the_one_from_below(n_latents):
    energy = tilted_energy(n_latents, precision=3.0, shift=1.0)
    x = rows_of(energy, 3)
    _, _, exact = tilted_posterior(n_latents, precision=3.0, shift=1.0)
    n_seeds = 16 if n_latents == 5 else N_SEEDS  # five latents take five times as long
    above = torch.stack(
        [evidence_from_above(energy, x, step_size=0.5, seed=200 * s) for s in range(n_seeds)]
    )
    error = above.std(0) / math.sqrt(n_seeds)
    assert float(error.max()) < 0.05
    # a bound in expectation, and close: 64 annealing steps leave little
    assert torch.all(above.mean(0) > exact - SIGMAS * error)
    assert torch.all(above.mean(0) < exact + SIGMAS * error + 0.05)


def test_bimodal_posteriors_keep_both_modes():
    energy = bimodal_energy()
    x = torch.zeros(1, 1, dtype=torch.float64)
    right, near_centre = [], []
    for seed in range(N_SEEDS):
        particles = posterior_particles(energy, x, step_size=STEP, seed=seed)
        weights = torch.softmax(particles.log_weights[0], 0)
        position = particles.position[0, :, 0]
        right.append(weights @ (position > 0.0).double())
        near_centre.append(weights @ (position.abs() < 0.5).double())
    # x = 0 makes the two modes equally likely
    assert_mean_over_seeds(
        torch.stack(right), torch.tensor(0.5, dtype=torch.float64), largest_error=0.05
    )
    assert float(torch.stack(near_centre).mean()) < 0.05


def test_rows_do_not_depend_on_their_companions(energy):
    x = rows_of(energy, 8)
    together = posterior_particles(energy, x, step_size=STEP, seed=0)
    reversed_rows = posterior_particles(energy, x.flip(0), step_size=STEP, seed=0)
    torch.testing.assert_close(
        reversed_rows.position.flip(0), together.position, rtol=1e-10, atol=1e-10
    )
    for row in range(len(x)):
        alone = posterior_particles(energy, x[row : row + 1], step_size=STEP, seed=0)
        for ask in (WeightedParticles.mean, WeightedParticles.log_total_weight):
            torch.testing.assert_close(ask(alone)[0], ask(together)[row], rtol=1e-10, atol=1e-10)


def test_posterior_draws_have_the_posterior_moments(energy):
    n_copies = 60
    x = rows_of(energy, 3)
    _, means, squares = posterior_by_quadrature(energy, x)
    rows = x.repeat_interleave(n_copies, 0)
    e = posterior_draws(energy, rows, 100, step_size=STEP, generator=generator(3))
    assert e.shape == (3 * n_copies, 100, energy.n_latents)
    draws = energy.reference.to_latents(rows.repeat_interleave(100, 0), e.flatten(0, 1))
    # the draws of a row share particles, copies of a row share nothing
    by_copy = draws.reshape(3, n_copies, 100, -1)
    assert_mean_over_seeds(by_copy.mean(2).transpose(0, 1), means, largest_error=0.08)
    assert_mean_over_seeds(by_copy.square().mean(2).transpose(0, 1), squares, largest_error=0.2)


def test_posterior_draws_of_a_row_are_distinct():
    energy = bimodal_energy()
    x = torch.zeros(1, 1, dtype=torch.float64)
    draws = posterior_draws(energy, x, 50, step_size=STEP, generator=generator())[0, :, 0]
    # rejections and resampling may leave a few copies
    assert len(torch.unique(draws)) > 40


def features_by_quadrature(energy, z):
    """Return E[x | z], (N, D), of latents z (N, L)."""
    axis = torch.linspace(-9.0, 9.0, 241, dtype=torch.float64)
    y = torch.cartesian_prod(*[axis] * energy.n_features).reshape(-1, energy.n_features)
    x = energy.reference.to_features(y)
    return torch.stack(
        [torch.softmax(-energy(x, latents.expand(len(x), -1)), 0) @ x for latents in z]
    )


def latents_of(energy, n=5):
    _, z = energy.reference.split(energy.reference.sample(n, generator(4)))
    return z


@pytest.mark.parametrize("name", ["one latent", "two latents"])
def test_conditional_features_agree_with_quadrature(name):
    energy = ENERGIES[name]()
    z = latents_of(energy)
    exact = features_by_quadrature(energy, z)
    estimates = torch.stack(
        [conditional_features(energy, z, step_size=STEP, seed=s) for s in range(N_SEEDS)]
    )
    assert_mean_over_seeds(estimates, exact, largest_error=0.12)


@pytest.mark.parametrize("is_trained", [False, True])
def test_conditional_features_of_a_chart_agree_with_quadrature(is_trained):
    energy = wavy_energy(2, 1) if is_trained else untrained(2, 1)
    g = generator(6)
    landmarks = energy.reference.to_features(energy.reference.sample(6, g)[:, :2])
    latent_map = KernelLatentMap(
        landmarks,
        1.5,  # the components' own width: the latent_map is not straight within them
        offset=torch.tensor([0.2]),
        linear=0.5 * torch.randn(1, 2, generator=g),
        coefficients=0.5 * torch.randn(6, 1, generator=g),
        variance=torch.tensor([0.3]),
    )
    assert float((latent_map.jacobian(landmarks) - latent_map.linear).abs().max()) > 0.1
    x = energy.reference.to_features(energy.reference.sample(5, g)[:, :2])
    z = latent_map.mean(x)
    exact = features_by_quadrature(MappedEnergy(energy, latent_map), z)
    estimates = torch.stack(
        [
            conditional_features(energy, z, step_size=STEP, seed=s, latent_map=latent_map)
            for s in range(N_SEEDS)
        ]
    )
    assert_mean_over_seeds(estimates, exact, largest_error=0.12)


@pytest.mark.parametrize("name", ["one latent", "two latents"])
def test_conditional_features_do_not_depend_on_their_companions(name):
    energy = ENERGIES[name]()
    z = latents_of(energy, 6)
    together = conditional_features(energy, z, step_size=STEP, seed=0)
    for row in range(len(z)):
        alone = conditional_features(energy, z[row : row + 1], step_size=STEP, seed=0)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-10)


def test_joint_draws_have_the_moments_of_the_model(energy):
    axes = [torch.linspace(-8.0, 8.0, 101, dtype=torch.float64)] * energy.n_features
    axes += [torch.linspace(-7.0, 7.0, 101, dtype=torch.float64)] * energy.n_latents
    x, z = energy.reference.split(torch.cartesian_prod(*axes))
    weights = torch.softmax(-energy(x, z), 0)
    u = torch.cat([x, z], 1)
    ladder = Ladder(
        *(torch.tensor(part, dtype=torch.float64) for part in ([0.0, 1.0], [1.0, 0.5], [4.0, 1.0]))
    )
    n_runs = 30
    g = generator(5)
    first, second = [], []
    for _ in range(n_runs):
        x, e = joint_draws(energy, 300, ladder, n_steps=32, log_partition=0.0, generator=g)
        draws = torch.cat([x, energy.reference.to_latents(x, e)], 1)
        first.append(draws.mean(0))
        second.append(torch.einsum("ni,nj->nij", draws, draws).mean(0))
    # walkers of one run are resampled together, runs are independent
    assert_mean_over_seeds(torch.stack(first), weights @ u, largest_error=0.06)
    expected = torch.einsum("n,ni,nj->ij", weights, u, u)
    assert_mean_over_seeds(torch.stack(second), expected, largest_error=0.15)


@pytest.mark.parametrize("n", [1, 7, 300])
def test_joint_draws_return_as_many_rows_as_asked(n):
    energy = wavy_energy(1, 2)
    ladder = Ladder(*(torch.tensor([value], dtype=torch.float64) for value in (1.0, 0.5, 0.0)))
    x, e = joint_draws(energy, n, ladder, n_steps=4, log_partition=0.0, generator=generator())
    assert x.shape == (n, 1)
    assert e.shape == (n, 2)


class TwoSlits(nn.Module):
    """Slits of width 0.1 at x = -2 and x = 2, where the reference has three of a hundred draws."""

    def forward(self, x, z):
        off = (x[:, 0].abs() - 2.0) / 0.1
        return -10.0 * torch.exp(-0.5 * off.square())


def test_few_draws_are_as_even_as_many_walkers(monkeypatch):
    """Draws of one run share its walkers, so these have to be more than a few draws."""
    base = bimodal_energy().reference
    energy = AnchoredEnergy(base, TwoSlits(), bound=15.0)
    ladder = Ladder(
        *(torch.tensor(part, dtype=torch.float64) for part in ([0.0, 1.0], [1.0, 0.5], [4.0, 1.0]))
    )

    def spread(n_runs=40, n=256):
        g = generator(7)
        runs = [
            joint_draws(energy, n, ladder, n_steps=2, log_partition=0.0, generator=g)[0]
            for _ in range(n_runs)
        ]
        return float(torch.stack([(x > 0.0).double().mean() for x in runs]).std())

    # The share of one slit: 0.03 if draws were independent. Only three of a hundred walkers start
    # in a slit, so that 4,096 of them add 0.5 / sqrt(123) = 0.045 and 256 add 0.18; both standard
    # deviations are read off 40 runs and known to a ninth.
    assert spread() < 0.08
    monkeypatch.setattr("sklvebm.inference.sampling._MAX_WALKERS", 256)
    assert spread() > 0.12


def untrained(n_features, n_latents):
    network = MLPEnergy(n_features, n_latents, (8,), generator=generator()).double()
    return AnchoredEnergy(reference(n_features, n_latents), network).requires_grad_(False)


@pytest.mark.parametrize("n_latents", [1, 2])
def test_untrained_posterior_is_that_of_the_reference(n_latents):
    energy = untrained(2, n_latents)
    x = rows_of(energy)
    particles = posterior_particles(energy, x, step_size=STEP, seed=0)
    # nodes come in mirrored pairs, so that their mean is zero to rounding
    torch.testing.assert_close(
        energy.reference.to_latents(x, particles.mean()),
        energy.reference.latent_mean(x),
        rtol=1e-12,
        atol=1e-12,
    )
    assert float(particles.log_total_weight().abs().max()) < 1e-12


@pytest.mark.parametrize("n_latents", [1, 2])
def test_untrained_conditional_features_are_the_exact_mean_of_the_mixture(n_latents):
    energy = untrained(2, n_latents)
    z = latents_of(energy)
    conditional = energy.reference.feature_conditional(z)
    mean = torch.einsum("bm,bmd->bd", conditional.log_weights.exp(), conditional.means)
    torch.testing.assert_close(
        conditional_features(energy, z, step_size=STEP, seed=0),
        energy.reference.to_features(mean),
        rtol=1e-12,
        atol=1e-12,
    )


def test_results_depend_on_the_seed_alone():
    energy = wavy_energy(2, 1)
    x, z = rows_of(energy), latents_of(energy)
    for function in (
        lambda seed: posterior_particles(energy, x, step_size=STEP, seed=seed).position,
        lambda seed: conditional_features(energy, z, step_size=STEP, seed=seed),
        lambda seed: posterior_draws(energy, x, 3, step_size=STEP, generator=generator(seed)),
    ):
        assert torch.equal(function(1), function(1))
        assert not torch.equal(function(1), function(2))


def test_rows_without_latents_have_their_evidence_exactly():
    energy = wavy_energy(2, 1)
    network = MLPEnergy(2, 0, (16, 16), "tanh", generator(4)).double().requires_grad_(False)
    network.output.normal_(0.0, 1.0, generator=generator(5))
    bare = AnchoredEnergy(energy.reference.without_latents(), network)
    x = torch.randn(6, 2, generator=generator(6), dtype=torch.float64)
    wanted = -bare.correction(x, x[:, :0])
    options = {"step_size": STEP, "seed": 0}
    particles = posterior_particles(bare, x, **options)
    assert particles.position.shape == (6, 1, 0)
    torch.testing.assert_close(particles.log_total_weight(), wanted)
    torch.testing.assert_close(evidence_from_above(bare, x, **options), wanted)
