"""The particle likelihood on the linear-Gaussian model, where every quantity has a closed form."""

import copy
import math

import pytest
import torch

from sklvebm.mcmc.state import Batch, ParticleState
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, BridgedEnergy, LinearGaussianEnergy, MLPEnergy
from sklvebm.objectives.density_ratio import log_mean_weight
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.objectives.tempered_pool import free_energy_bound
from sklvebm.optimisation import start_optimisation
from sklvebm.smc.quasi_random import latent_nodes
from sklvebm.training import train_epoch

SIGMAS = 5.0
D, L = 3, 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def objective(dynamics="mala", **options):
    settings = {
        "dynamics": dynamics,
        "n_particles": 4,
        "n_chains": 200,
        "n_temperatures": 1,
        "n_langevin_steps": 4,
        "step_size": None,
    }
    return ParticleLikelihood(**{**settings, **options})


def gaussian_reference(x, n_latents=L):
    """Return one Gaussian with the moments of x and a latent map that no model shares."""
    return MixtureReference(
        torch.ones(1),
        x.mean(0)[None],
        torch.cov(x.T)[None],
        latent_map=torch.full((n_latents, x.shape[1]), 0.3),
        latent_variance=torch.full((n_latents,), 0.8),
        location=x.mean(0),
    )


def data(n=300):
    g = generator(1)
    x = torch.randn(n, D, generator=g, dtype=torch.float64)
    x = x @ (torch.eye(D) + 0.5 * torch.randn(D, D, generator=g)).double()
    return (x - x.mean(0)) / x.std(0)


def linear_gaussian(seed=2, scale=0.25):
    network = LinearGaussianEnergy(D, L).double()
    g = generator(seed)
    with torch.no_grad():
        network.factor.add_(scale * torch.randn(D + L, D + L, generator=g))
        network.mean.add_(scale * torch.randn(D + L, generator=g))
    return network


def exact_draws(network, n, seed):
    """Return `(x, z)` drawn from the model itself."""
    covariance = torch.linalg.inv(network.precision().detach())
    normal = torch.randn(n, D + L, generator=generator(seed), dtype=torch.float64)
    u = network.mean.detach() + normal @ torch.linalg.cholesky(covariance).T
    return u[:, :D], u[:, D:]


def near_model(network, n):
    """Return rows that the model could nearly have produced: particles on them mix in a moment."""
    x, _ = exact_draws(network, n, seed=77)
    return 1.2 * x + 0.3


def exact_state(particles, energy, x, seed):
    """Return a state whose particles follow posterior and model exactly."""
    state = particles.init(energy, len(x), generator=generator(seed))
    reference = energy.reference
    mean, covariance = (part.detach() for part in energy.network.posterior(x))
    noise = torch.randn(len(x) * 4, L, generator=generator(seed + 1), dtype=torch.float64)
    rows = x.repeat_interleave(4, 0)
    z = mean.repeat_interleave(4, 0) + noise @ torch.linalg.cholesky(covariance).T
    pool_x, pool_z = exact_draws(energy.network, particles.n_chains, seed + 2)
    position = torch.cat(
        [reference.from_features(pool_x), reference.from_latents(pool_x, pool_z)], 1
    )
    state.latents.values.copy_(reference.from_latents(rows, z).reshape(len(x), 4, L))
    return state._replace(pool=position[None])


def flat_gradient(loss, energy):
    parameters = [energy.network.factor, energy.network.mean]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


def minus_log_likelihood(network, x):
    return network.free_energy(x).mean() + network.log_partition()


def whole(x):
    return Batch(x, torch.arange(len(x)))


def z_scores(estimates, expected):
    estimates = torch.stack(estimates)
    return (estimates.mean(0) - expected) / (estimates.std(0) / math.sqrt(len(estimates)))


@pytest.mark.parametrize(
    ("dynamics", "n_temperatures"),
    [
        ("mala", 1),
        ("leimkuhler-matthews", 1),
        ("crank-nicolson", 1),
        ("crank-nicolson", 6),
        ("mala", 4),
    ],
)
def test_gradient_is_that_of_the_likelihood(dynamics, n_temperatures):
    network = linear_gaussian()
    x = near_model(network, 60)
    energy = BridgedEnergy(gaussian_reference(x), network)
    particles = objective(dynamics, n_temperatures=n_temperatures)
    expected = flat_gradient(minus_log_likelihood(energy.network, x), energy)
    estimates = []
    for seed in range(12):
        g = generator(seed)
        state = particles.init(energy, len(x), generator=g)
        total = torch.zeros_like(expected)
        for sweep in range(45):
            loss, state, _ = particles.step(energy, whole(x), state, g)
            if sweep >= 30:
                total += flat_gradient(loss, energy) / 15.0
        estimates.append(total)
    scores = z_scores(estimates, expected)
    # 20 comparisons with 11 degrees of freedom: a 5-sigma bound in the sense of Student's t
    assert float(scores.abs().max()) < 8.0
    precision = torch.stack(estimates).std(0) / math.sqrt(12)
    assert float((expected.abs() / precision).max()) > 30.0


def test_gradient_from_exact_particles_is_unbiased():
    x = data(60)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective("mala")
    expected = flat_gradient(minus_log_likelihood(energy.network, x), energy)
    estimates = []
    for seed in range(100):
        state = exact_state(particles, energy, x, 10 * seed)
        loss, _, _ = particles.step(energy, whole(x), state, generator(seed))
        estimates.append(flat_gradient(loss, energy))
    assert float(z_scores(estimates, expected).abs().max()) < SIGMAS
    assert float(z_scores(estimates, 0.0).abs().max()) > 4.0 * SIGMAS


def test_both_phases_cancel_at_the_truth():
    energy = BridgedEnergy(gaussian_reference(data(60)), linear_gaussian())
    particles = objective("mala")
    estimates = []
    for seed in range(150):
        x, _ = exact_draws(energy.network, 60, 100_000 + seed)
        state = exact_state(particles, energy, x, 10 * seed)
        loss, _, _ = particles.step(energy, whole(x), state, generator(seed))
        estimates.append(flat_gradient(loss, energy))
    assert float(z_scores(estimates, 0.0).abs().max()) < SIGMAS


def step_of_copy(particles, energy, x, state, seed=1):
    """Return what a step on all rows x returns, and leave the state as it was."""
    return particles.step(energy, whole(x), copy.deepcopy(state), generator(seed))


def changes(before, after):
    before, after = (s._replace(latents=s.latents.values) for s in (before, after))
    return [
        name
        for name, a, b in zip(ParticleState._fields, before, after, strict=True)
        if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)
    ]


@pytest.mark.parametrize("n_temperatures", [1, 5])
def test_a_step_writes_into_latents_only_and_differentiates_in_the_parameters_only(
    n_temperatures,
):
    x = data(40)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective(n_temperatures=n_temperatures)
    state = particles.init(energy, 40, generator=generator())
    before = copy.deepcopy(state)
    loss, after, metrics = particles.step(energy, whole(x), state, generator(1))
    assert changes(before, state) == ["latents"]
    assert after.latents is state.latents
    assert torch.equal(x, data(40))
    assert loss.requires_grad
    assert loss.shape == ()
    assert isinstance(after, ParticleState)
    assert not any(t.requires_grad for t in after if isinstance(t, torch.Tensor))
    assert {"latents", "pool", "n_updates"} <= set(changes(before, after))
    assert set(metrics) == {"swap_rate", "least_swap_rate", "pool_acceptance", "latent_acceptance"}


def test_same_seed_gives_the_same_step():
    x = data(40)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective("crank-nicolson", n_temperatures=4)
    state = particles.init(energy, 40, generator=generator())
    first, second, other = (step_of_copy(particles, energy, x, state, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0])
    assert changes(first[1], second[1]) == []
    assert not torch.equal(first[0], other[0])


def test_only_the_particles_of_the_batch_move():
    x = data(40)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective()
    state = particles.init(energy, 40, generator=generator())
    index = torch.tensor([3, 17, 5])
    before = state.latents.values.clone()
    _, after, _ = particles.step(energy, Batch(x[index], index), state, generator(1))
    moved = (after.latents.values != before).any(2).any(1)
    assert sorted(torch.nonzero(moved).flatten().tolist()) == [3, 5, 17]


PLAIN = ["ula", "mala", "leimkuhler-matthews"]


@pytest.mark.parametrize("dynamics", PLAIN)
def test_plain_particles_go_on_from_where_they_were(dynamics):
    """With a vanishing step every particle stays at its place: no restarts, no exchanges."""
    x = data(40)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective(dynamics, step_size=1e-8)
    state = particles.init(energy, 40, generator=generator())
    after = copy.deepcopy(state)
    for seed in range(3):
        _, after, metrics = particles.step(energy, whole(x), after, generator(seed))
        assert float(metrics["swap_rate"]) == 1.0  # no pair was tried
    latents = after.latents.values - state.latents.values
    for distance in ((after.pool - state.pool).abs().max(), latents.abs().max()):
        # twelve steps of a random walk of variance 2e-8 each
        assert 0.0 < float(distance) < 5e-3
    assert torch.equal(after.betas, torch.ones(1, dtype=torch.float64))
    assert after.n_updates == 3


@pytest.mark.parametrize("dynamics", ["ula", "mala"])
def test_plain_loss_is_the_difference_of_two_means(dynamics):
    x = data(40)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective(dynamics)
    state = particles.init(energy, 40, generator=generator())
    loss, after, _ = particles.step(energy, whole(x), state, generator(1))
    rows = x.repeat_interleave(4, 0)
    z = energy.reference.to_latents(rows, after.latents.values.reshape(-1, L))
    positive = energy.network(rows, z) - energy.reference.energy(rows, z)
    pool_x, pool_z = energy.reference.split(after.pool[0])
    negative = energy.network(pool_x, pool_z) - energy.reference.energy(pool_x, pool_z)
    torch.testing.assert_close(loss, positive.mean() - negative.mean(), rtol=1e-12, atol=1e-12)


def test_plain_unadjusted_step_is_euler_maruyama_on_both_flows():
    x = data(40)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective("ula", n_langevin_steps=1, step_size=0.03)
    state = particles.init(energy, 40, generator=generator())
    _, after, _ = step_of_copy(particles, energy, x, state)
    g, reference = generator(1), energy.reference
    # one draw for both: the latents' numbers stand first, in the last columns
    e = state.latents.values.reshape(-1, L).clone().requires_grad_()
    rows = x.repeat_interleave(4, 0)
    (drift,) = torch.autograd.grad(energy.network(rows, reference.to_latents(rows, e)).sum(), e)
    noise = torch.randn(len(e) + state.pool.shape[1], D + L, generator=g, dtype=torch.float64)
    moved = e.detach() - 0.03 * drift + math.sqrt(0.06) * noise[: len(e), D:]
    torch.testing.assert_close(after.latents.values.reshape(-1, L), moved, rtol=1e-10, atol=1e-10)
    u = state.pool[0].clone().requires_grad_()
    (drift,) = torch.autograd.grad(energy.network(*reference.split(u)).sum(), u)
    moved = u.detach() - 0.03 * drift + math.sqrt(0.06) * noise[len(e) :]
    torch.testing.assert_close(after.pool[0], moved, rtol=1e-10, atol=1e-10)


def published_algorithm(x, *, step_size, n_particles, n_chains, n_steps, rates, seed):
    """Algorithm 1 in the units of the data; returns the average of the last third of iterates.

    Persistent posterior particles for every row, one persistent joint pool, unadjusted Langevin
    steps in both, stochastic ascent on the plain energy contrast in between.
    """
    g = generator(seed)
    network = LinearGaussianEnergy(D, L).double()
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    rows = x.repeat_interleave(n_particles, 0)
    z = torch.randn(len(rows), L, generator=g, dtype=torch.float64)
    pool = torch.randn(n_chains, D + L, generator=g, dtype=torch.float64)
    average, n_averaged = torch.zeros((D + L) * (D + L + 1), dtype=torch.float64), 0
    for update, rate in enumerate(rates):
        with torch.no_grad():
            precision, mean = network.precision(), network.mean
            for _ in range(n_steps):
                drift = (torch.cat([rows, z], 1) - mean) @ precision[:, D:]
                noise = torch.randn(z.shape, generator=g, dtype=torch.float64)
                z = z - step_size * drift + math.sqrt(2.0 * step_size) * noise
                noise = torch.randn(pool.shape, generator=g, dtype=torch.float64)
                drift = (pool - mean) @ precision
                pool = pool - step_size * drift + math.sqrt(2.0 * step_size) * noise
        loss = network(rows, z).mean() - network(pool[:, :D], pool[:, D:]).mean()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update >= 2 * len(rates) // 3:
            flat = torch.cat([network.factor.detach().flatten(), network.mean.detach()])
            average, n_averaged = average + flat, n_averaged + 1
    with torch.no_grad():
        average /= n_averaged
        network.factor.copy_(average[: (D + L) ** 2].reshape(D + L, D + L))
        network.mean.copy_(average[(D + L) ** 2 :])
    return network


RATES = [0.03] * 400 + [0.005] * 300


def best_likelihood(x):
    """Return the likelihood of the Gaussian that fits x best, in nats per row."""
    covariance = torch.cov(x.T, correction=0)
    return float(-0.5 * (torch.logdet(covariance) + D * (1.0 + math.log(2.0 * math.pi))))


def likelihood_gap(network, x):
    return best_likelihood(x) + float(minus_log_likelihood(network, x).detach())


def test_the_published_algorithm_reaches_the_maximum_of_the_likelihood():
    network = published_algorithm(
        data(), step_size=0.02, n_particles=4, n_chains=800, n_steps=4, rates=RATES, seed=0
    )
    assert likelihood_gap(LinearGaussianEnergy(D, L).double(), data()) > 0.05
    # a maximum: nothing lies above it
    assert -1e-9 < likelihood_gap(network, data()) < 0.005


@pytest.mark.parametrize("dynamics", PLAIN)
def test_training_with_one_temperature_reaches_the_maximum_of_the_likelihood(dynamics):
    x = data()
    energy = BridgedEnergy(gaussian_reference(x), LinearGaussianEnergy(D, L).double())
    step_size = {"ula": 0.02, "mala": 0.2, "leimkuhler-matthews": 0.1}[dynamics]
    particles = objective(dynamics, n_chains=800, step_size=step_size)
    optimisation = start_optimisation(energy, learning_rate=0.03, alpha=0.0)
    g = generator(0)
    state = particles.init(energy, len(x), generator=g)
    for rate in RATES:
        optimisation, state, _ = train_epoch(
            optimisation, particles, x, state, batch_size=len(x), learning_rate=rate, generator=g
        )
    assert state.n_updates == len(RATES)
    assert -1e-9 < likelihood_gap(optimisation.average.network, x) < 0.005


def test_contrastive_negatives_are_the_rows_of_the_batch_and_their_particles_moved():
    x = near_model(linear_gaussian(), 30)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective("ula", negatives="contrastive", n_chains=120, step_size=1e-12)
    state = particles.init(energy, 30, generator=generator())
    loss, after, _ = particles.step(energy, whole(x), state, generator(1))
    seen, latents = energy.reference.split(after.pool[0])
    rows = x.repeat_interleave(4, 0)
    z = energy.reference.to_latents(rows, after.latents.values.reshape(-1, L))
    expected = torch.cat([rows, z], 1)
    distance = torch.cdist(torch.cat([seen, latents], 1), expected)
    # each particle of the batch once, as far as the steps went
    assert sorted(distance.argmin(1).tolist()) == list(range(120))
    assert float(distance.amin(1).max()) < 1e-4
    assert abs(float(loss.detach())) < 1e-4


def test_few_or_many_contrastive_chains_take_particles_equally_often():
    x = near_model(linear_gaussian(), 10)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    for n_chains, most in ((7, 1), (100, 3)):
        particles = objective("ula", negatives="contrastive", n_chains=n_chains, step_size=1e-12)
        state = particles.init(energy, 10, generator=generator())
        _, after, _ = particles.step(energy, whole(x), state, generator(1))
        rows, _ = energy.reference.split(after.pool[0])
        nearest = torch.cdist(rows, x).argmin(1)
        assert after.pool.shape == (1, n_chains, D + L)
        # four particles per row
        assert int(torch.bincount(nearest).max()) <= 4 * most


def test_training_with_contrastive_negatives_reaches_a_maximum_that_is_a_fixed_point():
    # a Gaussian that fits the rows' moments has stationary pairs of rows and exact posterior
    # particles, so that exact steps leave no contrast, however few
    x = data()
    energy = BridgedEnergy(gaussian_reference(x), LinearGaussianEnergy(D, L).double())
    particles = objective("mala", negatives="contrastive", n_chains=1200, step_size=0.2)
    optimisation = start_optimisation(energy, learning_rate=0.03, alpha=0.0)
    g = generator(0)
    state = particles.init(energy, len(x), generator=g)
    for rate in RATES:
        optimisation, state, _ = train_epoch(
            optimisation, particles, x, state, batch_size=len(x), learning_rate=rate, generator=g
        )
    assert -1e-9 < likelihood_gap(optimisation.average.network, x) < 0.005


def matched_energy():
    """Return a model and a reference of other scale with the same posterior of the latents."""
    network = linear_gaussian()
    with torch.no_grad():
        network.mean.zero_()
    precision = network.precision().detach()
    covariance = torch.linalg.inv(precision)
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, D),
        1.5 * covariance[:D, :D][None],
        latent_map=-precision[D:, :D] / precision[D:, D:],
        latent_variance=1.0 / precision[D, D:],
        location=torch.zeros(D),
    )
    return BridgedEnergy(reference, network)


def test_free_energy_bound_is_exact_where_the_reference_posterior_is():
    energy, x = matched_energy(), data(20)
    bound = free_energy_bound(energy, x, latent_nodes(2, L, seed=0))
    torch.testing.assert_close(
        bound.detach(), energy.network.free_energy(x).detach(), rtol=1e-10, atol=1e-10
    )


def test_free_energy_bound_lies_above_by_jensen_and_its_weights_are_unbiased():
    x = data(20)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    exact = energy.network.free_energy(x).detach()
    excess = torch.stack(
        [
            free_energy_bound(energy, x, latent_nodes(2, L, seed=s)).detach() - exact
            for s in range(400)
        ]
    )
    error = excess.std(0) / math.sqrt(400)
    assert torch.all(excess.mean(0) > -SIGMAS * error)
    assert float((excess.mean(0) / error).max()) > SIGMAS
    ratio = torch.exp(-excess)
    assert torch.all((ratio.mean(0) - 1.0).abs() < SIGMAS * ratio.std(0) / math.sqrt(400))


@pytest.mark.parametrize(("n_temperatures", "n_draws"), [(1, 0), (5, 0), (5, 5000)])
def test_monitored_bound_is_the_exact_one_of_a_gaussian(n_temperatures, n_draws):
    energy, x = matched_energy(), data(50)
    average = copy.deepcopy(energy)
    with torch.no_grad():
        # changes the law of x and log Z, but not the posterior: the free energy stays exact
        average.network.mean[0] += 0.2
        average.network.mean[D] += 0.2 * float(average.reference.latent_map[0, 0])
        square = average.network.factor @ average.network.factor.T
        square[0, 0] += 0.3
        average.network.factor.copy_(torch.linalg.cholesky(square))
    exact = -float(minus_log_likelihood(average.network, x).detach())
    particles = objective("crank-nicolson", n_temperatures=n_temperatures)
    values = []
    for seed in range(15):
        g = generator(seed)
        state = particles.init(energy, 0, generator=g)
        state, _ = particles.tempered.equilibrate(energy, state, 30, 1, g)
        if n_draws:
            particles.tempered.measure_with(energy.reference.sample(n_draws, g))
        values.append(particles.lower_bound(energy, state, average, x, g))
    values = torch.tensor(values)
    error = float(values.std()) / math.sqrt(15)
    assert error < 0.02
    assert abs(float(values.mean()) - exact) < SIGMAS * error


def test_a_monitored_log_z_counts_wells_that_only_the_draws_have_found():
    energy = matched_energy()
    particles = objective("crank-nicolson", n_temperatures=3)
    state = particles.init(energy, 0, generator=generator())
    draws = energy.reference.sample(2000, generator(1))
    with torch.no_grad():
        # all particles are in one place, where the energy is high
        state.pool[:] = draws[energy.correction(*energy.reference.split(draws)).argmax()]
        alone = particles.tempered.log_partition(energy, state, energy, generator())
    by_draws, _ = log_mean_weight(energy, draws)
    particles.tempered.measure_with(draws)
    with torch.no_grad():
        together = particles.tempered.log_partition(energy, state, energy, generator())
    assert float(alone) < float(by_draws) - 0.1
    assert float(together) >= float(by_draws)


def test_equilibrated_draws_follow_the_model():
    network = linear_gaussian()
    energy = BridgedEnergy(gaussian_reference(near_model(network, 60)), network)
    particles = objective("crank-nicolson", n_temperatures=5, n_chains=400)
    state = particles.init(energy, 0, generator=generator())
    state, draws = particles.tempered.equilibrate(energy, state, 60, 10, generator(1))
    assert draws.shape == (10 * 400, D + L)
    assert state.n_updates == 60
    u = torch.cat(energy.reference.split(draws), 1) - energy.network.mean.detach()
    outer = torch.einsum("bi,bj->bij", u, u).reshape(10, 400, D + L, D + L)
    # snapshots of one chain are correlated, chains are not
    by_chain = outer.mean(0)
    error = by_chain.std(0) / math.sqrt(400)
    expected = torch.linalg.inv(energy.network.precision().detach())
    assert torch.all((by_chain.mean(0) - expected).abs() < SIGMAS * error)


def test_untrained_particles_are_stationary_and_the_contrast_is_zero():
    x = data(40)
    network = MLPEnergy(D, L, (8,), generator=generator()).double()
    energy = AnchoredEnergy(gaussian_reference(x), network)
    particles = objective("crank-nicolson", n_temperatures=4)
    state = particles.init(energy, 40, generator=generator())
    loss, after, metrics = particles.step(energy, whole(x), state, generator(1))
    assert float(loss.detach()) == 0.0
    assert float(metrics["swap_rate"]) == 1.0
    assert float(metrics["pool_acceptance"]) == pytest.approx(1.0, rel=1e-12)
    assert float(metrics["latent_acceptance"]) == pytest.approx(1.0, rel=1e-12)
    assert particles.lower_bound(energy, after, energy, x, generator()) == pytest.approx(
        float(energy.reference.log_marginal(x).mean()), rel=1e-12
    )


def test_the_ladder_keeps_its_ends_and_the_reference_rung_is_redrawn():
    x = data(40)
    energy = BridgedEnergy(gaussian_reference(x), linear_gaussian())
    particles = objective("crank-nicolson", n_temperatures=5, step_size=1e-8)
    state = particles.init(energy, 40, generator=generator())
    after = state
    for _ in range(20):
        _, after, _ = particles.step(energy, whole(x), after, generator(7))
    assert float(after.betas[0]) == 0.0
    assert float(after.betas[-1]) == 1.0
    assert bool((after.betas.diff() > 0.0).all())
    assert not torch.equal(after.betas, state.betas)
    assert float((after.pool[0] - state.pool[0]).abs().mean()) > 0.1


def gaussian_divergence(mean, covariance, other_mean, other_covariance):
    first = torch.distributions.MultivariateNormal(mean, covariance)
    second = torch.distributions.MultivariateNormal(other_mean, other_covariance)
    return torch.distributions.kl_divergence(first, second)


def test_saddle_value_differs_from_the_likelihood_by_two_divergences():
    """The gap identity: log-likelihood - L = mean KL(q_i || posterior) - KL(pi || model)."""
    network, x, g = linear_gaussian().requires_grad_(False), data(5), generator(3)
    precision, width = network.precision(), D + L
    q_mean = torch.randn(5, L, generator=g, dtype=torch.float64)
    q_covariance = torch.full((1, 1), 0.6, dtype=torch.float64)
    pi_mean = torch.randn(width, generator=g, dtype=torch.float64)
    root = torch.eye(width) + 0.3 * torch.randn(width, width, generator=g)
    pi_covariance = (root @ root.T).double()

    def entropy(covariance):
        constant = len(covariance) * (1.0 + math.log(2.0 * math.pi))
        return 0.5 * (torch.logdet(covariance) + constant)

    # the mean of a quadratic is its value at the mean plus half a trace
    data_term = (
        network(x, q_mean)
        + 0.5 * torch.trace(precision[D:, D:] @ q_covariance)
        - entropy(q_covariance)
    )
    model_term = (
        network(pi_mean[None, :D], pi_mean[None, D:])[0]
        + 0.5 * torch.trace(precision @ pi_covariance)
        - entropy(pi_covariance)
    )
    saddle = -data_term.mean() + model_term
    mean, covariance = network.posterior(x)
    gap = gaussian_divergence(q_mean, q_covariance, mean, covariance).mean()
    gap = gap - gaussian_divergence(
        pi_mean, pi_covariance, network.mean, torch.linalg.inv(precision)
    )
    torch.testing.assert_close(-minus_log_likelihood(network, x) - saddle, gap)
