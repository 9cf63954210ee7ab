"""Methods of a fitted potential flow."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from sklvebm.estimators._common.answers import FittedDensityMixin, TransformingDensityMixin
from sklvebm.estimators._common.frames import framed
from sklvebm.estimators._common.missing_cells import MissingCellsMixin, Question
from sklvebm.estimators._common.parameters import Number, OneOf
from sklvebm.estimators._common.reading import answers_in_parts
from sklvebm.estimators._flow import serialization
from sklvebm.estimators._flow.fitted_model import (
    energy_log_density,
    expert_of,
    flow_cells,
    flow_log_density,
    flow_samples,
    from_noise,
    to_noise,
)
from sklvebm.runtime import draw_seed, without_numpy_errors


class FlowDensityMixin(MissingCellsMixin, TransformingDensityMixin, FittedDensityMixin):
    """Score, transform and sample from the fitted attribute `_model`.

    An estimator provides `fit`, which sets `_model`, and parameters `device` and
    `n_langevin_steps`.
    """

    _n_latents_name = "n_features_in_"
    _to_plain = staticmethod(serialization.to_plain)
    _from_plain = staticmethod(serialization.from_plain)

    @answers_in_parts
    @without_numpy_errors
    def score_samples(self, X: Any, method: str = "flow") -> np.ndarray:
        """Return the log-density of each row.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        method : {"flow", "energy"}, default="flow"
            "flow" integrates the instantaneous change of variables; with more features than
            `n_probes` its trace is estimated, with the error in `diagnostics_`. "energy" is minus
            the explicit energy at `energy_time`, minus its annealed log normaliser, without
            integration. `diagnostics_.flow_minus_energy` is their mean difference.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-density of each row, nats, in the units of X; a deterministic function of the row.
            For "energy" and a time t = `energy_time` below 1, the density of rows with noise of
            `(1 - t) / t` standard deviations of the columns.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError, TypeError
            If X does not fit the training data, or has missing cells for "energy".
        """
        X = self._checked_rows(X)
        OneOf(("flow", "energy")).check("method", method)
        if method == "energy" and np.isnan(X).any():
            raise ValueError(
                "method='energy' needs complete rows, got NaN in X; use method='flow', which "
                "integrates over missing cells."
            )
        log_density = flow_log_density if method == "flow" else energy_log_density
        return log_density(self._model, X, self._run_device()).astype(X.dtype)

    @answers_in_parts
    @without_numpy_errors
    def transform(self, X: Any) -> Any:
        """Carry rows back along the flow to noise.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Rows, NaN in missing cells.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features)
            Latents, standard normal for rows of the model; a deterministic function of the row.
        """
        return self._transformed(X)

    @without_numpy_errors
    def inverse_transform(self, X: Any) -> Any:
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
        return self._inverse_transformed(X)

    @without_numpy_errors
    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows from the model.

        Heun's method carries noise to data, with a number of steps chosen by `fit`.
        `n_langevin_steps` adds Metropolis-adjusted moves under the explicit energy. If the model is
        its reference, draws are exact draws of the mixture.

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
        n_samples, seed = self._checked_number("n_samples", n_samples), draw_seed(random_state)
        Number(True, 0).check("n_langevin_steps", self.n_langevin_steps)
        n_moves = int(self.n_langevin_steps)
        X = flow_samples(self._model, n_samples, n_moves, seed, self._run_device())
        return framed(self, X)

    def _answer_cells(self, rows: np.ndarray, question: Question) -> np.ndarray:
        return flow_cells(self._model, rows, self._run_device(), question)

    def _expert(self) -> Any:
        """Return the explicit energy as a factor of `sklvebm.compose`."""
        check_is_fitted(self)
        return expert_of(self._model)

    def _latents(self, X: np.ndarray, device: torch.device) -> np.ndarray:
        return to_noise(self._model, X, device)

    def _features(self, Z: np.ndarray, device: torch.device) -> np.ndarray:
        return from_noise(self._model, Z, device)

    @property
    def _n_features_out(self) -> int:
        return self._model.potential.n_features
