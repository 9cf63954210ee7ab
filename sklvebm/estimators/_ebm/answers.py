"""The questions a fitted, annealed density answers, shared by its estimators."""

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklvebm.estimators._common.frames import framed
from sklvebm.estimators._common.mean_score import MeanScoreMixin
from sklvebm.estimators._common.parameters import Number, OneOf
from sklvebm.estimators._common.validation import checked_rows
from sklvebm.estimators._ebm import serialization
from sklvebm.estimators._ebm.fitted_model import (
    expert_of,
    features,
    latent_draws,
    latent_means,
    log_density,
    samples,
)
from sklvebm.runtime import draw_seed, resolve_device, without_numpy_errors
from sklvebm.validation import as_plain_array


class AnnealedDensityMixin(MeanScoreMixin):
    """Score from the fitted attribute `_model`, whose log Z is bracketed by annealing.

    No state, no constructor: an estimator provides `fit`, which sets `_model` and `energy_`, and a
    parameter `device`.
    """

    @without_numpy_errors
    def score_samples(self, X, bound="lower"):
        """Return a bound on the log-density of each row, from below or from above.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        bound : {"lower", "upper"}, default="lower"
            Side of the estimate: "lower" is the ELBO, whose expectation is not above the truth;
            "upper" is its counterpart by annealing back from the posterior. The distance between
            both is what the normaliser and the annealing leave open.

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

    def _checked_rows(self, X):
        check_is_fitted(self, "energy_")
        return checked_rows(self, X, reset=False)

    def _expert(self):
        """Return the density as `sklvebm.compose` sees it."""
        check_is_fitted(self, "energy_")
        return expert_of(self._model)

    def _run_device(self):
        """Return the device that answers are computed on: the parameter's, resolved now."""
        return resolve_device(self.device)

    # Persistence -------------------------------------------------------------------------------

    def __getstate__(self):
        return serialization.to_plain(super().__getstate__())

    def __setstate__(self, state):
        # tensors made in inference mode could not be trained on
        with torch.inference_mode(False):
            super().__setstate__(serialization.from_plain(state))


class FeatureDensityMixin(AnnealedDensityMixin):
    """Score and sample an energy of the features alone; no state, no constructor."""

    @without_numpy_errors
    def sample(self, n_samples=1, random_state=None):
        """Draw rows from the model, by annealing exact draws of its reference.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState, Generator or None, default=None
            None draws afresh at each call, an integer repeats.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Draws in the units of the training data.
        """
        check_is_fitted(self, "energy_")
        Number(True, 1).check("n_samples", n_samples)
        X, _ = samples(self._model, int(n_samples), draw_seed(random_state), self._run_device())
        return framed(self, X)


class LatentDensityMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin, AnnealedDensityMixin):
    """Score, transform and sample, with latents; no state, no constructor."""

    @without_numpy_errors
    def transform(self, X):
        """Return posterior means of the latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            `E[z | x]`; a deterministic function of the row.
        """
        X = self._checked_rows(X)
        return latent_means(self._model, X, self._run_device()).astype(X.dtype)

    @without_numpy_errors
    def inverse_transform(self, X):
        """Return the mean of the features given latents.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Latents z.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            `E[x | z]`, in the units of the training data; deterministic.
        """
        check_is_fitted(self, "energy_")
        Z = check_array(as_plain_array(X), dtype=[np.float64, np.float32], order="C")
        n_latents = self._model.energy.n_latents
        if Z.shape[1] != n_latents:
            raise ValueError(f"X must have {n_latents} columns (n_components), got {Z.shape[1]}.")
        rows = features(self._model, Z, self._run_device()).astype(Z.dtype)
        return framed(self, rows, like=X)

    @without_numpy_errors
    def sample(self, n_samples=1, random_state=None, return_latents=False):
        """Draw rows from the model.

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
        check_is_fitted(self, "energy_")
        Number(True, 1).check("n_samples", n_samples)
        X, Z = samples(self._model, int(n_samples), draw_seed(random_state), self._run_device())
        X = framed(self, X)
        return (X, framed(self, Z, self.get_feature_names_out())) if return_latents else X

    @without_numpy_errors
    def sample_posterior(self, X, n_draws=1, random_state=None):
        """Draw latents from the posterior of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        n_draws : int, default=1
            Draws per row.
        random_state : int, RandomState, Generator or None, default=None
            None draws afresh at each call, an integer repeats.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_draws, n_components)
            Draws of `p(z | x)`.
        """
        X = self._checked_rows(X)
        Number(True, 1).check("n_draws", n_draws)
        seed = draw_seed(random_state)
        draws = latent_draws(self._model, X, int(n_draws), seed, self._run_device())
        return draws.astype(X.dtype)

    @property
    def _n_features_out(self):
        return self._model.energy.n_latents

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
