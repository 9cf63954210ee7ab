"""The last act of `fit`: equilibrate the pool, bracket log Z, measure what can be trusted."""

import copy
import math
from types import SimpleNamespace

import torch
from torch import Tensor

from sklvebm.backends import select_correction_and_grad
from sklvebm.energies import PathEnergy
from sklvebm.estimators._boundary import Standardisation
from sklvebm.estimators._diagnostics import Diagnostics, diagnose
from sklvebm.estimators._model import Model
from sklvebm.gradients import joint_target
from sklvebm.inference import ROW_PARTICLES, posterior_particles
from sklvebm.log_partition import Ladder, effective_sample_size, estimate_log_partition
from sklvebm.objectives.particle_likelihood import ParticleLikelihood
from sklvebm.objectives.pool import Observation, observe_pool
from sklvebm.particles import IndependentNoise, ParticleState

_EQUILIBRATION_SWEEPS = 40
_OBSERVED_SWEEPS = 40  # of which the first half is burn-in
_WALKERS = 512
_RUNGS = 8  # where training had no ladder of its own
_TOLERANCE = 0.02  # nats
_TOLERANCE_PER_FEATURE = 0.005  # nats
_MAX_STEPS = 512
_POSTERIOR_ROWS = 100


def normaliser_objective(settings: SimpleNamespace) -> ParticleLikelihood:
    """Return the objective whose pool the normaliser moves: tempered, exact on the reference."""
    return ParticleLikelihood(
        dynamics="crank-nicolson",
        n_particles=1,
        n_chains=settings.n_chains,
        n_temperatures=settings.n_temperatures if settings.n_temperatures > 1 else _RUNGS,
        n_langevin_steps=settings.n_langevin_steps,
        step_size=None,
        information_weight=0.0,
    )


def normalise(
    energy: PathEnergy,
    state: ParticleState,
    rows: Tensor,
    settings: SimpleNamespace,
    chart: Standardisation,
    seed: int,
    generator: torch.Generator,
) -> tuple[Model, Diagnostics]:
    """Bracket log Z of trained parameters and measure the sampler.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        The trained model.
    state : ParticleState
        Particles at the end of training.
    rows : Tensor of shape (N, D)
        Standardised training rows: starts of the pool that begins at the data.
    settings : SimpleNamespace
        Constructor parameters.
    chart : Standardisation
        Units of the model.
    seed : int
        Seed of the model's deterministic results.
    generator : torch.Generator
        Source of all noise.

    Returns
    -------
    model : Model
        Complete, in float64, on the CPU.
    diagnostics : Diagnostics
        What was measured.
    """
    objective = normaliser_objective(settings)
    has_ladder = settings.n_temperatures > 1 and settings.dynamics == "crank-nicolson"
    if not has_ladder:
        state = objective.init(energy, 0, generator=generator)
    # half of the walkers that leave the model come from the trained pool, half from the watched
    n_snapshots = math.ceil(0.5 * _WALKERS / settings.n_chains)
    n_sweeps = max(_EQUILIBRATION_SWEEPS, 2 * n_snapshots)
    state, draws = objective.equilibrate(energy, state, n_sweeps, n_snapshots, generator)
    observations = watch_pools(energy, objective, state, rows, generator)
    watched = torch.cat([observation.draws for observation in observations])
    model_draws = torch.cat([draws[-_WALKERS // 2 :], watched[: _WALKERS // 2]])
    target = joint_target(energy, select_correction_and_grad(energy))
    tolerance = _TOLERANCE + _TOLERANCE_PER_FEATURE * (energy.n_features - 2)
    normalisation = estimate_log_partition(
        target,
        energy.reference.sample(len(model_draws), generator),
        model_draws,
        objective.ladder(state),
        noise=IndependentNoise(generator),
        tolerance=max(_TOLERANCE, tolerance),
        max_steps=_MAX_STEPS,
    )
    model = Model(
        energy=copy.deepcopy(energy).to(device="cpu", dtype=torch.float64).requires_grad_(False),
        standardisation=chart,
        log_partition=normalisation.estimate,
        ladder=Ladder(*(part.cpu().double() for part in objective.ladder(state))),
        n_annealing_steps=normalisation.n_steps,
        latent_step_size=min(2.0, float(state.latent_step_size)),
        seed=seed,
    )
    sample_size = posterior_sample_size(model, rows)
    tolerance = max(_TOLERANCE, tolerance)
    return model, diagnose(normalisation, observations, tolerance, sample_size, ROW_PARTICLES)


def watch_pools(
    energy: PathEnergy,
    objective: ParticleLikelihood,
    state: ParticleState,
    rows: Tensor,
    generator: torch.Generator,
) -> list[Observation]:
    """Watch one pool that starts at data rows and one that starts at the reference."""
    reference = energy.reference
    t, c, width = state.pool.shape
    from_reference = reference.sample(t * c, generator)
    picked = rows[torch.randint(len(rows), (t * c,), generator=generator, device=rows.device)]
    from_data = from_reference.clone()
    from_data[:, : reference.n_features] = reference.from_features(picked)
    noise = IndependentNoise(generator)
    half = _OBSERVED_SWEEPS // 2
    observations = []
    for start in (from_data, reference.sample(t * c, generator)):
        pool = state._replace(pool=start.to(state.pool).reshape(t, c, width))
        for _ in range(half):
            sweep = objective.move_pool(energy, pool, noise)
            pool = pool._replace(pool=sweep.pool, n_updates=pool.n_updates + 1)
        observations.append(
            observe_pool(energy, pool, objective.kernel, objective.n_langevin_steps, half, noise)
        )
    return observations


def posterior_sample_size(model: Model, rows: Tensor) -> float:
    """Return the median effective number of posterior particles over some rows."""
    x = rows[:_POSTERIOR_ROWS].cpu().double()
    particles = posterior_particles(
        model.energy, x, step_size=model.latent_step_size, seed=model.seed
    )
    return float(effective_sample_size(particles.log_weights).median())
