"""Annealed importance sampling along a path of targets."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklvebm.mcmc.langevin import CrankNicolsonRates, crank_nicolson_move, crank_nicolson_rates
from sklvebm.mcmc.state import (
    Chains,
    IndependentNoise,
    Noise,
    Target,
    Value,
    hold_frames,
    take_chains,
)
from sklvebm.mcmc.tempering import interpolate, respaced_ladder
from sklvebm.recordings import Recordings, can_record
from sklvebm.smc.resampling import effective_sample_size, log_mean_exp, systematic_resample

_STEPS_PER_FRAME = 4  # annealing steps between redraws of the base's components
# steps below which a recording takes longer than it saves; a guess, as no GPU has run one
_FEWEST_RECORDED = 256


def anneal(
    chains: Chains,
    target: Target,
    betas: Tensor,
    *,
    step_sizes: Tensor,
    noise: Noise,
    resample_below: float = 0.0,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Chains]:
    r"""Carry particles along a path of targets and accumulate their importance weights.

    .. math:: \log w = \sum_k (b_{k-1} - b_k)\, f(u_{k-1})     (docs/theory/normalisation.md, eq. 9)

    with inverse temperatures b and the correction f. A Metropolis-adjusted step follows each change
    of b. The components of a mixture base are redrawn every fourth step; each step leaves the joint
    distribution of positions and components invariant.

    Parameters
    ----------
    chains : Chains
        Positions (B, P) that follow the target at `betas[0]`, and their values.
    target : Target
        The path.
    betas : Tensor of shape (n_steps + 1,)
        Inverse temperatures, ascending (from the base) or descending (towards it).
    step_sizes : Tensor of shape (n_steps + 1,)
        Langevin step size at each of them, squared position units per nat.
    noise : IndependentNoise or SharedNoise
        Source of the moves. Resampling needs `IndependentNoise`.
    resample_below : float, default=0.0
        Resample (systematically) when the effective sample size falls below this share of B.
    log_weights : Tensor of shape (B,) or None, default=None
        Initial log importance weights, float64; None means zeros.

    Returns
    -------
    log_weights : Tensor of shape (B,), float64
        Log importance weights, in nats; `logsumexp - log B` estimates the log ratio of the
        normalisers at the last and the first inverse temperature.
    chains : Chains
        Final positions; with their weights they represent the last target.
    """
    if log_weights is None:
        log_weights = torch.zeros_like(chains.value.correction, dtype=torch.float64)
    # of all steps at once, because there is one operation less in every step for each
    steps = Steps(betas.diff().double(), crank_nicolson_rates(betas, step_sizes).between(1))
    if resample_below > 0.0:
        return _annealed_with_resampling(
            chains, target, steps, log_weights=log_weights, noise=noise, least=resample_below
        )
    pays = len(steps.rises) >= _FEWEST_RECORDED and can_record(chains.position.device)
    if pays and isinstance(noise, IndependentNoise):  # what rows share is drawn by the host
        in_place = AnnealingInPlace(chains, log_weights, target, noise)
        log_weights, chains = in_place.annealed(steps)
    else:
        for part in steps.of_frames():
            log_weights, chains = _annealed_in_a_frame(chains, log_weights, target, part, noise)
    return log_weights + 0.0, chains


class Steps(NamedTuple):
    """Annealing steps in their order."""

    rises: Tensor  # (n_steps,) float64, of the inverse temperature before each move
    rates: CrankNicolsonRates  # of each move, n_steps

    def between(self, first: int, last: int) -> "Steps":
        """Return the steps from `first` to before `last`."""
        return Steps(self.rises[first:last], self.rates.between(first, last))

    def of_frames(self) -> list["Steps"]:
        """Return parts in which the components of the base are kept."""
        firsts = range(0, len(self.rises), _STEPS_PER_FRAME)
        return [self.between(first, first + _STEPS_PER_FRAME) for first in firsts]


def _annealed_in_a_frame(
    chains: Chains, log_weights: Tensor, target: Target, steps: Steps, noise: Noise
) -> tuple[Tensor, Chains]:
    """Return log weights and chains after steps between which no component is redrawn."""
    held = hold_frames(target)
    for k in range(len(steps.rises)):
        correction = chains.value.correction
        log_weights = torch.addcmul(log_weights, steps.rises[k], correction, value=-1.0)
        chains, _ = crank_nicolson_move(chains, held, steps.rates.at(k), noise)
    return log_weights, chains


def _annealed_with_resampling(
    chains: Chains,
    target: Target,
    steps: Steps,
    *,
    log_weights: Tensor,
    noise: Noise,
    least: float,
) -> tuple[Tensor, Chains]:
    """Return log weights and chains; resampled where the effective share falls below `least`.

    Never recorded: the host reads at every step whether to resample. If so, components are drawn
    again, because they are held by index, and indices have changed.
    """
    done, n_least = 0.0, least * len(log_weights)
    for k in range(len(steps.rises)):
        if k % _STEPS_PER_FRAME == 0:
            held = hold_frames(target)
        correction = chains.value.correction
        log_weights = torch.addcmul(log_weights, steps.rises[k], correction, value=-1.0)
        if effective_sample_size(log_weights) < n_least:
            done += log_mean_exp(log_weights)
            chains = take_chains(chains, systematic_resample(log_weights, noise))
            log_weights = torch.zeros_like(log_weights)
            held = hold_frames(target)
        chains, _ = crank_nicolson_move(chains, held, steps.rates.at(k), noise)
    return log_weights + done, chains


class AnnealingInPlace:
    """Annealing in tensors that stay where they are, as a recording needs them.

    Recorded are the steps between two draws of the base's components: a draw and four moves. They
    have no branch on data, and their rates are copied to the same place before each of them.

    Parameters
    ----------
    chains : Chains
        Where the walkers start; copied.
    log_weights : Tensor of shape (B,)
        Theirs, float64; copied.
    target : Target
        The path.
    noise : IndependentNoise
        Source of the moves.
    """

    def __init__(
        self, chains: Chains, log_weights: Tensor, target: Target, noise: IndependentNoise
    ) -> None:
        value = Value(*(part.clone() for part in chains.value))
        self.chains = Chains(chains.position.clone(), value)
        self.log_weights = log_weights.clone()
        self._target, self._noise = target, noise
        self._of_sizes: dict[int, Steps] = {}  # by the number of steps
        self._steps: Steps  # those that are made now

    def annealed(self, steps: Steps) -> tuple[Tensor, Chains]:
        """Return log weights and chains after all steps; those of the last frame may be fewer."""
        # not kept: in a cycle of references, the memory of its graphs would wait for the collector
        recordings = Recordings(self._work, self._noise.generator)
        for part in steps.of_frames():
            n_steps = len(part.rises)
            if n_steps not in self._of_sizes:
                rates = CrankNicolsonRates(*(torch.empty_like(each) for each in part.rates))
                self._of_sizes[n_steps] = Steps(torch.empty_like(part.rises), rates)
            self._steps = self._of_sizes[n_steps]
            own, theirs = ([each.rises, *each.rates] for each in (self._steps, part))
            torch._foreach_copy_(own, theirs)
            recordings(n_steps)
        return self.log_weights, self.chains

    def _work(self) -> None:
        """Make the steps whose rates are in place; everything is where it was afterwards."""
        log_weights, chains = _annealed_in_a_frame(
            self.chains, self.log_weights, self._target, self._steps, self._noise
        )
        own, theirs = (
            [weights, each.position, *each.value]
            for weights, each in ((self.log_weights, self.chains), (log_weights, chains))
        )
        torch._foreach_copy_(own, theirs)


class Ladder(NamedTuple):
    """Inverse temperatures of a tempered pool, with quantities measured at each."""

    betas: Tensor  # (T,)
    step_size: Tensor  # (T,), squared position units per nat
    spread: Tensor  # (T,), variance of the correction, nats^2


def single_rung(step_size: Tensor) -> Ladder:
    """Return a ladder of one temperature with the given step size, 0-d."""
    return Ladder(step_size.new_ones(1), step_size.reshape(1), step_size.new_ones(1))


def annealing_schedule(ladder: Ladder, n_steps: int) -> tuple[Tensor, Tensor]:
    """Return inverse temperatures at equal thermodynamic distances, and their step sizes.

    Parameters
    ----------
    ladder : Ladder
        Measured on the tempered pool. A single rung at b = 1 gives a uniform schedule.
    n_steps : int
        Number of annealing steps.

    Returns
    -------
    betas, step_sizes : Tensor of shape (n_steps + 1,)
        From the base (b = 0) to the model (b = 1).
    """
    if len(ladder.betas) == 1:
        options: dict[str, Any] = {"dtype": ladder.betas.dtype, "device": ladder.betas.device}
        uniform = torch.linspace(0.0, 1.0, n_steps + 1, **options)
        return uniform, ladder.step_size.expand(n_steps + 1)
    betas = respaced_ladder(ladder.betas, ladder.spread, n_steps + 1)
    log_step = interpolate(betas, ladder.betas, torch.log(ladder.step_size))
    return betas, torch.exp(log_step)
