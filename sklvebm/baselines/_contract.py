"""The scikit-learn interface of the baselines: parameters, `fit` and methods of a fitted model."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from sklvebm.baselines import _answers as answers
from sklvebm.baselines._decoder import Architecture
from sklvebm.baselines._fitting import DecoderConfig, resolve_batch_size, start, train_decoder
from sklvebm.estimators._common.answers import (
    FittedDensityMixin,
    LatentSamplingMixin,
    TransformingDensityMixin,
)
from sklvebm.estimators._common.config import checked_parameters, fields_of
from sklvebm.estimators._common.fit import EpochFitMixin, Family
from sklvebm.estimators._common.parameters import Flag, Number, OneOf, Rule, Seed, Widths
from sklvebm.models.energies import ACTIVATIONS
from sklvebm.runtime import without_numpy_errors


class LayerSizes(NamedTuple):
    """A sequence of positive integers, which may be empty."""

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is not a sequence of widths; see `check_parameters`."""
        if isinstance(value, Iterable) and not isinstance(value, str) and not list(value):
            return
        Widths().check(name, value)


class PowerOfTwo(NamedTuple):
    """A power of two, at least `low`."""

    low: int

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is not such a power; see `check_parameters`."""
        Number(True, self.low).check(name, value)
        if value & (value - 1):
            raise ValueError(f"{name} must be a power of two >= {self.low}, got {value!r}.")


RULES: dict[str, Rule] = {
    "n_components": Number(True, 1),
    "hidden_layer_sizes": LayerSizes(),
    "activation": OneOf(tuple(ACTIVATIONS)),
    "initial_variance": Number(False, 0.0, open_low=True),
    "variance_floor": Number(False, 0.0, open_low=True),
    "n_importance_samples": PowerOfTwo(16),
    "learning_rate_init": Number(False, 0.0, open_low=True),
    "alpha": Number(False, 0.0),
    "batch_size": Number(True, 1, word="auto"),
    "max_iter": Number(True, 0),
    "tol": Number(False, 0.0, none=True),
    "early_stopping": Flag(),
    "validation_fraction": Number(False, 0.0, 1.0, open_low=True),
    "n_iter_no_change": Number(True, 1),
    "dtype": OneOf(("float32", "float64")),
    "verbose": Number(True, 0, flag=True),
    "random_state": Seed(),
}


class DecoderDensityMixin(
    EpochFitMixin, LatentSamplingMixin, TransformingDensityMixin, FittedDensityMixin
):
    """Fit, score, transform and sample a latent-variable model with a decoder.

    An estimator provides a constructor, `_rules`, and `_objective()`, whose result trains the model
    and approximates posteriors of rows; it may override `_architecture`.
    """

    _rules = RULES
    _to_plain, _from_plain = staticmethod(answers.to_plain), staticmethod(answers.from_plain)

    @without_numpy_errors
    def score_samples(self, X: Any) -> np.ndarray:
        """Return a lower bound on the log-density of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Importance-weighted bound with `n_importance_samples` draws, nats, in the units of X;
            in expectation at most the log-density, and a deterministic function of the row.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError, TypeError
            If X does not fit the training data.
        """
        X = self._checked_rows(X)
        values = answers.log_density(self._model, X, *self._means_of_inference())
        return values.astype(X.dtype)

    @without_numpy_errors
    def transform(self, X: Any) -> Any:
        """Return the latents that the method assigns to rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Point estimate of the latents (see the class); a deterministic function of the row.
        """
        return self._transformed(X)

    @without_numpy_errors
    def inverse_transform(self, X: Any) -> Any:
        """Return the mean of the features given latents, which the decoder computes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Latents z.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            `E[x | z]`, in the units of the training data.

        Raises
        ------
        ValueError
            If X does not have `n_components` columns.
        """
        return self._inverse_transformed(X)

    # Hooks and housekeeping --------------------------------------------------------------------

    @property
    def _family(self) -> Family:
        """The steps and names of the fit of this baseline."""
        return Family(
            rules=self._rules,
            configure=self._configured,
            start=start,
            resume=None,  # no baseline continues a fit
            train=train_decoder,
            shape=None,
            attributes=lambda outcome: {"noise_variance_": answers.noise_variance(outcome.model)},
            monitored="bound",
            value="lower_bound",
            resolved=("batch_size",),
        )

    def _configured(
        self, parameters: dict[str, Any], n_samples: int, n_features: int
    ) -> DecoderConfig:
        """Return the config for rows of a shape; single parameters have been checked."""
        if not self.initial_variance > self.variance_floor:
            raise ValueError(
                f"initial_variance must be above variance_floor ({self.variance_floor}), "
                f"got {self.initial_variance}."
            )
        own = fields_of(DecoderConfig, parameters) | {
            "batch_size": resolve_batch_size(parameters["batch_size"], n_samples),
            "architecture": self._architecture(n_features),
            "objective": self._objective(),
        }
        return DecoderConfig(**own)

    def _architecture(self, n_features: int) -> Architecture:
        """Return the sizes of the model; estimators may add an encoder or an energy prior."""
        return Architecture(
            n_features=n_features,
            n_latents=int(self.n_components),
            hidden_layer_sizes=tuple(int(width) for width in self.hidden_layer_sizes),
            activation=self.activation,
            initial_variance=float(self.initial_variance),
            variance_floor=float(self.variance_floor),
        )

    def _means_of_inference(self) -> tuple[Any, int, torch.device]:
        checked_parameters(self, self._rules)
        return self._objective(), self.n_importance_samples, self._run_device()

    def _latents(self, X: np.ndarray, device: torch.device) -> np.ndarray:
        objective, n_samples, _ = self._means_of_inference()
        return answers.latents(self._model, X, objective, n_samples, device)

    def _features(self, Z: np.ndarray, device: torch.device) -> np.ndarray:
        return answers.features(self._model, Z, device)

    def _draws(
        self, n_samples: int, seed: int, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray]:
        return answers.draws(self._model, n_samples, seed)

    @property
    def _n_features_out(self) -> int:
        return self._model.network.n_latents
