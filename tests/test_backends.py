"""A GPU kernel is judged before it is used; kernels that are wrong on purpose stand in for it."""

import threading
import warnings

import pytest
import torch

from sklvebm import backends
from sklvebm.backends import select_correction_and_grad, select_walk, select_white_step
from sklvebm.kernels.mlp import mlp_correction_and_grad
from sklvebm.kernels.plain_steps import plain_walk, plain_white_step
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.targets import autograd_correction_and_grad

D, L = 3, 2


def anchored(hidden=(16, 8), activation="tanh", bound=15.0, n_latents=L):
    """Return an anchored perceptron as it is before training: its output is zero."""
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, D),
        torch.eye(D)[None],
        latent_map=torch.ones(n_latents, D),
        latent_variance=torch.ones(n_latents),
        location=torch.zeros(D),
    )
    network = MLPEnergy(D, n_latents, hidden, activation, torch.Generator().manual_seed(0))
    return AnchoredEnergy(reference, network, bound)


@pytest.fixture
def gpu_kernel(monkeypatch):
    """A function that puts another in the place of the GPU kernel and counts how it is used."""
    monkeypatch.setattr(backends, "_suits_one_launch", lambda network: True)
    monkeypatch.setattr(backends, "_verdicts", {})

    def put(change, where=mlp_correction_and_grad):
        made = []

        def stand_in(energy):
            plain = where(energy)
            made.append(energy)
            return lambda rows: change(*plain(rows))

        monkeypatch.setattr(backends, "_in_one_launch", stand_in)
        return made

    return put


def same(correction, grad):
    return correction, grad


def raising(correction, grad):
    raise OSError("in line 3:\n  y = x\nno compiler")


WRONG = {
    "raises": raising,
    "correction": lambda c, g: (1.001 * c, g),
    "gradient in x": lambda c, g: (c, torch.cat([1.001 * g[:, :D], g[:, D:]], 1)),
    "gradient in z": lambda c, g: (c, torch.cat([g[:, :D], g[:, D:].flip(0)], 1)),
    "last row": lambda c, g: (c, torch.cat([g[:-1], 0.5 * g[-1:]])),
    "not a number": lambda c, g: (c, g * torch.nan),
    "one number": lambda c, g: (c, g + 3e-4 * g.abs().max() * (g == g[-1, -1])),
    "shape": lambda c, g: (c[None], g),
    "nothing at all": lambda c, g: (0.0 * c, 0.0 * g),
}


def plain_results(energy):
    return autograd_correction_and_grad(energy)(torch.ones(4, D + L))


@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus"])
@pytest.mark.parametrize("hidden", [(8,), (128, 128), (64,) * 5])
@pytest.mark.parametrize("bound", [1.0, 15.0, 1e6])
def test_a_kernel_that_is_right_serves(gpu_kernel, hidden, activation, bound):
    made = gpu_kernel(same)
    energy = anchored(hidden, activation, bound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            select_correction_and_grad(energy)
    # judged once, on weights of its own
    assert made[1:] == [energy] * 3
    assert made[0] is not energy


def test_a_kernel_of_an_energy_without_latents_is_judged(gpu_kernel):
    made = gpu_kernel(same)
    energy = anchored(n_latents=0)
    energy.reference = energy.reference.without_latents()
    select_correction_and_grad(energy)
    assert made[1:] == [energy]


@pytest.mark.parametrize("fault", WRONG)
def test_a_kernel_that_fails_or_is_wrong_does_not_serve_and_warns_once(gpu_kernel, fault):
    made = gpu_kernel(WRONG[fault])
    energy = anchored()
    with pytest.warns(RuntimeWarning, match="hidden layers \\(16, 8\\)") as caught:
        results = [select_correction_and_grad(energy) for _ in range(3)]
    assert len(caught) == 1
    assert len(made) == 1
    for part, plain in zip(results[0](torch.ones(4, D + L)), plain_results(energy), strict=True):
        torch.testing.assert_close(part, plain)


def test_a_kernel_in_short_precision_does_not_serve(gpu_kernel):
    # ten bits behind the leading one, as tensor cores keep of float32
    def shortened(energy):
        with torch.no_grad():
            for weight in energy.network.weights:
                weight.copy_((weight.view(torch.int32) & -(2**13)).view(torch.float32))
        return mlp_correction_and_grad(energy)

    gpu_kernel(same, where=shortened)
    with pytest.warns(RuntimeWarning, match="wrong by"):
        select_correction_and_grad(anchored((128, 128)))


def test_the_warning_says_what_went_wrong(gpu_kernel):
    gpu_kernel(raising)
    with pytest.warns(RuntimeWarning, match=r"failed \(OSError: no compiler\) on cpu; the plain"):
        select_correction_and_grad(anchored())
    gpu_kernel(WRONG["correction"])
    with pytest.warns(RuntimeWarning, match=r"is wrong by [0-9.]+e-03, relative"):
        select_correction_and_grad(anchored((4, 4)))


def test_every_shape_is_judged_by_itself(gpu_kernel):
    made = gpu_kernel(WRONG["raises"])
    for energy in (anchored(), anchored((8,)), anchored(activation="silu"), anchored()):
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            select_correction_and_grad(energy)
    assert len(made) == 3


def test_threads_that_ask_at_once_are_warned_once(gpu_kernel):
    made = gpu_kernel(WRONG["raises"])
    energy, together = anchored(), threading.Barrier(4)

    def ask():
        together.wait()
        select_correction_and_grad(energy)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caught) == len(made) == 1


def test_judging_does_not_depend_on_the_default_dtype(gpu_kernel):
    seen = []
    made = gpu_kernel(lambda *parts: (seen.append({part.dtype for part in parts}), parts)[1])
    energy = anchored()
    torch.set_default_dtype(torch.float64)
    try:
        select_correction_and_grad(energy)
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == [{torch.float32}]
    assert made[1:] == [energy]


def test_judging_leaves_weights_and_global_generators_alone(gpu_kernel):
    gpu_kernel(same)
    energy, before = anchored(), torch.get_rng_state()
    copies = [p.detach().clone() for p in energy.parameters()]
    select_correction_and_grad(energy)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, c) for p, c in zip(energy.parameters(), copies, strict=True))
    assert energy.network.output.dtype == torch.float32


class Elsewhere:
    """A parameter as one on a GPU describes itself."""

    is_cuda = True

    def __init__(self, parameter, contiguous):
        self.dtype, self.contiguous = parameter.dtype, contiguous

    def is_contiguous(self):
        return self.contiguous


@pytest.mark.parametrize(
    ("suits", "change"),
    [
        (True, {}),
        (False, {"dtype": torch.float64}),
        (False, {"hidden": (2048, 2048)}),
        (False, {"contiguous": False}),
        (False, {"installed": None}),
    ],
)
def test_the_gpu_kernel_is_for_contiguous_float32_of_ordinary_sizes(monkeypatch, suits, change):
    change = {
        "dtype": torch.float32,
        "hidden": (16, 8),
        "contiguous": True,
        "installed": 1,
    } | change
    network = anchored(change["hidden"]).network.to(change["dtype"])
    parameters = [Elsewhere(p, change["contiguous"]) for p in network.parameters()]
    monkeypatch.setattr(network, "parameters", lambda: parameters)
    monkeypatch.setattr(backends, "find_spec", lambda name: change["installed"])
    assert backends._suits_one_launch(network) is suits


@pytest.fixture
def walking_kernel(monkeypatch):
    """A function that puts another in the place of the kernel of all steps."""
    monkeypatch.setattr(backends, "_suits_one_launch", lambda network: True)
    monkeypatch.setattr(backends, "_verdicts", {})

    def put(kernel):
        monkeypatch.setattr(backends, "_walk_in_one_launch", kernel)

    return put


def wrong_walk(energy):
    def walk(walkers, numbers):
        moved, rows = plain_walk(energy)(walkers, numbers)
        return moved, 1.001 * rows

    return walk


def test_a_walk_that_is_right_serves_and_a_wrong_one_does_not(walking_kernel):
    walking_kernel(lambda energy: plain_walk(energy))
    assert select_walk(anchored(), 100) is not None
    walking_kernel(wrong_walk)
    with pytest.warns(RuntimeWarning, match="is wrong by"):
        assert select_walk(anchored(), 100) is None


def test_an_exact_step_that_is_right_serves_and_a_wrong_one_does_not(walking_kernel, monkeypatch):
    def put(kernel):
        monkeypatch.setattr(backends, "_white_step_in_one_launch", kernel)

    def wrong(energy):
        def step(move):
            numbers, ratio = plain_white_step(energy)(move)
            return 1.001 * numbers, ratio

        return step

    put(lambda energy: plain_white_step(energy))
    assert select_white_step(anchored()) is not None
    put(wrong)
    with pytest.warns(RuntimeWarning, match="is wrong by"):
        assert select_white_step(anchored()) is None
    put(None)  # not tried: positions are more than a tile
    assert select_white_step(anchored(n_latents=40)) is None


def test_no_exact_step_is_selected_on_the_cpu():
    assert select_white_step(anchored()) is None


@pytest.mark.parametrize(
    ("hidden", "n_latents", "n_numbers"),
    [((16, 8), L, 2**26 + 1), ((16, 8), 40, 100), ((2048, 2048), L, 100)],
)
def test_what_does_not_fit_into_one_walk_is_not_tried(walking_kernel, hidden, n_latents, n_numbers):
    walking_kernel(None)
    assert select_walk(anchored(hidden, n_latents=n_latents), n_numbers) is None


def test_a_walk_takes_few_components(walking_kernel):
    walking_kernel(lambda energy: plain_walk(energy))
    energy, n = anchored(), 17
    maps = {"latent_map": torch.ones(L, D), "latent_variance": torch.ones(L)}
    means = torch.linspace(-1.0, 1.0, n)[:, None].expand(n, D)
    energy.reference = MixtureReference(
        torch.full((n,), 1.0 / n), means, torch.eye(D).expand(n, D, D), location=means[0], **maps
    )
    assert select_walk(energy, 100) is None


def test_no_walk_is_selected_on_the_cpu():
    assert select_walk(anchored(), 100) is None


def test_tensors_on_the_cpu_never_meet_the_gpu_kernel(monkeypatch):
    met = []
    monkeypatch.setattr(backends, "_in_one_launch", met.append)
    monkeypatch.setattr(backends, "find_spec", lambda name: 1)
    energy = anchored()
    assert not backends._suits_one_launch(energy.network)
    for part, plain in zip(
        select_correction_and_grad(energy)(torch.ones(4, D + L)),
        plain_results(energy),
        strict=True,
    ):
        torch.testing.assert_close(part, plain)
    assert met == []
