"""Integrators of flows: their order, their running integral, and the grading of time."""

import math

import pytest
import torch

from sklvebm.flows.ode import (
    Carried,
    Rates,
    graded_times,
    heun_step,
    integrate,
    runge_kutta_step,
)


def rotation(x, t):
    """Turn the plane with a speed that grows in time; the integrand is the time times x."""
    turned = torch.stack([-x[:, 1], x[:, 0]], 1)
    return Rates(2.0 * t * turned, t * x)


def exact(start):
    """Return position and integral at time 1: the angle is t^2."""
    c, s = math.cos(1.0), math.sin(1.0)
    x, y = start[:, 0], start[:, 1]
    position = torch.stack([c * x - s * y, s * x + c * y], 1)
    # the integral of t cos(t^2) is sin(t^2) / 2, of t sin(t^2) it is (1 - cos(t^2)) / 2
    integral = 0.5 * torch.stack([s * x - (1.0 - c) * y, (1.0 - c) * x + s * y], 1)
    return position, integral


START = torch.tensor([[1.0, 0.0], [0.5, -2.0]], dtype=torch.float64)


def error(step, n_steps):
    times = [k / n_steps for k in range(n_steps + 1)]
    end = integrate(Carried(START, torch.zeros_like(START)), rotation, times, step)
    position, integral = exact(START)
    return float((end.position - position).abs().max()), float(
        (end.integral - integral).abs().max()
    )


@pytest.mark.parametrize(("step", "order"), [(heun_step, 2), (runge_kutta_step, 4)])
def test_doubling_the_steps_divides_the_error_by_two_to_the_order(step, order):
    for coarse, fine in zip(error(step, 32), error(step, 64), strict=True):
        assert abs(math.log2(coarse / fine) - order) < 0.3


def test_a_flow_backwards_returns_to_its_start():
    times = [k / 50 for k in range(51)]
    there = integrate(Carried(START, torch.zeros_like(START)), rotation, times, runge_kutta_step)
    back = integrate(there, rotation, times[::-1], runge_kutta_step)
    torch.testing.assert_close(back.position, START, atol=1e-7, rtol=0.0)
    torch.testing.assert_close(back.integral, torch.zeros_like(START), atol=1e-7, rtol=0.0)


@pytest.mark.parametrize("step", [heun_step, runge_kutta_step])
def test_steps_leave_their_input_alone_and_need_no_integral(step):
    start = START.clone()
    moved = step(Carried(start, None), lambda x, t: Rates(x, None), 0.0, 0.1)
    assert moved.integral is None
    assert torch.equal(start, START)
    torch.testing.assert_close(moved.position, START * math.exp(0.1), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("stop", [1.0, 0.9])
def test_graded_times_shrink_in_proportion_to_what_is_left(stop):
    times = graded_times(20, 0.05, stop)
    assert (times[0], times[-1], len(times)) == (0.0, stop, 21)
    ratios = [
        (later - earlier) / (1.05 - earlier)
        for earlier, later in zip(times[:-1], times[1:], strict=True)
    ]
    assert min(ratios) > 0.0
    assert max(ratios) - min(ratios) < 1e-9
