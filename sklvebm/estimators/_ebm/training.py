"""Training of energies with particles: start on a reference, train, normalise, accept or reject."""

import copy
import math
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sklvebm.checkpointing import RATIO
from sklvebm.communication import Communicator
from sklvebm.estimators._common.kept_ratio import kept_ratio
from sklvebm.estimators._common.ratio_gain import needed_gain, promised_gain
from sklvebm.estimators._common.reference import (
    expected_refit_gain,
    fit_session_reference,
    kept_reference,
    mean_log_density,
)
from sklvebm.estimators._common.rows_of_ranks import TrainingRows, can_share_rows
from sklvebm.estimators._common.session import FitSession, Outcome
from sklvebm.estimators._common.transactional_fit import least_improvement
from sklvebm.estimators._ebm.config import PoolConfig
from sklvebm.estimators._ebm.diagnostics import Diagnostics
from sklvebm.estimators._ebm.fitted_model import Model
from sklvebm.estimators._ebm.normalization import (
    TrainedParticles,
    estimated_gain,
    gain_over_reference,
    normalise,
)
from sklvebm.estimators._ebm.shared_training import (
    can_share_training,
    ratio_on_ranks,
    train_on_ranks,
)
from sklvebm.latent_maps.maps import LatentMap
from sklvebm.latent_maps.selection import fit_latent_map
from sklvebm.mcmc.state import ParticleState
from sklvebm.mixtures.missing_fit import N_MONITORED_COPIES, monitored_completions
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.stacking import MixtureChoice
from sklvebm.models.energies import AnchoredEnergy, BridgedEnergy, PathEnergy
from sklvebm.models.networks import correction_network
from sklvebm.models.reach import Reach, reach_of_rows
from sklvebm.models.user_energy import build_user_energy, probe
from sklvebm.objectives.density_ratio import (
    RatioStart,
    RatioWeights,
    monitoring_draws,
    resampled_pool,
    start_from_ratio,
)
from sklvebm.objectives.missing_cells import WithMissingCells
from sklvebm.objectives.ratio_course import RatioEpoch
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.optimisation import Optimisation, start_optimisation
from sklvebm.row_weights import as_tensor, mean_on_device, resampled
from sklvebm.runtime import numerical_session, seeded_generator
from sklvebm.threads import team
from sklvebm.training import Objective, TrainingResult, train
from sklvebm.training_course import Progress

_MAX_BRACKET_SHARE = 0.1  # accepted width of the bracket of log Z over the gain
_MAX_COVERED_WIDTH = 0.2  # accepted width of a bracket whose half the gain exceeds, nats
# Held-out rows. With fewer, a fit that starts at the reference ends there. Of 120 default fits to
# 30 to 110 rows, one energy was kept, and lost 0.16 nats on new rows.
_FEWEST_JUDGING_ROWS = 10
_MAX_DISTANCE = 1e9  # standard deviations; clips rows in training


class Training(NamedTuple):
    """The state from which `warm_start` and `partial_fit` continue."""

    optimisation: Optimisation
    state: ParticleState
    reference: MixtureReference  # float64, on the CPU; the energies have a rounded copy
    choice: MixtureChoice | None  # of the reference's mixtures, if cross-validation made it
    latent_map: LatentMap | None  # coordinates of latents; None is the reference's map


class PoolObjective(Objective, Protocol):
    """An objective whose model side is a pool of particles."""

    def ready(
        self, energy: PathEnergy, state: ParticleState, n_rows: int, generator: torch.Generator
    ) -> Any:
        """Return the first state of training from initial particles or those of an earlier fit."""

    def particles(self, state: Any) -> ParticleState:
        """Return the particles of a state, which a fitted estimator keeps."""

    @property
    def tempered(self) -> TemperedPool:
        """The pool."""

    def share(self, ranks: Communicator, row_share: float) -> None:
        """Share rows and pool among ranks; see `ParticleLikelihood.share`."""


def build_energy(
    config: PoolConfig, reference: MixtureReference, seed: int, reach: Reach | None = None
) -> PathEnergy:
    """Join the reference to a network that corrects it, or to a copy of the user's energy.

    The correction vanishes beyond `reach`; None is no limit.

    Raises
    ------
    TypeError, ValueError
        If `energy` is not a module or factory, does not return one energy per row, or has nothing
        to train.
    """
    if config.energy is not None:
        is_trained = config.max_iter > 0
        return build_user_energy(config.energy, reference, seed, is_trained=is_trained)
    generator = torch.Generator().manual_seed(seed)
    network = correction_network(config, reference.n_features, reference.n_latents, generator)
    return AnchoredEnergy(reference, network, reach=reach)


def start(session: FitSession) -> Training:
    """Fit the reference and set up an untrained model on it, on the device."""
    config: PoolConfig = session.config
    reference, choice = fit_session_reference(session)
    seed, rows = session.draw_seed(), session.data.fitted
    reach = reach_of_rows(rows, reference, seed)
    energy = build_energy(config, copy.deepcopy(reference), seed, reach)
    if isinstance(energy, BridgedEnergy):
        probe(energy, rows, seed)
    device = config.torch_device
    energy = energy.to(device=device, dtype=config.torch_dtype)
    optimisation = start_optimisation(
        energy, learning_rate=config.learning_rate_init, alpha=config.alpha
    )
    state = config.pool().init(energy, seeded_generator(seed, device))
    latent_map = None
    # the user defines the latents of an own energy
    if config.energy is None and config.n_components > 0:
        source = np.random.RandomState(seed)
        # the map knows no weights: rows come as often as they count
        order = resampled(session.data.fitted_weights, source)
        own = rows if order is None else rows[order]
        latent_map = fit_latent_map(own, reference, config.latent_map, source)
    return Training(optimisation, state, reference, choice, latent_map)


def on_device(training: Training, device: torch.device) -> Training:
    """Return a training on a device, with copies of everything that a failing fit could modify."""
    optimisation, state = copy.deepcopy((training.optimisation, training.state))
    here = state.pool.device
    if here.type != device.type or device.index not in (None, here.index):
        optimisation.energy.to(device)
        optimisation.average.to(device)
        optimisation.optimizer.to(device)
        # posteriors start anew, as after unpickling
        moved: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in state._asdict().items()
        }
        state = ParticleState(**{**moved, "latents": None})
    return training._replace(optimisation=optimisation, state=state)


def anchored_on(training: Training, reference: MixtureReference) -> Training:
    """Return a training whose energies have the given reference, set in place.

    It differs from theirs if the earlier fit kept a reference fitted to all rows.
    """
    optimisation = training.optimisation
    own = copy.deepcopy(reference).to(optimisation.energy.reference.location)
    optimisation.energy.reference = optimisation.average.reference = own
    return training._replace(reference=reference)


def accepted_gain(gain: float, diagnostics: Diagnostics) -> tuple[float, Diagnostics]:
    """Return the gain over the reference, nats, limited to zero if the diagnostics find problems.

    An unreliable score does not justify replacing the reference, whose score is exact. Because the
    gain uses the upper estimate of log Z, the tolerance for the bracket is at least a tenth of it,
    and up to 0.2 nats a bracket whose half is narrower than the gain is no objection.
    """
    covered = min(2.0 * gain, _MAX_COVERED_WIDTH)
    tolerance = max(diagnostics.tolerance, _MAX_BRACKET_SHARE * gain, covered)
    diagnostics = diagnostics._replace(tolerance=tolerance)
    return min(gain, 0.0) if diagnostics.problems() else gain, diagnostics


def train_particles(session: FitSession, training: Training) -> Outcome:
    """Train a model on the rows of a session, normalise it, and accept it or keep the reference.

    Parameters
    ----------
    session : FitSession
        Rows, parameters and random numbers; `config.objective()` is the training objective.
    training : Training
        Start; modified.

    Raises
    ------
    ParticleDivergenceError
        If training diverges.
    """
    session = session.completed_by(training.reference)
    data = session.data
    like = training.optimisation.energy.reference.location
    seed = session.draw_seed()
    generator = seeded_generator(seed, like.device)
    # clipped for single precision; corrections are zero at such distances
    monitored = data.monitored
    if data.observed is not None:
        monitored = monitored_completions(data, training.reference, seed)
    fitted, monitor = (
        torch.from_numpy(rows.clip(-_MAX_DISTANCE, _MAX_DISTANCE)).to(like)
        for rows in (data.fitted, monitored)
    )
    with team(torch.get_num_threads()), numerical_session(1):
        text = f"training on {len(fitted)} rows, monitoring {len(data.monitored)}"
        session.report.phase("training", text)
        started = _from_ratio(session, training, fitted, monitor, generator)
        result, particles = _descended(session, started, fitted, monitor, generator)
        trained = TrainedParticles(particles, fitted, seed, generator)
        training = training._replace(optimisation=result.optimisation, state=particles)
        expected = expected_refit_gain(session, training)
        judging = _Judging(session, training, monitor, trained, expected)
        model, diagnostics, gain = _accepted(judging, result, started)
    is_reference = gain <= 0.0 and isinstance(model.energy, AnchoredEnergy) and session.keep_best
    value = result.best_lower_bound
    if is_reference:
        value = mean_log_density(training.reference, data)
    return Outcome(
        model=model._replace(latent_map=training.latent_map),
        diagnostics=diagnostics,
        training=training,
        history=result.history,
        value=value + data.log_jacobian,
        improved=gain > 0.0,
        is_reference=is_reference,
        converged=result.converged,
        device=like.device,
    )


class _Started(NamedTuple):
    """A training before its first update by particles."""

    training: Training
    history: list[Progress]  # epochs of the density ratio
    value: float = math.nan  # of the ratio on the monitored rows, nats
    is_hopeless: bool = False  # no gain over the reference can be expected
    ratio_energy: AnchoredEnergy | None = None  # where it may be the result
    refines: bool = False  # whether particles go on from the energy of the ratio


def _from_ratio(
    session: FitSession,
    training: Training,
    fitted: Tensor,
    monitor: Tensor,
    generator: torch.Generator,
) -> _Started:
    """Start a first fit from the density ratio of rows and reference, or look for a gain with it.

    A fit that starts at the reference ends here if the ratio has no gain on held-out rows, or if
    these are too few to judge an energy.
    """
    config: PoolConfig = session.config
    recipe = config.ratio_recipe(len(fitted))
    data = session.data
    if config.init == "ratio" and data.observed is not None:
        raise ValueError("init must be 'auto' or 'reference' with NaN in X, got 'ratio'.")
    is_first = session.keep_best and not session.continues and data.holds_out
    energy = training.optimisation.average
    if not (is_first and recipe.max_epochs > 0):
        return _Started(training, [])
    too_few = config.screens and len(monitor) < _FEWEST_JUDGING_ROWS
    if too_few:
        recipe = recipe._replace(max_epochs=1)
    weights = RatioWeights(
        *(as_tensor(w, fitted.device) for w in (data.fitted_weights, data.monitored_weights))
    )
    of_rows = energy.reference.log_marginal(monitor).double()
    base = float(mean_on_device(of_rows, weights.held_out))

    def report(epoch: RatioEpoch) -> None:
        if not config.screens:
            session.report_epoch(epoch.progress(base))

    expected = expected_refit_gain(session, training)
    if config.screens:  # otherwise particles start from it
        recipe = recipe._replace(needed=needed_gain(session, expected, weights.held_out))

    def classify() -> RatioStart:
        how: dict[str, Any] = {"generator": generator, "callback": report}
        if can_share_rows(data, session.ranks.size):
            rows = TrainingRows(fitted, monitor, *weights)
            how["checkpoint"] = session.checkpoint
            return ratio_on_ranks(session.ranks, energy, rows, recipe, **how)
        how["keeper"] = session.keeper(stage=RATIO)
        return start_from_ratio(energy, fitted, monitor, recipe, weights=weights, **how)

    ratio = kept_ratio(session, energy, classify, generator)
    history = [epoch.progress(base) for epoch in ratio.epochs]
    promised = promised_gain(session, ratio, expected, weights.held_out)
    is_hopeless = too_few or (promised <= 0.0 and config.tol is not None)
    if config.screens and is_hopeless:
        return _Started(training, history, base, is_hopeless)
    value = base + float(mean_on_device(ratio.gains, weights.held_out))
    if config.screens:
        # judging it takes time: its gain must be certain
        is_certain = ratio.lower_limit(expected, weights.held_out) > 0.0
        return _Started(training, [], value, ratio_energy=ratio.energy if is_certain else None)
    optimisation = start_optimisation(
        ratio.energy, learning_rate=config.learning_rate_init, alpha=config.alpha
    )
    state = resampled_pool(config.pool(), ratio.energy, training.state, generator)
    training = training._replace(optimisation=optimisation, state=state)
    ratio_energy = None if is_hopeless else copy.deepcopy(ratio.energy)
    return _Started(training, history, value, is_hopeless, ratio_energy, refines=True)


def _descended(
    session: FitSession,
    started: _Started,
    fitted: Tensor,
    monitor: Tensor,
    generator: torch.Generator,
) -> tuple[TrainingResult, ParticleState]:
    """Run the training loop on standardised rows; return its result and the last particles."""
    config: PoolConfig = session.config
    objective: PoolObjective = session.config.objective()
    optimisation, history = started.training.optimisation, started.history
    if started.is_hopeless:
        session.report.stage("training by particles is skipped")
        best, state = optimisation.average, started.training.state
        return TrainingResult(optimisation, state, best, started.value, history, True), state
    config = replace(config, max_iter=config.max_iter - len(history))
    weights = session.data.fitted_weights, session.data.monitored_weights
    of_rows = [as_tensor(part, fitted.device) for part in weights]

    def report(progress: Progress) -> bool:
        return session.report_epoch(progress._replace(epoch=progress.epoch + len(history)))

    energy, observed, ranks = optimisation.energy, session.data.observed, session.ranks
    refines = started.refines
    if can_share_rows(session.data, ranks.size) and can_share_training(config):
        start = optimisation, started.training.state
        rows = TrainingRows(fitted, monitor, *of_rows)
        how: dict[str, Any] = {"generator": generator, "callback": report, "refines": refines}
        how["checkpoint"] = session.checkpoint
        result, particles = train_on_ranks(ranks, config, start, rows, **how)
        return _continued(result, history), particles
    state = objective.ready(energy, started.training.state, len(fitted), generator)
    if refines:
        objective.tempered.measure_with(monitoring_draws(energy.reference))
    if observed is not None:
        seen = torch.from_numpy(observed[session.data.split.fitted]).to(fitted)
        base = mean_log_density(started.training.reference, session.data)
        known: dict[str, Any] = {"base": base, "n_copies": N_MONITORED_COPIES}
        objective = WithMissingCells(objective, seen, fitted, **known)
    result = train(
        optimisation,
        objective,
        fitted,
        monitor,
        state,
        learning_rate=config.learning_rate_init,
        batch_size=min(config.batch_size, len(fitted)),
        max_iter=config.max_iter,
        tol=least_improvement(config.tol),
        n_iter_no_change=config.n_iter_no_change,
        generator=generator,
        callback=report,
        row_weights=of_rows[0],
        monitor_weights=of_rows[1],
        keeper=session.keeper(config.n_chains),
        refines=refines,
    )
    return _continued(result, history), objective.particles(result.state)


def _continued(result: TrainingResult, history: list[Progress]) -> TrainingResult:
    """Return a result whose history begins with earlier epochs."""
    later = [p._replace(epoch=p.epoch + len(history)) for p in result.history]
    return result._replace(history=history + later)


class _Judging(NamedTuple):
    """What the decision on a trained energy needs."""

    session: FitSession
    training: Training
    monitor: Tensor  # monitored rows, standardised
    trained: TrainedParticles
    expected: Tensor  # (n_monitored,), gain of the reference that would be kept instead, nats


def _accepted(
    judging: _Judging, result: TrainingResult, started: _Started
) -> tuple[Model, Diagnostics, float]:
    """Return the normalised energy, or the reference if there is no gain, and the gain, nats.

    Where the trained energy is rejected, that of the density ratio is judged, too.
    """
    session, training, _, trained, expected = judging
    kept = result.best if session.keep_best else result.optimisation.average
    may_fall_back = session.keep_best and isinstance(kept, AnchoredEnergy)
    gain, first = 0.0, started.ratio_energy
    # particles that improved nothing have moved away from it
    is_start = first is not None and started.refines and _are_equal(kept, first)
    may_gain = not may_fall_back or _may_gain(judging, kept, result.best_lower_bound)
    if may_gain and not is_start:
        session.report.phase("normalising", "normalising the trained energy")
        model, diagnostics, gain = _normalised(judging, kept)
    if may_fall_back and gain <= 0.0 and first is not None:
        session.report.phase("normalising", "normalising the energy of the density ratio")
        # the pool may have followed an energy that went wrong
        pool, generator = session.config.pool(), trained.generator
        state = resampled_pool(pool, first, pool.init(first, generator), generator)
        again = judging._replace(trained=trained._replace(state=state))
        if _may_gain(judging, first, started.value):
            model, diagnostics, gain = _normalised(again, first)
    if may_fall_back and gain <= 0.0:
        # the annealed estimate decides, also against the training's bound
        session.report.phase("normalising", "keeping the reference")
        reference = kept_reference(session, training, trained.seed)
        untrained = build_energy(session.config, copy.deepcopy(reference), trained.seed)
        untrained = untrained.to(kept.reference.location)
        model, diagnostics = normalise(session, untrained, reference, trained)
    session.report.kept(gain > 0.0, gain, len(expected), falls_back=may_fall_back)
    return model, diagnostics, gain


def _are_equal(first: PathEnergy, second: PathEnergy) -> bool:
    """Return whether two energies of one kind have the same parameters."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def _may_gain(judging: _Judging, energy: PathEnergy, bound: float) -> bool:
    """Return whether the training's bound, nats, lets an energy gain over the reference."""
    session, training, monitor, _, expected = judging
    base = mean_log_density(training.reference, session.data)
    weights = as_tensor(session.data.monitored_weights)
    return estimated_gain(energy, bound, monitor, expected, base, row_weights=weights) > 0.0


def _normalised(judging: _Judging, energy: PathEnergy) -> tuple[Model, Diagnostics, float]:
    """Return a normalised energy with its diagnostics and its gain over the reference, nats."""
    session, training, _, trained, expected = judging
    model, diagnostics = normalise(session, energy, training.reference, trained)
    weights = as_tensor(session.data.monitored_weights)
    gain = gain_over_reference(model, session.data.judged, expected, weights)
    gain, diagnostics = accepted_gain(gain, diagnostics)
    return model, diagnostics, gain
