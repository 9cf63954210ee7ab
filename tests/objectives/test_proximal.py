"""Near-proximal steps where everything is known: Gaussians, two-point laws, densities on a grid."""

import copy
import math

import pytest
import torch
from torch import nn

from sklvebm.mcmc.state import Batch
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, BridgedEnergy, MLPEnergy
from sklvebm.objectives.proximal import (
    Centre,
    FlowState,
    WassersteinFlow,
    differentiable_grad,
)
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.training import read_together, start_optimisation, train_epoch

SIGMAS = 5.0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_reference(n_features=1, variance=1.0):
    """Return N(0, variance I) as a reference without latents."""
    return MixtureReference(
        torch.ones(1),
        torch.zeros(1, n_features),
        variance * torch.eye(n_features)[None],
        latent_map=torch.zeros(0, n_features),
        latent_variance=torch.zeros(0),
        location=torch.zeros(n_features),
    )


class Polynomial(nn.Module):
    """The function `-(a x + b x^2 / 2)`: minus what a quadratic critic says."""

    def __init__(self, a=0.0, b=0.0):
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x, z):
        a, b = self.coefficients
        return -(a * x[:, 0] + 0.5 * b * x[:, 0].square())


def quadratic_energy(a=0.0, b=0.0):
    """Return N(0, 1) times the exponential of a quadratic; so wide a bound does nothing."""
    return AnchoredEnergy(normal_reference(), Polynomial(a, b), bound=1e7)


def two_points(mean, deviation):
    """Return two rows whose first two moments are exact."""
    return torch.tensor([[mean - deviation], [mean + deviation]], dtype=torch.float64)


def pool(**options):
    settings = {
        "dynamics": "mala",
        "n_chains": 64,
        "n_temperatures": 1,
        "n_langevin_steps": 4,
        "step_size": None,
    }
    return TemperedPool(**{**settings, **options})


def objective(proximal="jko", weight=1.0, **options):
    return WassersteinFlow(pool(), proximal=proximal, proximal_weight=weight, **options)


def frozen(energy, x, weights, v):
    """Return a state whose particles are x (n, D) and do not move."""
    particles = pool().init(energy, generator())
    correction = energy.correction(x, x[:, :0]).detach()
    return FlowState(particles, Centre(x, weights, correction, v, {}, -(10**9)))


def loss_of(flow, energy, rows, state):
    return flow.step(energy, Batch(rows, torch.arange(len(rows))), state, generator())[0]


def minimised(flow, energy, rows, state):
    """Return a copy of the energy at the minimum of the inner problem."""
    energy = copy.deepcopy(energy)
    optimizer = torch.optim.LBFGS(
        energy.parameters(),
        max_iter=100,
        tolerance_grad=1e-11,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(flow, energy, rows, state)
        loss.backward()
        return loss

    optimizer.step(closure)
    return energy


# Closed forms ------------------------------------------------------------------------------------


def test_the_critic_of_a_shift_has_the_coefficients_of_the_linearised_distance():
    r"""max E_pi f - E_rho f - c/2 E_rho |f'|^2: `a = s / c`, `b = s^2 / (2 c)` for a shift s."""
    shift, c = 0.3, 1.0
    energy = quadratic_energy()
    half = torch.full((2,), 0.5, dtype=torch.float64)
    particles = two_points(0.0, 1.0)
    state = frozen(energy, particles, half, torch.zeros_like(particles))
    flow = objective(weight=c, linearised=True)
    best = minimised(flow, energy, two_points(shift, 1.0), state)
    wanted = torch.tensor([shift / c, shift**2 / (2.0 * c)], dtype=torch.float64)
    torch.testing.assert_close(best.network.coefficients.detach(), wanted, rtol=0.0, atol=1e-7)
    # its value is half the squared distance over c, to leading order the transport cost
    value = -loss_of(flow, best, two_points(shift, 1.0), state).item()
    assert value == pytest.approx(0.5 * (shift**2 + 0.25 * shift**4) / c, abs=1e-9)


def model_points(energy):
    """Return mean and deviation of a quadratic energy."""
    a, b = energy.network.coefficients.detach().tolist()
    return a / (1.0 - b), (1.0 - b) ** -0.5


def centred(flow, energy):
    """Return a state whose two particles have the moments of a quadratic energy."""
    particles = two_points(*model_points(energy))
    half = torch.full((2,), 0.5, dtype=torch.float64)
    _, v = differentiable_grad(energy, particles)
    if flow.proximal == "gradient-penalty":
        v = -particles  # minus the gradient of the reference's energy
    return frozen(energy, particles, half, v.detach())


@pytest.mark.parametrize("variance", [0.25, 1.0])
@pytest.mark.parametrize("c", [0.1, 0.3])
def test_the_jko_term_leaves_the_variance_alone_and_the_penalty_adds_twice_its_weight(variance, c):
    """The slope of the loss is zero at the variance predicted, particles following the energy."""
    rows = two_points(0.0, math.sqrt(variance))
    for proximal, wanted in [("jko", variance), ("gradient-penalty", variance + 2.0 * c)]:
        slopes = []
        for factor in (0.9, 1.0, 1.1):
            energy = quadratic_energy(b=1.0 - 1.0 / (factor * wanted))
            flow = objective(proximal, c)
            state = centred(flow, energy)
            loss_of(flow, energy, rows, state).backward()
            slopes.append(float(energy.network.coefficients.grad[1]))
        assert slopes[1] == pytest.approx(0.0, abs=1e-12)
        # E falls with b: below the predicted variance b must grow, above it shrink
        assert slopes[0] < -1e-3
        assert slopes[2] > 1e-3


@pytest.mark.parametrize("c", [0.5, 1.0, 4.0])
def test_a_step_shrinks_the_distance_of_the_precision_by_the_predicted_factor(c):
    r"""From precision λ the step ends at λ - (v λ - 1) / (2 c): Newton's where c is half v."""
    variance, precision = 0.8, 2.0
    energy = quadratic_energy(b=1.0 - precision)
    flow = objective(weight=c, linearised=True)
    stepped = minimised(flow, energy, two_points(0.0, math.sqrt(variance)), centred(flow, energy))
    found = 1.0 - stepped.network.coefficients[1].item()
    assert found == pytest.approx(precision - (variance * precision - 1.0) / (2.0 * c), abs=1e-6)


# Gradients ---------------------------------------------------------------------------------------


def random_energy(n_features=2, seed=3, reference=None):
    network = MLPEnergy(n_features, 0, (8, 6), "tanh", generator(seed)).double()
    with torch.no_grad():
        network.output.normal_(0.0, 0.8, generator=generator(seed + 1))
    return AnchoredEnergy(reference or normal_reference(n_features), network)


@pytest.mark.parametrize("proximal", ["jko", "gradient-penalty", "none"])
def test_gradient_of_the_loss_agrees_with_finite_differences(proximal):
    energy = random_energy()
    flow = WassersteinFlow(
        pool(dynamics="crank-nicolson", n_temperatures=3),
        proximal=proximal,
        proximal_weight=0.7,
    )
    rows = torch.randn(20, 2, generator=generator(5), dtype=torch.float64)
    batch = Batch(rows, torch.arange(20))
    start = flow.ready(energy, flow.tempered.init(energy, generator()), 20, generator())
    _, state, _ = flow.step(energy, batch, start, generator(1))
    state = state._replace(centre=state.centre._replace(n_inner=0))
    with torch.no_grad():  # away from the centre, where the JKO term has a gradient
        for parameter in energy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(6)))
    loss, _, metrics = flow.step(energy, batch, state, generator(2))
    loss.backward()
    assert (float(metrics["movement"]) > 0.0) == (proximal != "none")
    for parameter in energy.parameters():
        direction = torch.randn(parameter.shape, generator=generator(7), dtype=torch.float64)
        ends = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.add_(sign * 1e-5 * direction)
                ends.append(flow.step(energy, batch, state, generator(2))[0].item())
                parameter.sub_(sign * 1e-5 * direction)
        numerical = (ends[0] - ends[1]) / 2e-5
        assert float((parameter.grad * direction).sum()) == pytest.approx(numerical, abs=1e-7)


def gradient(flow, energy, batch, state):
    loss, state, _ = flow.step(energy, batch, state, generator(1))
    parts = torch.autograd.grad(loss, list(energy.parameters()))
    return torch.cat([part.flatten() for part in parts]), state


def test_the_first_inner_step_is_that_of_contrastive_divergence_and_the_second_is_not():
    energy = random_energy()
    batch = Batch(torch.randn(20, 2, generator=generator(5)).double(), torch.arange(20))
    states, first, second = [], [], []
    for proximal in ("jko", "none"):
        flow = objective(proximal, 3.0)
        found, state = gradient(
            flow, energy, batch, FlowState(flow.tempered.init(energy, generator()), None)
        )
        first.append(found)
        states.append(state)
    torch.testing.assert_close(first[0], first[1])
    with torch.no_grad():
        energy.network.output.add_(0.1)
    for proximal, state in zip(("jko", "none"), states, strict=True):
        found, after = gradient(objective(proximal, 3.0), energy, batch, state)
        second.append(found)
        # the particles stay during the second
        assert torch.equal(after.particles.pool, state.particles.pool)
    assert float((second[0] - second[1]).norm()) > 0.1 * float(second[1].norm())
    _, moved = gradient(objective(), energy, batch, after)
    assert not torch.equal(moved.particles.pool, after.particles.pool)


def test_adding_a_constant_to_the_energy_changes_nothing():
    class Shifted(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, z):
            return self.network(x, z) + 2.0

    network = Polynomial(0.3, -0.4)
    rows = two_points(0.5, 1.2)
    gradients = []
    for module in (network, Shifted(network)):
        energy = AnchoredEnergy(normal_reference(), module, bound=1e7)
        flow = objective(weight=0.5)
        batch = Batch(rows, torch.arange(2))
        state = FlowState(flow.tempered.init(energy, generator()), None)
        gradients.append(gradient(flow, energy, batch, state)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


# With particles ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proximal", "half_life", "excess"),
    [("jko", None, 0.0), ("gradient-penalty", None, 0.4), ("gradient-penalty", 10.0, 0.0)],
)
def test_trained_on_particles_the_variance_is_biased_as_predicted(proximal, half_life, excess):
    """Five standard errors of the mean of six seeds. Annealed, the penalty has no bias."""
    rows, found = two_points(0.0, 1.0).repeat(8, 1), []
    for seed in range(6):
        flow = WassersteinFlow(
            pool(n_chains=500, n_langevin_steps=6),
            proximal=proximal,
            proximal_weight=0.2,
            half_life=half_life,
        )
        energy = quadratic_energy(b=-0.3)
        optimisation = start_optimisation(energy, learning_rate=0.02, alpha=0.0)
        g = generator(seed)
        state = flow.ready(energy, flow.tempered.init(energy, g), 0, g)
        precisions = []
        for epoch in range(200):
            optimisation, state, _ = train_epoch(
                optimisation,
                flow,
                rows,
                state,
                batch_size=16,
                learning_rate=0.02 if epoch < 100 else 0.004,
                generator=g,
            )
            if epoch >= 100:
                precisions.append(1.0 - float(optimisation.energy.network.coefficients[1]))
        found.append(len(precisions) / sum(precisions))
    found = torch.tensor(found, dtype=torch.float64)
    error = float(found.std()) / math.sqrt(len(found))
    assert error < 0.03  # a bias of 0.4 is far outside
    assert abs(float(found.mean()) - 1.0 - excess) < SIGMAS * error


def test_weights_of_the_ladder_make_all_rungs_stand_for_the_model():
    """Moments of the centre's particles under their weights; five standard errors of 40 pools."""
    energy = quadratic_energy(0.5, -0.5)
    flow = WassersteinFlow(pool(dynamics="crank-nicolson", n_temperatures=4, n_chains=100))
    mean, deviation = model_points(energy)
    moments = []
    for seed in range(40):
        g = generator(seed)
        state, _ = flow.tempered.equilibrate(energy, flow.tempered.init(energy, g), 30, 1, g)
        batch = Batch(two_points(0.0, 1.0), torch.arange(2))
        _, state, _ = flow.step(energy, batch, FlowState(state, None), g)
        centre = state.centre
        x = centre.x[:, 0]
        assert float(centre.weights.sum()) == pytest.approx(1.0)
        moments.append(torch.stack([centre.weights @ x, centre.weights @ x.square()]))
    moments = torch.stack(moments)
    error = moments.std(0) / math.sqrt(len(moments))
    wanted = torch.tensor([mean, mean**2 + deviation**2], dtype=torch.float64)
    assert bool(((moments.mean(0) - wanted).abs() < SIGMAS * error).all())


def test_monitored_log_likelihood_is_the_closed_form():
    """The spread over twelve pools; five standard errors."""
    energy = quadratic_energy(0.5, -0.5)
    mean, deviation = model_points(energy)
    rows = two_points(0.2, 0.9)
    standardised = (rows - mean) / deviation
    wanted = float((-0.5 * standardised.square()).mean())
    wanted -= math.log(deviation) + 0.5 * math.log(2.0 * math.pi)
    for n_temperatures in (1, 4):
        flow = WassersteinFlow(
            pool(dynamics="crank-nicolson", n_temperatures=n_temperatures, n_chains=400)
        )
        found = []
        for seed in range(12):
            g = generator(seed)
            state, _ = flow.tempered.equilibrate(energy, flow.tempered.init(energy, g), 30, 1, g)
            found.append(flow.lower_bound(energy, FlowState(state, None), energy, rows, g))
        found = torch.tensor(found, dtype=torch.float64)
        error = float(found.std()) / math.sqrt(len(found))
        assert error < 0.02
        assert abs(float(found.mean()) - wanted) < SIGMAS * error


def test_pool_of_a_foreign_energy_burns_in():
    energy = BridgedEnergy(normal_reference(), Polynomial(0.0, -3.0))
    flow = objective()
    particles = flow.tempered.init(energy, generator())
    state = flow.ready(energy, particles, 0, generator())
    assert flow.particles(state).n_updates > 0
    runaway = FlowState(particles._replace(pool=particles.pool + 1e4), None)
    found = [
        flow.problem(each, {"least_swap_rate": 1.0, **read_together(flow.measures(energy, each))})
        for each in (state, runaway)
    ]
    assert found[0] is None
    assert "standardised units" in found[1]


# On a grid ---------------------------------------------------------------------------------------

GRID = torch.linspace(-6.0, 6.0, 241, dtype=torch.float64)[:, None]


def log_density(energy):
    with torch.no_grad():
        log_p = -energy(GRID, GRID[:, :0])
    return log_p - torch.logsumexp(log_p, 0)


def two_humps():
    """Return rows of two humps, all on the grid, and the share of each point."""
    log_p = [-0.5 * ((GRID[:, 0] - m) / 0.4).square() for m in (-1.2, 1.0)]
    cumulative = torch.cumsum(torch.softmax(torch.logsumexp(torch.stack(log_p), 0), 0), 0)
    index = torch.searchsorted(cumulative, (torch.arange(400, dtype=torch.float64) + 0.5) / 400)
    return GRID[index], torch.bincount(index, minlength=len(GRID)).double() / 400


def divergences_of(flow, n_steps):
    """Return KL(rows || model) after each proximal step, the particles those of the model."""
    rows, share = two_humps()
    energy = random_energy(1, reference=normal_reference(variance=2.0))
    found = []
    for _ in range(n_steps + 1):
        log_p = log_density(energy)
        found.append(float(share @ (torch.log(share.clamp(min=1e-300)) - log_p)))
        _, v = differentiable_grad(energy, GRID)
        state = frozen(energy, GRID, torch.exp(log_p), v.detach())
        energy = minimised(flow, energy, rows, state)
    return torch.tensor(found)


def test_relative_entropy_falls_at_every_proximal_step():
    divergences = divergences_of(objective(weight=1.0), 6)
    assert bool((divergences.diff() < 0.0).all()), divergences
    assert divergences[-1] < 0.5 * divergences[0], divergences


def test_longer_steps_come_closer_to_maximum_likelihood():
    ends = [float(divergences_of(objective(weight=c), 2)[-1]) for c in (10.0, 1.0, 0.1)]
    assert ends == sorted(ends, reverse=True)


def test_the_tangent_alone_overshoots_where_the_model_has_two_humps():
    """Its steps are safe only below the inverse of the model's Poincare constant."""
    divergences = divergences_of(objective(weight=1.0, linearised=True), 11)
    assert float(divergences[5]) < 0.5 * float(divergences[0])
    assert float(divergences[-1]) > float(divergences[0])
