"""The composition root of `PotentialFlowEBM.fit`: reference, potential, train, accept, check."""

import copy
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.estimators._common.base import expected_refit_gain, fit_base, kept_reference
from sklvebm.estimators._common.transactional_fit import (
    Reporter,
    least_improvement,
    lower_confidence_limit,
)
from sklvebm.estimators._flow.fitted_model import FlowModel, numbers_per_row
from sklvebm.estimators._flow.normalization import FlowDiagnostics, check_model
from sklvebm.flows.interpolant import interpolant_marginals
from sklvebm.flows.potentials import AnchoredPotential, flow_density, trace_directions
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.stacking import MixtureChoice
from sklvebm.models.networks import potential_network, resolve_image_shape
from sklvebm.objectives.flow_matching import PotentialFlow
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.preprocessing.splitting import Rows
from sklvebm.runtime import numerical_session, resolve_device, seeded_generator
from sklvebm.threads import threads_for
from sklvebm.training import (
    Optimisation,
    Progress,
    move_moments,
    start_optimisation,
    train,
)

_FEW_FEATURES, _MANY_ROWS = 3, 1000
_EXACT_TRACE_UP_TO, _PROBES = 16, 16
_ACCEPTANCE_STEPS = 16  # of the integrator
_POINTS_PER_ROW = 2  # a pair of opposite noise


class FlowTraining(NamedTuple):
    """What `warm_start` continues from."""

    optimisation: Optimisation
    reference: MixtureReference  # float64, on the CPU
    choice: MixtureChoice | None  # what the reference is, if cross-validation chose it


class FlowOutcome(NamedTuple):
    """What a fit returns to the estimator."""

    model: FlowModel
    diagnostics: FlowDiagnostics
    training: FlowTraining
    history: list[Progress]
    log_likelihood: float  # nats per row, units of X
    improved: bool  # on the reference
    converged: bool
    device: torch.device


def resolve_auto(settings: SimpleNamespace, n_samples: int, n_features: int) -> SimpleNamespace:
    """Return settings with every "auto" replaced by what suits such rows.

    Raises
    ------
    ValueError
        If rows are no images of `image_shape`.
    """
    resolve_image_shape(settings, n_features, single_layer=True)
    few_features = n_features <= _FEW_FEATURES
    chosen = {
        "hidden_layer_sizes": (64, 64) if few_features else (512,),
        "learning_rate_init": 0.01 if few_features else 0.005,
        "batch_size": int(np.clip(n_samples // 8, 32, 256)),
    }
    for name, value in chosen.items():
        if isinstance(getattr(settings, name), str):
            setattr(settings, name, value)
    settings.batch_size = min(settings.batch_size, n_samples)
    if isinstance(settings.n_probes, str):
        exact = n_features <= _EXACT_TRACE_UP_TO or len(list(settings.hidden_layer_sizes)) == 1
        settings.n_probes = n_features if exact else _PROBES
    settings.input_gain = 3.0 if few_features and n_samples >= _MANY_ROWS else 1.0
    settings.n_components = 1  # of the reference's latents, which take no part
    if isinstance(settings.reference, MixtureReference):
        settings.n_components = settings.reference.n_latents
    return settings


def build_potential(
    settings: SimpleNamespace, reference: MixtureReference, seed: int
) -> AnchoredPotential:
    """Join the marginals of the interpolant to a network that is zero."""
    generator = torch.Generator().manual_seed(seed)
    network = potential_network(settings, reference.n_features, generator)
    return AnchoredPotential(interpolant_marginals(reference), network)


def start_training(
    X: np.ndarray,
    rows: Rows,
    settings: SimpleNamespace,
    random_state: np.random.RandomState,
    report: Reporter,
) -> tuple[Standardisation, FlowTraining]:
    """Standardise, fit the reference to the rows not held out and set up a zero correction."""
    standardisation, _, reference, choice = fit_base(X, rows, settings, random_state, report)
    seed = random_state.randint(np.iinfo(np.int32).max)
    potential = build_potential(settings, reference, seed).to(getattr(torch, settings.dtype))
    optimisation = start_optimisation(
        potential, learning_rate=settings.learning_rate_init, alpha=settings.alpha
    )
    return standardisation, FlowTraining(optimisation, reference, choice)


def continue_training(
    X: np.ndarray,
    rows: Rows,
    standardisation: Standardisation,
    training: FlowTraining,
    settings: SimpleNamespace,
    random_state: np.random.RandomState,
    report: Reporter,
    former: MixtureReference | None,
) -> FlowOutcome:
    """Train a potential on the rows of X, accept it or keep the reference, and check the result.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows in the units of the data.
    rows : Rows
        Which of them train and which are monitored.
    standardisation : Standardisation
        Units of the model.
    training : FlowTraining
        Where to start; not modified.
    settings : SimpleNamespace
        Constructor parameters.
    random_state : numpy.random.RandomState
        Source of all seeds.
    report : Reporter
        Receives stages, the progress of each epoch and its log-likelihood in the units of X.
    former : MixtureReference or None
        Reference of the model that a continued fit starts from: what training stands on and falls
        back to. None for a first fit, which falls back to a reference fitted to all rows.

    Raises
    ------
    ParticleDivergenceError
        If training stops being finite.
    """
    device = resolve_device(settings.device)
    training, optimisation = _to_go_on_from(training, former, device)
    seed = random_state.randint(np.iinfo(np.int32).max)
    generator = seeded_generator(seed, device)
    units = standardisation.apply(X)
    standardised = torch.from_numpy(units).to(device)
    fitted, monitor = standardised[rows.fitted], standardised[rows.monitor]
    batch_size = min(settings.batch_size, len(fitted))
    width = max(numbers_per_row(optimisation.energy, 1), _n_weights(optimisation.energy))
    with numerical_session(threads_for(_POINTS_PER_ROW * batch_size, width)):
        report.stage(f"training on {len(fitted)} rows, monitoring {len(monitor)}")
        result = train(
            optimisation,
            PotentialFlow(settings.loss, consistency=settings.consistency),
            fitted,
            monitor,
            None,
            learning_rate=settings.learning_rate_init,
            batch_size=batch_size,
            max_iter=settings.max_iter,
            tol=least_improvement(settings.tol),
            n_iter_no_change=settings.n_iter_no_change,
            generator=generator,
            callback=lambda p: report(p, p.lower_bound + standardisation.log_jacobian),
        )
        kept = _exact(result.best, training.reference)
        on_cpu = seeded_generator(seed, torch.device("cpu"))
        directions = trace_directions(X.shape[1], settings.n_probes, on_cpu)
        monitored, reference = monitor.cpu(), training.reference
        rival = expected_refit_gain(units, rows, training, settings, former is not None)
        gain, best = (
            gain_over_reference(kept, monitored, directions, rival),
            result.best_lower_bound,
        )
        how = {"directions": directions, "settings": settings, "seed": seed}
        checked = partial(check_model, standardisation=standardisation, rows=monitored, **how)
        report.stage("choosing integrator steps, normalising the explicit energy")
        if gain > 0.0:
            model, diagnostics = checked(kept, reference)
            if diagnostics.score_problems():
                gain = 0.0  # nobody can vouch for the score, and the reference's is exact
        if gain <= 0.0:
            # what looked like progress may be chance, and the reference can have all rows
            report.stage("keeping the reference")
            how = {"seed": seed, "continues": former is not None}
            reference = kept_reference(units, rows, training, settings, **how)
            kept = AnchoredPotential(interpolant_marginals(reference), None)
            best = float(training.reference.log_marginal(monitored).mean())
            model, diagnostics = checked(kept, reference)
    report.kept(gain > 0.0, gain, len(monitor))
    return FlowOutcome(
        model=model,
        diagnostics=diagnostics,
        training=training._replace(optimisation=_on_device(result.optimisation, "cpu")),
        history=result.history,
        log_likelihood=best + standardisation.log_jacobian,
        improved=gain > 0.0,
        converged=result.converged,
        device=device,
    )


def gain_over_reference(
    potential: AnchoredPotential, rows: Tensor, directions: Tensor, rival: Tensor
) -> float:
    """Return by how much rows, standardised (N, D), prefer the potential to a reference, nats.

    The mean log-likelihood minus that of the reference that would be kept instead, which is `rival`
    (N,) nats better than the potential's own; as far as so few rows can be believed.
    """
    gains = flow_density(potential, rows, _ACCEPTANCE_STEPS, directions).gains[:, 0] - rival
    return lower_confidence_limit(gains)


def _to_go_on_from(
    training: FlowTraining, former: MixtureReference | None, device: torch.device
) -> tuple[FlowTraining, Optimisation]:
    """Return a training, on the reference of a former model, and a copy to train on a device."""
    optimisation = copy.deepcopy(training.optimisation)
    if former is not None:
        training = _anchored_on(training, optimisation, former)
    return training, _on_device(optimisation, device)


def _anchored_on(
    training: FlowTraining, optimisation: Optimisation, reference: MixtureReference
) -> FlowTraining:
    """Put a copy of a training's potentials on the reference of a model, in place.

    Another than theirs, if the fit before gave them up for a reference of all of its rows.
    """
    for potential in (optimisation.energy, optimisation.average):
        potential.mixture = interpolant_marginals(reference)
    return training._replace(reference=reference)


def _n_weights(potential: AnchoredPotential) -> int:
    return sum(parameter.numel() for parameter in potential.parameters())


def _exact(potential: AnchoredPotential, reference: MixtureReference) -> AnchoredPotential:
    """Return a copy in float64 on the CPU, without gradients."""
    exact = copy.deepcopy(potential).to(device="cpu", dtype=torch.float64).requires_grad_(False)
    exact.mixture = interpolant_marginals(reference)
    return exact


def _on_device(optimisation: Optimisation, device: torch.device | str) -> Optimisation:
    """Move potentials and Adam's moments to a device, in place."""
    for potential in (optimisation.energy, optimisation.average):
        potential.to(device)
        potential.mixture = potential.mixture.to(device)
    move_moments(optimisation.optimizer, device)
    return optimisation
