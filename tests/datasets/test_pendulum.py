"""The pendulum: conserved energy, linear response, and a second integrator."""

import numpy as np
import pytest

from sklvebm.datasets import make_pendulum


def runge_kutta(state, phase, damping, drive, frequency, duration, n_steps):
    """Integrate angle and velocity by the classical method of fourth order."""

    def rates(time, state):
        torque = drive * np.cos(frequency * time + phase)
        return np.array([state[1], torque - damping * state[1] - np.sin(state[0])])

    h = duration / n_steps
    for step in range(n_steps):
        t = step * h
        k1 = rates(t, state)
        k2 = rates(t + h / 2, state + h / 2 * k1)
        k3 = rates(t + h / 2, state + h / 2 * k2)
        k4 = rates(t + h, state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def test_rows_are_solutions_of_the_equation_of_motion():
    quiet = {"noise": 0.0, "random_state": 0, "return_factors": True}
    start, factors = make_pendulum(30, duration=0.0, **quiet)
    phase = factors[:, 1]
    parameters = {"damping": 0.3, "drive": 0.9, "drive_frequency": 1.7}
    X, ends = make_pendulum(30, duration=4.0, **parameters, **quiet)
    angle, velocity = runge_kutta(start.T, phase, 0.3, 0.9, 1.7, 4.0, 2000)
    # the reference errs by about (4 / 2000)^4, the ensemble by its tolerance of 1e-8
    assert np.allclose(np.exp(1j * X[:, 0]), np.exp(1j * angle), atol=1e-6)
    assert np.allclose(X[:, 1], velocity, atol=1e-6)
    assert np.allclose(np.exp(1j * ends[:, 1]), np.exp(1j * (phase + 1.7 * 4.0)))
    assert np.allclose(ends[:, 0], 0.5 * velocity**2 + 1.0 - np.cos(angle), atol=1e-6)


def test_energy_is_conserved_without_friction_and_drive():
    free = {"damping": 0.0, "drive": 0.0, "noise": 0.0, "random_state": 0, "return_factors": True}
    start, before = make_pendulum(50, duration=0.0, **free)
    X, after = make_pendulum(50, duration=20.0, **free)
    assert np.allclose(before[:, 0], after[:, 0], atol=1e-5)
    assert np.abs(X - start).max() > 1.0


def test_weak_drive_has_the_linear_response():
    drive, frequency, damping = 1e-3, 0.8, 1.0
    X, factors = make_pendulum(
        40,
        damping=damping,
        drive=drive,
        drive_frequency=frequency,
        duration=60.0,
        noise=0.0,
        return_factors=True,
        random_state=0,
    )
    # exp(-damping / 2 * 60) of the start is left; the sine bends by the cube of the amplitude
    response = drive / (1.0 - frequency**2 + 1j * damping * frequency)
    oscillation = response * np.exp(1j * factors[:, 1])
    assert np.allclose(X[:, 0], oscillation.real, atol=1e-7)
    assert np.allclose(X[:, 1], (1j * frequency * oscillation).real, atol=1e-7)


def test_angles_are_wrapped_and_velocities_start_as_wide_as_asked_for():
    X = make_pendulum(4000, duration=0.0, start_velocity=3.0, noise=0.5, random_state=0)
    assert X[:, 0].min() >= -np.pi
    assert X[:, 0].max() < np.pi
    spread = np.hypot(3.0, 0.5)
    assert X[:, 1].std() == pytest.approx(spread, abs=4.0 * spread / np.sqrt(2 * 4000))


def test_defaults_are_chaotic():
    quiet = {"noise": 0.0, "random_state": 0}
    X = make_pendulum(400, **quiet)
    # a periodic motion would leave a curve; here rows at one place have very different phases
    assert np.ptp(X[:, 1]) > 3.0
    _, factors = make_pendulum(400, return_factors=True, **quiet)
    order = np.argsort(factors[:, 1])
    steps = np.abs(np.diff(X[order, 1]))
    assert np.median(steps) > 0.1
