r"""The density ratio of rows to the reference, by classification: where training starts.

.. math:: L(f, c) = E_{data}[\log(1 + \nu e^{f + c})] + \nu E_{ref}[\log(1 + e^{-f - c} / \nu)]
                                                                    (docs/theory/model.md, eq. 8a)

Rows with latents from the reference's posterior are told from `\nu` times as many exact draws of
the reference. The optimum is `f + c = -\log(p_{data} / p_{ref})`, where c is `log Z` of `exp(-f)`:
the correction of maximum likelihood, without Markov chains. Noise-contrastive estimation
[1]_ is nearly efficient where the reference is near the rows. Each network of an ensemble has the
loss of its own, and a number c of its own; the model is their mean.

References
----------
.. [1] M. Gutmann, A. Hyvärinen, "Noise-Contrastive Estimation of Unnormalized Statistical Models,
   with Applications to Natural Image Statistics", Journal of Machine Learning Research 13, 2012.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sklvebm.adam import Adam
from sklvebm.communication import ALONE, Communicator, mean_over_ranks
from sklvebm.confidence import lower_confidence_limit, upper_confidence_limit
from sklvebm.mcmc.state import ParticleState
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.objectives.parts import in_parts
from sklvebm.objectives.ratio_course import RatioCourse, RatioEpoch, RatioRecipe
from sklvebm.objectives.tempered_pool import TemperedPool, free_energy_bound
from sklvebm.optimisation import adopted, copied, write
from sklvebm.row_weights import mean_on_device, pass_over
from sklvebm.smc.quasi_random import latent_nodes
from sklvebm.training import Keeper, batches, read_together, set_generator

INITS = ("auto", "ratio", "reference")
_DRAWS_PER_ROW = 5  # the number nu
_SAMPLED_AT_A_TIME = 2**15  # draws of the reference
_MEASURING_DRAWS = 2**15  # for log Z and for the pool
_MONITORING_DRAWS = 2**14  # that join the pool's particles in the log Z of later epochs
_FEWEST_DRAWS, _EPOCH_DRAWS_PER_ROW = 2**12, 4  # for log Z of one epoch, at most as many as above
_MEASURED_AT_A_TIME = 2**12
_WARM_UP = 20  # updates until the learning rate is reached
_CLIP_NORM = 10.0
_MOMENTA = 0.9, 0.99
_NODES = 16  # latents per held-out row
_SEPARATING_SWEEPS = 20  # of a resampled pool


class RatioWeights(NamedTuple):
    """How often each row counts; None counts each row once."""

    fitted: Tensor | None = None  # (n_fitted,), positive
    held_out: Tensor | None = None  # (n_held_out,), positive


EQUAL_WEIGHTS = RatioWeights()


class Share(NamedTuple):
    """The part of one of several processes that classify together, each with rows of its own."""

    ranks: Communicator = ALONE
    row_share: float = 1.0  # weight of this rank's rows in the mean over all ranks


WHOLE = Share()


class RatioStart(NamedTuple):
    """The energy of the best epoch, or the untrained one, and its gain on held-out rows."""

    energy: AnchoredEnergy
    gains: Tensor  # (n_held_out,), over the reference, nats, float64, on the CPU
    log_partition: float  # nats
    standard_error: float  # of log_partition
    epochs: list[RatioEpoch]

    def lower_limit(self, expected: Tensor, row_weights: Tensor | None = None) -> float:
        """Return the lower confidence limit of the mean gain beyond `expected` (N,), nats.

        `row_weights` (N,) are those of the held-out rows, or None.
        """
        limit = lower_confidence_limit(self.gains - expected, row_weights)
        return limit - 2.0 * self.standard_error

    def mean_gain(self, expected: Tensor, row_weights: Tensor | None = None) -> float:
        """Return the mean gain beyond `expected` (N,), nats.

        `row_weights` (N,) are those of the held-out rows, or None.
        """
        return float(mean_on_device(self.gains - expected, row_weights))

    def upper_limit(self, expected: Tensor, row_weights: Tensor | None = None) -> float:
        """Return the upper confidence limit of the mean gain beyond `expected` (N,), nats.

        `row_weights` (N,) are those of the held-out rows, or None.
        """
        return upper_confidence_limit(self.gains - expected, self.standard_error, row_weights)


def contrast(
    energy: AnchoredEnergy,
    x: Tensor,
    constant: Tensor,
    draws: Tensor,
    generator: torch.Generator,
    *,
    row_share: float = 1.0,
) -> Tensor:
    """Return the loss of telling rows from draws, 0-d, in nats per row, mean over the networks.

    Parameters
    ----------
    energy : AnchoredEnergy
        Its correction f is the classifier.
    x : Tensor of shape (B, D)
        Rows. Their latents are drawn from the reference's posterior here.
    constant : Tensor of shape (K,)
        The number c of each network.
    draws : Tensor of shape (M, D + L)
        Draws of the reference, in its coordinates.
    generator : torch.Generator
        Source of the latents.
    row_share : float, default=1.0
        Weight of the rows against the draws.
    """
    reference = energy.reference
    e = x.new_empty(len(x), energy.n_latents).normal_(generator=generator)
    drawn_x, drawn_z = reference.split(draws)
    rows = torch.cat([x, drawn_x]), torch.cat([reference.to_latents(x, e), drawn_z])
    shift = constant + math.log(len(draws) / len(x))
    log_odds = in_parts(energy, energy.corrections, *rows) + shift  # (B + M, K)
    of_rows, of_draws = log_odds.split([len(x), len(draws)])
    n_values = of_rows.numel()
    return row_share * softplus(of_rows).mean() + softplus(-of_draws).sum() / n_values


class Classification:
    """The classification of rows and reference draws, epoch by epoch.

    Parameters
    ----------
    energy : AnchoredEnergy
        At its initial parameters; modified.
    x : Tensor of shape (N, D)
        Rows, standardised.
    recipe : RatioRecipe
        Settings.
    generator : torch.Generator
        Source of all randomness.
    row_weights : Tensor of shape (N,) or None, default=None
        How often each row counts; None counts each row once.
    share : Share
        Of this process.
    """

    def __init__(
        self,
        energy: AnchoredEnergy,
        x: Tensor,
        recipe: RatioRecipe,
        generator: torch.Generator,
        row_weights: Tensor | None = None,
        *,
        share: Share = WHOLE,
    ) -> None:
        self.row_weights, self.share = row_weights, share
        self.energy, self.average = energy, copy.deepcopy(energy)
        self.x, self.recipe, self.generator = x, recipe, generator
        n_networks = energy.network.n_networks
        self.constant = x.new_zeros(n_networks).requires_grad_()
        # gradients of the mean loss are shorter than those of single networks by the root of K
        self.clip_norm = _CLIP_NORM / math.sqrt(n_networks)
        self.parameters: list[Tensor] = [p for p in energy.parameters() if p.requires_grad]
        self.averages: list[Tensor] = [p for p in self.average.parameters() if p.requires_grad]
        self.optimizer = Adam(
            [*self.parameters, self.constant],
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            betas=_MOMENTA,
        )
        self.n_updates = 0

    def state(self) -> dict[str, Any]:
        """Return copies of all numbers that later epochs depend on, but for the generator's."""
        return {
            "energy": copied(self.energy),
            "average": copied(self.average),
            "constant": self.constant.detach().clone(),
            "optimizer": self.optimizer.state(),
            "n_updates": self.n_updates,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, in place."""
        write(self.energy, state["energy"])
        write(self.average, state["average"])
        with torch.no_grad():
            self.constant.copy_(state["constant"])
        self.optimizer.load(state["optimizer"])
        self.n_updates = state["n_updates"]

    def epoch(self, learning_rate: float) -> Tensor:
        """Pass over the rows once; return the mean loss, 0-d. The host waits for nothing here."""
        order = pass_over(len(self.x), self.generator, self.x.device, self.row_weights)
        index = list(batches(order, self.recipe.batch_size, self.share.ranks))
        size = max(1, _SAMPLED_AT_A_TIME // (_DRAWS_PER_ROW * len(index[0])))
        total = self.x.new_zeros(())
        for first in range(0, len(index), size):
            group = index[first : first + size]
            counts = [_DRAWS_PER_ROW * len(of_batch) for of_batch in group]
            draws = self.energy.reference.sample(sum(counts), self.generator).split(counts)
            for of_batch, drawn in zip(group, draws, strict=True):
                total += self._update(self.x[of_batch], drawn, learning_rate)
        return total / len(index)

    def _update(self, x: Tensor, draws: Tensor, learning_rate: float) -> Tensor:
        """Take one step and follow it by the running average; return the loss, detached."""
        self.optimizer.zero_grad()
        with torch.enable_grad():
            how = {"row_share": self.share.row_share}
            loss = contrast(self.energy, x, self.constant, draws, self.generator, **how)
            loss.backward()
        self.share.ranks.average_gradients(self.optimizer.parameters)
        self.n_updates += 1
        self.optimizer.learning_rate = learning_rate * min(1.0, self.n_updates / _WARM_UP)
        self.optimizer.step(self.clip_norm)
        share = 1.0 / min(0.5 + 0.5 * self.n_updates, self.recipe.averaged_over)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, share)
        return loss.detach()


def _log_weights(energy: AnchoredEnergy, draws: Tensor) -> Tensor:
    """Return log weights (M,) that turn reference draws into the model, nats, float64."""
    parts = [
        in_parts(energy, energy.correction, *energy.reference.split(part)).double()
        for part in draws.split(_MEASURED_AT_A_TIME)
    ]
    return -torch.cat(parts)


@torch.no_grad()
def log_mean_weight(
    energy: AnchoredEnergy, draws: Tensor, ranks: Communicator = ALONE
) -> tuple[Tensor, Tensor]:
    """Return log Z by importance sampling from the reference, and its standard error, 0-d, nats.

    Parameters
    ----------
    energy : AnchoredEnergy
        The model.
    draws : Tensor of shape (M, D + L)
        Draws of the reference, in its coordinates.
    ranks : Communicator, default=ALONE
        Each has M draws of its own.
    """
    log_weights = _log_weights(energy, draws)
    if ranks.size > 1:
        log_weights = ranks.gather(log_weights).flatten()
    log_z = torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
    return log_z, torch.exp(log_weights - log_z).std() / math.sqrt(len(log_weights))


@torch.no_grad()
def log_mean_ratios(energy: AnchoredEnergy, x: Tensor) -> Tensor:
    """Return `log ∫ exp(-f(x, z)) p_ref(z | x) dz`, (N,), nats, float64: the gain plus log Z."""
    nodes = latent_nodes(_NODES if energy.n_latents else 1, energy.n_latents, seed=0).to(x)
    return -free_energy_bound(energy, x, nodes) - energy.reference.log_marginal(x).double()


def _over_ranks(
    ranks: Communicator, values: dict[str, float], x_held_out: Tensor, row_weights: Tensor | None
) -> dict[str, float]:
    """Return gain and loss of one epoch over the rows of all ranks."""
    n_held_out = float(len(x_held_out) if row_weights is None else row_weights.sum())
    gain = mean_over_ranks(ranks, values["gain"], n_held_out)
    means = {"gain": gain, "loss": mean_over_ranks(ranks, values["loss"], 1.0)}
    own: dict[str, float] = ranks.broadcast(means)
    return own


def _numbers_of(run: Classification, course: RatioCourse) -> dict[str, Any]:
    """Return the state between two epochs, in parts as that of `train` has them."""
    own = {"classification": run.state(), "course": course.numbers()}
    return {**own, "state": None, "objective": {}, "generator": run.generator.get_state()}


def _continue(run: Classification, course: RatioCourse, keeper: Keeper) -> None:
    """Put a run where an interrupted one was at the end of an epoch, if that was kept."""
    kept = keeper.kept()
    if kept is None:
        return
    run.load(adopted(None, kept["classification"], run.x.device))
    course.load(adopted(None, kept["course"], run.x.device))
    set_generator(run.generator, kept["generator"], len(course.epochs))


def start_from_ratio(
    energy: AnchoredEnergy,
    x: Tensor,
    x_held_out: Tensor,
    recipe: RatioRecipe,
    *,
    generator: torch.Generator,
    callback: Callable[[RatioEpoch], None],
    weights: RatioWeights = EQUAL_WEIGHTS,
    share: Share = WHOLE,
    keeper: Keeper | None = None,
) -> RatioStart:
    """Train a correction as a density ratio, up to the epoch that held-out rows prefer.

    Parameters
    ----------
    energy : AnchoredEnergy
        The untrained energy, whose correction is zero; not modified.
    x : Tensor of shape (N, D)
        Training rows, standardised.
    x_held_out : Tensor of shape (N_held_out, D)
        Rows that decide when to stop.
    recipe : RatioRecipe
        Settings.
    generator : torch.Generator
        Source of all randomness.
    callback : callable
        Called after every epoch.
    weights : RatioWeights
        Weights of both kinds of rows.
    share : Share
        Of this process; both kinds of rows are its own, and the gains are those of its rows.
    keeper : Keeper or None, default=None
        Receives the state after each epoch, and has that of an interrupted run, which is continued.

    Returns
    -------
    start : RatioStart
        The running average at its best epoch. Its log Z comes from draws that were not used to
        choose the epoch.
    """
    ranks = share.ranks
    run = Classification(copy.deepcopy(energy), x, recipe, generator, weights.fitted, share=share)
    n_rows = len(x) if ranks.size == 1 else int(ranks.sum(torch.tensor(len(x))))
    n_draws = min(_MEASURING_DRAWS, max(_FEWEST_DRAWS, _EPOCH_DRAWS_PER_ROW * n_rows))
    draws = energy.reference.sample(-(-n_draws // ranks.size), generator)
    course = RatioCourse(energy, recipe)
    if keeper is not None:
        _continue(run, course, keeper)
    while not course.is_over:
        number, learning_rate = len(course.epochs) + 1, course.learning_rate
        loss = run.epoch(learning_rate)
        log_z, _ = log_mean_weight(run.average, draws, ranks)
        gain = mean_on_device(log_mean_ratios(run.average, x_held_out), weights.held_out) - log_z
        read = read_together({"gain": gain, "loss": loss})
        if ranks.size > 1:
            read = _over_ranks(ranks, read, x_held_out, weights.held_out)
        epoch = RatioEpoch(number, read["gain"], learning_rate, read["loss"])
        callback(epoch)
        course.note(epoch, run.average)
        if keeper is not None:
            keeper.keep(lambda: _numbers_of(run, course), at_once=False)
    draws = energy.reference.sample(-(-_MEASURING_DRAWS // ranks.size), generator)
    log_z, error = log_mean_weight(course.best, draws, ranks)
    gains = log_mean_ratios(course.best, x_held_out) - log_z
    return RatioStart(course.best, gains.cpu(), float(log_z), float(error), course.epochs)


@torch.no_grad()
def monitoring_draws(reference: MixtureReference) -> Tensor:
    """Return draws (M, D + L) of a reference for the log Z of all epochs; always the same ones."""
    device = reference.location.device
    return reference.sample(_MONITORING_DRAWS, torch.Generator(device=device).manual_seed(0))


@torch.no_grad()
def resampled(
    energy: AnchoredEnergy, state: ParticleState, generator: torch.Generator
) -> ParticleState:
    """Return particles of every rung, resampled from weighted reference draws; some are equal.

    Parameters
    ----------
    energy : AnchoredEnergy
        The model.
    state : ParticleState
        Particles of the reference.
    generator : torch.Generator
        Source of draws.
    """
    t, c, _ = state.pool.shape
    draws = energy.reference.sample(_MEASURING_DRAWS, generator)
    correction = -_log_weights(energy, draws)
    log_weights = -state.betas.double()[:, None] * correction  # (T, M)
    weights = torch.softmax(log_weights, 1)
    chosen = torch.multinomial(weights, c, replacement=True, generator=generator)
    mean = weights @ correction
    return state._replace(
        pool=draws[chosen.reshape(-1)].reshape(t, c, -1).to(state.pool),
        log_partitions=torch.logsumexp(log_weights, 1) - math.log(len(draws)),
        spread=weights @ correction.square() - mean.square(),
    )


def resampled_pool(
    pool: TemperedPool, energy: AnchoredEnergy, state: ParticleState, generator: torch.Generator
) -> ParticleState:
    """Return particles for a trained correction: resampled, and moved until none are equal.

    Parameters
    ----------
    pool : TemperedPool
        Moves the particles.
    energy : AnchoredEnergy
        The model.
    state : ParticleState
        Particles of the reference.
    generator : torch.Generator
        Source of draws and moves.
    """
    state = resampled(energy, state, generator)
    return pool.equilibrate(energy, state, _SEPARATING_SWEEPS, 1, generator)[0]
