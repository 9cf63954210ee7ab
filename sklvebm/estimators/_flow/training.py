"""Training of potential flows: start on a reference, train, accept or reject, check."""

import copy
import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklvebm.checkpointing import RATIO
from sklvebm.confidence import lower_confidence_limit
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
from sklvebm.estimators._flow.config import FlowConfig
from sklvebm.estimators._flow.fitted_model import FlowModel, numbers_per_row
from sklvebm.estimators._flow.normalization import check_model
from sklvebm.estimators._flow.shared_training import (
    can_share_training,
    optimisation_on,
    train_on_ranks,
)
from sklvebm.flows.diagnostics import FlowDiagnostics
from sklvebm.flows.interpolant import interpolant_marginals
from sklvebm.flows.potentials import AnchoredPotential, flow_density, trace_directions
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.stacking import MixtureChoice
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.networks import potential_network
from sklvebm.objectives.density_ratio import RatioWeights, start_from_ratio
from sklvebm.objectives.ratio_course import ratio_recipe
from sklvebm.optimisation import Optimisation, start_optimisation
from sklvebm.row_weights import as_tensor
from sklvebm.runtime import numerical_session, seeded_generator
from sklvebm.threads import threads_for
from sklvebm.training import TrainingResult, train
from sklvebm.training_course import Progress

_SCREENING_LAYERS = (64, 64)  # units of the density ratio's network
_ACCEPTANCE_STEPS = 16  # of the integrator, for the gain over the reference
_POINTS_PER_ROW = 2  # with noise of opposite sign


class FlowTraining(NamedTuple):
    """The state from which `warm_start` continues."""

    optimisation: Optimisation
    reference: MixtureReference  # float64, on the CPU
    choice: MixtureChoice | None  # of the reference's mixtures, if cross-validation made it


def start(session: FitSession) -> FlowTraining:
    """Fit the reference and create a correction that is zero."""
    config: FlowConfig = session.config
    reference, choice = fit_session_reference(session)
    generator = torch.Generator().manual_seed(session.draw_seed())
    network = potential_network(config, reference.n_features, generator)
    potential = AnchoredPotential(interpolant_marginals(reference), network)
    optimisation = start_optimisation(
        potential.to(config.torch_dtype),
        learning_rate=config.learning_rate_init,
        alpha=config.alpha,
    )
    return FlowTraining(optimisation, reference, choice)


def anchored_on(training: FlowTraining, reference: MixtureReference) -> FlowTraining:
    """Return a copy of a training whose potentials have the given reference.

    It differs from theirs if the earlier fit rejected them for a reference fitted to all rows.
    """
    optimisation = copy.deepcopy(training.optimisation)
    for potential in (optimisation.energy, optimisation.average):
        potential.mixture = interpolant_marginals(reference)
    return training._replace(optimisation=optimisation, reference=reference)


def train_flow(session: FitSession, training: FlowTraining) -> Outcome:
    """Train a potential on the rows of a session, accept it or keep the reference, and check it.

    Parameters
    ----------
    session : FitSession
        Rows, parameters and random numbers.
    training : FlowTraining
        Start; modified.

    Raises
    ------
    ParticleDivergenceError
        If training diverges.
    """
    session = session.completed_by(training.reference)
    data, device = session.data, session.config.torch_device
    seed = session.draw_seed()
    rows = [torch.from_numpy(part).to(device) for part in (data.fitted, data.monitored)]
    potential = training.optimisation.energy
    width = max(numbers_per_row(potential, 1), sum(p.numel() for p in potential.parameters()))
    batch_size = min(session.config.batch_size, len(rows[0]))
    with numerical_session(threads_for(_POINTS_PER_ROW * batch_size, width)):
        text = f"training on {len(rows[0])} rows, monitoring {len(rows[1])}"
        session.report.phase("training", text)
        useless = _useless_ratio(session, training, rows, seed)
        if useless is None:
            result = _descended(session, training, rows, batch_size, seed)
        else:
            session.report.stage("training is skipped")
            own = optimisation_on(training.optimisation, device)
            result = TrainingResult(own, None, own.average, math.nan, useless, True)
        model, diagnostics, gain = _accepted(session, training, result, seed)
    value = result.best_lower_bound
    if gain <= 0.0:
        value = mean_log_density(training.reference, data)
    return Outcome(
        model=model,
        diagnostics=diagnostics,
        training=training._replace(
            optimisation=optimisation_on(result.optimisation, torch.device("cpu"))
        ),
        history=result.history,
        value=value + data.log_jacobian,
        improved=gain > 0.0,
        is_reference=gain <= 0.0,
        converged=result.converged,
        device=device,
    )


def _useless_ratio(
    session: FitSession, training: FlowTraining, rows: list[Tensor], seed: int
) -> list[Progress] | None:
    """Return the epochs of a density ratio that is no better than the reference of all rows.

    The result is None if it is likely to be better, or if it is not to decide. The ratio takes a
    fraction of the time of the flow. What it does not find, the flow of a default fit has not found
    either (docs/benchmarks/potential_flow.md).
    """
    config: FlowConfig = session.config
    data, device = session.data, config.torch_device
    is_first = session.keep_best and not session.continues and data.holds_out
    is_alone = session.ranks.size == 1 and data.observed is None and config.image_shape is None
    if not (config.screens and is_first and is_alone):
        return None
    reference = training.reference.without_latents()
    on_cpu = seeded_generator(seed, torch.device("cpu"))
    network = MLPEnergy(reference.n_features, 0, _SCREENING_LAYERS, generator=on_cpu)
    energy = AnchoredEnergy(reference, network).to(device=device, dtype=config.torch_dtype)
    recipe = ratio_recipe(
        len(rows[0]),
        max_epochs=config.max_iter // 2,
        tol=least_improvement(config.tol),
        patience=config.n_iter_no_change,
    )
    weights = RatioWeights(
        *(as_tensor(part, device) for part in (data.fitted_weights, data.monitored_weights))
    )
    expected = expected_refit_gain(session, training)
    recipe = recipe._replace(needed=needed_gain(session, expected, weights.held_out))
    fitted, monitored = (part.to(config.torch_dtype) for part in rows)
    generator = seeded_generator(seed, device)
    how: dict[str, Any] = {"generator": generator, "callback": lambda epoch: None}
    how |= {"weights": weights, "keeper": session.keeper(stage=RATIO)}
    train_ratio = partial(start_from_ratio, energy, fitted, monitored, recipe, **how)
    ratio = kept_ratio(session, energy, train_ratio, generator)
    if promised_gain(session, ratio, expected, weights.held_out) > 0.0:
        return None
    base = mean_log_density(training.reference, data)
    return [epoch.progress(base) for epoch in ratio.epochs]


def _descended(
    session: FitSession,
    training: FlowTraining,
    rows: list[Tensor],
    batch_size: int,
    seed: int,
) -> TrainingResult:
    """Run the training loop on rows that are fitted and rows that are monitored."""
    config, ranks = session.config, session.ranks
    of_data = session.data.fitted_weights, session.data.monitored_weights
    weights = [as_tensor(part, config.torch_device) for part in of_data]
    if can_share_rows(session.data, ranks.size) and can_share_training(config):
        shared = TrainingRows(rows[0], rows[1], *weights)
        how: dict[str, Any] = {"seed": seed, "callback": session.report_epoch}
        how["checkpoint"] = session.checkpoint
        return train_on_ranks(ranks, config, training.optimisation, shared, **how)
    return train(
        optimisation_on(training.optimisation, config.torch_device),
        config.objective(),
        rows[0],
        rows[1],
        None,
        learning_rate=config.learning_rate_init,
        batch_size=batch_size,
        max_iter=config.max_iter,
        tol=least_improvement(config.tol),
        n_iter_no_change=config.n_iter_no_change,
        generator=seeded_generator(seed, config.torch_device),
        callback=session.report_epoch,
        row_weights=weights[0],
        monitor_weights=weights[1],
        keeper=session.keeper(),
    )


def _accepted(
    session: FitSession, training: FlowTraining, result: TrainingResult, seed: int
) -> tuple[FlowModel, FlowDiagnostics, float]:
    """Return the checked flow, or the reference if there is no gain, and the gain, nats."""
    monitored = torch.from_numpy(session.data.monitored)
    on_cpu = seeded_generator(seed, torch.device("cpu"))
    directions = trace_directions(monitored.shape[1], session.config.n_probes, on_cpu)
    reference = training.reference
    kept = _exact(result.best, reference)
    expected = expected_refit_gain(session, training)
    weights = as_tensor(session.data.monitored_weights)
    gain = 0.0
    if not math.isnan(result.best_lower_bound):
        gain = gain_over_reference(kept, monitored, directions, expected, weights)
    text = "choosing integrator steps, normalising the explicit energy"
    session.report.phase("normalising", text)
    if gain > 0.0:
        model, diagnostics = check_model(session, kept, reference, directions, seed)
        if diagnostics.score_problems():
            gain = 0.0  # the score of the reference is exact
    if gain <= 0.0:
        # the gain is not significant, and the reference can be fitted to all rows
        session.report.phase("normalising", "keeping the reference")
        reference = kept_reference(session, training, seed)
        kept = AnchoredPotential(interpolant_marginals(reference), None)
        model, diagnostics = check_model(session, kept, reference, directions, seed)
    session.report.kept(gain > 0.0, gain, len(monitored))
    return model, diagnostics, gain


def gain_over_reference(
    potential: AnchoredPotential,
    rows: Tensor,
    directions: Tensor,
    expected: Tensor,
    row_weights: Tensor | None = None,
) -> float:
    """Return the lower confidence limit of the mean gain on standardised rows (N, D), nats.

    The gain is that over the reference that would be kept instead, which is expected to gain
    `expected` (N,) nats over the potential's own. `row_weights` (N,) are those of the rows.
    """
    density = flow_density(potential, rows, _ACCEPTANCE_STEPS, directions)
    return lower_confidence_limit(density.gains[:, 0] - expected, row_weights)


def _exact(potential: AnchoredPotential, reference: MixtureReference) -> AnchoredPotential:
    """Return a copy in float64 on the CPU, without gradients."""
    exact = copy.deepcopy(potential).to(device="cpu", dtype=torch.float64).requires_grad_(False)
    exact.mixture = interpolant_marginals(reference)
    return exact
