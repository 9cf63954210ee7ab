"""Questions about missing cells that every fitted density answers."""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.by_rows import answer_rows
from sklvebm.estimators._common.frames import framed
from sklvebm.estimators._common.parameters import Shares
from sklvebm.inference.missing_cells import weighted_mean, weighted_quantiles
from sklvebm.mixtures.missing_cells import (
    Components,
    components_of,
    conditional_mean,
    conditional_quantiles,
    draw_missing,
    numbers_per_row,
)
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.runtime import chunks, draw_seed, seeded_generator, without_numpy_errors

_N_MEAN_PARTICLES, _N_QUANTILE_PARTICLES = 256, 512
_N_MEAN_LEVELS = 64  # quantiles whose average is the mean of a column with a histogram
_MIN_EFFECTIVE_SHARE = 0.02  # of the particles of a row; fewer cause a warning
_MAX_NAMED = 5  # rows in a message


class Question(NamedTuple):
    """A question about the missing cells of rows, for mixtures and for weighted particles."""

    exact: Callable[[Tensor, Components, int], Tensor]  # rows, mixture, number of the chunk
    # completed rows (N, K, D) with log weights (N, K); None for draws
    weighted: Callable[[Tensor, Tensor], Tensor] | None
    n_particles: int = 64
    n_draws: int = 1
    seed: int = 0


def exact_answer(
    reference: MixtureReference, rows: np.ndarray, device: torch.device, question: Question
) -> np.ndarray:
    """Answer a question about rows (N, D), NaN in missing cells, for a mixture."""

    def answer(own: MixtureReference, x: Tensor, number: int) -> Tensor:
        return question.exact(x, components_of(own), number)

    reference = reference if device.type == "cpu" else copy.deepcopy(reference).to(device)
    parts = chunks(len(rows), question.n_draws, numbers_per_row(reference))
    return answer_rows(reference, rows, device, answer, parts)


def _warn_of_few_effective(places: np.ndarray, shares: np.ndarray) -> None:
    """Warn of rows, by their places in X, whose particles have a small effective share."""
    poor = places[shares < _MIN_EFFECTIVE_SHARE]
    if len(poor):
        named = ", ".join(map(str, poor[:_MAX_NAMED])) + (", ..." if len(poor) > _MAX_NAMED else "")
        warnings.warn(
            f"Fewer than {100.0 * _MIN_EFFECTIVE_SHARE:g} % of the particles of rows [{named}] of "
            f"X are effective (least: {100.0 * shares.min():.2g} %): answers about their missing "
            "cells are uncertain. The model differs there from its reference, or observed cells "
            "are far from the training rows.",
            UserWarning,
            stacklevel=4,
        )


class MissingCellsMixin:
    """Conditional distributions of missing cells.

    A family provides `_answer_cells(rows, question)`, on standardised rows with missing cells. It
    returns answers (N, Q, D), and one more, the share of effective particles, unless they are
    exact.
    """

    _may_miss_cells = True

    @without_numpy_errors
    def conditional_mean(self: Any, X: Any) -> Any:
        """Return rows with missing cells replaced by their means given the observed cells.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            `E[x_missing | x_observed]`, in the units of the training data; observed cells are
            unchanged. Exact for a mixture, otherwise a mean of 256 weighted particles.

        Warns
        -----
        UserWarning
            If few particles of a row are effective; names the rows.
        """
        rows = self._checked_rows(X)

        def exact(x: Tensor, mixture: Components, _: int) -> Tensor:
            return conditional_mean(x, mixture)[:, None]

        question = Question(exact, weighted_mean, n_particles=_N_MEAN_PARTICLES)
        found = self._about_cells(rows, question)[:, 0]
        mapped = np.isnan(rows) & (self._model.standardisation.is_mapped)
        if mapped.any():
            # the map of a mean is not the mean of the map, but quantiles are mapped to quantiles
            middles = (np.arange(_N_MEAN_LEVELS) + 0.5) / _N_MEAN_LEVELS
            found[mapped] = self._quantiles(rows, middles).mean(1)[mapped]
        return framed(self, found, like=X)

    @without_numpy_errors
    def conditional_quantiles(
        self: Any, X: Any, quantiles: Sequence[float] = (0.05, 0.5, 0.95)
    ) -> np.ndarray:
        """Return quantiles of each missing cell given the observed cells of its row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        quantiles : sequence of float, default=(0.05, 0.5, 0.95)
            Probabilities between zero and one.

        Returns
        -------
        X : ndarray of shape (n_samples, n_quantiles, n_features)
            In the units of the training data; observed cells are unchanged. Exact for a mixture,
            otherwise from 512 weighted particles.

        Warns
        -----
        UserWarning
            If few particles of a row are effective; names the rows.
        """
        X = self._checked_rows(X)
        Shares().check("quantiles", quantiles)
        return self._quantiles(X, quantiles)

    def _quantiles(self: Any, X: np.ndarray, quantiles: Sequence[float] | np.ndarray) -> np.ndarray:
        levels = torch.tensor(list(quantiles), dtype=torch.float64)
        question = Question(
            lambda x, mixture, _: conditional_quantiles(x, mixture, levels),
            partial(weighted_quantiles, levels=levels),
            n_particles=_N_QUANTILE_PARTICLES,
            n_draws=len(levels),
        )
        found: np.ndarray = self._about_cells(X, question)
        return found

    @without_numpy_errors
    def sample_conditional(
        self: Any, X: Any, n_draws: int = 1, random_state: Any = None
    ) -> np.ndarray:
        """Draw the missing cells of each row given its observed cells.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, NaN in missing cells.
        n_draws : int, default=1
            Draws for each row.
        random_state : int, RandomState, Generator or None, default=None
            None gives new draws at each call, an integer the same ones.

        Returns
        -------
        X : ndarray of shape (n_samples, n_draws, n_features)
            Completed rows in the units of the training data; observed cells are unchanged. Always
            an array: `set_output` has no frames of three dimensions.

        Warns
        -----
        UserWarning
            If few particles of a row are effective; names the rows.
        """
        X = self._checked_rows(X)
        n_draws, seed = self._checked_number("n_draws", n_draws), draw_seed(random_state)

        def exact(x: Tensor, mixture: Components, number: int) -> Tensor:
            generator = seeded_generator(seed + number, x.device)
            return draw_missing(x, mixture, n_draws, generator)

        found: np.ndarray = self._about_cells(X, Question(exact, None, n_draws=n_draws, seed=seed))
        return found

    def _about_cells(self: Any, X: np.ndarray, question: Question) -> np.ndarray:
        """Return answers (N, Q, D) in the units of X, with observed cells as they are."""
        n_answers = question.n_draws
        found = np.repeat(X[:, None], n_answers, axis=1)
        places = np.flatnonzero(np.isnan(X).any(axis=1))
        if len(places):
            units = self._model.standardisation
            answers = self._answer_cells(units.apply(X[places]), question)
            if answers.shape[1] > n_answers:
                _warn_of_few_effective(places, answers[:, -1, 0])
            answers = units.invert(answers[:, :n_answers])
            found[places] = np.where(np.isnan(X[places])[:, None], answers, found[places])
        return found
