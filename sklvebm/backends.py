"""Selects the fastest correct function for an energy; the only importer of `kernels`."""

import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeGuard

import torch
from torch import Tensor

from sklvebm.models.energies import AnchoredEnergy, MLPEnergy, PathEnergy
from sklvebm.models.targets import CorrectionAndGrad, Walk, WhiteStep, autograd_correction_and_grad

# Largest difference of a GPU kernel from the plain function, relative to the largest value. For
# networks with one or two layers of 8 to 256 units, rounding to float32 gives 2e-7 to 1.3e-6, and
# TF32 products give 3e-4 to 1e-3.
_MAX_RELATIVE_ERROR = 1e-4
_MOST_WALK_NUMBERS = 2**26  # random numbers of all steps of a walk, which are drawn together

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
    from sklvebm.kernels.probes import largest_error

    if _suits_one_launch(energy.network) and _is_sound(_in_one_launch, energy, largest_error):
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


def select_walk(energy: PathEnergy, n_numbers: int) -> Walk | None:
    """Return the function that makes all unadjusted steps of an update in one launch on a GPU.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        Any energy.
    n_numbers : int
        Random numbers of all steps together.

    Returns
    -------
    walk : callable or None
        A `targets.Walk`; None where plain operations serve: on the CPU, and for
        energies that have no such kernel.

    Warns
    -----
    RuntimeWarning
        As `select_correction_and_grad`.
    """
    if n_numbers > _MOST_WALK_NUMBERS or not _has_kernels(energy):
        return None
    from sklvebm.kernels.probes import largest_error_of_walk
    from sklvebm.kernels.tiling import suits_steps

    widths = _widths(energy.network)
    if suits_steps(widths, len(energy.reference.means)) and _is_sound(
        _walk_in_one_launch, energy, largest_error_of_walk
    ):
        return _walk_in_one_launch(energy)
    return None


def select_white_step(energy: PathEnergy) -> WhiteStep | None:
    """Return the function that makes an exact step in white coordinates in one launch on a GPU.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        Any energy.

    Returns
    -------
    step : callable or None
        A `targets.WhiteStep`; None where plain operations serve, as for `select_walk`.

    Warns
    -----
    RuntimeWarning
        As `select_correction_and_grad`.
    """
    if not _has_kernels(energy):
        return None
    from sklvebm.kernels.probes import largest_error_of_white_step
    from sklvebm.kernels.tiling import suits_steps

    if suits_steps(_widths(energy.network)) and _is_sound(
        _white_step_in_one_launch, energy, largest_error_of_white_step
    ):
        return _white_step_in_one_launch(energy)
    return None


def _has_kernels(energy: PathEnergy) -> TypeGuard[AnchoredEnergy]:
    """Return whether GPU kernels exist for an energy: an anchored perceptron that suits them."""
    if not (isinstance(energy, AnchoredEnergy) and type(energy.network) is MLPEnergy):
        return False
    return _suits_one_launch(energy.network)


def _widths(network: Any) -> tuple[int, ...]:
    """Return the columns of a perceptron's rows, then the units of its hidden layers."""
    return network.n_features + network.n_latents, *network.hidden_layer_sizes


def _suits_one_launch(network: MLPEnergy) -> bool:
    """Return whether the GPU kernel supports a perceptron and Triton is installed."""
    from sklvebm.kernels.tiling import choose_tiling

    return (
        all(p.is_cuda and p.dtype == torch.float32 for p in network.parameters())
        and all(p.is_contiguous() for p in network.parameters())
        and choose_tiling(_widths(network)) is not None
        and find_spec("triton") is not None
    )


def _in_one_launch(energy: AnchoredEnergy) -> CorrectionAndGrad:
    """Return the function of an anchored perceptron as a single GPU kernel."""
    from sklvebm.kernels.triton_mlp import triton_mlp_correction_and_grad

    return triton_mlp_correction_and_grad(energy)


def _walk_in_one_launch(energy: AnchoredEnergy) -> Walk:
    """Return the walk of an anchored perceptron as a single GPU kernel."""
    from sklvebm.kernels.triton_walk import triton_walk

    return triton_walk(energy)


def _white_step_in_one_launch(energy: AnchoredEnergy) -> WhiteStep:
    """Return an exact step of an anchored perceptron's chains as a single GPU kernel."""
    from sklvebm.kernels.triton_frames import triton_white_step

    return triton_white_step(energy)


def _is_sound(
    kernel: Callable[[AnchoredEnergy], Any],
    energy: AnchoredEnergy,
    largest_error: Callable[[Any, AnchoredEnergy], float],
) -> bool:
    """Return whether a kernel is accurate for networks of the energy's shape, on its device.

    `largest_error` measures it, once for each shape and device. This does not protect from a
    kernel that writes beyond its memory, after which CUDA may be unusable.
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
            error = largest_error(kernel, energy)
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
