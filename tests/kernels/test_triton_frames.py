"""The exact step in one launch against its definition: on a GPU, or interpreted on the CPU.

As in `test_triton_mlp.py`, one test runs this file again in a process that interprets.
"""

import copy
import os
import re
from types import SimpleNamespace

import pytest
import torch

from sklvebm import backends
from sklvebm.kernels.plain_steps import plain_white_step
from sklvebm.kernels.probes import largest_error_of_white_step, probe_reach
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.targets import WhiteMove

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402

from sklvebm.kernels import triton_frames as module  # noqa: E402
from sklvebm.kernels.triton_frames import triton_white_step  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
N_GROUPS = 3


def runs_the_kernel(test):
    """Mark a test that the interpreter or a GPU can run."""
    if INTERPRETED:
        return test
    missing = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="no CUDA device")(test))


compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).float().double()


def energy_of(d=3, n_latents=2, activation="tanh", with_reach=True, gain=1.0):
    network = MLPEnergy(d, n_latents, (17, 24), activation, torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.output.copy_(gain * normal(24, seed=1))
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, d),
        torch.eye(d)[None],
        latent_map=torch.zeros(n_latents, d),
        latent_variance=torch.ones(n_latents),
        location=torch.zeros(d),
    )
    reach = probe_reach(d) if with_reach else None
    return AnchoredEnergy(reference, network, 5.0, reach).double()


def correction_at(energy, move, s):
    """Return corrections, gradients in white coordinates by automatic differentiation, rows."""
    s = s.detach().requires_grad_()
    rows = (move.centres + s[:, None] @ move.maps)[:, 0]
    correction = energy.correction(rows[:, : energy.n_features], rows[:, energy.n_features :])
    (grad,) = torch.autograd.grad(correction.sum(), s)
    return correction.detach(), grad, rows.detach()


def numbers_of(energy, move, s):
    correction, grad, rows = correction_at(energy, move, s)
    return torch.cat([s, grad, correction[:, None], rows], 1)


def move_of(energy, n=50):
    """Return a move in float64, whose numbers float32 has, too."""
    width = energy.n_features + energy.n_latents
    # rows are where the reach falls
    tables = width**-0.5 * torch.cat(
        [normal(n, 1, width, seed=2), normal(n, width, width, seed=3)], 1
    )
    move = WhiteMove(
        torch.empty(0),
        tables[:, :1],
        tables[:, 1:],
        -torch.linspace(0.0, 1.0, n).double()[:, None],
        torch.linspace(0.1, 1.5, N_GROUPS).double(),
        torch.arange(n) % N_GROUPS,
        normal(n, width, seed=4),
        torch.rand(n, generator=torch.Generator().manual_seed(5)).double(),
    )
    numbers = numbers_of(energy, move, normal(n, width, seed=6))
    return move._replace(numbers=numbers)


def step_by_definition(energy, move):
    """Propose by the Crank-Nicolson rule; accept by the densities of both ways."""
    width = move.normal.shape[1]
    s, beta, h = move.numbers[:, :width], -move.minus_beta[:, 0], move.sizes[move.group]

    def mean(s, grad):
        return ((2.0 - h[:, None]) * s - 2.0 * (h * beta)[:, None] * grad) / (2.0 + h)[:, None]

    variance = 8.0 * h / (2.0 + h).square()
    correction, grad, _ = correction_at(energy, move, s)
    proposed = mean(s, grad) + variance.sqrt()[:, None] * move.normal
    new_correction, new_grad, _ = correction_at(energy, move, proposed)
    ahead = -(proposed - mean(s, grad)).square().sum(1) / (2.0 * variance)
    back = -(s - mean(proposed, new_grad)).square().sum(1) / (2.0 * variance)
    change = 0.5 * (s.square() - proposed.square()).sum(1) + beta * (correction - new_correction)
    ratio = torch.exp(change + back - ahead)
    chosen = torch.where((move.uniform < ratio)[:, None], proposed, s)
    return numbers_of(energy, move, chosen), ratio


def here(move):
    parts = [part.float() if part.is_floating_point() else part for part in move]
    # the maps as a slice of all tables, as in a fit
    tables = torch.cat([parts[1], parts[2]], 1).to(DEVICE)
    parts[1], parts[2] = tables[:, :1], tables[:, 1:]
    return WhiteMove(*(part.to(DEVICE) for part in parts))


def check(step, energy, move, tolerance):
    numbers, ratio = (part.double().cpu() for part in step(move))
    expected, expected_ratio = step_by_definition(energy, move_of(energy, len(numbers)))
    assert 0.2 < float((expected[:, 0] != move.numbers[:, 0].double().cpu()).double().mean()) < 1.0
    for found, wanted in ((numbers, expected), (ratio, expected_ratio)):
        assert found.shape == wanted.shape
        assert float(((found - wanted).abs() / (1.0 + wanted.abs())).max()) < tolerance


CASES = [{}, {"activation": "silu"}, {"n_latents": 0}, {"with_reach": False}]


@pytest.mark.parametrize("case", CASES)
def test_the_plain_step_is_exact(case):
    energy = energy_of(**case)
    check(plain_white_step(energy), energy, move_of(energy), 1e-9)


@runs_the_kernel
@pytest.mark.parametrize("n", [20, 32])
@pytest.mark.parametrize("case", [*CASES, {"d": 20, "n_latents": 12}, {"d": 1, "n_latents": 1}])
def test_the_step_in_one_launch_is_exact(case, n):
    energy = energy_of(**case)
    check(
        triton_white_step(copy.deepcopy(energy).float().to(DEVICE)),
        energy,
        here(move_of(energy, n)),
        1e-4,
    )


@runs_the_kernel
def test_a_chain_that_is_not_finite_stays_where_it_is_and_alone():
    energy = energy_of()
    step = triton_white_step(copy.deepcopy(energy).float().to(DEVICE))
    move = here(move_of(energy))
    numbers, _ = step(move)
    move.normal[7] = torch.nan
    again, ratio = step(move)
    others = torch.arange(len(numbers)) != 7
    assert torch.equal(numbers[others], again[others])
    assert torch.equal(again[7], move.numbers[7])
    assert bool(ratio[7].isnan())


@runs_the_kernel
def test_steps_leave_the_distribution_as_it_is():
    """Moments of a quartic well by quadrature, and of chains that started as exact draws of it."""
    energy = energy_of(d=1, n_latents=0, with_reach=False, gain=2.0)
    grid = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)[:, None]
    weights = torch.softmax(-0.5 * grid[:, 0].square() - energy.correction(grid, grid[:, :0]), 0)
    weights = weights.detach()
    n, generator = 1024, torch.Generator().manual_seed(1)
    s = grid[torch.multinomial(weights, n, replacement=True, generator=generator)]
    like = torch.ones(n, 1, 1, dtype=torch.float64)
    move = WhiteMove(
        s, 0.0 * like, like, -like[:, 0], torch.tensor([1.0]), torch.zeros(n).long(), s, s[:, 0]
    )
    move = here(move._replace(numbers=numbers_of(energy, move, s)))
    step = triton_white_step(copy.deepcopy(energy).float().to(DEVICE))
    for _ in range(3):
        xi = torch.randn(n, 1, generator=generator).to(DEVICE)
        u = torch.rand(n, generator=generator).to(DEVICE)
        numbers, ratio = step(move._replace(normal=xi, uniform=u))
        move = move._replace(numbers=numbers)
    assert float(ratio.clamp(max=1.0).mean()) < 0.99  # proposals were rejected
    found = numbers[:, 0].double().cpu()
    for power in (1, 2):
        exact = weights @ grid[:, 0] ** power
        error = (found**power).std() / n**0.5
        assert abs(float((found**power).mean() - exact)) < 4.0 * float(error)


@runs_the_kernel
@pytest.mark.parametrize("with_reach", [False, True])
def test_the_guard_finds_the_step_right(with_reach):
    energy = copy.deepcopy(energy_of(with_reach=with_reach)).float().to(DEVICE)
    assert largest_error_of_white_step(triton_white_step, energy) < 1e-5


@pytest.mark.parametrize("fault", ["size", "ratio", "choice"])
def test_the_guard_finds_a_wrong_step(fault):
    def wrong(energy):
        def step(move):
            sizes = move.sizes * (1.01 if fault == "size" else 1.0)
            numbers, ratio = plain_white_step(energy)(move._replace(sizes=sizes))
            ratio = 0.999 * ratio if fault == "ratio" else ratio
            return numbers.flip(0) if fault == "choice" else numbers, ratio

        return step

    energy = copy.deepcopy(energy_of()).float()
    assert largest_error_of_white_step(plain_white_step, energy) < 1e-5
    assert largest_error_of_white_step(wrong, energy) > backends._MAX_RELATIVE_ERROR


@compiles
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run the kernel on")
def test_the_tests_of_the_step_pass_under_the_interpreter(passed_under_the_interpreter):
    assert passed_under_the_interpreter(__file__) > 20


@compiles
@pytest.mark.parametrize("generation", [80, 90])
def test_the_step_compiles_for_gpus_into_one_binary(generation, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    device = f"imagined-step-{generation}"  # the key of the kernel's cache in this process
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", generation, 32),
        get_current_device=lambda: device,
        get_current_stream=lambda _: 0,
    )
    triton.runtime.driver.set_active(driver)
    kernel, binaries = module._step_kernel, []

    class Compiler:
        def __getitem__(self, grid):
            return lambda *a, **o: binaries.append(kernel.warmup(*a, grid=grid, **o))

    monkeypatch.setattr(module, "_step_kernel", Compiler())
    energy = energy_of()
    try:
        for n, first in ((16, 0), (50, 0), (33, 7), (1, 0)):
            parts = (p.float() if p.is_floating_point() else p for p in move_of(energy, n + first))
            move = WhiteMove(*parts)
            behind = (part[first:] for part in move[5:])
            move = WhiteMove(*(part[first:] for part in move[:4]), move.sizes, *behind)
            triton_white_step(copy.deepcopy(energy).float())(move)
    finally:
        triton.runtime.driver.set_active(None)  # looked for when it is next needed
    assert len({id(binary) for binary in binaries}) == 1
    assert "fma.rn.f32" in binaries[0].asm["ptx"]
    assert not re.search(r"tf32|bf16|\bmma\b|wgmma", binaries[0].asm["ptx"])
    assert binaries[0].asm["cubin"]
    assert binaries[0].metadata.shared <= 99 * 1024
