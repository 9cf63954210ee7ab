"""Scores, latents and draws of a fitted baseline, on arrays in the units of the data."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklvebm.baselines._bounds import weighted_latents
from sklvebm.baselines._decoder import Architecture, LatentModel
from sklvebm.baselines._fitting import DecoderModel, Inference
from sklvebm.baselines._prior import prior_draws
from sklvebm.by_rows import answer_rows
from sklvebm.estimators._common.serialization import arrays_of
from sklvebm.messages import naming_memory
from sklvebm.models.networks import load_arrays
from sklvebm.preprocessing.scaling import MAX_SQUARABLE, finite, standardisation_from_plain
from sklvebm.runtime import chunks, numerical_session, seeded_generator
from sklvebm.smc.log_partition import LogPartition


def _by_rows(
    fitted: DecoderModel,
    rows: np.ndarray,
    device: torch.device,
    answer: Callable[[LatentModel, Tensor], Tensor],
    particles_per_row: int,
) -> np.ndarray:
    """Apply `answer(model, rows)` to rows, see `answer_rows`."""
    model = fitted.network if device.type == "cpu" else _copy(fitted.network).to(device)
    parts = chunks(len(rows), particles_per_row)
    return answer_rows(model, rows, device, lambda own, x, _: answer(own, x), parts)


def log_density(
    fitted: DecoderModel, X: np.ndarray, inference: Inference, n_samples: int, device: torch.device
) -> np.ndarray:
    """Return lower bounds on `log p(x)` of rows X, (n_samples,), nats in the units of X."""

    def answer(model: LatentModel, x: Tensor) -> Tensor:
        q = inference.posterior(model, x, fitted.seed, thorough=True)
        return weighted_latents(model, x, q, n_samples, fitted.seed).log_evidence()

    standardisation = fitted.standardisation
    values = _by_rows(fitted, standardisation.apply(X), device, answer, n_samples)
    return values - fitted.log_partition.upper + standardisation.log_jacobian


def latents(
    fitted: DecoderModel, X: np.ndarray, inference: Inference, n_samples: int, device: torch.device
) -> np.ndarray:
    """Return the latents that a method assigns to rows X, (n_samples, n_components)."""

    def answer(model: LatentModel, x: Tensor) -> Tensor:
        q = inference.posterior(model, x, fitted.seed, thorough=True)
        if q.mean.shape[1] == 1:
            return q.mean[:, 0]
        # several components approximate a posterior of any shape by importance sampling
        return weighted_latents(model, x, q, n_samples, fitted.seed).mean()

    rows = fitted.standardisation.apply(X)
    out = _by_rows(fitted, rows, device, answer, n_samples)
    lost = np.isnan(out).any(axis=1)
    if lost.any():
        # squares overflow; decoders are linear at large distances, and the rows are rescaled
        size = np.maximum(np.abs(rows[lost]).max(axis=1, keepdims=True) / MAX_SQUARABLE, 1.0)
        out[lost] = finite(size * _by_rows(fitted, rows[lost] / size, device, answer, n_samples))
    return out


def features(fitted: DecoderModel, Z: np.ndarray, device: torch.device) -> np.ndarray:
    """Return `E[x | z]` for latents Z in the units of X, (n_samples, n_features)."""
    standardised = _by_rows(fitted, Z, device, lambda model, z: model.decoder.mean(z), 1)
    return finite(fitted.standardisation.invert(standardised))


def draws(fitted: DecoderModel, n_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return draws `(X, Z)` of the model, X in the units of the data."""
    model = fitted.network
    with numerical_session(1), naming_memory("decrease n_samples"):
        generator = seeded_generator(seed, torch.device("cpu"))
        z = prior_draws(model, n_samples, generator)
        mean = model.decoder.mean(z)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        x = mean + torch.sqrt(model.decoder.variance()) * noise
    return fitted.standardisation.invert(x.numpy()), z.numpy()


def noise_variance(fitted: DecoderModel) -> np.ndarray:
    """Return the decoder's variance of each feature, (n_features,), in squared units of X."""
    return fitted.network.decoder.variance().numpy() * fitted.standardisation.scale**2


def _copy(model: LatentModel) -> LatentModel:
    twin = LatentModel(model.architecture)
    load_arrays(twin, arrays_of(model))
    return twin.requires_grad_(False)


def to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Replace the model in an estimator's attributes by arrays and plain types."""
    plain = dict(state)
    fitted: DecoderModel = plain.pop("_model")
    del plain["_training"]
    architecture = fitted.network.architecture._asdict()
    plain["_plain"] = {
        "architecture": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in architecture.items()
        },
        "arrays": arrays_of(fitted.network),
        "standardisation": fitted.standardisation.plain(),
        "log_partition": fitted.log_partition._asdict(),
        "seed": fitted.seed,
    }
    return plain


def from_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Undo `to_plain`."""
    parts = state.pop("_plain")
    architecture: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in parts["architecture"].items()
    }
    network = LatentModel(Architecture(**architecture))
    load_arrays(network, parts["arrays"])
    model = DecoderModel(
        network.requires_grad_(False),
        standardisation_from_plain(parts["standardisation"]),
        LogPartition(**parts["log_partition"]),
        parts["seed"],
    )
    return {**state, "_model": model, "_training": None}
