"""The questions a fitted potential flow answers."""

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklvebm.estimators._common.frames import framed
from sklvebm.estimators._common.mean_score import MeanScoreMixin
from sklvebm.estimators._common.parameters import Number, OneOf
from sklvebm.estimators._common.validation import checked_rows
from sklvebm.estimators._flow import serialization
from sklvebm.estimators._flow.fitted_model import (
    energy_log_density,
    expert_of,
    flow_log_density,
    flow_samples,
    from_noise,
    to_noise,
)
from sklvebm.runtime import draw_seed, resolve_device, without_numpy_errors
from sklvebm.validation import as_plain_array


class FlowDensityMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin, MeanScoreMixin):
    """Score, transform and sample from the fitted attribute `_model`.

    No state, no constructor: an estimator provides `fit`, which sets `_model` and `potential_`,
    and parameters `device` and `n_langevin_steps`.
    """

    @without_numpy_errors
    def score_samples(self, X, method="flow"):
        """Return the log-density of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        method : {"flow", "energy"}, default="flow"
            "flow" integrates the instantaneous change of variables; with more features than
            `n_probes` its trace is estimated, with the error in `diagnostics_`. "energy" is minus
            the explicit energy at `energy_time`, less its annealed log normaliser; it needs no
            integration. Both say the same as far as `diagnostics_.flow_minus_energy` says.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-density of each row, nats, in the units of X; a deterministic function of the row.
            For "energy" and an `energy_time` below 1, the density of rows that carry noise
            `(1 - t) / t` in standard deviations of the columns.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError, TypeError
            If X does not fit the training data.
        """
        X = self._checked_rows(X)
        OneOf(("flow", "energy")).check("method", method)
        log_density = flow_log_density if method == "flow" else energy_log_density
        return log_density(self._model, X, self._run_device()).astype(X.dtype)

    @without_numpy_errors
    def transform(self, X):
        """Carry rows back along the flow to noise.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features)
            Latents, standard normal for rows of the model; a deterministic function of the row.
        """
        X = self._checked_rows(X)
        return to_noise(self._model, X, self._run_device()).astype(X.dtype)

    @without_numpy_errors
    def inverse_transform(self, X):
        """Carry latents along the flow to data; undoes `transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Latents z.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows, in the units of the training data, up to `diagnostics_.round_trip_error`.
        """
        check_is_fitted(self, "potential_")
        Z = check_array(as_plain_array(X), dtype=[np.float64, np.float32], order="C")
        if Z.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X must have {self.n_features_in_} columns (n_features_in_), got {Z.shape[1]}."
            )
        rows = from_noise(self._model, Z, self._run_device()).astype(Z.dtype)
        return framed(self, rows, like=X)

    @without_numpy_errors
    def sample(self, n_samples=1, random_state=None):
        """Draw rows from the model.

        Noise is carried to data by Heun's method, with the number of steps that `fit` found to
        suffice. `n_langevin_steps` adds Metropolis-adjusted moves under the explicit energy. Where
        the model is its reference, draws are those of the mixture, without any integration.

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
        check_is_fitted(self, "potential_")
        Number(True, 1).check("n_samples", n_samples)
        seed = draw_seed(random_state)
        Number(True, 0).check("n_langevin_steps", self.n_langevin_steps)
        n_moves = int(self.n_langevin_steps)
        X = flow_samples(self._model, int(n_samples), n_moves, seed, self._run_device())
        return framed(self, X)

    def _checked_rows(self, X):
        check_is_fitted(self, "potential_")
        return checked_rows(self, X, reset=False)

    def _expert(self):
        """Return the explicit energy as `sklvebm.compose` sees it."""
        check_is_fitted(self, "potential_")
        return expert_of(self._model)

    def _run_device(self):
        """Return the device that answers are computed on: the parameter's, resolved now."""
        return resolve_device(self.device)

    @property
    def _n_features_out(self):
        return self._model.potential.n_features

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # Persistence -------------------------------------------------------------------------------

    def __getstate__(self):
        return serialization.to_plain(super().__getstate__())

    def __setstate__(self, state):
        super().__setstate__(serialization.from_plain(state))
