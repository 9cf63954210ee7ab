"""The walk in one launch against automatic differentiation: on a GPU, or interpreted on the CPU.

As in `test_triton_mlp.py`, one test runs this file again in a process that interprets.
"""

import copy
import os
import re
from types import SimpleNamespace

import pytest
import torch

from sklvebm import backends
from sklvebm.kernels.plain_steps import plain_walk
from sklvebm.kernels.probes import largest_error_of_walk, probe_reach
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.targets import Walkers

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402

from sklvebm.kernels import triton_walk as module  # noqa: E402
from sklvebm.kernels.triton_walk import triton_walk  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
D, L = 3, 2


def runs_the_kernel(test):
    """Mark a test that the interpreter or a GPU can run."""
    if INTERPRETED:
        return test
    missing = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="no CUDA device")(test))


compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def reference_of(n_components, d, n_latents, is_diagonal=False):
    """Return a mixture whose components differ in place, shape and weight."""
    spread = 0.5 * normal(n_components, d, d, seed=3)
    covariances = torch.eye(d) * 0.5 + spread @ spread.mT
    if is_diagonal:
        covariances = torch.diag_embed(torch.diagonal(covariances, dim1=1, dim2=2))
    return MixtureReference(
        torch.softmax(normal(n_components, seed=4), 0),
        1.5 * normal(n_components, d, seed=5),
        covariances,
        latent_map=normal(n_latents, d, seed=6),
        latent_variance=torch.linspace(0.5, 1.5, n_latents, dtype=torch.float64),
        location=normal(d, seed=7),
        defensive_weight=0.05,
        defensive_covariance=9.0 * torch.eye(d),
    )


def energy_of(n_components=3, d=D, n_latents=L, activation="tanh", with_reach=True, **options):
    """Return an energy in float64 whose corrections are large."""
    network = MLPEnergy(d, n_latents, (17, 24), activation, torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.output.copy_(normal(24, seed=1))
    reach = probe_reach(d) if with_reach else None
    reference = reference_of(n_components, d, n_latents, **options)
    return AnchoredEnergy(reference, network, 5.0, reach).double()


def single(energy):
    return copy.deepcopy(energy).float().to(DEVICE)


def walkers_of(energy, n=5, n_joint=40, n_steps=(4, 9)):
    """Return walkers in float64, whose numbers float32 has, too, and their noise."""
    d, width = energy.n_features, energy.n_features + energy.n_latents
    position = normal(n + n_joint, width, seed=8).float().double()
    position[:n, :d] = 0.0
    offset = energy.reference.offset_of(normal(n, d, seed=9)).float().double()
    sizes = torch.tensor([0.03, 0.02], dtype=torch.float32).double()
    numbers = normal(n_steps[1], n + n_joint, width, seed=10).float().double()
    return Walkers(position, offset, sizes, n_steps), numbers


def here(walkers, numbers):
    numbers = numbers.float().to(DEVICE)
    return walkers.to(numbers), numbers


def walk_by_definition(energy, walkers, numbers):
    """Follow the gradient of the whole energy, by automatic differentiation in float64."""
    (u, offset, sizes, (n_first, n_steps)), n = walkers, len(walkers.offset)
    shift = torch.cat([offset, torch.zeros_like(u[n:])])

    def energies(u):
        x, z = energy.reference.parts(energy.reference.rows(u) + shift)
        return energy.reference.energy(x, z) + energy.correction(x, z)

    step_size = torch.cat([sizes[:1].expand(n), sizes[1:].expand(len(u) - n)])[:, None]
    for k in range(n_steps):
        u = u.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energies(u).sum(), u)
        moved = u.detach() - step_size * grad + torch.sqrt(2.0 * step_size) * numbers[k]
        moved[:n, : energy.n_features] = 0.0
        if k >= n_first:
            moved[:n] = u.detach()[:n]
        u = moved
    return u, energy.reference.rows(u) + shift


def check(walk, energy, walkers, numbers, tolerance):
    found = walk(*((walkers, numbers) if tolerance < 1e-5 else here(walkers, numbers)))
    for part, expected in zip(found, walk_by_definition(energy, walkers, numbers), strict=True):
        assert part.shape == expected.shape
        assert float((part.double().cpu() - expected).abs().max()) < tolerance


CASES = [{"n_components": 1}, {"activation": "silu"}, {"is_diagonal": True}, {"n_latents": 0}]


@pytest.mark.parametrize("case", CASES)
def test_the_plain_walk_follows_the_gradient_of_the_energy(case):
    energy = energy_of(**case)
    walkers, numbers = walkers_of(energy)
    check(plain_walk(energy), energy, walkers, numbers, 1e-6)


@runs_the_kernel
@pytest.mark.parametrize("case", [*CASES, {"with_reach": False}, {"d": 20, "n_latents": 12}])
def test_the_walk_in_one_launch_follows_the_gradient_of_the_energy(case):
    energy = energy_of(**case)
    walkers, numbers = walkers_of(energy)
    check(triton_walk(single(energy)), energy, walkers, numbers, 1e-4)


@runs_the_kernel
@pytest.mark.parametrize(("n", "n_joint"), [(1, 1), (32, 32), (40, 3), (3, 70), (64, 0)])
def test_any_numbers_of_particles_walk(n, n_joint):
    energy = energy_of()
    walkers, numbers = walkers_of(energy, n, n_joint)
    check(triton_walk(single(energy)), energy, walkers, numbers, 1e-4)


@runs_the_kernel
@pytest.mark.parametrize("n_steps", [(1, 1), (1, 2), (3, 3)])
def test_posterior_particles_make_their_own_number_of_steps(n_steps):
    energy = energy_of()
    walkers, numbers = walkers_of(energy, n_steps=n_steps)
    check(triton_walk(single(energy)), energy, walkers, numbers, 1e-4)


@runs_the_kernel
def test_particles_far_from_all_components_walk():
    energy = energy_of(with_reach=False)
    walkers, numbers = walkers_of(energy, n_steps=(2, 2))
    far = walkers.position.clone()
    far[-1, 0] = 200.0  # every density is zero in float32
    check(triton_walk(single(energy)), energy, walkers._replace(position=far), numbers, 2e-3)


@runs_the_kernel
def test_a_particle_that_is_not_finite_stays_alone():
    energy = single(energy_of())
    walkers, numbers = here(*walkers_of(energy_of()))
    before = triton_walk(energy)(walkers, numbers)[0]
    walkers.position[-1, 0] = torch.nan
    after = triton_walk(energy)(walkers, numbers)[0]
    assert torch.equal(before[:-1], after[:-1])
    assert bool(after[-1].isnan().any())


@runs_the_kernel
@pytest.mark.parametrize("with_reach", [False, True])
def test_the_guard_finds_the_walk_right(with_reach):
    energy = single(energy_of(with_reach=with_reach))
    assert largest_error_of_walk(triton_walk, energy) < 1e-5


@pytest.mark.parametrize("fault", ["step", "noise", "latents"])
def test_the_guard_finds_a_wrong_walk(fault):
    energy = copy.deepcopy(energy_of()).float()

    def wrong(energy):
        def walk(walkers, numbers):
            sizes = walkers.step_size * (1.001 if fault == "step" else 1.0)
            numbers = numbers.flip(0) if fault == "noise" else numbers
            moved, rows = plain_walk(energy)(walkers._replace(step_size=sizes), numbers)
            return moved, rows.flip(1) if fault == "latents" else rows

        return walk

    assert largest_error_of_walk(plain_walk, energy) < 1e-5
    assert largest_error_of_walk(wrong, energy) > backends._MAX_RELATIVE_ERROR


@compiles
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run the kernel on")
def test_the_tests_of_the_walk_pass_under_the_interpreter(passed_under_the_interpreter):
    assert passed_under_the_interpreter(__file__) > 15


@compiles
@pytest.mark.parametrize("generation", [80, 90])
def test_the_walk_compiles_for_gpus_into_one_binary(generation, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    device = f"imagined-walk-{generation}"  # the key of the kernel's cache in this process
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", generation, 32),
        get_current_device=lambda: device,
        get_current_stream=lambda _: 0,
    )
    triton.runtime.driver.set_active(driver)
    kernel, binaries = module._walk_kernel, []

    class Compiler:
        def __getitem__(self, grid):
            return lambda *a, **o: binaries.append(kernel.warmup(*a, grid=grid, **o))

    monkeypatch.setattr(module, "_walk_kernel", Compiler())
    energy = copy.deepcopy(energy_of()).float()
    try:
        for n, n_joint, n_steps in ((5, 40, (4, 9)), (1, 16, (1, 1)), (16, 64, (10, 20))):
            walkers, numbers = walkers_of(energy_of(), n, n_joint, n_steps)
            triton_walk(energy)(walkers.to(numbers.float()), numbers.float())
    finally:
        triton.runtime.driver.set_active(None)  # looked for when it is next needed
    assert len({id(binary) for binary in binaries}) == 1
    assert "fma.rn.f32" in binaries[0].asm["ptx"]
    assert not re.search(r"tf32|bf16|\bmma\b|wgmma", binaries[0].asm["ptx"])
    assert binaries[0].asm["cubin"]
    assert binaries[0].metadata.shared <= 99 * 1024
