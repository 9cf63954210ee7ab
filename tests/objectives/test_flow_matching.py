"""Losses of potential flows: equal in expectation, least where the potential is the data's."""

import pytest
import torch

from sklvebm.flows.interpolant import interpolant_marginals
from sklvebm.flows.potentials import AnchoredPotential, trace_directions
from sklvebm.mcmc.state import Batch
from sklvebm.models.energies import MLPEnergy
from sklvebm.objectives.flow_matching import (
    LOSSES,
    PotentialFlow,
    covariance_loss,
    draw_points,
    flow_matching_loss,
    inconsistency,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def reference(mixture_reference):
    return mixture_reference(1, 2, defensive_weight=0.0, seed=1)


@pytest.fixture(scope="module")
def data(mixture_reference):
    return mixture_reference(2, 2, seed=2)


@pytest.fixture(scope="module")
def rows(data):
    return data.split(data.sample(20_000, generator()))[0].double()


@pytest.fixture
def potential(reference):
    network = MLPEnergy(2, 1, (8, 6), "tanh", generator(3)).double()
    network.output.data = torch.randn(6, generator=generator(4), dtype=torch.float64)
    return AnchoredPotential(interpolant_marginals(reference), network)


def test_points_lie_on_straight_paths_in_opposite_pairs(potential, rows):
    points = draw_points(potential.mixture, rows[:100], 2, generator())
    t = points.times[:, None, None]
    torch.testing.assert_close(points.x, t * points.row + (1.0 - t) * points.noise)
    first, second = points.noise.chunk(2, 1)
    assert torch.equal(first, -second)
    assert torch.equal(*points.row.chunk(2, 1))
    # every row takes part, at times spread over the interval
    assert len(torch.unique(points.row[..., 0])) == 100
    assert float(points.times[0]) < 0.4
    assert float(points.times[-1]) > 0.9


def test_times_are_as_dense_as_stated(potential, rows):
    """The distribution function of the density 1 / (1 - t + 0.05) at 20,000 stratified times."""
    times = torch.cat(
        [draw_points(potential.mixture, rows[:8], 1, generator(s)).times for s in range(2500)]
    )
    share = torch.log(1.05 / (1.05 - times)) / torch.log(torch.tensor(21.0))
    # stratified, so that the mean of the uniform shares varies less than this standard error
    assert abs(float(share.mean()) - 0.5) < 5.0 * (1.0 / 12.0 / len(times)) ** 0.5
    assert abs(float(share.var()) - 1.0 / 12.0) < 1e-3


def gradient(loss, potential):
    grads = torch.autograd.grad(loss, list(potential.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def test_both_forms_of_the_loss_have_the_same_gradient_in_expectation(potential, rows):
    """Paired differences over 300 batches; every parameter within five standard errors."""
    source = generator()
    differences = []
    for _ in range(300):
        batch = rows[torch.randint(len(rows), (64,), generator=source)]
        points = draw_points(potential.mixture, batch, 1, source)
        differences.append(
            gradient(flow_matching_loss(potential, points), potential)
            - gradient(covariance_loss(potential, points), potential)
        )
    differences = torch.stack(differences)
    error = differences.std(0) / 300**0.5
    assert ((differences.mean(0)).abs() < 5.0 * error).all()
    # the test has power: the two differ from batch to batch, and little in the mean
    size = gradient(flow_matching_loss(potential, points), potential).norm()
    assert float(error.norm()) < 0.2 * float(size)


def test_covariance_form_has_the_larger_variance_at_late_times(potential, rows):
    """Seven times as large at time 0.95 when measured; it grows with the number of features."""
    source = generator()
    values, times = [], torch.full((8,), 0.95, dtype=torch.float64)
    for _ in range(200):
        points = draw_points(potential.mixture, rows[:64], 1, source)
        x = 0.95 * points.row + 0.05 * points.noise
        reference = potential.mixture.values(x, times)
        points = points._replace(x=x, times=times, reference=reference)
        values.append(
            torch.stack(
                [flow_matching_loss(potential, points), covariance_loss(potential, points)]
            ).detach()
        )
    variances = torch.stack(values).var(0)
    assert variances[1] > 4.0 * variances[0]


def test_flow_matching_loss_is_least_at_the_potential_of_the_data(
    reference, data, rows, known_potential
):
    """Scaling the exact correction up or down costs what the square of the deviation says."""
    potential = known_potential(reference, data)
    points = draw_points(potential.mixture, rows, 1, generator())
    t = points.times[:, None].expand(points.x.shape[:2])
    grad = potential.jet(points.x.flatten(0, 1), t.flatten()).grad
    pull = ((1.0 - t).unsqueeze(-1) * grad.reshape(points.x.shape)).flatten(0, 1)
    residual = (points.target - points.reference.velocity).flatten(0, 1)
    # the slope of the loss in the scale is the mean of this product, and zero at scale one
    slope = (pull * (pull - residual)).sum(1)
    error = float(slope.std()) / len(slope) ** 0.5
    assert abs(float(slope.mean())) < 5.0 * error
    assert error < 0.05 * float(pull.square().sum(1).mean())


def test_potential_of_the_data_is_consistent(reference, data, rows, known_potential):
    potential = known_potential(reference, data)
    points = draw_points(potential.mixture, rows[:200], 1, generator())
    points = points._replace(times=points.times.clamp(min=1e-3))
    t = points.times[:, None, None]
    x = t * points.row + (1.0 - t) * points.noise
    points = points._replace(x=x, reference=potential.mixture.values(x, points.times))
    assert abs(float(inconsistency(potential, points, trace_directions(2, 2, None)))) < 1e-8


def test_a_random_potential_is_not_consistent(potential, rows):
    points = draw_points(potential.mixture, rows[:200], 1, generator())
    assert float(inconsistency(potential, points, trace_directions(2, 2, None))) > 0.1


def test_estimated_inconsistency_is_unbiased(potential, rows):
    """Products of two independent estimates over 500 pairs; five standard errors."""
    points = draw_points(potential.mixture, rows[:32], 1, generator())
    exact = float(inconsistency(potential, points, trace_directions(2, 2, None)))
    source = generator(1)
    estimates = torch.stack(
        [
            inconsistency(potential, points, trace_directions(2, 1, source, 2)).detach()
            for _ in range(500)
        ]
    )
    error = float(estimates.std()) / 500**0.5
    assert abs(float(estimates.mean()) - exact) < 5.0 * error


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("consistency", [0.0, 0.1])
def test_losses_reach_every_parameter_and_nothing_else(loss, consistency, potential, rows):
    batch = Batch(rows[:64], torch.arange(64))
    objective = PotentialFlow(loss, consistency=consistency)
    value, state, metrics = objective.step(potential, batch, None, generator())
    assert state is None
    assert ("inconsistency" in metrics) == (consistency > 0.0)
    assert not any(metric.requires_grad for metric in metrics.values())
    grads = torch.autograd.grad(value, list(potential.parameters()))
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    # the bias of the output layer does not exist; all other parameters matter
    assert all(float(grad.abs().max()) > 0.0 for grad in grads)


def test_monitor_of_an_untrained_potential_is_the_reference(reference, rows):
    network = MLPEnergy(2, 1, (8,), "tanh", generator(3))
    potential = AnchoredPotential(interpolant_marginals(reference), network)
    value = PotentialFlow().lower_bound(None, None, potential, rows[:100], generator())
    assert value == pytest.approx(float(reference.log_marginal(rows[:100]).mean()), abs=1e-9)
