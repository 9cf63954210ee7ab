"""Picks the fast or the plain function for an energy; the only importer of `kernels`."""

import math
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from sklvebm.models.energies import AnchoredEnergy, MLPEnergy, PathEnergy
from sklvebm.models.targets import CorrectionAndGrad, autograd_correction_and_grad

# largest difference of a GPU kernel from the plain function, relative to the largest number: of
# networks with one or two layers of 8 to 256 units, rounding to float32 makes 2e-7 to 1.3e-6, and
# weights as short as those in TF32 make 3e-4 to 1e-3
_TOLERANCE = 1e-4
_PROBE_ROWS = 45  # several programs of a kernel, the last of them not full

# what GPU kernels turned out to be on each device, for networks of each shape
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
        Signature of `gradients.CorrectionAndGrad`; the choice never changes its values beyond
        rounding.

    Warns
    -----
    RuntimeWarning
        If a GPU kernel that should have served fails or is wrong on this device, once for every
        shape of network; the plain function is returned.
    """
    if not (isinstance(energy, AnchoredEnergy) and type(energy.network) is MLPEnergy):
        return autograd_correction_and_grad(energy)
    from sklvebm.kernels.mlp import mlp_correction_and_grad

    if _suits_one_launch(energy.network) and _is_sound(_in_one_launch, energy):
        return _within_reach(energy, _in_one_launch(energy))
    return _within_reach(energy, mlp_correction_and_grad(energy))


def _within_reach(energy: AnchoredEnergy, inner: CorrectionAndGrad) -> CorrectionAndGrad:
    """Multiply the correction of a network by how far it reaches, with the gradient of both."""
    reach = energy.reach
    if reach is None:
        return inner

    @torch.no_grad()
    def correction_and_grad(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        correction, grad_x, grad_z = inner(x, z)
        share, slope = reach.value_and_grad(x)
        column = share.unsqueeze(1)
        grad_x = torch.addcmul(column * grad_x, correction.unsqueeze(1), slope)
        return share * correction, grad_x, column * grad_z

    return correction_and_grad


def _suits_one_launch(network: MLPEnergy) -> bool:
    """Tell whether a perceptron is one that the GPU kernel was written for, where there is one."""
    from sklvebm.kernels.tiling import choose_tiling

    widths = (network.n_features + network.n_latents, *network.hidden_layer_sizes)
    return (
        all(p.is_cuda and p.dtype == torch.float32 for p in network.parameters())
        and all(p.is_contiguous() for p in network.parameters())
        and choose_tiling(widths) is not None
        and find_spec("triton") is not None
    )


def _in_one_launch(energy: AnchoredEnergy) -> CorrectionAndGrad:
    """Return the function of an anchored perceptron that runs as one kernel on a GPU."""
    from sklvebm.kernels.triton_mlp import triton_mlp_correction_and_grad

    return triton_mlp_correction_and_grad(energy)


def _is_sound(
    kernel: Callable[[AnchoredEnergy], CorrectionAndGrad], energy: AnchoredEnergy
) -> bool:
    """Tell whether a kernel runs and is right for networks like that of `energy`, on its device.

    Judged once for each shape and device. A kernel that writes beyond its memory is not survived:
    CUDA itself may be unusable afterwards.
    """
    network = energy.network
    case = (
        kernel.__name__,
        network.output.device,
        network.n_features,
        network.n_latents,
        network.hidden_layer_sizes,
        network.activation,
    )
    with _judging:
        if case in _verdicts:
            return _verdicts[case]
        try:
            error = _largest_error(kernel, energy)
            _verdicts[case] = error <= _TOLERANCE  # False for NaN
            complaint = f"is wrong by {error:.1e}, relative to the largest number"
        # broad on purpose: Triton, its compiler, the driver and torch have no error in common, and
        # whatever goes wrong with an optional kernel must end in the plain function, with a warning
        except Exception as failure:
            _verdicts[case] = False
            # compilers quote the source first and say what is wrong with it last
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


def _largest_error(
    kernel: Callable[[AnchoredEnergy], CorrectionAndGrad], energy: AnchoredEnergy
) -> float:
    """Return how far a kernel is from the plain function in float64, relative to its largest value.

    Weights and rows are made up: those of `energy` may be anything, and before training its output
    is zero, on which all kernels agree.
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
            # corrections from well within the bound to close to it
            network.output.normal_(0.0, bound * len(network.output) ** -0.5, generator=generator)
        return AnchoredEnergy(energy.reference, network.to(device, dtype), bound)

    exact = mlp_correction_and_grad(probe(torch.float64, torch.device("cpu")))
    width = energy.n_features + energy.n_latents
    rows = torch.randn(_PROBE_ROWS, width, generator=generator, dtype=torch.float32)
    parts = rows.tensor_split([energy.n_features], 1)
    expected = exact(*(part.double() for part in parts))
    actual = kernel(probe(torch.float32, device))(*(part.to(device) for part in parts))
    if any(a.shape != b.shape for a, b in zip(actual, expected, strict=True)):
        return math.inf
    errors = [
        (found.cpu() - wanted).abs().max() / wanted.abs().max()
        for found, wanted in zip(actual, expected, strict=True)
        if wanted.numel() > 0
    ]
    return float(torch.stack(errors).max())
