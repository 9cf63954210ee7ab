r"""The gradient flow of the relative entropy, and how closely kernels and JKO steps follow it.

For a start N(m, s^2) and the target N(0, 1) the flow is known: `m e^{-t}` and
`1 + (s^2 - 1) e^{-2t}`. A kernel is linear in position and noise there, so that its law follows
from two calls, without sampling.
"""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sklvebm.mcmc.langevin import KERNELS, heun_step, start, ula_step
from sklvebm.mcmc.state import STANDARD_FRAME, IndependentNoise, Target, Value

START = 2.0, 0.5  # mean and standard deviation
FINAL_TIME = 1.0
SIGMAS = 5.0


def standard_normal():
    """Return N(0, 1) as a correction on a flat base: all of its gradient is the kernel's to use."""
    return Target(
        lambda u: Value(0.5 * u.square().sum(1), u),
        lambda u: (torch.zeros_like(u[:, 0]), torch.zeros_like(u)),
        lambda u, noise: STANDARD_FRAME,
    )


class Fixed:
    """The same number wherever a normal number is asked for."""

    def __init__(self, value):
        self.value = value

    def normal(self, like):
        return torch.full_like(like, self.value)


def moved(step, position, noise, step_size, target=None):
    target = target or standard_normal()
    ones = torch.ones(len(position), dtype=torch.float64)
    chains, _ = step(
        start(position, target), target, beta=ones, step_size=step_size * ones, noise=noise
    )
    return chains.position


def linear_law(step, step_size):
    """Return factors a, b of the step `u' = a u + b xi`."""
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    a = moved(step, one, Fixed(0.0), step_size).item()
    return a, moved(step, zero, Fixed(1.0), step_size).item()


def law_of_kernel(step, n_steps):
    a, b = linear_law(step, FINAL_TIME / n_steps)
    mean, variance = START[0], START[1] ** 2
    for _ in range(n_steps):
        mean, variance = a * mean, a * a * variance + b * b
    return mean, math.sqrt(variance)


def jko_step(mean, deviation, tau):
    """Return the proximal step of KL( . || N(0, 1)) in W2, in closed form."""
    root = math.sqrt(deviation**2 + 4.0 * tau * (1.0 + tau))
    return mean / (1.0 + tau), (deviation + root) / (2.0 * (1.0 + tau))


def law_of_jko(n_steps):
    law = START
    for _ in range(n_steps):
        law = jko_step(*law, FINAL_TIME / n_steps)
    return law


def exact(time, mean=START[0], deviation=START[1]):
    return mean * math.exp(-time), math.sqrt(1.0 + (deviation**2 - 1.0) * math.exp(-2.0 * time))


def divergence(mean, deviation):
    """Return KL(N(mean, deviation^2) || N(0, 1)), nats."""
    return 0.5 * (deviation**2 + mean**2 - 1.0) - math.log(deviation)


# Order of convergence ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "order"),
    [
        (lambda n: law_of_kernel(ula_step, n), 1),
        (law_of_jko, 1),
        (lambda n: law_of_kernel(heun_step, n), 2),
    ],
)
def test_order_of_convergence_to_the_flow(law, order):
    errors = np.array([np.abs(np.subtract(law(n), exact(FINAL_TIME))) for n in (40, 80, 160)])
    slopes = np.log2(errors[:-1] / errors[1:])
    np.testing.assert_allclose(slopes, order, atol=0.15)


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("law", [(2.0, 0.5), (-1.0, 3.0)])
def test_jko_step_minimises_its_functional(law, tau):
    def functional(found):
        mean, log_deviation = found
        squared = (mean - law[0]) ** 2 + (math.exp(log_deviation) - law[1]) ** 2
        return divergence(mean, math.exp(log_deviation)) + squared / (2.0 * tau)

    best = minimize(functional, [law[0], math.log(law[1])], tol=1e-12).x
    np.testing.assert_allclose([best[0], math.exp(best[1])], jko_step(*law, tau), atol=1e-5)


def test_implicit_flow_and_explicit_steps_in_the_published_example():
    assert jko_step(*START, 0.1) == pytest.approx((1.81818, 0.60485), abs=1e-5)
    assert exact(0.1) == pytest.approx((1.80967, 0.62125), abs=1e-5)
    a, b = linear_law(ula_step, 0.1)
    euler = a * START[0], math.hypot(a * START[1], b)
    assert euler[0] == pytest.approx(1.8)
    # 0.65 is the variance-free reading s + tau (1 / s - s); the diffusion adds its noise instead
    assert START[1] + 0.1 * (1.0 / START[1] - START[1]) == pytest.approx(0.65)
    a, b = linear_law(heun_step, 0.1)
    heun = a * START[0], math.hypot(a * START[1], b)
    assert (
        np.abs(np.subtract(heun, exact(0.1))).max()
        < 0.1 * np.abs(np.subtract(euler, exact(0.1))).max()
    )


@pytest.mark.parametrize("precision", [0.5, 2.0])
def test_stationary_variance_of_the_second_order_kernel(precision):
    """Its closed form, whose bias is of second order: a quarter of (h precision)^2."""
    h = 0.2
    target = Target(
        lambda u: Value(0.5 * precision * u.square().sum(1), precision * u),
        standard_normal().base,
        None,
    )
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    a = moved(heun_step, one, Fixed(0.0), h, target).item()
    b = moved(heun_step, zero, Fixed(1.0), h, target).item()
    x = h * precision
    assert b**2 / (1.0 - a**2) == pytest.approx(
        (1.0 - x / 2) / (1.0 - x / 2 + x * x / 4) / precision
    )


def test_second_order_kernel_follows_its_law_when_it_is_run():
    """Second moments of 20,000 chains after ten steps; five standard errors."""
    h, n_steps, n_chains = 0.1, 10, 20_000
    generator = torch.Generator().manual_seed(0)
    noise = IndependentNoise(generator)
    position = START[0] + START[1] * noise.normal(torch.empty(n_chains, 1, dtype=torch.float64))
    for _ in range(n_steps):
        position = moved(KERNELS["heun"].step, position, noise, h)
    mean, deviation = law_of_kernel(heun_step, n_steps)
    for power, wanted in [(1, mean), (2, mean**2 + deviation**2)]:
        values = position.pow(power)
        assert abs(float(values.mean()) - wanted) < SIGMAS * float(values.std()) / n_chains**0.5


# Dissipation -------------------------------------------------------------------------------------


def fisher_information(mean, deviation):
    """Return E|grad log(rho / N(0, 1))|^2 under rho = N(mean, deviation^2)."""
    return mean**2 + (deviation - 1.0 / deviation) ** 2


@pytest.mark.parametrize("law", [(2.0, 0.5), (0.3, 1.7)])
def test_relative_entropy_falls_at_the_rate_of_the_fisher_information(law):
    """De Bruijn's identity, by central differences of the second-order kernel's law."""
    h = 1e-4
    a, b = linear_law(heun_step, h)
    once = a * law[0], math.hypot(a * law[1], b)
    twice = a * once[0], math.hypot(a * once[1], b)
    rate = (divergence(*law) - divergence(*twice)) / (2.0 * h)
    assert rate == pytest.approx(fisher_information(*once), rel=1e-5)


def test_fisher_information_of_the_worked_example():
    assert fisher_information(2.0, 0.5) == pytest.approx(6.25)


@pytest.mark.parametrize("name", ["ula", "heun"])
def test_relative_entropy_falls_on_a_grid_until_the_bias_of_the_step(name):
    """A double well, its law carried by the kernel's own transition density on a grid."""
    h = 0.01
    nodes = torch.linspace(-3.5, 3.5, 701, dtype=torch.float64)[:, None]
    target = Target(
        lambda u: Value((u.square() - 1.0).square().sum(1), 4.0 * u * (u.square() - 1.0)),
        standard_normal().base,
        None,
    )
    # for Heun the position is not linear in the noise: Gauss-Hermite nodes carry it
    xi, weights = np.polynomial.hermite_e.hermegauss(41)
    log_goal = -target.evaluate(nodes).correction
    goal = torch.softmax(log_goal, 0)
    law = torch.softmax(-0.5 * ((nodes[:, 0] - 1.2) / 0.2).square(), 0)
    transition = torch.zeros(701, 701, dtype=torch.float64)
    for value, weight in zip(xi, weights / weights.sum(), strict=True):
        there = moved(KERNELS[name].step, nodes, Fixed(float(value)), h, target)[:, 0]
        place = ((there + 3.5) / 0.01).clamp(0.0, 699.999)
        low, share = place.long(), place - place.floor()
        transition[torch.arange(701), low] += weight * (1.0 - share)
        transition[torch.arange(701), low + 1] += weight * share
    found = []
    for _ in range(300):
        found.append(float((law * (law.clamp(min=1e-300) / goal).log()).sum()))
        law = law @ transition
    falls = -np.diff(found)
    assert (falls[:100] > 0.0).all()
    assert found[-1] < 0.5 * found[0]
