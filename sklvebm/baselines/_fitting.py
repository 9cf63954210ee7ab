"""How a baseline is fitted: hold rows out, standardise, start, train, normalise."""

from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sklvebm.baselines._bounds import GaussianMixtures, weighted_latents
from sklvebm.baselines._decoder import Architecture, LatentModel
from sklvebm.estimators._common.transactional_fit import Reporter, least_improvement
from sklvebm.preprocessing.scaling import Standardisation, fit_standardisation
from sklvebm.preprocessing.splitting import split_rows
from sklvebm.runtime import numerical_session, resolve_device, seeded_generator
from sklvebm.smc.log_partition import LogPartition
from sklvebm.threads import threads_for
from sklvebm.training import Progress, start_optimisation, train

NORMALISED = LogPartition(0.0, 0.0, 0.0, 0.0, float("inf"))
_MAX_MONITOR_ROWS = 500  # each takes an optimisation of its own at every epoch
_MONITOR_SAMPLES = 32


class Fitted(NamedTuple):
    """Everything that scoring, transforming and sampling need; float64, on the CPU."""

    network: LatentModel
    standardisation: Standardisation
    log_partition: LogPartition  # of the prior; zero for a normal one
    seed: int  # of deterministic results


class Inference(Protocol):
    """Where a method looks for the latents of rows when the model is fixed."""

    def posterior(
        self, model: LatentModel, x: Tensor, seed: int, *, thorough: bool
    ) -> GaussianMixtures:
        """Return approximate posteriors of rows x (N, D); less exact ones unless `thorough`."""


class BoundObjective:
    """The half of `training.Objective` that methods share: rows held out are monitored by bounds.

    A method adds `init` (what it carries from one update to the next), `step` and `posterior`.
    """

    def lower_bound(
        self,
        network: LatentModel,
        state: Any,
        target: LatentModel,
        x: Tensor,
        generator: torch.Generator,
    ) -> float:
        """Return the mean importance-weighted bound of `target` on rows x, nats per row."""
        q = self.posterior(target, x, 0, thorough=False)
        bound = weighted_latents(target, x, q, _MONITOR_SAMPLES, 0).log_evidence().mean()
        return float(bound) - self.monitored_log_partition(target, state)

    def monitored_log_partition(self, target: LatentModel, state: Any) -> float:
        """Return log Z of the prior, cheaply; zero for a normal one."""
        return 0.0

    def normalise(self, model: LatentModel, state: Any, seed: int) -> LogPartition:
        """Return log Z of the prior of a trained model, float64, on the CPU."""
        return NORMALISED

    def problem(self, state: Any, metrics: dict[str, float]) -> str | None:
        """Return None: nothing but non-finite numbers can go wrong, which the loop sees."""
        return None


class Outcome(NamedTuple):
    """What a fit returns to the estimator."""

    batch_size: int
    fitted: Fitted
    history: list[Progress]
    lower_bound: float  # nats per row, units of X
    converged: bool
    device: torch.device


def resolve_batch_size(batch_size: int | str, n_rows: int) -> int:
    """Return rows per update: about sixteen updates per epoch, of 32 to 256 rows."""
    wanted = int(np.clip(n_rows // 16, 32, 256)) if isinstance(batch_size, str) else batch_size
    return min(wanted, n_rows)


def principal_latents(x: Tensor, n_latents: int, generator: torch.Generator) -> Tensor:
    """Return the whitened principal components of rows x (N, D), (N, L), as first latents.

    Latents beyond the rank of x are standard normal draws.
    """
    u, s, _ = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    n_kept = min(n_latents, int((s > 1e-6 * s[:1].clamp(min=1e-300)).sum()))
    latents = torch.randn((len(x), n_latents), generator=generator, dtype=x.dtype, device=x.device)
    latents[:, :n_kept] = (u[:, :n_kept] * len(x) ** 0.5).to(x)
    return latents


def fit_model(
    X: np.ndarray,
    settings: SimpleNamespace,
    architecture: Architecture,
    objective: Any,
    random_state: np.random.RandomState,
    report: Reporter,
) -> Outcome:
    """Train a latent-variable model on rows X.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows in the units of the data.
    settings : SimpleNamespace
        Constructor parameters.
    architecture : Architecture
        What to build.
    objective : BoundObjective
        What to descend.
    random_state : numpy.random.RandomState
        Source of all seeds.
    report : Reporter
        Receives stages, the progress of each epoch and its bound in the units of X.

    Raises
    ------
    ParticleDivergenceError
        If training stops being finite and roll-backs do not help.
    """
    device, dtype = resolve_device(settings.device), getattr(torch, settings.dtype)
    rows = split_rows(X, settings, random_state)
    standardisation = fit_standardisation(X)
    seed = random_state.randint(np.iinfo(np.int32).max)
    model = LatentModel(architecture, seeded_generator(seed, torch.device("cpu")))
    model = model.to(device=device, dtype=dtype)
    standardised = torch.from_numpy(standardisation.apply(X)).to(device=device, dtype=dtype)
    x, monitor = standardised[rows.fitted], standardised[rows.monitor[:_MAX_MONITOR_ROWS]]
    batch_size = resolve_batch_size(settings.batch_size, len(x))
    report.stage(f"training on {len(x)} rows, monitoring {len(monitor)}")
    generator = seeded_generator(seed + 1, device)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    with numerical_session(threads_for(batch_size, n_weights)):
        result = train(
            start_optimisation(
                model, learning_rate=settings.learning_rate_init, alpha=settings.alpha
            ),
            objective,
            x,
            monitor,
            objective.init(model, x, generator),
            learning_rate=settings.learning_rate_init,
            batch_size=batch_size,
            max_iter=settings.max_iter,
            tol=least_improvement(settings.tol),
            n_iter_no_change=settings.n_iter_no_change,
            generator=generator,
            callback=lambda p: report(p, p.lower_bound + standardisation.log_jacobian),
            undo_falls=False,
        )
        report.stage("normalising")
        network = result.best.cpu().double().requires_grad_(False)
        log_partition = objective.normalise(network, result.state, seed)
    best = result.best_lower_bound + standardisation.log_jacobian
    report.stage(f"kept the parameters of the best bound, {best:.3f} nats")
    return Outcome(
        batch_size=batch_size,
        fitted=Fitted(network, standardisation, log_partition, seed),
        history=result.history,
        lower_bound=best,
        converged=result.converged,
        device=device,
    )
