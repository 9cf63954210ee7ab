"""Parameters of energies trained with a pool of particles, with every "auto" resolved."""

import math
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
from sklvebm.models.networks import resolve_layers
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.objectives.proximal import WassersteinFlow
from sklvebm.objectives.ratio_course import RatioRecipe, ratio_recipe
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.runtime import working_memory

_FEW_DIMENSIONS = 7  # features and latents together
_FEWEST_COLUMNS, _ROWS_PER_COLUMN = 4, 100  # for embeddings of columns
# With embeddings and a ratio, by effort: networks at most, and rows times networks at most. The
# time of an epoch is proportional to the latter, and of many rows little is learnt by chance.
_N_NETWORKS = {"fast": 1, "default": 4, "thorough": 8}
_ROWS_OF_NETWORKS = {"fast": 0, "default": 100_000, "thorough": 200_000}
_MANY_ROWS, _VERY_MANY_ROWS = 1000, 10_000  # thresholds of `with_defaults`


@dataclass(frozen=True, kw_only=True)
class PoolConfig(AnchoredConfig):
    """Parameters of training with a pool of negative particles."""

    dynamics: str
    step_size: float | None
    n_chains: int
    n_temperatures: int
    n_langevin_steps: int
    init: str  # "ratio" or "reference"
    # whether a density ratio without gain ends a fit that starts at the reference
    screens: bool
    energy: Any = None  # the user's own; None for a network that corrects the reference
    latent_map: str = "linear"

    @property
    def maps_columns(self) -> bool:
        """As in the base class; a user's energy keeps the units that it was written for."""
        return self.energy is None

    def ratio_recipe(self, n_rows: int) -> RatioRecipe:
        """Return the settings of the density ratio; without epochs where nothing starts there."""
        is_wanted = self.init == "ratio" or self.screens
        return ratio_recipe(
            n_rows,
            max_epochs=self.max_iter // 2 if is_wanted else 0,
            tol=-math.inf if self.tol is None else self.tol,
            patience=self.n_iter_no_change,
            n_networks=self.n_networks,
        )

    def objective(self) -> Any:
        """Return the training objective."""
        raise NotImplementedError

    def pool(self) -> TemperedPool:
        """Return the pool of training."""
        return TemperedPool(
            dynamics=self.dynamics,
            n_chains=self.n_chains,
            n_temperatures=self.n_temperatures,
            n_langevin_steps=self.n_langevin_steps,
            step_size=self.step_size,
        )


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(PoolConfig):
    """Parameters of `ParticleLVEBM`."""

    posterior: str
    negatives: str
    n_particles: int

    def objective(self) -> ParticleLikelihood:
        """Return the training objective."""
        return ParticleLikelihood(
            dynamics=self.dynamics,
            posterior=self.posterior,
            negatives=self.negatives,
            n_particles=self.n_particles,
            n_chains=self.n_chains,
            n_temperatures=self.n_temperatures,
            n_langevin_steps=self.n_langevin_steps,
            step_size=self.step_size,
            most_bytes=working_memory(),
        )


@dataclass(frozen=True, kw_only=True)
class ProximalConfig(PoolConfig):
    """Parameters of `WassersteinFlowEBM`."""

    proximal: str
    proximal_weight: float
    n_inner_steps: int
    penalty_half_life: float | None  # epochs

    def objective(self) -> WassersteinFlow:
        """Return the training objective."""
        penalised = self.proximal == "gradient-penalty"
        return WassersteinFlow(
            self.pool(),
            proximal=self.proximal,
            proximal_weight=self.proximal_weight,
            n_inner_steps=self.n_inner_steps,
            half_life=self.penalty_half_life if penalised else None,
        )


def likelihood_config(
    parameters: dict[str, Any], n_samples: int, n_features: int
) -> LikelihoodConfig:
    """Return the config of `ParticleLVEBM` for rows of a shape.

    Raises
    ------
    ValueError
        If negatives are contrastive with several temperatures, or rows are no images of
        `image_shape`.
    """
    parameters = with_defaults(parameters, n_samples, n_features)
    return LikelihoodConfig(**fields_of(LikelihoodConfig, parameters))


def proximal_config(parameters: dict[str, Any], n_samples: int, n_features: int) -> ProximalConfig:
    """Return the config of `WassersteinFlowEBM`: that of `ParticleLVEBM` without latents.

    Raises
    ------
    ValueError
        If rows are no images of `image_shape`.
    """
    absent = {"n_components": 0, "n_particles": 1, "negatives": "persistent", "energy": None}
    parameters = with_defaults({**parameters, **absent}, n_samples, n_features)
    return ProximalConfig(**fields_of(ProximalConfig, parameters))


def with_defaults(parameters: dict[str, Any], n_samples: int, n_features: int) -> dict[str, Any]:
    """Return parameters with every "auto" replaced by a value for rows of this shape.

    The rules are explained in docs/user_guide/tuning.md. In few dimensions, a small network and a
    short ladder suffice. With many rows in addition, larger first-layer weights allow finer detail,
    which would overfit few rows.

    Raises
    ------
    ValueError
        As `likelihood_config`.
    """
    if parameters["energy"] is None:
        parameters = {**parameters, **resolve_layers(parameters, n_features)}
    contrastive = parameters["negatives"] == "contrastive"
    if contrastive and parameters["n_temperatures"] not in ("auto", 1):
        raise ValueError(
            "n_temperatures must be 1 or 'auto' with negatives='contrastive', got "
            f"{parameters['n_temperatures']!r}."
        )
    few_dimensions = n_features + parameters["n_components"] <= _FEW_DIMENSIONS
    # one particle for each of many rows estimates the mean as well as four for a quarter of them
    few_particles = few_dimensions or n_samples >= _VERY_MANY_ROWS
    free = few_dimensions and n_samples >= _MANY_ROWS
    words = _with_words(parameters, n_samples, n_features)
    embeds, classifies = words["embedding"] == "periodic", words["init"] == "ratio"
    # several small networks are as good as several large ones, in less time
    is_small = words["n_networks"] > 1 if embeds else few_dimensions
    chosen = {
        "hidden_layer_sizes": (64, 64) if is_small else (128, 128),
        "n_temperatures": 1 if contrastive else 4 if few_dimensions else 8,
        "n_particles": 1 if few_particles else 4,
        # particles after the density ratio are to follow a small change
        "alpha": 0.1 if classifies else 0.01 if free else 0.5,
        "learning_rate_init": 0.001 if classifies else 0.02 if free else 0.01,
        # about eight updates per epoch, up to thirty-two for many rows
        "batch_size": max(int(np.clip(n_samples // 8, 32, 256)), n_samples // 32),
    }
    parameters = resolved(parameters, chosen)
    gain = max(1.0, 10.0 * (2.0 / max(2, n_features)) ** 2) if free else 1.0
    batch_size = min(parameters["batch_size"], n_samples)
    return scaled({**parameters, **words, "batch_size": batch_size, "input_gain": gain})


def _with_words(parameters: dict[str, Any], n_samples: int, n_features: int) -> dict[str, Any]:
    """Return `embedding`, `init` and `n_networks` without "auto", and `screens`.

    Raises
    ------
    ValueError
        If images are to have embeddings, or a fit is to start from a ratio that cannot.
    """
    embedding, init = parameters["embedding"], parameters["init"]
    is_image, is_own = parameters["image_shape"] is not None, parameters["energy"] is not None
    if embedding == "periodic" and is_image:
        raise ValueError("embedding must be 'auto' or 'none' with image_shape, got 'periodic'.")
    if embedding == "auto":
        is_table = not (is_image or is_own)
        is_long = n_samples >= max(_MANY_ROWS, _ROWS_PER_COLUMN * n_features)
        # where a stack of mixtures leaves nothing to learn in few columns, one Gaussian leaves much
        is_plain = (
            isinstance(parameters["reference"], str) and parameters["reference"] == "gaussian"
        )
        embeds = is_table and is_long and (is_plain or n_features >= _FEWEST_COLUMNS)
        embedding = "periodic" if embeds else "none"
    is_tempered = parameters["negatives"] == "persistent" and parameters["n_temperatures"] != 1
    can_classify = is_tempered and parameters["early_stopping"] and not is_own
    if init == "ratio" and not can_classify:
        raise ValueError(
            "init must be 'auto' or 'reference' with n_temperatures=1, negatives='contrastive', "
            "early_stopping=False or an energy of your own, got 'ratio'."
        )
    screens = False
    if init == "auto":
        # a ratio of few epochs, or one that is to train to the end, is no reason to end a fit
        is_long = parameters["max_iter"] >= FEWEST_SCREENED_EPOCHS
        screens = can_classify and embedding == "none" and is_long and parameters["tol"] is not None
        # with few rows for each column, particles alone find more (docs/benchmarks/tables.md)
        init = "ratio" if can_classify and embedding == "periodic" else "reference"
    n_networks = parameters["n_networks"]
    if n_networks == "auto":
        most, effort = 1, parameters["effort"]
        if embedding == "periodic" and init == "ratio":
            most = min(_N_NETWORKS[effort], _ROWS_OF_NETWORKS[effort] // n_samples)
        n_networks = max(1, most)
    return {"embedding": embedding, "init": init, "n_networks": n_networks, "screens": screens}
