"""Selects the fastest correct function for an energy; the only importer of `kernels`."""

import math
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from sklvebm.models.energies import AnchoredEnergy, MLPEnergy, PathEnergy
from sklvebm.models.reach import Reach
from sklvebm.models.targets import CorrectionAndGrad, autograd_correction_and_grad

# Largest difference of a GPU kernel from the plain function, relative to the largest value. For
# networks with one or two layers of 8 to 256 units, rounding to float32 gives 2e-7 to 1.3e-6, and
# TF32 products give 3e-4 to 1e-3.
_MAX_RELATIVE_ERROR = 1e-4
_N_PROBE_ROWS = 45  # several programs of a kernel, the last of them partly filled

# whether a GPU kernel is correct, for each kernel, device and shape of network
_verdicts: dict[tuple[Any, ...], bool] = {}
_judging = threading.Lock()


def select_correction_and_grad(energy: PathEnergy) -> CorrectionAndGrad:
    """Return the fastest function that computes the correction of `energy` and its gradients.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        Any energy; those without a hand-derived gradient use automatic differentiation.

    Returns
    -------
    correction_and_grad : callable
        A `targets.CorrectionAndGrad`. All choices give the same values up to rounding.

    Warns
    -----
    RuntimeWarning
        If a suitable GPU kernel fails or is inaccurate on this device, once for every shape of
        network; the plain function is returned.
    """
    if not (isinstance(energy, AnchoredEnergy) and type(energy.network) is MLPEnergy):
        return autograd_correction_and_grad(energy)
    from sklvebm.kernels.mlp import mlp_correction_and_grad

    if _suits_one_launch(energy.network) and _is_sound(_in_one_launch, energy):
        return _in_one_launch(energy)
    return mlp_correction_and_grad(energy)


def select_contrast(energy: PathEnergy) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the function of weighted sums of corrections whose gradient is derived by hand.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        Any energy.

    Returns
    -------
    contrast : callable or None
        A `kernels.mlp_contrast.Contrast`; None for energies that have none.
    """
    if not (isinstance(energy, AnchoredEnergy) and type(energy.network) is MLPEnergy):
        return None
    from sklvebm.kernels.mlp_contrast import mlp_contrast

    return mlp_contrast(energy)


def _suits_one_launch(network: MLPEnergy) -> bool:
    """Return whether the GPU kernel supports a perceptron and Triton is installed."""
    from sklvebm.kernels.tiling import choose_tiling

    widths = (network.n_features + network.n_latents, *network.hidden_layer_sizes)
    return (
        all(p.is_cuda and p.dtype == torch.float32 for p in network.parameters())
        and all(p.is_contiguous() for p in network.parameters())
        and choose_tiling(widths) is not None
        and find_spec("triton") is not None
    )


def _in_one_launch(energy: AnchoredEnergy) -> CorrectionAndGrad:
    """Return the function of an anchored perceptron as a single GPU kernel."""
    from sklvebm.kernels.triton_mlp import triton_mlp_correction_and_grad

    return triton_mlp_correction_and_grad(energy)


def _is_sound(
    kernel: Callable[[AnchoredEnergy], CorrectionAndGrad], energy: AnchoredEnergy
) -> bool:
    """Return whether a kernel is accurate for networks of the energy's shape, on its device.

    The test runs once for each shape and device. It does not protect from a kernel that writes
    beyond its memory, after which CUDA may be unusable.
    """
    network = energy.network
    case = (
        kernel.__name__,
        network.output.device,
        network.n_features,
        network.n_latents,
        network.hidden_layer_sizes,
        network.activation,
        energy.reach is not None,
    )
    with _judging:
        if case in _verdicts:
            return _verdicts[case]
        try:
            error = _largest_error(kernel, energy)
            _verdicts[case] = error <= _MAX_RELATIVE_ERROR  # False for NaN
            complaint = f"is wrong by {error:.1e}, relative to the largest number"
        # broad on purpose: Triton, its compiler, the driver and torch have no common error, and any
        # failure of an optional kernel must lead to the plain function and a warning
        except Exception as failure:
            _verdicts[case] = False
            # compilers quote the source first and state the error last
            last = str(failure).strip().splitlines()[-1:]
            complaint = f"failed ({': '.join([type(failure).__name__, *last])})"
    if not _verdicts[case]:
        warnings.warn(
            f"The GPU kernel for a perceptron with hidden layers {network.hidden_layer_sizes} "
            f"{complaint} on {network.output.device}; the plain function serves instead, with the "
            "same results.",
            RuntimeWarning,
            stacklevel=3,
        )
    return _verdicts[case]


def _probe_reach(n_features: int) -> Reach:
    """Return a reach whose edge is where rows of a standard normal distribution are."""
    matrix = torch.eye(n_features, dtype=torch.float64)
    matrix += 0.2 * torch.ones_like(matrix).triu(1) / n_features
    return Reach(torch.full_like(matrix[0], 0.1), matrix * n_features**-0.5)


def _largest_error(
    kernel: Callable[[AnchoredEnergy], CorrectionAndGrad], energy: AnchoredEnergy
) -> float:
    """Return a kernel's largest error against the plain function in float64, relative.

    Weights and rows are random. Those of `energy` are no test before training, when its output is
    zero and any kernel agrees.
    """
    from sklvebm.kernels.mlp import mlp_correction_and_grad

    device, bound = cast(MLPEnergy, energy.network).output.device, energy.bound
    generator = torch.Generator().manual_seed(0)

    def probe(dtype: torch.dtype, device: torch.device) -> AnchoredEnergy:
        shape = cast(MLPEnergy, energy.network)
        network = MLPEnergy(
            shape.n_features,
            shape.n_latents,
            shape.hidden_layer_sizes,
            shape.activation,
            generator.manual_seed(0),
        )
        with torch.no_grad():
            # corrections both far below the bound and close to it
            network.output.normal_(0.0, bound * len(network.output) ** -0.5, generator=generator)
        reach = None if energy.reach is None else _probe_reach(energy.n_features)
        twin = AnchoredEnergy(energy.reference, network, bound, reach)
        if reach is not None:
            reach.to(device, dtype)
        twin.network.to(device, dtype)
        return twin

    exact = mlp_correction_and_grad(probe(torch.float64, torch.device("cpu")))
    width = energy.n_features + energy.n_latents
    rows = torch.randn(_N_PROBE_ROWS, width, generator=generator, dtype=torch.float32)
    expected = exact(rows.double())
    actual = kernel(probe(torch.float32, device))(rows.to(device))
    if any(a.shape != b.shape for a, b in zip(actual, expected, strict=True)):
        return math.inf
    errors = [
        (found.cpu() - wanted).abs().max() / wanted.abs().max()
        for found, wanted in zip(actual, expected, strict=True)
        if wanted.numel() > 0
    ]
    return float(torch.stack(errors).max())
