"""Methods that all fitted densities share: argument checks, mean score, frames, stored state."""

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import Tags, check_array
from sklearn.utils.validation import check_is_fitted

from sklvebm.communication import active, mean_over_ranks
from sklvebm.documentation import LinksToDocumentation
from sklvebm.estimators._common.frames import framed
from sklvebm.estimators._common.parameters import Number
from sklvebm.estimators._common.serialization import (
    parameters_on_host,
    with_checksum,
    without_checksum,
)
from sklvebm.estimators._common.stored_version import VersionedState
from sklvebm.estimators._common.validation import checked_rows, checked_weights
from sklvebm.row_weights import mean_of, positive_rows
from sklvebm.runtime import draw_seed, resolve_device, without_numpy_errors
from sklvebm.validation import as_plain_array


class MeanScoreMixin(LinksToDocumentation, VersionedState, DensityMixin):
    """Score rows by the mean of `score_samples`, which the estimator provides."""

    @without_numpy_errors
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the mean over rows of `score_samples`, as `GaussianMixture.score` does.

        Within `distributed`, it is the mean over the rows of all processes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present for the interface of scikit-learn.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How often each row counts in the mean. None counts each row once.

        Returns
        -------
        score : float
            Nats per row, in the units of X; a bound where `score_samples` returns bounds.

        Raises
        ------
        ValueError
            If weights are negative, not finite, all zero or of another length than X.
        """
        ranks = active()
        with ranks.alarm():
            with ranks.agreement():
                values = self.score_samples(X).astype(np.float64)  # a sum in double precision
                row_weights = checked_weights(sample_weight, values)
                # a row of weight zero does not count even if its log-density is infinite
                values, row_weights = positive_rows(values, row_weights)
                mean = mean_of(values, row_weights)
            if ranks.size == 1:
                return mean
            # weights of different ranks compare as they were given
            total = len(values) if sample_weight is None else np.sum(as_plain_array(sample_weight))
            return mean_over_ranks(ranks, mean, float(total))


class FittedDensityMixin(MeanScoreMixin):
    """Checks and stored state of an estimator that keeps its fitted model in `_model`.

    A family provides `_to_plain` and `_from_plain`, which convert the attributes that `fit` sets to
    arrays and plain types, and back.
    """

    _may_miss_cells = False  # whether rows may have missing cells, NaN

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._may_miss_cells
        return tags

    def _checked_rows(self, X: Any) -> np.ndarray:
        """Return validated rows for a fitted model."""
        check_is_fitted(self)
        return checked_rows(self, X, reset=False, may_miss=self._may_miss_cells)

    @without_numpy_errors
    def standardise(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return rows in the units of the fitted energy and reference, and the change of density.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        rows : ndarray of shape (n_samples, n_features)
            Standardised rows, float64; columns with a histogram (`n_bins_`) are normal.
        log_jacobian : ndarray of shape (n_samples,)
            Log-density of a row in the units of X minus that of the standardised row, nats.
        """
        X = self._checked_rows(X)
        units = self._model.standardisation
        return units.apply(X), np.broadcast_to(units.log_jacobian_of(X), len(X)).copy()

    def _checked_number(self, name: str, value: Any) -> int:
        """Return a validated number of draws, at least one, for a fitted model."""
        check_is_fitted(self)
        Number(True, 1).check(name, value)
        return int(value)

    def _run_device(self) -> torch.device:
        """Return the device of computations, resolved from the parameter."""
        return resolve_device(self.device)

    def _packed(self, state: dict[str, Any]) -> dict[str, Any]:
        state = parameters_on_host(state)
        return with_checksum(self._to_plain(state)) if "_model" in state else state

    def _unpacked(self, state: dict[str, Any]) -> dict[str, Any]:
        # tensors created in inference mode cannot be trained
        with torch.inference_mode(False):
            plain = without_checksum(state)
            return self._from_plain(plain) if "_plain" in plain else plain


class TransformingDensityMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Maps from rows to latents and back.

    A family provides `_latents(X, device)`, `_features(Z, device)`, `_n_features_out`, its name in
    messages `_n_latents_name`, and the public methods with their docstrings.
    """

    _n_latents_name = "n_components"

    def _transformed(self, X: Any) -> Any:
        """Return the latents of rows X in their dtype."""
        X = self._checked_rows(X)
        return self._latents(X, self._run_device()).astype(X.dtype)

    def _inverse_transformed(self, X: Any) -> Any:
        """Return the rows of latents X in their dtype, in the container of `set_output`."""
        check_is_fitted(self)
        Z = check_array(as_plain_array(X), dtype=[np.float64, np.float32], order="C")
        n_latents = self._n_features_out
        if Z.shape[1] != n_latents:
            raise ValueError(
                f"X must have {n_latents} columns ({self._n_latents_name}), got {Z.shape[1]}."
            )
        return framed(self, self._features(Z, self._run_device()).astype(Z.dtype), like=X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class LatentSamplingMixin:
    """Draws with their latents; a family provides `_draws`."""

    @without_numpy_errors
    def sample(
        self: Any, n_samples: int = 1, random_state: Any = None, return_latents: bool = False
    ) -> Any:
        """Draw rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState, Generator or None, default=None
            None gives new draws at each call, an integer the same ones.
        return_latents : bool, default=False
            Return the latents of the draws as well.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Draws in the units of the training data.
        Z : ndarray of shape (n_samples, n_components)
            Only if `return_latents`.
        """
        n_samples = self._checked_number("n_samples", n_samples)
        X, Z = self._draws(n_samples, draw_seed(random_state), self._run_device())
        X = framed(self, X)
        return (X, framed(self, Z, self.get_feature_names_out())) if return_latents else X
