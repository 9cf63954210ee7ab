"""Training of a baseline: start, train, normalise."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sklvebm.baselines._bounds import GaussianMixtures, weighted_latents
from sklvebm.baselines._decoder import Architecture, LatentModel
from sklvebm.estimators._common.config import TrainingConfig
from sklvebm.estimators._common.session import FitSession, Outcome
from sklvebm.estimators._common.transactional_fit import least_improvement
from sklvebm.optimisation import start_optimisation
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.row_weights import as_tensor, chosen, mean_on_device
from sklvebm.runtime import numerical_session, seeded_generator
from sklvebm.smc.log_partition import LogPartition
from sklvebm.threads import threads_for
from sklvebm.training import train

NORMALISED = LogPartition(0.0, 0.0, 0.0, 0.0, float("inf"))  # of a normal prior
_MAX_MONITOR_ROWS = 500  # each needs an optimisation in every epoch
_N_MONITOR_SAMPLES = 32  # importance samples per monitored row


class DecoderModel(NamedTuple):
    """Parameters for scoring, transforming and sampling; float64, on the CPU."""

    network: LatentModel
    standardisation: Standardisation
    log_partition: LogPartition  # of the prior; zero for a normal one
    seed: int  # of deterministic results


class Inference(Protocol):
    """A method's approximate posteriors of rows under a fixed model."""

    def posterior(
        self, model: LatentModel, x: Tensor, seed: int, *, thorough: bool
    ) -> GaussianMixtures:
        """Return approximate posteriors of rows x (N, D), more accurate ones if `thorough`."""


class BoundObjective(Inference):
    """The part of `training.Objective` that methods share: the bound of monitored rows.

    A method adds `init`, which returns its first state, `step` and `posterior`.
    """

    loss_name, has_total_bound = "contrast", False

    def lower_bound(
        self,
        network: LatentModel,
        state: Any,
        target: LatentModel,
        x: Tensor,
        generator: torch.Generator,
        *,
        row_weights: Tensor | None = None,
    ) -> float:
        """Return the mean importance-weighted bound of `target` on rows x, nats per row."""
        q = self.posterior(target, x, 0, thorough=False)
        bounds = weighted_latents(target, x, q, _N_MONITOR_SAMPLES, 0).log_evidence()
        bound = float(mean_on_device(bounds, row_weights))
        return bound - self.monitored_log_partition(target, state)

    def monitored_log_partition(self, target: LatentModel, state: Any) -> float:
        """Return a cheap estimate of log Z of the prior; zero for a normal one."""
        return 0.0

    def normalise(self, model: LatentModel, state: Any, seed: int) -> LogPartition:
        """Return log Z of the prior of a trained model, float64, on the CPU."""
        return NORMALISED

    def measures(self, energy: Any, state: Any) -> dict[str, Tensor]:
        """Return nothing: `problem` needs no more than the metrics."""
        return {}

    def problem(self, state: Any, metrics: dict[str, float]) -> str | None:
        """Return None: the training loop detects non-finite numbers, and there is no other test."""
        return None


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TrainingConfig):
    """Parameters of the training of a baseline."""

    architecture: Architecture
    objective: Any  # a BoundObjective


def resolve_batch_size(batch_size: int | str, n_rows: int) -> int:
    """Return rows per update: about sixteen updates per epoch, of 32 to 256 rows."""
    wanted = int(np.clip(n_rows // 16, 32, 256)) if isinstance(batch_size, str) else batch_size
    return min(wanted, n_rows)


class WeightedRows(NamedTuple):
    """Standardised training rows with their weights."""

    x: Tensor  # (N, D)
    row_weights: Tensor | None = None  # (N,), mean one; None counts each row once


def principal_latents(rows: WeightedRows, n_latents: int, generator: torch.Generator) -> Tensor:
    """Return the whitened principal components of rows, (N, L), as first latents.

    They have zero mean and unit variance under the weights of the rows. Latents beyond the rank of
    the rows are standard normal draws.
    """
    x, row_weights = rows
    scales = 1.0 if row_weights is None else row_weights.sqrt().unsqueeze(1)
    centred = (x - mean_on_device(x, row_weights)).double()
    u, s, _ = torch.linalg.svd(centred * scales, full_matrices=False)
    n_kept = min(n_latents, int((s > 1e-6 * s[:1].clamp(min=1e-300)).sum()))
    latents = torch.randn((len(x), n_latents), generator=generator, dtype=x.dtype, device=x.device)
    latents[:, :n_kept] = (u[:, :n_kept] / scales * len(x) ** 0.5).to(x)
    return latents


def start(session: FitSession) -> LatentModel:
    """Return the model to train, on the device."""
    config: DecoderConfig = session.config
    on_cpu = seeded_generator(session.draw_seed(), torch.device("cpu"))
    model = LatentModel(config.architecture, on_cpu)
    return model.to(device=config.torch_device, dtype=config.torch_dtype)


def train_decoder(session: FitSession, model: LatentModel) -> Outcome:
    """Train a latent-variable model on the rows of a session and normalise its prior.

    Parameters
    ----------
    session : FitSession
        Rows, parameters and random numbers.
    model : LatentModel
        Initial model; a copy is trained.

    Raises
    ------
    ParticleDivergenceError
        If training diverges and roll-backs do not help.
    """
    config, data, objective = session.config, session.data, session.config.objective
    device, seed = config.torch_device, session.draw_seed()
    monitored = data.monitored[:_MAX_MONITOR_ROWS]
    monitor_weights = chosen(data.monitored_weights, slice(_MAX_MONITOR_ROWS))
    x, monitor = (
        torch.from_numpy(rows).to(device=device, dtype=config.torch_dtype)
        for rows in (data.fitted, monitored)
    )
    row_weights = as_tensor(data.fitted_weights, x.device)
    batch_size = min(config.batch_size, len(x))
    session.report.phase("training", f"training on {len(x)} rows, monitoring {len(monitor)}")
    generator = seeded_generator(seed + 1, device)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    with numerical_session(threads_for(batch_size, n_weights)):
        result = train(
            start_optimisation(model, learning_rate=config.learning_rate_init, alpha=config.alpha),
            objective,
            x,
            monitor,
            objective.init(model, WeightedRows(x, row_weights), generator),
            learning_rate=config.learning_rate_init,
            batch_size=batch_size,
            max_iter=config.max_iter,
            tol=least_improvement(config.tol),
            n_iter_no_change=config.n_iter_no_change,
            generator=generator,
            callback=session.report_epoch,
            undo_falls=False,
            row_weights=row_weights,
            monitor_weights=as_tensor(monitor_weights, x.device),
        )
        session.report.phase("normalising", "normalising")
        network = result.best.cpu().double().requires_grad_(False)
        log_partition = objective.normalise(network, result.state, seed)
    best = result.best_lower_bound + data.standardisation.log_jacobian
    session.report.stage(f"kept the parameters of the best bound, {best:.3f} nats")
    return Outcome(
        model=DecoderModel(network, data.standardisation, log_partition, seed),
        diagnostics=None,
        training=None,
        history=result.history,
        value=best,
        improved=True,
        is_reference=False,
        converged=result.converged,
        device=device,
    )
