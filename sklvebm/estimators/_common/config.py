"""Constructor parameters for training: typed, checked, every "auto" resolved."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from os import PathLike, fspath
from typing import Any

import joblib
import torch
from sklearn.base import BaseEstimator
from sklearn.mixture import GaussianMixture

from sklvebm.estimators._common.parameters import OneOf, Rule, check_parameters, parameters_of
from sklvebm.mixtures.policy import HasStackPolicy, StackPolicy, policy_of
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.networks import NetworkConfig
from sklvebm.runtime import resolve_device

FEWEST_SCREENED_EPOCHS = 100  # of `max_iter`, half of which a density ratio may take
MARGINS = ("auto", "all", "histogram", "none")  # values of `margins`


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Parameters of every iterative fit."""

    learning_rate_init: float
    alpha: float  # decoupled weight decay per unit of learning rate
    batch_size: int
    max_iter: int
    tol: float | None
    n_iter_no_change: int
    early_stopping: bool
    validation_fraction: float
    device: str
    dtype: str

    @property
    def held_out_share(self) -> float:
        """Share of the rows that early stopping holds out."""
        return self.validation_fraction if self.early_stopping else 0.0

    @property
    def torch_device(self) -> torch.device:
        """The device of the parameter."""
        return resolve_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The floating-point type of training."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True, kw_only=True)
class AnchoredConfig(NetworkConfig, TrainingConfig):
    """Parameters of every fit that corrects a reference."""

    reference: str | GaussianMixture | MixtureReference | HasStackPolicy
    n_components: int  # latents of the reference
    margins: str  # one of MARGINS
    effort: str  # of `EFFORTS`
    memory: Any  # None, a folder or a joblib.Memory

    def cached(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose results are kept in `memory`, by its arguments."""
        memory = self.memory
        if memory is None:
            return function
        if isinstance(memory, str | PathLike):
            memory = joblib.Memory(fspath(memory), verbose=0)
        return memory.cache(function)

    @property
    def maps_columns(self) -> bool:
        """Whether margins="auto" may map columns by their histograms."""
        return True

    @property
    def stack_policy(self) -> StackPolicy | None:
        """Settings of the choice of mixtures; None where cross-validation chooses none."""
        if isinstance(self.reference, HasStackPolicy):
            return self.reference.stack_policy()
        is_default = isinstance(self.reference, str) and self.reference == "mixture"
        return policy_of(self.effort) if is_default else None


def checked_parameters(estimator: BaseEstimator, rules: dict[str, Rule]) -> dict[str, Any]:
    """Return the constructor parameters of an iterative estimator.

    Raises
    ------
    TypeError, ValueError
        If one is invalid; names it, the rule and the value.
    """
    parameters = parameters_of(estimator)
    check_parameters(parameters, rules)
    reference = parameters.get("reference", "mixture")
    # a class has the methods of its instances, too
    is_class = isinstance(reference, type)
    allowed = GaussianMixture | MixtureReference | HasStackPolicy
    if is_class or not isinstance(reference, allowed):
        others = "a GaussianMixture, a MixtureStack or a MixtureReference"
        OneOf(("mixture", "gaussian"), others).check("reference", reference)
    if parameters["validation_fraction"] == 1.0:
        raise ValueError("validation_fraction must be a number > 0 and < 1, got 1.0.")
    return parameters


def resolved(parameters: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with the values of `chosen` in place of every "auto"."""
    used = {
        name: value if isinstance(parameters[name], str) else parameters[name]
        for name, value in chosen.items()
    }
    return {**parameters, **used}


def scaled(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters whose numbers of epochs and chains follow `effort`."""
    effort = parameters["effort"]
    if effort == "default":
        return parameters
    found = dict(parameters)
    if effort == "fast":
        found["max_iter"] = -(-parameters["max_iter"] // 4)  # rounded up: no epochs remain none
        found["n_iter_no_change"] = -(-parameters["n_iter_no_change"] // 2)
        return found
    for name in {"max_iter", "n_iter_no_change", "n_chains"} & set(parameters):
        found[name] = 2 * parameters[name]
    return found


def fields_of(config: type, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return those of the parameters that are fields of a config."""
    return {f.name: parameters[f.name] for f in fields(config) if f.name in parameters}
