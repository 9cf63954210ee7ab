"""Integrators of an ordinary differential equation with a running integral."""

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

_FIRST_TIME = 1e-3  # in units of 1 / scale; at this time the component is still the noise
_MAX_LOG_TIME_STEP = 0.05  # between consecutive times in the tails


class Rates(NamedTuple):
    """Time derivatives at the present positions."""

    velocity: Tensor  # (B, P), of the position
    integrand: Tensor | None  # (B, ...), of the running integral; None if there is none


class Carried(NamedTuple):
    """State of the integration."""

    position: Tensor  # (B, P)
    integral: Tensor | None  # (B, ...)


Field = Callable[[Tensor, float], Rates]  # position (B, P) and time -> rates


def graded_times(n_steps: int, width: float, stop: float = 1.0) -> list[float]:
    r"""Return times from 0 to `stop` whose steps shrink towards time 1.

    .. math:: dt \propto 1 - t + width

    Parameters
    ----------
    n_steps : int
        Number of steps.
    width : float
        Distance from time 1 at which steps stop shrinking: the smallest scale of the data
        relative to the noise. Must be positive.
    stop : float, default=1.0
        Last time, at most 1.

    Returns
    -------
    times : list of float
        `n_steps + 1` ascending times.
    """
    ratio = math.log1p(-stop / (1.0 + width))
    times = [(1.0 + width) * -math.expm1(ratio * k / n_steps) for k in range(n_steps)]
    return [*times, stop]


def times_for_tails(times: list[float], scale: float) -> list[float]:
    """Return ascending times from 0 with geometrically spaced ones added, for rows in the tails.

    A component with standard deviation s becomes wider than the noise at time 1 / s, which evenly
    spaced steps miss. A distant row changes from one such component to the next while time grows
    by a few percent.

    Parameters
    ----------
    times : list of float
        Ascending times from 0.
    scale : float
        Standard deviation of the widest component.
    """
    first = _FIRST_TIME / scale
    n_steps = math.ceil(-math.log(first) / _MAX_LOG_TIME_STEP)
    early = [math.exp(math.log(first) * (1.0 - k / n_steps)) for k in range(n_steps)]
    return sorted({*times, *(t for t in early if t < times[-1])})


def heun_step(state: Carried, field: Field, start: float, stop: float) -> Carried:
    """Advance by one step of Heun's method, of second order; two evaluations."""
    first = field(state.position, start)
    second = field(_moved(state, first, stop - start).position, stop)
    return _moved(state, _mean([(first, 0.5), (second, 0.5)]), stop - start)


def runge_kutta_step(state: Carried, field: Field, start: float, stop: float) -> Carried:
    """Advance by one step of the classical Runge-Kutta method, of fourth order; four evaluations.

    Parameters
    ----------
    state : Carried
        Positions (B, P) and the integral so far; not modified.
    field : callable
        Maps positions and a time to `Rates`.
    start, stop : float
        Times; `stop` may be smaller than `start`.
    """
    step, middle = stop - start, 0.5 * (start + stop)
    first = field(state.position, start)
    second = field(_moved(state, first, 0.5 * step).position, middle)
    third = field(_moved(state, second, 0.5 * step).position, middle)
    fourth = field(_moved(state, third, step).position, stop)
    rates = _mean([(first, 1 / 6), (second, 1 / 3), (third, 1 / 3), (fourth, 1 / 6)])
    return _moved(state, rates, step)


Step = Callable[[Carried, Field, float, float], Carried]


def integrate(state: Carried, field: Field, times: list[float], step: Step) -> Carried:
    """Carry positions through all times in their order, which may be descending."""
    for start, stop in zip(times[:-1], times[1:], strict=True):
        state = step(state, field, start, stop)
    return state


def _moved(state: Carried, rates: Rates, step: float) -> Carried:
    position = torch.add(state.position, rates.velocity, alpha=step)
    if state.integral is None or rates.integrand is None:
        return Carried(position, None)
    return Carried(position, torch.add(state.integral, rates.integrand, alpha=step))


def _mean(weighted: list[tuple[Rates, float]]) -> Rates:
    velocity = reduce(torch.add, [rates.velocity * weight for rates, weight in weighted])
    integrands = [
        rates.integrand * weight for rates, weight in weighted if rates.integrand is not None
    ]
    return Rates(velocity, reduce(torch.add, integrands) if integrands else None)
