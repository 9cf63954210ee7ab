"""The GPU kernel against automatic differentiation: on a GPU, or interpreted on the CPU.

Triton decides when it is imported whether it compiles or interprets. Without a GPU one test runs
this file again in a process of its own that interprets; the others of that kind skip.
"""

import copy
import os
import re
from types import SimpleNamespace

import pytest
import torch

from sklvebm import backends
from sklvebm.backends import select_correction_and_grad
from sklvebm.kernels.mlp import mlp_correction_and_grad
from sklvebm.kernels.probes import largest_error, probe_reach
from sklvebm.mcmc.langevin import crank_nicolson_step, mala_step, start, ula_step
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import ACTIVATIONS, AnchoredEnergy, MLPEnergy
from sklvebm.models.targets import autograd_correction_and_grad, joint_target

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402

from sklvebm.kernels import triton_mlp  # noqa: E402
from sklvebm.kernels.triton_mlp import triton_mlp_correction_and_grad  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
D, L = 3, 2
BOUND = 2.0  # small, so that the saturation takes part in the gradient


def runs_the_kernel(test):
    """Mark a test that the interpreter or a GPU can run."""
    if INTERPRETED:
        return test
    # compiled code needs a GPU; without one the same test runs interpreted, in a process of its own
    missing = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="no CUDA device")(test))


# under TRITON_INTERPRET Triton replaces its compiler, so that these have nothing to look at
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def anchored(activation="tanh", hidden=(17, 33), d=D, n_latents=L, gain=1.0):
    """Return an anchored perceptron in float64 on the CPU; `gain` is on its last layer."""
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, d),
        torch.eye(d)[None],
        latent_map=torch.ones(n_latents, d),
        latent_variance=torch.ones(n_latents),
        location=torch.zeros(d),
    )
    network = MLPEnergy(d, n_latents, hidden, activation, generator())
    with torch.no_grad():
        network.output.copy_(gain * BOUND * normal(hidden[-1], seed=1) / hidden[-1] ** 0.5)
    return AnchoredEnergy(reference, network, BOUND).double()


def single(energy):
    """Return a copy of an energy in float32 on the device under test."""
    reference, reach = energy.reference, copy.deepcopy(energy.reach)
    twin = AnchoredEnergy(reference, MLPEnergy(D, L, (1,)), energy.bound, reach)
    shape = energy.network
    twin.network = MLPEnergy(
        shape.n_features, shape.n_latents, shape.hidden_layer_sizes, shape.activation
    )
    twin.network.load_state_dict(shape.state_dict())
    return twin.float().to(DEVICE)


def inputs(n, d=D, n_latents=L):
    # float32 numbers in float64, so that both precisions see the same rows
    return (1.5 * normal(n, d + n_latents, seed=2)).float().double()


def on_device(rows):
    return rows.float().to(DEVICE)


def largest_relative_error(actual, expected):
    scale = expected.abs().max() if expected.numel() else 1.0
    return float(((actual.double().cpu() - expected).abs() / scale).max()) if len(expected) else 0.0


def check(energy, rows, tolerance=1e-5):
    """Compare the kernel with automatic differentiation in float64 and the plain kernel."""
    twin = single(energy)
    results = triton_mlp_correction_and_grad(twin)(on_device(rows))
    plain = mlp_correction_and_grad(twin)(on_device(rows))
    exact = autograd_correction_and_grad(energy)(rows)
    for result, same, expected in zip(results, plain, exact, strict=True):
        assert result.shape == expected.shape
        assert result.dtype == torch.float32
        assert not result.requires_grad
        if expected.numel():
            assert largest_relative_error(result, expected) < tolerance
            assert largest_relative_error(result, same.double().cpu()) < tolerance
    return [result.double().cpu() for result in results]


@runs_the_kernel
@pytest.mark.parametrize("n", [1, 16, 45])
@pytest.mark.parametrize("hidden", [(8,), (17, 33), (64, 32), (16, 40, 12), (100, 70)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_equals_automatic_differentiation(activation, hidden, n):
    rows = inputs(n)
    # a single row may be saturated, where float32 has lost the gradient; see below for those
    check(anchored(activation, hidden, gain=0.3 if n == 1 else 1.0), rows)


@runs_the_kernel
@pytest.mark.parametrize(("d", "n_latents"), [(3, 0), (32, 0), (40, 25), (31, 1), (1, 70)])
def test_kernel_equals_automatic_differentiation_at_any_widths(d, n_latents):
    check(anchored("tanh", (24, 16), d, n_latents), inputs(21, d, n_latents))


@runs_the_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_is_right_close_to_the_bound(activation):
    energy = anchored(activation, gain=6.0)
    correction, *_ = check(energy, inputs(100))
    assert int((correction.abs() > 0.999 * BOUND).sum()) >= 10
    assert float(correction.abs().min()) < 0.9 * BOUND


@runs_the_kernel
@pytest.mark.parametrize(("d", "n_latents"), [(3, 2), (3, 0), (31, 1), (40, 25)])
def test_kernel_multiplies_by_the_reach_of_the_correction(d, n_latents):
    energy = anchored("silu", (24, 16), d, n_latents)
    rows = (inputs(60, d, n_latents) / 1.5).float().double()
    energy.reach = probe_reach(d).double()
    share = energy.reach(rows[:, :d])
    # inside, in between and outside
    assert bool((share == 1.0).any())
    assert bool(((share > 0.1) & (share < 0.95)).any())
    check(energy, rows)


@runs_the_kernel
def test_kernel_is_right_relative_to_small_corrections():
    check(anchored(gain=1e-4), inputs(20))


@runs_the_kernel
def test_kernel_of_an_untrained_network_is_zero():
    energy = anchored(gain=0.0)
    results = triton_mlp_correction_and_grad(single(energy))(on_device(inputs(5)))
    assert all(torch.equal(part, torch.zeros_like(part)) for part in results)


@runs_the_kernel
def test_kernel_takes_no_rows_and_rows_of_any_strides():
    energy = single(anchored())
    rows = on_device(inputs(30))
    fast = triton_mlp_correction_and_grad(energy)
    assert [part.shape for part in fast(rows[:0])] == [(0,), (0, D + L)]
    for strided in (rows[::3], rows.T.contiguous().T[:10]):
        for actual, wanted in zip(fast(strided), fast(strided.clone()), strict=True):
            assert torch.equal(actual, wanted)
    # rows that begin anywhere in memory
    for actual, wanted in zip(fast(rows[1:]), fast(rows), strict=True):
        torch.testing.assert_close(actual, wanted[1:], rtol=1e-6, atol=1e-6)


@runs_the_kernel
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_rows_that_are_not_finite_stay_alone(bad):
    energy = single(anchored())
    rows = on_device(inputs(20))
    before = triton_mlp_correction_and_grad(energy)(rows)
    rows[3, 0] = bad
    after = triton_mlp_correction_and_grad(energy)(rows)
    others = torch.arange(20, device=DEVICE) != 3
    for kept, part in zip(before, after, strict=True):
        assert torch.equal(kept[others], part[others])
    # as the plain function: an infinite row of a tanh network is at the end of its range
    for part, plain in zip(after, mlp_correction_and_grad(energy)(rows), strict=True):
        torch.testing.assert_close(part[3], plain[3], rtol=1e-5, atol=1e-5, equal_nan=True)


@runs_the_kernel
def test_kernel_reads_the_weights_at_each_call():
    energy = single(anchored())
    rows = on_device(inputs(20))
    fast = triton_mlp_correction_and_grad(energy)
    before = fast(rows)[0]
    with torch.no_grad():
        for parameter in energy.network.parameters():
            parameter.mul_(0.5)
    expected = mlp_correction_and_grad(energy)(rows)
    assert not torch.allclose(before, expected[0])
    for actual, plain in zip(fast(rows), expected, strict=True):
        torch.testing.assert_close(actual, plain, rtol=1e-5, atol=1e-5)


@runs_the_kernel
@pytest.mark.parametrize("step", [ula_step, mala_step, crank_nicolson_step])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_noise_gives_the_trajectory_of_the_plain_gradient(activation, step):
    energy = single(anchored(activation, (24, 40)))
    position = on_device(inputs(50))
    ones = torch.ones(len(position), device=DEVICE)
    ends, rates = [], []
    for make in (triton_mlp_correction_and_grad, autograd_correction_and_grad):
        target = joint_target(energy, make(energy))
        noise = IndependentNoise(torch.Generator(DEVICE).manual_seed(3))
        chains = start(position, target)
        for _ in range(15):
            chains, info = step(chains, target, beta=ones, step_size=0.05 * ones, noise=noise)
        ends.append(torch.cat([chains.position, chains.value.correction[:, None]], 1))
        rates.append(float(info.acceptance.mean()))
    # an acceptance within rounding of its uniform number may go either way
    equal = ((ends[0] - ends[1]).abs() < 1e-4).all(1)
    assert float(equal.double().mean()) >= 0.98
    assert rates[0] == pytest.approx(rates[1], abs=1e-4)
    assert bool(((ends[0][:, :-1] - position).abs() > 0.01).any(1).all())


@runs_the_kernel
def test_the_guard_of_backends_finds_the_kernel_right():
    for activation in ACTIVATIONS:
        energy = single(anchored(activation, (96, 64)))
        assert largest_error(triton_mlp_correction_and_grad, energy) < 1e-5
        energy.reach = probe_reach(D).float()
        assert largest_error(triton_mlp_correction_and_grad, energy) < 1e-5


# the kernel is put in the CPU's place here, where only the interpreter can run it; the test that
# starts the interpreter runs this one
@pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_fit_on_the_kernel_is_the_fit_without_it(monkeypatch, small, moons):
    calls = []

    def counted(energy):
        calls.append(energy)
        return triton_mlp_correction_and_grad(energy)

    def suits(network):
        return network.output.dtype == torch.float32

    model = small(max_iter=2)
    plain = model.fit(moons).history_
    monkeypatch.setattr(backends, "_verdicts", {})
    monkeypatch.setattr(backends, "_suits_one_launch", suits)
    monkeypatch.setattr(backends, "_in_one_launch", counted)
    fast = model.fit(moons).history_
    assert len(calls) > 10
    # exact steps have a kernel of their own, which is right, too
    verdicts = {case[0]: verdict for case, verdict in backends._verdicts.items()}
    assert verdicts == {"counted": True, "_white_step_in_one_launch": True}
    for here, there in zip(fast, plain, strict=True):
        assert abs(there["contrast"]) > 1e-5
        for name in ("lower_bound", "contrast", "pool_acceptance", "latent_acceptance"):
            assert here[name] == pytest.approx(there[name], rel=1e-4, abs=1e-6), name


@compiles
@pytest.mark.gpu
# `backends` offers the kernel to CUDA tensors only, so that the choice cannot be seen elsewhere
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_backends_pick_the_kernel_on_a_gpu(recwarn):
    chosen = select_correction_and_grad(single(anchored()))
    assert chosen.__module__ == triton_mlp.__name__
    assert not [w for w in recwarn if "GPU kernel" in str(w.message)]


@compiles
@pytest.mark.slow
# where there is a GPU the tests above have run on it, which says more
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run the kernel on")
def test_the_tests_of_the_kernel_pass_under_the_interpreter(passed_under_the_interpreter):
    assert passed_under_the_interpreter(__file__) > 50


class Compiler:
    """Stands in for the kernel: compiles what would be launched for a GPU that is not there."""

    def __init__(self, kernel):
        self.kernel, self.compiled = kernel, []

    def __getitem__(self, grid):
        def compile_only(*arguments, **options):
            self.compiled.append(self.kernel.warmup(*arguments, grid=grid, **options))

        return compile_only


@pytest.fixture(params=[80, 90])
def compiler(request, monkeypatch, tmp_path):
    """The kernel as `Compiler`, for GPUs of two generations."""
    device = f"imagined-{request.param}"  # the key of the kernel's cache in this process
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", request.param, 32),
        get_current_device=lambda: device,
        get_current_stream=lambda _: 0,
    )
    triton.runtime.driver.set_active(driver)
    stand_in = Compiler(triton_mlp._value_and_grad_kernel)
    monkeypatch.setattr(triton_mlp, "_value_and_grad_kernel", stand_in)
    yield stand_in
    triton.runtime.driver.set_active(None)  # looked for when it is next needed


def compile_for(energy, n, n_latents=L, first=0):
    twin = AnchoredEnergy(energy.reference, energy.network.float(), energy.bound, energy.reach)
    rows = inputs(n, D, n_latents).float()
    triton_mlp_correction_and_grad(twin)(rows[first:])


@compiles
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_compiles_for_gpus_and_multiplies_in_full_precision(compiler, activation):
    energy = anchored(activation, (40, 32))
    energy.reach = probe_reach(D)
    compile_for(energy, 20)
    (binary,) = compiler.compiled
    assert binary.asm["cubin"]
    assert "fma.rn.f32" in binary.asm["ptx"]
    assert not re.search(r"tf32|bf16|\bmma\b|wgmma", binary.asm["ptx"])
    assert binary.metadata.shared <= 99 * 1024  # what a program may have on any of them


@compiles
def test_weights_are_not_held_from_the_way_there_to_the_way_back(compiler):
    compile_for(anchored("tanh", (128, 128)), 20)
    # bytes; the second layer's weights alone are 64 kB
    assert compiler.compiled[0].metadata.shared <= 32 * 1024


@compiles
def test_one_binary_serves_all_numbers_of_rows_wherever_they_begin(compiler):
    energy = anchored("softplus", (16,), n_latents=0)
    for n, first in ((20, 0), (1, 0), (16, 0), (64, 0), (33, 1)):
        compile_for(energy, n, 0, first)
    assert len({id(binary) for binary in compiler.compiled}) == 1
