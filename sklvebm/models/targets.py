"""Tempered targets of energies on joint, latent and data space, with gradients in the positions.

Each function returns a `Target` of an energy on positions in the reference's coordinates. Only the
correction is differentiated automatically; the gradient of the reference is analytic.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.latent_maps.maps import LatentMap
from sklvebm.mcmc.state import STANDARD_FRAME, Frame, Noise, Target, Value, stack_rows
from sklvebm.mixtures.components import FeatureConditional, LinearGauge, draw_categorical
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import Corrected, PathEnergy

# rows (x, z), (B, D + L) -> correction (B,) and its gradient (B, D + L); detached
CorrectionAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]


class Walkers(NamedTuple):
    """Posterior particles of n rows, C joint particles behind them, and how they walk."""

    position: Tensor  # (n + C, D + L): (0, e) for each row, then (y, e)
    offset: Tensor  # (n, D + L), what the rows add; see `MixtureReference.offset_of`
    step_size: Tensor  # (2,), of posterior and of joint particles, squared position units per nat
    n_steps: tuple[int, int]  # of both; posterior particles make no more than joint ones

    def to(self, like: Tensor) -> "Walkers":
        """Return the walkers with tensors that have the dtype and the device of another."""
        tensors = self.position.to(like), self.offset.to(like), self.step_size.to(like)
        return Walkers(*tensors, self.n_steps)


# walkers and standard normal numbers (n_steps, n + C, D + L) -> their positions afterwards, and
# their rows (x, z), both (n + C, D + L)
Walk = Callable[[Walkers, Tensor], tuple[Tensor, Tensor]]


class WhiteMove(NamedTuple):
    """What an exact step of B chains in white coordinates depends on; see `white_step`.

    `centres` and `maps` may be parts of a larger table; all other tensors are contiguous.
    """

    # (B, 3 P + 1): coordinates, gradients of the correction there, the correction, rows (x, z)
    numbers: Tensor
    centres: Tensor  # (B, 1, P), rows at zero
    maps: Tensor  # (B, P, P), coordinates -> rows
    minus_beta: Tensor  # (B, 1)
    sizes: Tensor  # (n_groups,), step sizes
    group: Tensor  # (B,), place of each chain's step size
    normal: Tensor  # (B, P), standard normal numbers
    uniform: Tensor  # (B,), on [0, 1)


# -> numbers after the step, and Metropolis ratios (B,)
WhiteStep = Callable[[WhiteMove], tuple[Tensor, Tensor]]


def autograd_correction_and_grad(energy: Corrected) -> CorrectionAndGrad:
    """Differentiate any energy's correction by reverse-mode automatic differentiation.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        Its `correction(x, z)` must be differentiable in x and z.

    Returns
    -------
    correction_and_grad : callable
        Maps rows (x, z), (B, D + L), to the correction (B,) in nats and its gradient (B, D + L).
    """
    n_features = energy.n_features

    def correction_and_grad(rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            # energies of users may need contiguous arguments
            x, z = (
                part.detach().contiguous().requires_grad_()
                for part in (rows[:, :n_features], rows[:, n_features:])
            )
            correction = energy.correction(x, z)
            grads = torch.autograd.grad(
                correction.sum(), (x, z), allow_unused=True, materialize_grads=True
            )
        return correction.detach(), torch.cat(grads, 1)

    return correction_and_grad


def joint_target(energy: Corrected, correction_and_grad: CorrectionAndGrad) -> Target:
    """Return the path of joint targets: positions are `(y, e)`, (B, D + L)."""
    reference = energy.reference
    n_features = reference.n_features
    matrix, shift = reference.joint_map()
    back = matrix.T

    def evaluate(position: Tensor) -> Value:
        correction, grad = correction_and_grad(torch.addmm(shift, position, matrix))
        return Value(correction, grad @ back)

    def base(position: Tensor) -> tuple[Tensor, Tensor]:
        y, e = position[:, :n_features], position[:, n_features:]
        energies, grad = reference.marginal_energy_and_grad(y)
        return energies + 0.5 * e.square().sum(1), torch.cat([grad, e], 1)

    pull = reference.linear_pull()

    def base_grad(position: Tensor) -> Tensor:
        if pull is not None:
            return torch.addcmul(pull[1], position, pull[0])
        y, e = position[:, :n_features], position[:, n_features:]
        return torch.cat([reference.marginal_grad(y), e], 1)

    def frames(position: Tensor, noise: Noise) -> Frame:
        y_frame = reference.frame(position[:, :n_features], noise)
        if reference.n_latents == 0:
            return y_frame

        def on_features(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda u: torch.cat([function(u[:, :n_features]), u[:, n_features:]], 1)

        return Frame(*(on_features(function) for function in y_frame))

    return Target(evaluate, base, frames, base_grad)


def stacked_target(
    energy: PathEnergy,
    offset: Tensor,
    joint: Target,
    correction_and_grad: CorrectionAndGrad,
    *,
    n_joint: int,
) -> Target:
    """Return the path of posteriors of z given N rows x, with joint targets behind them.

    Positions are (N + n_joint, D + L): first `(0, e)` for every row, then `(y, e)` as those of
    `joint`, the path of `joint_target`. A kernel leaves the zeros alone if its step sizes are zero
    there; what gradients say about these coordinates means nothing. `evaluate` also takes several
    sets of N posterior particles, one behind the other.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The end of the path.
    offset : Tensor of shape (N, D + L)
        What the rows x add to particles; see `MixtureReference.offset_of`.
    joint : Target
        The path of joint particles.
    correction_and_grad : callable
        Of the energy.
    n_joint : int
        Joint particles.
    """
    reference, n = energy.reference, len(offset)

    def behind(function: Callable[[Tensor], Tensor], position: Tensor) -> Tensor:
        return torch.cat([position[:n], function(position[n:])])

    matrix, shift = reference.joint_map()
    every_offset = torch.cat([offset + shift, shift.expand(n_joint, -1)])

    def evaluate(position: Tensor) -> Value:
        if len(position) == n + n_joint:
            rows = torch.addmm(every_offset, position, matrix)
        else:
            rows = reference.rows(position)
            rows[: len(rows) - n_joint].unflatten(0, (-1, n)).add_(offset)
        correction, grad = correction_and_grad(rows)
        return Value(correction, grad @ matrix.T)

    def base(position: Tensor) -> tuple[Tensor, Tensor]:
        energies, grad = joint.base(position[n:])
        of_rows = 0.5 * position[:n].square().sum(1)
        return torch.cat([of_rows, energies]), torch.cat([position[:n], grad])

    is_linear = reference.linear_pull() is not None

    def base_grad(position: Tensor) -> Tensor:
        if is_linear:  # for latents it is that of a standard normal, and rows stay
            return joint.pull(position)
        return torch.cat([position[:n], joint.pull(position[n:])])

    def frames(position: Tensor, noise: Noise) -> Frame:
        frame = joint.frames(position[n:], noise)
        return Frame(*(partial(behind, function) for function in frame))

    return Target(evaluate, base, frames, base_grad)


def latent_target(energy: PathEnergy, x: Tensor, correction_and_grad: CorrectionAndGrad) -> Target:
    """Return the path of posteriors of z given the rows x (B, D): positions are e, (B, L)."""
    reference = energy.reference
    mean, scale = reference.latent_mean(x), reference.latent_scale

    def evaluate(position: Tensor) -> Value:
        rows = torch.cat([x, torch.addcmul(mean, position, scale)], 1)
        correction, grad = correction_and_grad(rows)
        return Value(correction, grad[:, reference.n_features :] * scale)

    def base(position: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * position.square().sum(1), position

    def frames(position: Tensor, noise: Noise) -> Frame:
        return STANDARD_FRAME

    return Target(evaluate, base, frames, lambda position: position)


def feature_target(
    energy: PathEnergy,
    z: Tensor,
    n_copies: int,
    conditional: FeatureConditional,
    correction_and_grad: CorrectionAndGrad,
) -> Target:
    """Return the path of conditionals of x given latents z (N, L), `n_copies` particles each.

    Positions are y, (N * n_copies, D); `conditional` is their distribution under the reference.
    """
    reference = energy.reference
    row = stack_rows(torch.arange(len(z), device=z.device), n_copies)
    z = z[row]
    design = reference.latent_map @ reference.root
    variance = reference.latent_scale.square()

    def evaluate(position: Tensor) -> Value:
        rows = torch.cat([reference.to_features(position), z], 1)
        correction, grad = correction_and_grad(rows)
        return Value(correction, grad[:, : reference.n_features] @ reference.root)

    def base(position: Tensor) -> tuple[Tensor, Tensor]:
        energies, grad = reference.marginal_energy_and_grad(position)
        residual = z - position @ design.T
        scaled = residual / variance
        return energies + 0.5 * (residual * scaled).sum(1), grad - scaled @ design

    def frames(position: Tensor, noise: Noise) -> Frame:
        # z depends on y alone, so the component given (y, z) is the component given y
        return conditional.frame(row, reference.draw_components(position, noise))

    return Target(evaluate, base, frames)


def linearised(latent_map: LatentMap, reference: MixtureReference) -> LinearGauge:
    """Return the latent map, linearised within each component at the component's mean."""
    centres = reference.to_features(reference.means)
    design = (latent_map.jacobian(centres) @ reference.root).double()
    offset = latent_map.mean(centres) - (design @ reference.means[:, :, None]).squeeze(2)
    return LinearGauge(design, offset.double(), latent_map.scale.double().square())


def mapped_feature_target(
    energy: PathEnergy,
    z: Tensor,
    n_copies: int,
    conditional: FeatureConditional,
    latent_map: LatentMap,
) -> Target:
    """Return the path of conditionals of x given the latents z (N, L) of a latent map.

    As `feature_target`. The base of the path is the mixture with the linearised latent map, which
    has exact draws. The nonlinear part of the latent map belongs to the correction.
    """
    reference = energy.reference
    gauge = linearised(latent_map, reference)
    row = stack_rows(torch.arange(len(z), device=z.device), n_copies)
    z = z[row].double()

    def log_joint(y: Tensor) -> Tensor:
        return reference.log_components(y) + gauge.log_density(y, z)

    def correction(y: Tensor) -> Tensor:
        x = reference.to_features(y)
        e = latent_map.from_latents(x, z)
        exact = torch.logsumexp(reference.log_components(y), 1) - 0.5 * e.square().sum(1)
        bent = torch.logsumexp(log_joint(y), 1) - exact
        return energy.correction(x, reference.to_latents(x, e)) + bent

    def evaluate(position: Tensor) -> Value:
        return Value(*_value_and_grad(correction, position))

    def base(position: Tensor) -> tuple[Tensor, Tensor]:
        return _value_and_grad(lambda y: -torch.logsumexp(log_joint(y), 1), position)

    def frames(position: Tensor, noise: Noise) -> Frame:
        return conditional.frame(row, draw_categorical(log_joint(position), noise))

    return Target(evaluate, base, frames)


def _value_and_grad(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values (B,) of a function of positions (B, P) and their gradients, detached."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        values = function(at)
        (grad,) = torch.autograd.grad(values.sum(), at)
    return values.detach(), grad
