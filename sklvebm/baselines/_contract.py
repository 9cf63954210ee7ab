"""The scikit-learn face of the baselines: parameters, `fit`, and the questions a fit answers."""

import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklvebm.baselines import _answers as answers
from sklvebm.baselines._decoder import Architecture
from sklvebm.baselines._fitting import Outcome, fit_model
from sklvebm.estimators._common.frames import framed
from sklvebm.estimators._common.mean_score import MeanScoreMixin
from sklvebm.estimators._common.parameters import (
    Flag,
    Number,
    OneOf,
    Seed,
    Widths,
    check_parameters,
    parameters_of,
)
from sklvebm.estimators._common.transactional_fit import (
    Reporter,
    memory_advice,
    unchanged_on_failure,
)
from sklvebm.estimators._common.validation import checked_rows
from sklvebm.messages import naming_memory
from sklvebm.models.energies import ACTIVATIONS
from sklvebm.runtime import (
    draw_seed,
    generator_of,
    numerical_session,
    resolve_device,
    without_numpy_errors,
)
from sklvebm.validation import as_plain_array


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


RULES = {
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


class DecoderDensityMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin, MeanScoreMixin):
    """Fit, score, transform and sample a latent-variable model with a decoder.

    An estimator provides a constructor, `_rules`, and `_objective(settings)`, whose result trains
    the model and finds posteriors of rows; it may replace `_architecture`.
    """

    _rules = RULES

    @without_numpy_errors
    def fit(self, X, y=None):
        """Fit the model to rows X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, at least two; not modified.
        y : Ignored
            Present for the interface of scikit-learn.

        Returns
        -------
        self : estimator
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If X or a parameter is not usable; names it, the rule and the value.
        ParticleDivergenceError
            If training stopped being finite and roll-backs at lower learning rates did not help.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` ends before a plateau.
        """
        with unchanged_on_failure(self), naming_memory(memory_advice(self)):
            settings = self._settings()
            X = checked_rows(self, X, reset=True, least=2)
            with numerical_session(torch.get_num_threads()):
                outcome = fit_model(
                    X,
                    settings,
                    self._architecture(settings, X.shape[1]),
                    self._objective(settings),
                    generator_of(self.random_state),
                    Reporter(self, "bound"),
                )
        self._adopt(outcome)
        if self.max_iter > 0 and self.tol is not None and not outcome.converged:
            warnings.warn(
                f"Training stopped at max_iter={self.max_iter} epochs before the bound reached a "
                "plateau; increase max_iter or tol.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    @without_numpy_errors
    def score_samples(self, X):
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
        values = answers.log_density(self._fitted, X, *self._means_of_inference())
        return values.astype(X.dtype)

    @without_numpy_errors
    def transform(self, X):
        """Return the latents that the method assigns to rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Point estimate of the latents, see the class; a deterministic function of the row.
        """
        X = self._checked_rows(X)
        return answers.latents(self._fitted, X, *self._means_of_inference()).astype(X.dtype)

    @without_numpy_errors
    def inverse_transform(self, X):
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
        check_is_fitted(self, "_fitted")
        Z = check_array(as_plain_array(X), dtype=[np.float64, np.float32], order="C")
        n_latents = self._n_features_out
        if Z.shape[1] != n_latents:
            raise ValueError(f"X must have {n_latents} columns (n_components), got {Z.shape[1]}.")
        rows = answers.features(self._fitted, Z, resolve_device(self.device)).astype(Z.dtype)
        return framed(self, rows, like=X)

    @without_numpy_errors
    def sample(self, n_samples=1, random_state=None, return_latents=False):
        """Draw rows from the model, noise of the decoder included.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState, Generator or None, default=None
            None draws afresh at each call, an integer repeats.
        return_latents : bool, default=False
            Return the latents of the draws as well.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Draws in the units of the training data.
        Z : ndarray of shape (n_samples, n_components)
            Only if `return_latents`.
        """
        check_is_fitted(self, "_fitted")
        Number(True, 1).check("n_samples", n_samples)
        X, Z = answers.draws(self._fitted, int(n_samples), draw_seed(random_state))
        X = framed(self, X)
        return (X, framed(self, Z, self.get_feature_names_out())) if return_latents else X

    # Hooks and housekeeping --------------------------------------------------------------------

    def _architecture(self, settings, n_features):
        """Return the model to build; estimators may add an encoder or an energy prior."""
        return Architecture(
            n_features=n_features,
            n_latents=int(settings.n_components),
            hidden_layer_sizes=tuple(int(width) for width in settings.hidden_layer_sizes),
            activation=settings.activation,
            initial_variance=float(settings.initial_variance),
            variance_floor=float(settings.variance_floor),
        )

    def _settings(self):
        """Return checked parameters; raises TypeError or ValueError."""
        parameters = parameters_of(self)
        check_parameters(parameters, self._rules)
        if self.validation_fraction == 1.0:
            raise ValueError("validation_fraction must be a number > 0 and < 1, got 1.0.")
        if not self.initial_variance > self.variance_floor:
            raise ValueError(
                f"initial_variance must be above variance_floor ({self.variance_floor}), "
                f"got {self.initial_variance}."
            )
        return SimpleNamespace(**parameters)

    def _means_of_inference(self):
        settings = self._settings()
        return self._objective(settings), settings.n_importance_samples, resolve_device(self.device)

    def _checked_rows(self, X):
        check_is_fitted(self, "_fitted")
        return checked_rows(self, X, reset=False)

    def _adopt(self, outcome: Outcome):
        """Set the fitted attributes, all at once."""
        self._fitted = outcome.fitted
        jacobian = outcome.fitted.standardisation.log_jacobian
        self.batch_size_ = outcome.batch_size
        self.mean_ = outcome.fitted.standardisation.mean
        self.scale_ = outcome.fitted.standardisation.scale
        self.noise_variance_ = answers.noise_variance(outcome.fitted)
        self.lower_bound_ = outcome.lower_bound
        self.lower_bounds_ = [p.lower_bound + jacobian for p in outcome.history]
        self.history_ = [
            {
                "epoch": p.epoch,
                "lower_bound": bound,
                "learning_rate": p.learning_rate,
                **p.metrics,
                "problem": p.problem,
            }
            for p, bound in zip(outcome.history, self.lower_bounds_, strict=True)
        ]
        self.n_iter_ = len(outcome.history)
        self.converged_ = outcome.converged
        self.device_ = str(outcome.device)

    @property
    def _n_features_out(self):
        return self._fitted.network.n_latents

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_fitted")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __getstate__(self):
        return answers.to_plain(super().__getstate__())

    def __setstate__(self, state):
        with torch.inference_mode(False):
            super().__setstate__(answers.from_plain(state))
