"""Parameters of `PotentialFlowEBM`, with every "auto" resolved."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sklvebm.estimators._common.config import (
    FEWEST_SCREENED_EPOCHS,
    AnchoredConfig,
    fields_of,
    resolved,
    scaled,
)
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.networks import resolve_layers
from sklvebm.objectives.flow_matching import PotentialFlow

_FEW_FEATURES, _MANY_ROWS = 3, 1000  # thresholds for sizes and learning rates
_MAX_EXACT_FEATURES, _N_PROBES = 16, 16  # limit of the exact trace, and directions beyond it


@dataclass(frozen=True, kw_only=True)
class FlowConfig(AnchoredConfig):
    """Parameters of training and checking a potential flow."""

    loss: str
    consistency: float
    n_steps: int | str  # of the integrator; "auto" is resolved after training
    n_probes: int
    energy_time: float

    @property
    def screens(self) -> bool:
        """Whether a density ratio without a gain ends a fit."""
        is_long = self.max_iter >= FEWEST_SCREENED_EPOCHS
        return is_long and self.early_stopping and self.tol is not None

    def objective(self) -> PotentialFlow:
        """Return the training objective."""
        return PotentialFlow(self.loss, consistency=self.consistency)


def flow_config(parameters: dict[str, Any], n_samples: int, n_features: int) -> FlowConfig:
    """Return the config for rows of a shape.

    Raises
    ------
    ValueError
        If rows are no images of `image_shape`.
    """
    parameters = {**parameters, **resolve_layers(parameters, n_features, single_layer=True)}
    few_features = n_features <= _FEW_FEATURES
    parameters = resolved(
        parameters,
        {
            "hidden_layer_sizes": (64, 64) if few_features else (512,),
            "learning_rate_init": 0.01 if few_features else 0.005,
            "batch_size": int(np.clip(n_samples // 8, 32, 256)),
        },
    )
    is_exact = n_features <= _MAX_EXACT_FEATURES or len(parameters["hidden_layer_sizes"]) == 1
    parameters = resolved(parameters, {"n_probes": n_features if is_exact else _N_PROBES})
    parameters, reference = scaled(parameters), parameters["reference"]
    return FlowConfig(
        **fields_of(FlowConfig, parameters)
        | {
            "batch_size": min(parameters["batch_size"], n_samples),
            "input_gain": 3.0 if few_features and n_samples >= _MANY_ROWS else 1.0,
            # latents of the reference, which the flow ignores
            "n_components": reference.n_latents if isinstance(reference, MixtureReference) else 1,
        }
    )
