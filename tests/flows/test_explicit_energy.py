"""The explicit energy at one time: normaliser beside quadrature, moves beside its density."""

import math

import pytest
import torch

import sklvebm.flows.explicit_energy
from sklvebm.flows.explicit_energy import PotentialSlice, normalise_slice, polish
from sklvebm.flows.interpolant import interpolant_marginals
from sklvebm.flows.potentials import AnchoredPotential
from sklvebm.inference.missed_components import MissedComponents
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import MLPEnergy


@pytest.fixture(scope="module")
def potential(mixture_reference):
    reference = mixture_reference(2, 2, seed=1)
    network = MLPEnergy(2, 1, (8,), "tanh", torch.Generator().manual_seed(3)).double()
    output = torch.randn(8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    network.output.data = output
    return AnchoredPotential(interpolant_marginals(reference), network).requires_grad_(False)


def grid(half_width=12.0, n=600):
    axis = torch.linspace(-half_width, half_width, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("time", [0.5, 0.95, 1.0])
def test_slice_is_the_energy_on_the_law_of_the_reference(potential, time):
    slice_ = PotentialSlice(potential, time)
    x = torch.randn((9, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = slice_.reference.from_features(x)
    value = slice_.target().evaluate(y).correction
    energy = -slice_.reference.log_marginal(x) + value
    torch.testing.assert_close(energy, potential.energy(x, time))
    torch.testing.assert_close(slice_.correction(x, x[:, :0]), value)


def test_gradient_of_the_slice_is_that_of_automatic_differentiation(potential):
    target = PotentialSlice(potential, 0.9).target()
    y = torch.randn((5, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6
    for axis in torch.eye(2, dtype=torch.float64):
        ahead, behind = (target.evaluate(y + sign * step * axis) for sign in (1.0, -1.0))
        slope = (ahead.correction - behind.correction) / (2.0 * step)
        torch.testing.assert_close(target.evaluate(y).grad @ axis, slope, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("time", [0.7, 1.0])
def test_log_normaliser_is_that_of_quadrature(potential, time):
    """Within five standard errors, and inside the bracket."""
    x, area = grid()
    wanted = float(torch.logsumexp(-potential.energy(x, time), 0) + torch.log(torch.tensor(area)))
    result = normalise_slice(
        PotentialSlice(potential, time), 512, 32, torch.Generator().manual_seed(0), 0.02
    )
    assert abs(result.estimate.value - wanted) < 5.0 * result.estimate.standard_error
    assert result.estimate.standard_error < 0.02
    assert result.estimate.lower <= wanted <= result.estimate.upper


RARE = 1e-5  # weight of the component far out
HEIGHT = 5.0  # nats: G is as much above zero there as it is below among the others


def stepped():
    """Return a potential that lifts a missed component; its slices have normalisers in closed form.

    G is constant but for a step half way between the component and the others.
    """
    reference = MixtureReference(
        torch.tensor([0.6, 0.4 - RARE, RARE]),
        torch.tensor([[-1.0, 0.0], [1.0, 0.0], [40.0, 0.0]]),
        torch.stack([torch.eye(2), 0.3 * torch.eye(2), 0.01 * torch.eye(2)]),
        latent_map=torch.zeros(0, 2),
        latent_variance=torch.ones(0),
        location=torch.zeros(2),
    )
    network = MLPEnergy(2, 1, (1,), "tanh", torch.Generator().manual_seed(0)).double()
    network.weights[0].data = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    network.biases[0].data = torch.tensor([-20.0], dtype=torch.float64)
    potential = AnchoredPotential(interpolant_marginals(reference), network)
    output = potential.bound * math.atanh(HEIGHT / potential.bound)
    network.output.data = torch.tensor([output], dtype=torch.float64)
    return potential.requires_grad_(False)


def log_normaliser(time):
    """Return log Z of a slice of `stepped`, exact up to the tails of the step."""
    ends = torch.tensor([1.0 - RARE, RARE], dtype=torch.float64).log()
    return float(torch.logsumexp(ends + time * torch.tensor([-HEIGHT, HEIGHT]), 0))


@pytest.mark.parametrize("time", [0.9, 1.0])
def test_log_normaliser_counts_a_lifted_rare_component(time):
    """Within five standard errors, and inside the bracket, of a closed form."""
    slice_ = PotentialSlice(stepped(), time)
    result = normalise_slice(slice_, 512, 8, torch.Generator().manual_seed(0), 0.02).estimate
    wanted = log_normaliser(time)
    assert abs(result.value - wanted) < 5.0 * result.standard_error
    assert result.standard_error < 0.01
    assert result.lower <= wanted <= result.upper


def test_log_normaliser_would_miss_a_lifted_rare_component(monkeypatch):
    """Starts by weight, and those of a flow that leads nowhere near, leave 0.2 nats out."""
    none = MissedComponents(torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0))
    monkeypatch.setattr(sklvebm.flows.explicit_energy, "missed_components", lambda *_: none)
    slice_ = PotentialSlice(stepped(), 1.0)
    result = normalise_slice(slice_, 512, 8, torch.Generator().manual_seed(0), 0.02).estimate
    assert result.upper < log_normaliser(1.0) - 0.15


def test_moves_lead_to_the_density_of_the_energy(potential):
    """Moments of 4,000 chains from a wrong start after 300 moves; five standard errors."""
    x, _ = grid()
    weights = torch.softmax(-potential.energy(x, 1.0), 0)
    start = torch.zeros((4000, 2), dtype=torch.float64)
    moved = polish(PotentialSlice(potential, 1.0), start, 300, torch.Generator().manual_seed(0))
    for power in (1, 2):
        wanted = weights @ x.pow(power)
        error = moved.pow(power).std(0) / 4000**0.5
        assert ((moved.pow(power).mean(0) - wanted).abs() < 5.0 * error).all()
