"""Multistate weights in few operations beside the iteration that they shorten."""

import pytest
import torch

from sklvebm.smc import free_energy
from sklvebm.smc.free_energy import mbar, multistate_weights


def ladder(n_temperatures, dtype):
    generator = torch.Generator().manual_seed(n_temperatures)
    correction = 4.0 * torch.randn(n_temperatures, 40, generator=generator, dtype=torch.float64)
    guess = torch.randn(n_temperatures, generator=generator, dtype=torch.float64)
    betas = torch.linspace(0.0, 1.0, n_temperatures, dtype=dtype)
    return correction.to(dtype), betas, guess - guess[0]


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n_temperatures", "n_iterations"), [(2, 1), (4, 3), (7, 5)])
def test_the_iteration_is_that_of_mbar(n_temperatures, n_iterations, dtype, in_chunks, monkeypatch):
    if in_chunks:
        monkeypatch.setattr(free_energy, "_CHUNK_SAMPLES", 16)
    correction, betas, guess = ladder(n_temperatures, dtype)
    weights, log_z = multistate_weights(correction, betas, guess, n_iterations)
    expected, log_mixture = mbar(correction, betas, guess, max_iter=n_iterations, tol=None)
    torch.testing.assert_close(log_z, expected, rtol=1e-10, atol=1e-10)
    wanted = torch.softmax(-correction.double().reshape(-1) - log_mixture, 0)
    torch.testing.assert_close(weights, wanted, rtol=1e-10, atol=1e-14)
    assert float(log_z[0]) == 0.0


def test_large_corrections_lose_no_digits():
    correction, betas, guess = ladder(4, torch.float64)
    weights, log_z = multistate_weights(correction + 1e5, betas, guess, 60)
    _, expected = multistate_weights(correction, betas, guess, 60)
    torch.testing.assert_close(log_z, expected - 1e5 * betas, rtol=1e-10, atol=1e-6)
    assert float(weights.sum()) == pytest.approx(1.0)
