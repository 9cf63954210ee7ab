"""The composition root of fits with a pool: standardise, reference, energy, train, normalise."""

import copy
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sklvebm.estimators._common.base import fit_base, kept_reference, rival_advantage
from sklvebm.estimators._common.transactional_fit import Reporter, least_improvement
from sklvebm.estimators._ebm.diagnostics import Diagnostics
from sklvebm.estimators._ebm.fitted_model import Model
from sklvebm.estimators._ebm.normalization import gain_over_reference, normalise, promised_gain
from sklvebm.estimators._ebm.user_energy import build_user_energy, probe
from sklvebm.latent_maps.maps import Chart
from sklvebm.latent_maps.selection import fit_chart
from sklvebm.mcmc.state import ParticleState
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.stacking import (
    MixtureChoice,
)
from sklvebm.models.energies import AnchoredEnergy, BridgedEnergy, PathEnergy
from sklvebm.models.networks import correction_network, resolve_image_shape
from sklvebm.models.reach import Reach, reach_of_rows
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.preprocessing.scaling import (
    Standardisation,
)
from sklvebm.preprocessing.splitting import Rows
from sklvebm.runtime import numerical_session, resolve_device, seeded_generator, working_memory
from sklvebm.threads import team
from sklvebm.training import (
    Objective,
    Optimisation,
    Progress,
    move_moments,
    start_optimisation,
    train,
)

_OPEN_SHARE = 0.1  # of the gain over the reference, that the bracket of log Z may be wide
_FARTHEST = 1e9  # standard deviations: rows count as that far in training
_FEW_DIMENSIONS = 7  # features and latents together
_MANY_ROWS, _VERY_MANY_ROWS = 1000, 10_000


class Training(NamedTuple):
    """What `warm_start` and `partial_fit` continue from."""

    optimisation: Optimisation
    state: ParticleState
    reference: MixtureReference  # float64, on the CPU: training rounds its own copy
    choice: MixtureChoice | None  # what the reference is, if cross-validation chose it
    chart: Chart | None  # what latents are called outside; None for the linear map


def to_go_on_from(training: Training, device: torch.device) -> Training:
    """Return a training on a device, with copies of all that updates write into: they may fail."""
    optimisation, state = copy.deepcopy((training.optimisation, training.state))
    here = state.pool.device
    if here.type != device.type or device.index not in (None, here.index):
        optimisation.energy.to(device)
        optimisation.average.to(device)
        move_moments(optimisation.optimizer, device)
        # posteriors start anew, as after unpickling
        moved = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in state._asdict().items()
        }
        state = ParticleState(**{**moved, "latents": None})
    return training._replace(optimisation=optimisation, state=state)


def vouched_gain(gain: float, diagnostics: Diagnostics) -> tuple[float, Diagnostics]:
    """Return a gain over the reference, nats, that is zero at most where the diagnostics object.

    A score that nobody can vouch for is no reason to give up one that is exact. The gain counts
    log Z from its upper end, so that a tenth of it may be open: the tolerance grows with it.
    """
    tolerance = max(diagnostics.tolerance, _OPEN_SHARE * gain)
    diagnostics = diagnostics._replace(tolerance=tolerance)
    return min(gain, 0.0) if diagnostics.problems() else gain, diagnostics


class PoolObjective(Objective, Protocol):
    """An objective whose model side is a pool of particles."""

    def ready(
        self, energy: PathEnergy, state: ParticleState, n_rows: int, generator: torch.Generator
    ) -> Any:
        """Return the state to train from, given the particles of an earlier fit or a start."""

    def particles(self, state: Any) -> ParticleState:
        """Return the particles of a state, which are all that outlasts a fit."""


class Outcome(NamedTuple):
    """What a fit returns to the estimator."""

    model: Model
    diagnostics: Diagnostics
    training: Training
    history: list[Progress]
    lower_bound: float  # nats per row, units of X
    improved: bool  # on the reference
    converged: bool
    device: torch.device

    @property
    def stopped(self) -> bool:
        """Whether `max_iter` ended the training of a model that is kept."""
        is_reference = isinstance(self.model.energy, AnchoredEnergy) and not self.improved
        return not self.converged and not is_reference


def resolve_auto(settings: SimpleNamespace, n_samples: int, n_features: int) -> SimpleNamespace:
    """Return settings with every "auto" replaced by what suits such rows.

    Few dimensions need a small network, a short ladder and first-layer units that divide the space
    finely; few rows allow no such freedom. See docs/user_guide/tuning.md.

    Raises
    ------
    ValueError
        If contrastive negatives are asked for on a ladder, or rows are no images of `image_shape`.
    """
    if settings.energy is None:
        resolve_image_shape(settings, n_features)
    contrastive = settings.negatives == "contrastive"
    if contrastive and settings.n_temperatures not in ("auto", 1):
        raise ValueError(
            "n_temperatures must be 1 or 'auto' with negatives='contrastive', got "
            f"{settings.n_temperatures!r}."
        )
    few_dimensions = n_features + settings.n_components <= _FEW_DIMENSIONS
    # one particle for each of very many rows says as much about the mean as four for a quarter
    few_particles = few_dimensions or n_samples >= _VERY_MANY_ROWS
    free = few_dimensions and n_samples >= _MANY_ROWS
    chosen = {
        "hidden_layer_sizes": (64, 64) if few_dimensions else (128, 128),
        "n_temperatures": 1 if contrastive else 4 if few_dimensions else 8,
        "n_particles": 1 if few_particles else 4,
        "alpha": 0.01 if free else 0.5,
        "learning_rate_init": 0.02 if free else 0.01,
        # about eight updates an epoch, up to thirty-two where there are many rows
        "batch_size": max(int(np.clip(n_samples // 8, 32, 256)), n_samples // 32),
    }
    for name, value in chosen.items():
        if isinstance(getattr(settings, name), str):
            setattr(settings, name, value)
    settings.batch_size = min(settings.batch_size, n_samples)
    settings.input_gain = max(1.0, 10.0 * (2.0 / max(2, n_features)) ** 2) if free else 1.0
    return settings


def new_objective(settings: SimpleNamespace) -> ParticleLikelihood:
    """Return the objective that the constructor parameters describe."""
    return ParticleLikelihood(
        dynamics=settings.dynamics,
        posterior=settings.posterior,
        negatives=settings.negatives,
        n_particles=settings.n_particles,
        n_chains=settings.n_chains,
        n_temperatures=settings.n_temperatures,
        n_langevin_steps=settings.n_langevin_steps,
        step_size=settings.step_size,
        information_weight=settings.information_weight,
        most_bytes=working_memory(),
    )


def pool_of(settings: SimpleNamespace) -> TemperedPool:
    """Return the pool that the constructor parameters describe."""
    return TemperedPool(
        dynamics=settings.dynamics,
        n_chains=settings.n_chains,
        n_temperatures=settings.n_temperatures,
        n_langevin_steps=settings.n_langevin_steps,
        step_size=settings.step_size,
    )


def build_energy(
    settings: SimpleNamespace,
    reference: MixtureReference,
    seed: int,
    reach: Reach | None = None,
) -> PathEnergy:
    """Join the reference to a network that corrects it, or to a copy of the user's energy.

    The correction fades beyond `reach`; None lets it act everywhere.

    Raises
    ------
    TypeError, ValueError
        If `energy` is not a module or factory, does not return one energy per row, or leaves
        nothing to train.
    """
    generator = torch.Generator().manual_seed(seed)
    if settings.energy is None:
        width = reference.n_features
        network = correction_network(settings, width, reference.n_latents, generator)
        return AnchoredEnergy(reference, network, reach=reach)
    return build_user_energy(settings, reference, seed)


def start_training(
    X: np.ndarray,
    rows: Rows,
    settings: SimpleNamespace,
    random_state: np.random.RandomState,
    report: Reporter,
) -> tuple[Standardisation, Training]:
    """Standardise, fit the reference and set up an untrained model on it, on the device."""
    device, dtype = resolve_device(settings.device), getattr(torch, settings.dtype)
    chart, standardised, reference, choice = fit_base(X, rows, settings, random_state, report)
    seed = random_state.randint(np.iinfo(np.int32).max)
    reach = reach_of_rows(standardised, reference, seed)
    energy = build_energy(settings, copy.deepcopy(reference), seed, reach)
    if isinstance(energy, BridgedEnergy):
        probe(energy, standardised, seed)
    energy = energy.to(device=device, dtype=dtype)
    optimisation = start_optimisation(
        energy, learning_rate=settings.learning_rate_init, alpha=settings.alpha
    )
    state = pool_of(settings).init(energy, seeded_generator(seed, device))
    latent_chart = None
    # the latents of a user's energy are not ours to rename
    if settings.energy is None and settings.n_components > 0:
        source = np.random.RandomState(seed)
        latent_chart = fit_chart(standardised, reference, settings.latent_map, source)
    return chart, Training(optimisation, state, reference, choice, latent_chart)


def anchored_on(training: Training, reference: MixtureReference) -> Training:
    """Return a training whose energies, changed in place, stand on the reference of a model.

    Another than theirs, if the fit before gave them up for a reference of all of its rows.
    """
    optimisation = training.optimisation
    own = copy.deepcopy(reference).to(optimisation.energy.reference.location)
    optimisation.energy.reference = optimisation.average.reference = own
    return training._replace(reference=reference)


def continue_training(
    X: np.ndarray,
    rows: Rows,
    chart: Standardisation,
    training: Training,
    settings: SimpleNamespace,
    objective: PoolObjective,
    random_state: np.random.RandomState,
    report: Reporter,
    keep_best: bool,
    continues: bool,
) -> Outcome:
    """Train a model on the rows of X and normalise it.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows in the units of the data.
    rows : Rows
        Which of them train and which are monitored.
    chart : Standardisation
        Units of the model.
    training : Training
        Where to start; used up.
    settings : SimpleNamespace
        Constructor parameters.
    objective : PoolObjective
        What to descend.
    random_state : numpy.random.RandomState
        Source of all seeds.
    report : Reporter
        Receives stages, the progress of each epoch and its ELBO in the units of X.
    keep_best : bool
        Keep the epoch with the best monitored ELBO; else the running average after the last one.
    continues : bool
        Whether there was a fit before: its reference is then what is kept if training does not
        help, else one that is fitted to all rows.

    Raises
    ------
    ParticleDivergenceError
        If training stops being finite.
    """
    energy = training.optimisation.energy
    like = energy.reference.location
    seed = random_state.randint(np.iinfo(np.int32).max)
    generator = seeded_generator(seed, like.device)
    # moved in as far as single precision needs: a correction is zero there anyway
    standardised = torch.from_numpy(chart.apply(X).clip(-_FARTHEST, _FARTHEST)).to(like)
    fitted, monitor = standardised[rows.fitted], standardised[rows.monitor]
    del standardised  # copies have been taken

    def normalised(energy: PathEnergy, reference: MixtureReference) -> tuple[Model, Diagnostics]:
        return normalise(energy, reference, particles, fitted, settings, chart, seed, generator)

    with team(torch.get_num_threads()), numerical_session(1):
        report.stage(f"training on {len(fitted)} rows, monitoring {len(monitor)}")
        state = objective.ready(energy, training.state, len(fitted), generator)
        result = train(
            training.optimisation,
            objective,
            fitted,
            monitor,
            state,
            learning_rate=settings.learning_rate_init,
            batch_size=min(settings.batch_size, len(fitted)),
            max_iter=settings.max_iter,
            tol=least_improvement(settings.tol),
            n_iter_no_change=settings.n_iter_no_change,
            generator=generator,
            callback=lambda p: report(p, p.lower_bound + chart.log_jacobian),
        )
        particles = objective.particles(result.state)
        kept = result.best if keep_best else result.optimisation.average
        may_fall_back = keep_best and isinstance(energy, AnchoredEnergy)
        gain = 0.0
        units = chart.apply(X)
        rival = rival_advantage(units, rows, training, settings, continues)
        if not may_fall_back or promised_gain(kept, result, monitor, rival) > 0.0:
            report.stage("normalising the trained energy")
            model, diagnostics = normalised(kept, training.reference)
            gain = gain_over_reference(model, monitor, rival)
            gain, diagnostics = vouched_gain(gain, diagnostics)
        lower_bound = result.best_lower_bound
        if may_fall_back and gain <= 0.0:
            # annealing has the last word: what looked like progress on the ladder was none
            report.stage("keeping the reference")
            how = {"seed": seed, "continues": continues}
            reference = kept_reference(units, rows, training, settings, **how)
            untrained = build_energy(settings, copy.deepcopy(reference), seed).to(like)
            model, diagnostics = normalised(untrained, reference)
            lower_bound = float(training.reference.log_marginal(monitor.cpu().double()).mean())
    report.kept(gain > 0.0, gain, len(monitor), falls_back=may_fall_back)
    return Outcome(
        model=model._replace(chart=training.chart),
        diagnostics=diagnostics,
        training=training._replace(optimisation=result.optimisation, state=particles),
        history=result.history,
        lower_bound=lower_bound + chart.log_jacobian,
        improved=gain > 0.0,
        converged=result.converged,
        device=like.device,
    )
