"""Potentials: derivatives beside automatic ones, flows beside densities known in closed form."""

import pytest
import torch

from sklvebm.flows import potentials
from sklvebm.flows.interpolant import interpolant_marginals
from sklvebm.flows.ode import (
    Carried,
    Rates,
    graded_times,
    heun_step,
    integrate,
    runge_kutta_step,
)
from sklvebm.flows.potentials import (
    AnchoredPotential,
    finest_scale,
    flow_density,
    flow_field,
    trace_directions,
    transport,
)
from sklvebm.models.energies import MLPEnergy

SEVERAL = pytest.mark.parametrize(
    ("widths", "activation"), [((8,), "tanh"), ((8, 7), "silu"), ((6, 5, 4), "softplus")]
)


def standard_normal(x):
    """Return the log-density of rows x (B, D) under N(0, I)."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def network_potential(reference, widths=(8, 7), activation="tanh", bound=1.5):
    """Return a potential with a random network whose bound is felt."""
    generator = torch.Generator().manual_seed(3)
    network = MLPEnergy(reference.n_features, 1, widths, activation, generator).double()
    network.output.data = normal(widths[-1], seed=4)
    return AnchoredPotential(interpolant_marginals(reference), network, bound)


def rows_of(reference, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return reference.split(reference.sample(n, generator))[0].double()


# Derivatives -------------------------------------------------------------------------------------


@SEVERAL
def test_derivatives_are_those_of_automatic_differentiation(widths, activation, mixture_reference):
    potential = network_potential(mixture_reference(), widths, activation)
    x, t = normal(5, 3).requires_grad_(), torch.rand(5, dtype=torch.float64).requires_grad_()
    value = potential.correction(x, t)
    grad, rate = torch.autograd.grad(value.sum(), (x, t), create_graph=True)
    hessian = torch.stack(
        [torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in grad.T], 1
    )
    directions = normal(2, 2, 3, seed=5)
    jet = potential.jet(x.detach(), t.detach(), directions)
    torch.testing.assert_close(jet.value, value)
    torch.testing.assert_close(jet.grad, grad)
    torch.testing.assert_close(jet.rate, rate)
    wanted = torch.einsum("skd,bde,ske->bs", directions, hessian, directions)
    torch.testing.assert_close(jet.second, wanted)


@pytest.mark.parametrize("t", [1e-3, 0.3, 0.7, 0.99])
def test_velocity_is_the_gradient_of_the_potential(t, mixture_reference):
    potential = network_potential(mixture_reference())
    x = normal(5, 3).requires_grad_()
    times = torch.full((5,), t, dtype=torch.float64)
    (grad,) = torch.autograd.grad(potential(x, times).sum(), x)
    torch.testing.assert_close(potential.velocity(x.detach(), t), grad)


@pytest.mark.parametrize("t", [0.2, 0.6, 0.98])
def test_energy_is_that_of_the_score_identity(t, mixture_reference):
    """`(t Φ - |x|^2 / 2) / (1 - t)` is minus the energy, up to a constant."""
    potential = network_potential(mixture_reference())
    x = normal(6, 3)
    phi = potential(x, torch.full((6,), t, dtype=torch.float64))
    stated = (t * phi - 0.5 * x.square().sum(1)) / (1.0 - t)
    shift = stated + potential.energy(x, t)
    torch.testing.assert_close(shift, shift[:1].expand(6), atol=1e-9, rtol=0.0)


def test_correction_is_bounded(mixture_reference):
    potential = network_potential(mixture_reference(), bound=0.5)
    x = 100.0 * normal(50, 3)
    assert bool((potential.correction(x, torch.ones(50).double()).abs() <= 0.5).all())


def test_potential_without_network_is_the_reference(mixture_reference):
    reference = mixture_reference()
    potential = AnchoredPotential(interpolant_marginals(reference), None)
    x = rows_of(reference, 20)
    density = flow_density(potential, x, 8, trace_directions(3, 3, None))
    assert float(density.gains.abs().max()) == 0.0
    torch.testing.assert_close(density.log_density, reference.log_marginal(x))


# Directions --------------------------------------------------------------------------------------


def test_as_many_directions_as_features_give_the_exact_trace():
    directions = trace_directions(4, 9, None)
    torch.testing.assert_close(directions[0], torch.eye(4, dtype=torch.float64))


def test_few_directions_give_an_unbiased_trace():
    """Mean over 4,000 sets of two directions in five dimensions; five standard errors."""
    matrix = normal(5, 5)
    matrix = matrix + matrix.T
    directions = trace_directions(5, 2, torch.Generator().manual_seed(0), 4000)
    estimates = torch.einsum("skd,de,ske->s", directions, matrix, directions)
    error = float(estimates.std()) / 4000**0.5
    assert abs(float(estimates.mean() - matrix.trace())) < 5.0 * error
    gram = directions @ directions.transpose(1, 2)
    torch.testing.assert_close(gram, (2.5 * torch.eye(2).double()).expand(4000, 2, 2))


def test_gram_schmidt_gives_the_directions_of_the_decomposition():
    columns = normal(3, 12, 8)
    torch.testing.assert_close(potentials._by_gram_schmidt(columns), potentials._by_qr(columns))


# Flows -------------------------------------------------------------------------------------------


def test_gain_on_the_reference_is_the_plain_change_of_variables(mixture_reference):
    """The log-density with the full divergence, by automatic differentiation, is the same."""
    reference = mixture_reference()
    potential = network_potential(reference)
    x = rows_of(reference, 10)

    def plain(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            # the velocity is the gradient of the potential, with a graph
            values = potential.mixture.values(x[None], torch.tensor([t], dtype=torch.float64))
            jet = potential.jet(x, torch.full_like(x[:, 0], t))
            velocity = values.velocity[0] + (1.0 - t) * jet.grad
            divergence = sum(
                torch.autograd.grad(velocity[:, i].sum(), x, retain_graph=True)[0][:, i]
                for i in range(3)
            )
        return Rates(velocity.detach(), divergence.detach())

    times = graded_times(100, finest_scale(potential.mixture))[::-1]
    end = integrate(Carried(x, torch.zeros(10).double()), plain, times, runge_kutta_step)
    wanted = standard_normal(end.position) + end.integral
    density = flow_density(potential, x, 100, trace_directions(3, 3, None))
    torch.testing.assert_close(density.log_density, wanted, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(density.noise, end.position, atol=1e-8, rtol=0.0)


@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("stop", [0.5, 0.9, 1.0])
def test_flow_of_a_known_potential_has_its_density(
    n_components, stop, mixture_reference, known_potential
):
    """A Gaussian reference and the exact correction towards other data, at several times."""
    reference = mixture_reference(1, 2, defensive_weight=0.0, seed=1)
    data = mixture_reference(n_components, 2, seed=2)
    potential = known_potential(reference, data)
    x = stop * rows_of(data, 20) + (1.0 - stop) * normal(20, 2)
    density = flow_density(potential, x, 64, trace_directions(2, 2, None), stop=stop)
    time = torch.tensor([stop], dtype=torch.float64)
    wanted = potential.data.values(x[None], time).log_ratio[0] + standard_normal(x)
    torch.testing.assert_close(density.log_density, wanted, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(-potential.energy(x, stop), wanted, atol=1e-9, rtol=0.0)


def test_flow_of_a_known_potential_has_the_moments_of_the_data(mixture_reference, known_potential):
    """Means and covariances of 20,000 draws by Heun's method; five standard errors."""
    reference = mixture_reference(1, 2, defensive_weight=0.0, seed=1)
    data = mixture_reference(2, 2, seed=2)
    potential = known_potential(reference, data)
    noise = normal(20_000, 2)
    times = graded_times(32, finest_scale(potential.mixture))
    draws = transport(potential, noise, times, heun_step)
    weights, means, covariances = potential.data.moments(1.0)
    mean = weights @ means
    second = covariances + means[:, :, None] * means[:, None]
    products = draws[:, :, None] * draws[:, None]
    wanted = (weights[:, None, None] * second).sum(0)
    for estimate, truth in ((draws, mean), (products, wanted)):
        error = estimate.std(0) / len(draws) ** 0.5
        assert ((estimate.mean(0) - truth).abs() < 5.0 * error).all()


def test_reference_flow_carries_one_gaussian_linearly(mixture_reference):
    """The flow of a Gaussian is its mean plus the symmetric root of its covariance times noise."""
    reference = mixture_reference(1, 3, defensive_weight=0.0)
    potential = AnchoredPotential(interpolant_marginals(reference), None)
    _, means, covariances = potential.mixture.moments(1.0)
    values, vectors = torch.linalg.eigh(covariances[0])
    root = (vectors * values.sqrt()) @ vectors.T
    noise = normal(10, 3)
    times = graded_times(64, finest_scale(potential.mixture))
    torch.testing.assert_close(
        transport(potential, noise, times), means[0] + noise @ root, atol=1e-6, rtol=0.0
    )


def test_estimated_and_exact_laplacian_agree_in_the_mean(mixture_reference):
    """Gains from 400 single directions; five standard errors."""
    reference = mixture_reference()
    potential = network_potential(reference)
    x = rows_of(reference, 4)
    exact = flow_density(potential, x, 8, trace_directions(3, 3, None)).gains[:, 0]
    probes = trace_directions(3, 1, torch.Generator().manual_seed(0), 400)
    gains = flow_density(potential, x, 8, probes).gains
    error = gains.std(1) / 400**0.5
    assert ((gains.mean(1) - exact).abs() < 5.0 * error).all()


def test_field_of_a_network_alone_needs_no_second_derivatives(mixture_reference):
    potential = network_potential(mixture_reference())
    rates = flow_field(potential)(normal(4, 3), 0.5)
    assert rates.integrand is None
    assert rates.velocity.dtype is torch.float64
