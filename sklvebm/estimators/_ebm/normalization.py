"""Normalisation at the end of `fit`: equilibrate the pool, bracket log Z, measure diagnostics."""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.confidence import lower_confidence_limit
from sklvebm.estimators._common.session import FitSession
from sklvebm.estimators._ebm.config import PoolConfig
from sklvebm.estimators._ebm.diagnostics import (
    MAX_RHAT,
    Diagnostics,
    diagnose,
    diagnose_reference,
    disagreement,
)
from sklvebm.estimators._ebm.fitted_model import Model
from sklvebm.inference.independent_check import check_independently, widened
from sklvebm.inference.missed_components import defended, missed_components, with_missed_mass
from sklvebm.inference.missing_cells import observed_evidence
from sklvebm.inference.posterior import ROW_PARTICLES, posterior_particles
from sklvebm.mcmc.state import IndependentNoise, ParticleState
from sklvebm.mixtures.missing_cells import by_completeness
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.reference_check import check_reference
from sklvebm.models.energies import AnchoredEnergy, PathEnergy
from sklvebm.models.targets import joint_target
from sklvebm.objectives.pool import DiagnosticChains, run_diagnostic_chains
from sklvebm.objectives.tempered_pool import TemperedPool, log_ratio_to_reference
from sklvebm.row_weights import mean_on_device
from sklvebm.smc.annealing import Ladder
from sklvebm.smc.log_partition import (
    TRUSTED_WIDTH,
    WANTED_WIDTH,
    LogPartition,
    Normalisation,
    estimate_log_partition,
)
from sklvebm.smc.quasi_random import latent_nodes
from sklvebm.smc.resampling import effective_sample_size

_EQUILIBRATION_SWEEPS, _MAX_SWEEPS = 20, 60  # the former plus one per feature, and its limit
_DIAGNOSTIC_ROUNDS = (10, 10, 20, 40, 80)  # sweeps of each round of the diagnostic chains
_DEFENSIVE_SHARE = 0.125  # of the particles of the diagnostic pool that starts at the reference
_N_WALKERS = 512  # of annealing, in each direction
_N_RUNGS = 8  # temperatures, if training had one
_MAX_CHAINS = 2**12  # diagnostic chains, whose traces are kept in memory
_MAX_STEPS = 512  # annealing steps
_NUMBERS_AT_A_TIME = 2**20  # coordinates of the posterior particles of some rows
_POSTERIOR_ROWS, _POSTERIOR_QUANTILE = 200, 0.1  # for `Diagnostics.posterior_sample_size`
_CHUNK_ROWS = 128  # held-out rows evaluated at once


class TrainedParticles(NamedTuple):
    """Particles, rows and random numbers of training, for the normaliser."""

    state: ParticleState  # at the end of training
    rows: Tensor  # (N, D), standardised training rows
    seed: int  # of the model's deterministic results
    generator: torch.Generator  # source of all noise


def normaliser_pool(config: PoolConfig) -> TemperedPool:
    """Return the pool of the normaliser: tempered, with moves that are exact on the reference."""
    return TemperedPool(
        dynamics="crank-nicolson",
        n_chains=min(config.n_chains, _MAX_CHAINS),
        n_temperatures=_n_rungs(config),
        n_langevin_steps=config.n_langevin_steps,
        step_size=None,
    )


def _n_rungs(config: PoolConfig) -> int:
    return config.n_temperatures if config.n_temperatures > 1 else _N_RUNGS


def normalise(
    session: FitSession,
    energy: PathEnergy,
    reference: MixtureReference,
    trained: TrainedParticles,
) -> tuple[Model, Diagnostics]:
    """Bracket log Z of trained parameters and measure the sampler.

    Parameters
    ----------
    session : FitSession
        Has the parameters and the units of the model.
    energy : AnchoredEnergy or BridgedEnergy
        The trained model.
    reference : MixtureReference
        Its reference in double precision.
    trained : TrainedParticles
        Particles, rows and random numbers.

    Returns
    -------
    model : Model
        The normalised model, float64, on the CPU.
    diagnostics : Diagnostics
        Measurements.
    """
    config, rows = session.config, trained.rows
    exact = copy.deepcopy(energy).to(device="cpu", dtype=torch.float64).requires_grad_(False)
    exact.reference = reference
    checks = check_reference(reference, rows, trained.seed)
    checks["tolerance"] = TRUSTED_WIDTH.at(energy.n_features)
    checks["is_anchored"] = isinstance(energy, AnchoredEnergy)
    checks["n_posterior_particles"] = ROW_PARTICLES if energy.n_latents > 0 else 0
    model = Model(
        energy=exact,
        standardisation=session.data.standardisation,
        log_partition=LogPartition(0.0, 0.0, 0.0, 0.0, math.inf),
        ladder=plain_ladder(config),
        n_annealing_steps=1,
        latent_step_size=2.0,
        seed=trained.seed,
    )
    if isinstance(energy, AnchoredEnergy) and energy.is_zero:
        # the reference is normalised, and draws of it are exact
        size = float(checks["n_posterior_particles"])
        n_temperatures = len(model.ladder.betas)
        return model, diagnose_reference(n_temperatures, posterior_sample_size=size, **checks)
    bracketed = bracket_log_partition(energy, config, trained)
    model = model._replace(
        log_partition=bracketed.normalisation.estimate,
        ladder=Ladder(*(part.cpu().double() for part in bracketed.ladder)),
        n_annealing_steps=bracketed.normalisation.n_steps,
        latent_step_size=min(2.0, float(trained.state.latent_step_size)),
    )
    return model, diagnose(
        bracketed.normalisation,
        bracketed.diagnostic_chains,
        posterior_sample_size=posterior_sample_size(model, rows),
        **bracketed.measured,
        **checks,
    )


def plain_ladder(config: PoolConfig) -> Ladder:
    """Return the ladder of a model that is its reference, for which every step is exact."""
    betas = torch.linspace(0.0, 1.0, _n_rungs(config), dtype=torch.float64)
    return Ladder(betas, torch.full_like(betas, 2.0), torch.zeros_like(betas))


class Bracketed(NamedTuple):
    """A bracket of log Z with the diagnostic chains."""

    normalisation: Normalisation
    ladder: Ladder
    diagnostic_chains: list[DiagnosticChains]
    measured: dict[str, float]  # fields of `Diagnostics`


def bracket_log_partition(
    energy: PathEnergy, config: PoolConfig, trained: TrainedParticles
) -> Bracketed:
    """Equilibrate a pool, run diagnostic chains, anneal in both directions, check independently.

    Parameters as in `normalise`.
    """
    tempered, generator, state = normaliser_pool(config), trained.generator, trained.state
    if config.n_temperatures > 1 and config.dynamics == "crank-nicolson":
        state = state._replace(pool=state.pool[:, : tempered.n_chains])
    else:
        state = tempered.init(energy, generator)
    # reverse annealing starts from the trained pool and from the diagnostic chains, in equal parts
    n_snapshots = math.ceil(0.5 * _N_WALKERS / config.n_chains)
    n_sweeps = min(_EQUILIBRATION_SWEEPS + energy.n_features, _MAX_SWEEPS)
    n_sweeps = max(n_sweeps, 2 * n_snapshots)
    state, draws = tempered.equilibrate(energy, state, n_sweeps, n_snapshots, generator)
    diagnostic_chains = compare_diagnostic_chains(energy, tempered, state, trained.rows, generator)
    diagnosed = [o.state.pool[-1][: _N_WALKERS // 4] for o in diagnostic_chains]
    model_draws = torch.cat([draws[-_N_WALKERS // 2 :], *diagnosed])
    target = joint_target(energy, select_correction_and_grad(energy))
    ladder, noise = tempered.ladder(state), IndependentNoise(generator)
    tolerance = WANTED_WIDTH.at(energy.n_features)
    normalisation = estimate_log_partition(
        target,
        lambda: energy.reference.sample(len(model_draws), generator, stratified=True),
        model_draws,
        ladder,
        noise=noise,
        tolerance=tolerance,
        max_steps=_MAX_STEPS,
    )
    missed = missed_components(energy, len(model_draws), generator)
    estimate = with_missed_mass(normalisation.estimate, missed)
    missed_mass = estimate.upper - normalisation.estimate.upper
    check = check_independently(
        energy, target, ladder, model_draws, n_steps=normalisation.n_steps, noise=noise
    )
    estimate = widened(estimate, check, tolerance)
    measured = {
        "missed_mass": missed_mass,
        "log_z_importance": check.importance.value,
        "importance_shape": check.importance.shape,
        "log_z_defended": check.annealed.value,
        "log_z_from_model": check.reverse.value,
        "from_model_shape": check.reverse.shape,
    }
    normalisation = normalisation._replace(estimate=estimate)
    return Bracketed(normalisation, ladder, diagnostic_chains, measured)


def compare_diagnostic_chains(
    energy: PathEnergy,
    tempered: TemperedPool,
    state: ParticleState,
    rows: Tensor,
    generator: torch.Generator,
) -> list[DiagnosticChains]:
    """Run diagnostic chains from data rows and from the defended reference.

    In the latter, an eighth of the particles start in the defensive component. Rounds are repeated,
    with twice as many sweeps, until both pools agree or no rounds are left.
    """
    reference = energy.reference
    t, c, width = state.pool.shape
    wider = defended(reference, _DEFENSIVE_SHARE)
    from_reference = wider.sample(t * c, generator).to(state.pool)
    from_data = reference.sample(t * c, generator).to(state.pool)
    picked = rows[torch.randint(len(rows), (t * c,), generator=generator, device=rows.device)]
    from_data = torch.cat(
        [reference.from_features(picked), from_data[:, reference.n_features :]], 1
    )
    noise = IndependentNoise(generator)
    states = [
        state._replace(pool=start.reshape(t, c, width)) for start in (from_data, from_reference)
    ]
    how = (tempered.kernel, tempered.n_langevin_steps)
    # the first round is burn-in
    for number, n_sweeps in enumerate(_DIAGNOSTIC_ROUNDS):
        diagnostic_chains = [
            run_diagnostic_chains(energy, pool, *how, noise, n_sweeps=n_sweeps) for pool in states
        ]
        states = [chains.state for chains in diagnostic_chains]
        if number > 0 and disagreement(diagnostic_chains) <= MAX_RHAT:
            break
    return diagnostic_chains


def estimated_gain(
    energy: PathEnergy,
    bound: float,
    rows: Tensor,
    expected: Tensor,
    base: float,
    *,
    row_weights: Tensor | None = None,
) -> float:
    """Return the gain over the reference on monitored rows by the training's bound, nats.

    As `gain_over_reference`, with log Z from the ladder. The selection of the best epoch biases it
    upwards. Where it is not positive, the energy is rejected without normalisation.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The energy of the best epoch.
    bound : float
        Its bound in training, a mean over several epochs, nats.
    rows : Tensor of shape (N * K, D)
        Monitored rows, or K completions of each in turn.
    expected : Tensor of shape (N,)
        Gain of the reference that would be kept instead, nats.
    base : float
        Mean log density of the observed cells under the reference, nats.
    row_weights : Tensor of shape (N,) or None, default=None
        Weights of the monitored rows; None where all are equal.
    """
    with torch.no_grad():
        nodes = latent_nodes(ROW_PARTICLES, energy.n_latents, seed=0).to(rows)
        ratios = log_ratio_to_reference(energy, rows, nodes, len(rows) // len(expected))
    gains = ratios.cpu() - expected
    # the mean is that over several epochs, with the confidence margin of one
    mean = bound - base - float(mean_on_device(expected, row_weights))
    excess = lower_confidence_limit(gains, row_weights) - float(mean_on_device(gains, row_weights))
    return mean + excess


def gain_over_reference(
    model: Model, rows: np.ndarray, expected: Tensor, row_weights: Tensor | None = None
) -> float:
    """Return the lower confidence limit of the mean gain on standardised rows (N, D), nats.

    Rows have NaN in missing cells: the gain is that of the density of the observed cells, over the
    reference that would be kept instead, which is expected to gain `expected` (N,) nats over the
    model's own. log Z is the upper estimate. `row_weights` (N,) are those of the rows, or None.
    """
    energy, seed = model.energy, model.seed

    def of_complete(x: Tensor) -> Tensor:
        how: dict[str, Any] = {"step_size": model.latent_step_size, "seed": seed}
        return posterior_particles(energy, x, **how).log_total_weight()

    def of_others(x: Tensor) -> Tensor:
        return observed_evidence(energy, x, step_size=model.joint_step_size, seed=seed)

    parts = torch.from_numpy(rows).split(min(_CHUNK_ROWS, _rows_at_a_time(energy)))
    gains = torch.cat([by_completeness(x, of_complete, of_others) for x in parts]) - expected
    return lower_confidence_limit(gains, row_weights) - model.log_partition.upper


def posterior_sample_size(model: Model, rows: Tensor) -> float:
    """Return the effective number of posterior particles that nine of ten random rows exceed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(model.seed))
    x = rows[order[:_POSTERIOR_ROWS].to(rows.device)].cpu().double()
    how: dict[str, Any] = {"step_size": model.latent_step_size, "seed": model.seed}
    particles = (
        posterior_particles(model.energy, part, **how).log_weights
        for part in x.split(_rows_at_a_time(model.energy))
    )
    # difficult rows have more nodes: more effective ones than the usual number are no news
    sizes = torch.cat([effective_sample_size(weights) for weights in particles])
    return float(torch.quantile(sizes.clamp(max=ROW_PARTICLES), _POSTERIOR_QUANTILE))


def _rows_at_a_time(energy: PathEnergy) -> int:
    """Return how many rows have particles whose coordinates take some megabytes."""
    width = energy.n_features + energy.n_latents
    return max(1, _NUMBERS_AT_A_TIME // (ROW_PARTICLES * width))
