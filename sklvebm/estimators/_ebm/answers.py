"""Methods of fitted densities whose log Z is bracketed by annealing."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from sklvebm.estimators._common.answers import (
    FittedDensityMixin,
    LatentSamplingMixin,
    TransformingDensityMixin,
)
from sklvebm.estimators._common.frames import framed
from sklvebm.estimators._common.missing_cells import MissingCellsMixin, Question
from sklvebm.estimators._common.parameters import OneOf
from sklvebm.estimators._common.reading import answers_in_parts
from sklvebm.estimators._ebm import serialization
from sklvebm.estimators._ebm.fitted_model import (
    cells,
    expert_of,
    features,
    latent_draws,
    latent_means,
    log_density,
    samples,
)
from sklvebm.runtime import draw_seed, without_numpy_errors


class AnnealedDensityMixin(MissingCellsMixin, FittedDensityMixin):
    """Score from the fitted attribute `_model`, whose log Z is bracketed by annealing.

    An estimator provides `fit`, which sets `_model`, and a parameter `device`.
    """

    _to_plain = staticmethod(serialization.to_plain)
    _from_plain = staticmethod(serialization.from_plain)

    @answers_in_parts
    @without_numpy_errors
    def score_samples(self, X: Any, bound: str = "lower") -> np.ndarray:
        """Return a bound on the log-density of each row, from below or from above.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        bound : {"lower", "upper"}, default="lower"
            Side of the estimate. "lower" is the ELBO, whose expectation is at most the
            log-density. "upper" is its counterpart by annealing back from the posterior. Their
            difference shows the errors of normaliser and annealing.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Bound on the log-density of each row, nats, in the units of X; a deterministic function
            of the row.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError, TypeError
            If X does not fit the training data.
        """
        X = self._checked_rows(X)
        OneOf(("lower", "upper")).check("bound", bound)
        above = bound == "upper"
        values = log_density(self._model, X, self._run_device(), from_above=above)
        return values.astype(X.dtype)

    def _answer_cells(self, rows: np.ndarray, question: Question) -> np.ndarray:
        return cells(self._model, rows, self._run_device(), question)

    def _expert(self) -> Any:
        """Return the density as a factor of `sklvebm.compose`."""
        check_is_fitted(self)
        return expert_of(self._model)

    def _draws(
        self, n_samples: int, seed: int, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray]:
        return samples(self._model, n_samples, seed, device)


class FeatureDensityMixin(AnnealedDensityMixin):
    """Score and sample an energy of the features alone."""

    @without_numpy_errors
    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows from the model, by annealing exact draws of its reference.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState, Generator or None, default=None
            None gives new draws at each call, an integer the same ones.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Draws in the units of the training data.
        """
        n_samples = self._checked_number("n_samples", n_samples)
        X, _ = self._draws(n_samples, draw_seed(random_state), self._run_device())
        return framed(self, X)


class LatentDensityMixin(LatentSamplingMixin, TransformingDensityMixin, AnnealedDensityMixin):
    """Score, transform and sample an energy with latents."""

    @answers_in_parts
    @without_numpy_errors
    def transform(self, X: Any) -> Any:
        """Return posterior means of the latents.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Rows, NaN in missing cells.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            `E[z | x]`; a deterministic function of the row.
        """
        return self._transformed(X)

    @without_numpy_errors
    def inverse_transform(self, X: Any) -> Any:
        """Return the mean of the features given latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Latents z.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            `E[x | z]`, in the units of the training data; deterministic. Columns with a histogram
            (`n_bins_`) are nearer to conditional medians.

        Raises
        ------
        ValueError
            If X does not have `n_components` columns.
        """
        return self._inverse_transformed(X)

    @without_numpy_errors
    def sample_posterior(self, X: Any, n_draws: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw latents from the posterior of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        n_draws : int, default=1
            Draws per row.
        random_state : int, RandomState, Generator or None, default=None
            None gives new draws at each call, an integer the same ones.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_draws, n_components)
            Draws of `p(z | x)`.
        """
        X = self._checked_rows(X)
        n_draws, seed = self._checked_number("n_draws", n_draws), draw_seed(random_state)
        draws = latent_draws(self._model, X, n_draws, seed, self._run_device())
        return draws.astype(X.dtype)

    def _latents(self, X: np.ndarray, device: torch.device) -> np.ndarray:
        return latent_means(self._model, X, device)

    def _features(self, Z: np.ndarray, device: torch.device) -> np.ndarray:
        return features(self._model, Z, device)

    @property
    def _n_features_out(self) -> int:
        return self._model.energy.n_latents
