"""Adaptation of Langevin step sizes towards a kernel's best acceptance rate."""

import math

import torch
from torch import Tensor

from sklvebm.mcmc.langevin import Kernel

_ADAPTATION_RATE = 0.1  # change of log(step size) per unit of excess acceptance
_MIN_STEP_SIZE = 1e-8


def adapt_step_size(kernel: Kernel, step_size: Tensor, acceptance: Tensor) -> Tensor:
    """Move step sizes towards a kernel's target acceptance (Robbins-Monro on the logarithm).

    Parameters
    ----------
    kernel : Kernel
        Kernels without a target acceptance keep their step sizes.
    step_size : Tensor of any shape
        Present step sizes, squared position units per nat.
    acceptance : Tensor of the same shape
        Mean acceptance probability seen with each of them.

    Returns
    -------
    step_size : Tensor of the same shape
        At most the kernel's maximum.
    """
    if kernel.target_acceptance is None:
        return step_size
    # exp(rate (acceptance - target)) in as few operations as there can be
    factor = torch.pow(math.exp(_ADAPTATION_RATE), acceptance - kernel.target_acceptance)
    return factor.mul_(step_size).clamp_(_MIN_STEP_SIZE, kernel.max_step_size)
