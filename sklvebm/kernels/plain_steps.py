"""Langevin steps of an update in plain operations, as GPU kernels make them in one launch.

`backends` judges by these the kernels of `triton_walk.py` and `triton_frames.py`.
"""

from typing import cast

import torch
from torch import Tensor

from sklvebm.kernels.mlp import mlp_correction_and_grad
from sklvebm.mcmc.langevin import WhiteChains, start, ula_step, white_step
from sklvebm.mcmc.state import Chains, Noise, Target, deferred
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.models.targets import (
    CorrectionAndGrad,
    Walk,
    Walkers,
    WhiteMove,
    WhiteStep,
    joint_target,
    stacked_target,
)


class _Given:
    """A source of numbers that were drawn before: normal ones (n_steps, B, P), a step at a time."""

    def __init__(self, numbers: Tensor, uniform: Tensor | None = None) -> None:
        self._steps, self._uniform = iter(numbers), uniform

    def normal(self, like: Tensor) -> Tensor:
        """Return the numbers of the next step; `like` has their shape."""
        return next(self._steps)

    def uniform(self, like: Tensor) -> Tensor:
        """Return the uniform numbers of the only step."""
        return cast(Tensor, self._uniform)


@torch.no_grad()
def _moved(
    chains: Chains, target: Target, step_size: Tensor, numbers: Tensor
) -> tuple[Chains, Tensor]:
    """Return chains after a step for each of the numbers (n_steps, B, P), and their positions."""
    noise, beta = cast(Noise, _Given(numbers)), torch.ones_like(chains.position[:, 0])
    for _ in range(len(numbers)):
        chains, _ = ula_step(chains, target, beta=beta, step_size=step_size, noise=noise)
    return chains, chains.position


def plain_walk(energy: AnchoredEnergy) -> Walk:
    """Return the walk of an energy's particles at b = 1, operation by operation.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy`.

    Returns
    -------
    walk : callable
        A `Walk`.
    """
    reference = energy.reference
    correction_and_grad = mlp_correction_and_grad(energy)

    def walk(walkers: Walkers, numbers: Tensor) -> tuple[Tensor, Tensor]:
        (position, offset, step_size, (n_first, _)), d = walkers, energy.n_features
        n = len(offset)
        joint = deferred(joint_target(energy, correction_and_grad))
        n_joint = len(position) - n
        both = stacked_target(energy, offset, joint, correction_and_grad, n_joint=n_joint)
        sizes = torch.ones_like(position)
        sizes[:n] *= step_size[0]
        sizes[:n, :d] = 0.0  # rows stay
        sizes[n:] *= step_size[1]
        target = deferred(both)
        _, position = _moved(start(position, target), target, sizes, numbers[:n_first])
        of_pool = start(position[n:], joint)
        _, pool = _moved(of_pool, joint, sizes[n:], numbers[n_first:, n:])
        position = torch.cat([position[:n], pool])
        rows = reference.rows(position)
        rows[:n] += offset
        return position, rows

    return walk


def plain_white_step(energy: AnchoredEnergy) -> WhiteStep:
    """Return an exact step of an energy's chains in white coordinates, operation by operation.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its network must be an `MLPEnergy`.

    Returns
    -------
    step : callable
        A `WhiteStep`.
    """
    correction_and_grad = mlp_correction_and_grad(energy)

    @torch.no_grad()
    def step(move: WhiteMove) -> tuple[Tensor, Tensor]:
        chains = WhiteChains(move.numbers, move.normal.shape[1])
        chains, info = white_step(
            chains,
            lambda s: numbers_at(s, move.centres, move.maps, correction_and_grad),
            minus_beta=move.minus_beta,
            step_size=move.sizes[move.group].unsqueeze(1),
            noise=cast(Noise, _Given(move.normal[None], move.uniform)),
        )
        return chains.numbers, cast(Tensor, info.ratio)

    return step


def numbers_at(
    s: Tensor, centres: Tensor, maps: Tensor, correction_and_grad: CorrectionAndGrad
) -> Tensor:
    """Return the numbers of chains at coordinates s (B, P); see `WhiteMove`."""
    rows = torch.baddbmm(centres, s.unsqueeze(1), maps).squeeze(1)
    correction, grad = correction_and_grad(rows)
    pulled = torch.bmm(grad.unsqueeze(1), maps.mT).squeeze(1)
    return torch.cat([s, pulled, correction.unsqueeze(1), rows], 1)
