"""The chain of oscillators: its motion, and a map that is fixed, one-to-one and bent."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from sklvebm.datasets import make_coupled_oscillators
from sklvebm.datasets.coupled_oscillators import _chain_state, _normal_modes, _observe


def test_modes_of_a_chain_have_the_closed_form():
    n, coupling = 5, 0.7
    k = np.arange(1, n + 1)
    frequency, modes = _normal_modes(n, coupling)
    exact = np.sqrt(1.0 + 4.0 * coupling * np.sin(0.5 * np.pi * k / (n + 1)) ** 2)
    assert np.allclose(frequency, exact)
    shapes = np.sqrt(2.0 / (n + 1)) * np.sin(np.pi * np.outer(k, k) / (n + 1))
    assert np.allclose(modes, shapes)


def test_states_move_as_the_equation_of_motion_says():
    amplitude, phase = np.array([[0.7, 1.2, 0.9]]), np.array([[0.3, 2.0, 5.0]])
    coupling, time = 0.4, 3.0

    def rates(_, state):
        q, p = state[:3], state[3:]
        padded = np.concatenate([[0.0], q, [0.0]])
        return np.concatenate([p, -q - coupling * (2.0 * q - padded[:-2] - padded[2:])])

    start = _chain_state(amplitude, phase, coupling)[0]
    end = solve_ivp(rates, (0.0, time), start, rtol=1e-10, atol=1e-10).y[:, -1]
    frequency, _ = _normal_modes(3, coupling)
    later = _chain_state(amplitude, phase + frequency * time, coupling)[0]
    assert np.allclose(end, later, atol=1e-7)


@pytest.mark.parametrize("n_features", [4, 10, 50])
def test_rows_are_the_factors_seen_through_one_map(n_features):
    for seed in (0, 1):
        X, factors = make_coupled_oscillators(
            50, n_features=n_features, noise=0.0, return_factors=True, random_state=seed
        )
        state = _chain_state(factors[:, :2], factors[:, 2:], 0.5)
        assert np.allclose(X, _observe(state, n_features))
        assert np.allclose(X[:3], _observe(state[:3], n_features))


@pytest.mark.parametrize("n_features", [6, 10, 50])
def test_different_states_never_look_the_same(n_features):
    state = np.random.RandomState(0).randn(400, 6)
    near = state[:200] + 1e-4 * state[200:]
    seen, seen_near = _observe(state, n_features), _observe(near, n_features)
    for (a, b), (x, y) in (
        ((state[:200], state[200:]), (seen[:200], seen[200:])),
        ((state[:200], near), (seen[:200], seen_near)),
    ):
        stretch = np.linalg.norm(x - y, axis=1) / np.linalg.norm(a - b, axis=1)
        # identity plus a map of Lipschitz constant one half
        assert stretch.min() >= 0.5 - 1e-8


@pytest.mark.parametrize("n_features", [10, 50])
def test_rows_of_four_states_need_more_than_four_linear_components(n_features):
    X = make_coupled_oscillators(3000, n_features=n_features, noise=0.0, random_state=0)
    spread = np.linalg.svd(X - X.mean(0), compute_uv=False) / np.sqrt(3000)
    # at least eight stand out from the default noise
    assert spread[7] > 0.05


def test_amplitudes_keep_to_their_range():
    _, factors = make_coupled_oscillators(
        2000, n_oscillators=3, amplitude_range=(2.0, 3.0), return_factors=True, random_state=0
    )
    amplitude = factors[:, :3]
    assert amplitude.min() >= 2.0
    assert amplitude.max() <= 3.0
    error = 1.0 / np.sqrt(12.0 * 2000)
    assert np.abs(amplitude.mean(0) - 2.5).max() < 4.0 * error


def test_illegal_sizes_and_ranges_are_named():
    with pytest.raises(ValueError, match=r"n_features must be at least .* \(10\), got 9"):
        make_coupled_oscillators(5, n_features=9, n_oscillators=5)
    for bounds in ((0.0, 1.0), (2.0, 1.0), (1.0,)):
        with pytest.raises(ValueError, match="amplitude_range must be"):
            make_coupled_oscillators(5, amplitude_range=bounds)
