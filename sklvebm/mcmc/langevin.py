"""Overdamped Langevin dynamics on a path of targets: unadjusted, of second order, and MALA.

All kernels take and return `Chains` and one inverse temperature and step size per position. They
never modify their input. Step sizes are in squared position units per nat: drift `h`, noise
variance `2 h`. A step size can also be given for each coordinate; where it is zero, the coordinate
stays, and the others follow their conditional distribution.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.mcmc.state import AnyValue, Chains, Noise, StepInfo, Target, Value


def start(position: Tensor, target: Target) -> Chains:
    """Evaluate the target at `position`, (B, P), and return chains that start there."""
    return Chains(position, target.evaluate(position))


def ula_step(
    chains: Chains, target: Target, *, beta: Tensor, step_size: Tensor, noise: Noise
) -> tuple[Chains, StepInfo]:
    r"""Move positions by one step of unadjusted Langevin dynamics (Euler-Maruyama).

    .. math:: u' = u - h \nabla E_b(u) + \sqrt{2 h}\, \xi

    Parameters
    ----------
    chains : Chains
        Positions (B, P) and their values.
    target : Target
        The path of targets.
    beta : Tensor of shape (B,)
        Inverse temperature b of each position on the path.
    step_size : Tensor of shape (B,) or (B, P)
        Step h of each position or coordinate, squared position units per nat.
    noise : IndependentNoise or SharedNoise
        Source of ξ.

    Returns
    -------
    chains : Chains
        New positions and values; one evaluation.
    info : StepInfo
        Acceptance is one.

    Notes
    -----
    For a Gaussian target with precision Λ the stationary covariance is
    `Λ^{-1} (I - h Λ / 2)^{-1}`: too wide, and infinite for `h Λ >= 2`.
    """
    position, value = chains
    xi = noise.normal(position)
    grad = torch.addcmul(target.pull(position), beta.unsqueeze(-1), value.grad)
    moved = _drifted(position, grad, step_size, torch.sqrt(step_size), xi)
    return Chains(moved, target.evaluate(moved)), StepInfo(beta)


def leimkuhler_matthews_step(
    chains: Chains, target: Target, *, beta: Tensor, step_size: Tensor, noise: Noise
) -> tuple[Chains, StepInfo]:
    r"""Move positions by one Leimkuhler-Matthews step, in its memoryless form.

    .. math:: u = v + \sqrt{h / 2}\, \xi, \qquad v' = v - h \nabla E_b(u) + \sqrt{2 h}\, \xi

    The chain is `v`; `u`, which `leimkuhler_matthews_readout` draws, follows
    `u' = u - h \nabla E_b(u) + \sqrt{h/2} (\xi + \xi')`, and is exact for Gaussian targets.

    Parameters and returns are those of `ula_step`; the value returned belongs to `u`.
    """
    position, _ = chains
    xi = noise.normal(position)
    root = torch.sqrt(step_size)
    u = torch.addcmul(position, _of_coordinates(root), xi, value=math.sqrt(0.5))
    value = target.evaluate(u)
    grad = torch.addcmul(target.pull(u), beta.unsqueeze(-1), value.grad)
    moved = _drifted(position, grad, step_size, root, xi)
    return Chains(moved, value), StepInfo(beta)


def heun_step(
    chains: Chains, target: Target, *, beta: Tensor, step_size: Tensor, noise: Noise
) -> tuple[Chains, StepInfo]:
    r"""Move positions by one step of the stochastic Heun method.

    .. math:: v = u - h \nabla E_b(u) + \sqrt{2 h}\, \xi, \qquad
              u' = u - \tfrac h2 (\nabla E_b(u) + \nabla E_b(v)) + \sqrt{2 h}\, \xi

    Its weak order is two also at finite times [1]_: it follows the gradient flow of the relative
    entropy on the way, not only at its end. Parameters and returns are those of `ula_step`. Each
    step makes two evaluations.

    Notes
    -----
    For a Gaussian target with precision Λ the stationary covariance is
    `Λ^{-1} (I - X / 2) (I - X / 2 + X^2 / 4)^{-1}` with `X = h Λ`; infinite for `h Λ >= 2`.

    References
    ----------
    .. [1] P. E. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations",
       section 15.1, 1992: the explicit order 2.0 weak scheme for additive noise.
    """
    position, value = chains
    xi = noise.normal(position)
    root = torch.sqrt(step_size)
    grad = torch.addcmul(target.pull(position), beta.unsqueeze(-1), value.grad)
    ahead = _drifted(position, grad, step_size, root, xi)
    grad.add_(target.pull(ahead)).mul_(0.5)
    grad.addcmul_(beta.unsqueeze(-1), target.evaluate(ahead).grad, value=0.5)
    moved = _drifted(position, grad, step_size, root, xi)
    return Chains(moved, target.evaluate(moved)), StepInfo(beta)


def leimkuhler_matthews_readout(position: Tensor, step_size: Tensor, noise: Noise) -> Tensor:
    """Return a draw of u given the chain position v (B, P); step sizes (B,) or (B, P)."""
    root = _of_coordinates(torch.sqrt(0.5 * step_size))
    return torch.addcmul(position, root, noise.normal(position))


def mala_step(
    chains: Chains, target: Target, *, beta: Tensor, step_size: Tensor, noise: Noise
) -> tuple[Chains, StepInfo]:
    """Move positions by one Metropolis-adjusted Langevin step: exact for any step size.

    Parameters and returns are those of `ula_step`; `acceptance` is the Metropolis probability.
    A proposal with a non-finite energy is rejected. One evaluation per step.
    """
    position, value = chains
    root = torch.sqrt(step_size)
    xi = noise.normal(position)
    energy, grad = _energy_and_grad(position, value, target, beta)
    moved = _drifted(position, grad, step_size, root, xi)
    new = target.evaluate(moved)
    new_energy, new_grad = _energy_and_grad(moved, new, target, beta)
    # the noise that would carry the proposal back is `mean - xi`, with
    # mean = sqrt(h / 2) (grad E(u) + grad E(u')), and |xi|^2 - |mean - xi|^2 = mean (2 xi - mean)
    mean = grad.add_(new_grad).mul_(_of_coordinates(root.mul_(math.sqrt(0.5))))
    log_ratio = torch.sub(xi, mean, alpha=0.5).mul_(mean).sum(1)
    log_ratio += energy.sub_(new_energy)
    return _accept(log_ratio, Chains(moved, new), chains, noise)


def _energy_and_grad(
    position: Tensor, value: AnyValue, target: Target, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `E_b` (B,) and its gradient (B, P) from the cached correction and the base."""
    energy, pull = target.base(position)
    return (
        torch.addcmul(energy, beta, value.correction),
        torch.addcmul(pull, beta.unsqueeze(-1), value.grad),
    )


def _drifted(position: Tensor, grad: Tensor, step_size: Tensor, root: Tensor, xi: Tensor) -> Tensor:
    """Return a Langevin step, (B, P); step sizes and their square roots are (B,) or (B, P)."""
    moved = torch.addcmul(position, _of_coordinates(step_size), grad, value=-1.0)
    return moved.addcmul_(_of_coordinates(root), xi, value=math.sqrt(2.0))


def _of_coordinates(sizes: Tensor) -> Tensor:
    """Return sizes of positions (B,) as a column; those of coordinates (B, P) as they are."""
    return sizes.unsqueeze(-1) if sizes.dim() == 1 else sizes


def crank_nicolson_step(
    chains: Chains, target: Target, *, beta: Tensor, step_size: Tensor, noise: Noise
) -> tuple[Chains, StepInfo]:
    r"""Move positions by a Metropolis-adjusted Langevin step that is exact on the reference.

    In white coordinates s, where the base is a standard normal, the linear part of the dynamics is
    integrated by the Crank-Nicolson rule [1]_,

    .. math:: (2 + h) s' = (2 - h) s - 2 h b \nabla f(s) + \sqrt{8 h}\, \xi

    so that at b = 0 every proposal is accepted, in any dimension and with any `h <= 2`; the
    acceptance depends on the correction f alone. The component of a mixture base is redrawn given
    the position before the step.

    Parameters and returns are those of `mala_step`. One evaluation per step.

    References
    ----------
    .. [1] S. L. Cotter, G. O. Roberts, A. M. Stuart, D. White, "MCMC methods for functions:
       modifying old algorithms to make them faster", Statistical Science 28, 2013.
    """
    return crank_nicolson_move(chains, target, crank_nicolson_rates(beta, step_size), noise)


class CrankNicolsonRates(NamedTuple):
    """Coefficients of Crank-Nicolson steps, which depend on step and inverse temperature only."""

    beta: Tensor  # (B,)
    column: Tensor  # (B, 1), the same
    step_size: Tensor  # (B, 1) or (B, P), h
    decay: Tensor  # of its shape, (2 - h) / (2 + h)
    drift: Tensor  # h b / (2 + h)
    spread: Tensor  # sqrt(h) / (2 + h)

    def at(self, index: int) -> "CrankNicolsonRates":
        """Return the rates at one index, which are the same for all positions."""
        return CrankNicolsonRates(*(rates[index] for rates in self))

    def between(self, first: int, last: int | None = None) -> "CrankNicolsonRates":
        """Return the rates from one index to before another."""
        return CrankNicolsonRates(*(rates[first:last] for rates in self))


def crank_nicolson_rates(beta: Tensor, step_size: Tensor) -> CrankNicolsonRates:
    """Return the rates of steps (B,) or (B, P) at inverse temperatures beta (B,)."""
    h, b = _of_coordinates(step_size), beta.unsqueeze(-1)
    whole = 2.0 + h
    drift, spread = (h * b).div_(whole), torch.sqrt(h).div_(whole)
    return CrankNicolsonRates(beta, b, h, (2.0 - h).div_(whole), drift, spread)


def crank_nicolson_move(
    chains: Chains, target: Target, rates: CrankNicolsonRates, noise: Noise
) -> tuple[Chains, StepInfo]:
    """Make a `crank_nicolson_step` with given rates."""
    position, value = chains
    beta, b, h, decay, drift, spread = rates
    frame = target.frames(position, noise)
    s, grad = frame.whiten(position), frame.pull(value.grad)
    xi = noise.normal(s)
    moved = (decay * s).addcmul_(drift, grad, value=-2.0)
    moved.addcmul_(spread, xi, value=math.sqrt(8.0))
    new_position = frame.colour(moved)
    new = target.evaluate(new_position)
    new_grad = frame.pull(new.grad)
    # log ratio of [1], eq. (4.17): the normal base has cancelled; with a = g + g', d = g - g',
    # its sum over coordinates is b (a (s' - s) / 2 + d h (s' + s + b a) / 4)
    both, difference = grad + new_grad, grad - new_grad
    slopes = torch.add(moved, s).addcmul_(b, both).mul_(difference)
    terms = torch.sub(moved, s).mul_(both).addcmul_(h, slopes, value=0.5)
    log_ratio = torch.sub(value.correction, new.correction)
    log_ratio = log_ratio.add_(terms.sum(1), alpha=0.5).mul_(beta)
    return _accept(log_ratio, Chains(new_position, new), chains, noise)


class WhiteChains(NamedTuple):
    """Chains in coordinates where the base is a standard normal, with all that belongs to them.

    It is in one tensor, because one operation then does what would take one for each part.
    """

    # (B, 2 P + 1 + n_further): coordinates s, gradients of the correction there, the correction in
    # nats, and whatever else depends on s
    numbers: Tensor
    width: int  # P

    @property
    def coordinates(self) -> Tensor:
        """Return s, (B, P)."""
        return self.numbers[:, : self.width]

    @property
    def grad(self) -> Tensor:
        """Return the gradients of the correction, (B, P), nats per unit of s."""
        return self.numbers[:, self.width : 2 * self.width]

    @property
    def correction(self) -> Tensor:
        """Return the correction, (B,), nats."""
        return self.numbers[:, 2 * self.width]

    @property
    def further(self) -> Tensor:
        """Return what else there is, (B, n_further)."""
        return self.numbers[:, 2 * self.width + 1 :]

    def behind(self, n: int) -> "WhiteChains":
        """Return the chains without the first n."""
        return WhiteChains(self.numbers[n:], self.width)


def white_step(
    chains: WhiteChains,
    evaluate: Callable[[Tensor], Tensor],
    *,
    minus_beta: Tensor,
    step_size: Tensor,
    noise: Noise,
) -> tuple[WhiteChains, StepInfo]:
    """Make a `crank_nicolson_step` in white coordinates, where chains stay between steps.

    Parameters
    ----------
    chains : WhiteChains
        B chains.
    evaluate : callable
        Maps coordinates (B, P) to the numbers of chains there.
    minus_beta : Tensor of shape (B, 1)
        Inverse temperature of each chain, with a minus sign.
    step_size : Tensor of shape (B, 1)
        Step h of each chain, squared units of s per nat.
    noise : IndependentNoise or SharedNoise
        Source of the move.

    Returns
    -------
    chains : WhiteChains
        After one evaluation.
    info : StepInfo
        Acceptance.
    """
    numbers, width = chains
    whole = 2.0 + step_size
    decay, spread = (2.0 - step_size).div_(whole), torch.sqrt(step_size).div_(whole)
    s = chains.coordinates
    # the mean of the proposal lies between s and minus the tempered gradient
    moved = torch.lerp(chains.grad * minus_beta, s, decay)
    moved.addcmul_(spread, noise.normal(s), value=math.sqrt(8.0))
    new = evaluate(moved)
    total, rise = numbers[:, : 2 * width] + new[:, : 2 * width], new - numbers
    # minus the log ratio of `crank_nicolson_move` over b
    both, difference = total[:, width:], rise[:, width : 2 * width]
    slopes = torch.addcmul(total[:, :width], minus_beta, both, value=-1.0).mul_(difference)
    terms = (rise[:, :width] * both).addcmul_(step_size, slopes, value=-0.5)
    log_ratio = torch.sub(rise[:, 2 * width], terms.sum(1), alpha=0.5).mul_(minus_beta[:, 0])
    ratio = log_ratio.exp_()
    accepted = noise.uniform(ratio) < ratio
    chosen = torch.where(accepted.unsqueeze(1), new, numbers)
    return WhiteChains(chosen, width), StepInfo(ratio, ratio)


def reference_step(
    chains: Chains, target: Target, proposal: Tensor, *, beta: Tensor, noise: Noise
) -> tuple[Chains, StepInfo]:
    """Propose an independent draw of the base to every chain (Metropolis independence sampler).

    Parameters
    ----------
    chains : Chains
        Positions (B, P) and their values.
    target : Target
        The path of targets; its base must be the density that `proposal` was drawn from.
    proposal : Tensor of shape (B, P)
        Exact draws of the base.
    beta : Tensor of shape (B,)
        Inverse temperature of each position.
    noise : IndependentNoise or SharedNoise
        Source of the acceptance draws.

    Returns
    -------
    chains : Chains
        New positions and values; one evaluation.
    info : StepInfo
        Acceptance probabilities.

    Notes
    -----
    The base cancels, and the ratio is `exp(-b (f' - f))`. Particles change between modes that no
    local step connects.
    """
    new = target.evaluate(proposal)
    log_ratio = beta * (chains.value.correction - new.correction)
    return _accept(log_ratio, Chains(proposal, new), chains, noise)


def _accept(log_ratio: Tensor, new: Chains, old: Chains, noise: Noise) -> tuple[Chains, StepInfo]:
    """Accept new chains by their Metropolis ratio, which replaces its logarithm; not if NaN."""
    ratio = log_ratio.exp_()
    accepted = noise.uniform(ratio) < ratio
    column = accepted.unsqueeze(-1)
    value = Value(
        torch.where(accepted, new.value.correction, old.value.correction),
        torch.where(column, new.value.grad, old.value.grad),
    )
    return Chains(torch.where(column, new.position, old.position), value), StepInfo(ratio, ratio)


def identity_readout(position: Tensor, step_size: Tensor, noise: Noise) -> Tensor:
    """Return the positions: chains stand for themselves."""
    return position


class Kernel(NamedTuple):
    """A step, the particles that its chain stands for, and the rule of its step size."""

    step: Callable[..., tuple[Chains, StepInfo]]
    readout: Callable[[Tensor, Tensor, Noise], Tensor]
    target_acceptance: float | None  # None: the step size stays as given
    default_step_size: float  # squared position units per nat
    max_step_size: float  # the same


KERNELS = {
    "crank-nicolson": Kernel(crank_nicolson_step, identity_readout, 0.6, 0.5, 2.0),
    "mala": Kernel(mala_step, identity_readout, 0.6, 0.3, 10.0),
    "leimkuhler-matthews": Kernel(
        leimkuhler_matthews_step, leimkuhler_matthews_readout, None, 0.1, 10.0
    ),
    "heun": Kernel(heun_step, identity_readout, None, 0.1, 10.0),
    "ula": Kernel(ula_step, identity_readout, None, 0.02, 10.0),
}
