"""Cross-fitted densities: every training row is scored by a model that was fitted without it.

A density is higher on the rows that it was fitted to than on new ones. A threshold from such scores
would flag too many new rows. Here each row belongs to one fold, and the model of the fold is fitted
to the other folds.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sklvebm.estimators._common.frames import plain_arrays
from sklvebm.row_weights import quantiles_of, resampled
from sklvebm.runtime import draw_seed

# "auto": the level of this probability
AUTO_SHARE = 0.01
_AUTO_QUANTILES = (0.75, 0.9)
_PATTERN_ROWS = 400  # training rows by which the threshold of a pattern of missing cells is found
_BLOCK_ROWS = 2**15  # rows scored at once for such thresholds
_LOWEST = -1e300  # nats; finite, so that quantiles are


class CrossFit(NamedTuple):
    """A density fitted to all rows, one for each fold, and where each training row belongs."""

    estimator: Any
    fold_estimators: list[Any]
    fold_of: np.ndarray  # (n_samples,)
    place_of: dict[bytes, int]  # key of a training row -> its place

    def models_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of the model that scores each row (N,).

        It is the fold of a training row, and the number of folds for any other row.
        """
        last = len(self.fold_estimators)
        places = [self.place_of.get(key) for key in keys_of(rows)]
        return np.array([last if p is None else self.fold_of[p] for p in places], dtype=int)

    def log_density(self, rows: np.ndarray, models: np.ndarray) -> np.ndarray:
        """Return the log-density of rows (N, D) by the models of these numbers (N,), nats."""
        found = np.empty(len(rows))
        for number, model in enumerate([*self.fold_estimators, self.estimator]):
            own = models == number
            if own.any():
                with plain_arrays():
                    found[own] = model.score_samples(rows[own])
        return found


def keys_of(rows: np.ndarray) -> list[bytes]:
    """Return a key for each row, the same for equal rows."""
    plain = np.where(np.isnan(rows), np.nan, rows + 0.0)  # one NaN, one zero
    return [row.tobytes() for row in np.ascontiguousarray(plain, dtype=np.float64)]


def cross_fit(
    rows: np.ndarray,
    make: Callable[[], Any],
    n_folds: int,
    random: np.random.RandomState,
    row_weights: np.ndarray | None = None,
) -> CrossFit:
    """Fit a density to all rows and to all but each fold.

    Equal rows are in the same fold.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, n_features)
        Training rows.
    make : callable
        Returns an unfitted density.
    n_folds : int
        Folds, at most as many as there are different rows.
    random : RandomState
        Assigns rows to folds.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; passed on as `sample_weight`.

    Raises
    ------
    ValueError
        If there are fewer than three different rows.
    """
    keys = keys_of(rows)
    place_of = {key: place for place, key in reversed(list(enumerate(keys)))}
    if len(place_of) < 3:
        raise ValueError(f"X must have at least 3 different rows, got {len(place_of)}.")
    n_folds = min(n_folds, len(place_of))
    order = random.permutation(len(place_of))
    fold_of_key = {key: order[i] % n_folds for i, key in enumerate(place_of)}
    fold_of = np.array([fold_of_key[key] for key in keys])

    def fitted(own: np.ndarray) -> Any:
        known = {} if row_weights is None else {"sample_weight": row_weights[own]}
        return make().fit(rows[own], **known)

    with plain_arrays():
        folds = [fitted(fold_of != fold) for fold in range(n_folds)]
        return CrossFit(fitted(fold_of >= 0), folds, fold_of, place_of)


def threshold(
    scores: np.ndarray, contamination: Any, row_weights: np.ndarray | None = None
) -> float:
    r"""Return the score below which a row is an outlier.

    A number is the quantile of the scores. "auto" is the level that one inlier in a hundred is
    below: the quantile 0.01, or, if higher, the level by the assumption that surprises `-score`
    have an exponential tail beyond their upper quartile,

    .. math:: t = q_{90} + s \ln \frac{0.1}{0.01}, \qquad s = \frac{q_{90} - q_{75}}{\ln 2.5}

    Neither of its quantiles moves much if some percent of the rows are outliers.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Log-densities of rows by models fitted without them.
    contamination : float or "auto"
        Share of outliers among the rows.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.
    """
    scores = np.maximum(scores, _LOWEST)  # a kernel of finite width gives -inf
    if contamination != "auto":
        return float(quantiles_of(scores, contamination, row_weights))
    shares = [1.0 - level for level in _AUTO_QUANTILES]
    near, far = quantiles_of(-scores, _AUTO_QUANTILES, row_weights)
    decay = (far - near) / math.log(shares[0] / shares[1])
    level = far + decay * math.log(shares[1] / AUTO_SHARE)
    return max(float(quantiles_of(scores, AUTO_SHARE, row_weights)), -float(level))


class CompletedRows(NamedTuple):
    """Training rows without missing cells, and the models that were fitted without them."""

    rows: np.ndarray  # (M, D)
    models: np.ndarray  # (M,)


def completed_rows(
    fit: CrossFit,
    rows: np.ndarray,
    random: np.random.RandomState,
    row_weights: np.ndarray | None = None,
) -> CompletedRows:
    """Return some training rows, their missing cells drawn by the models fitted without them.

    With weights, rows are drawn as often as they count.
    """
    drawn = resampled(row_weights, random)
    chosen = random.permutation(np.arange(len(rows)) if drawn is None else drawn)[:_PATTERN_ROWS]
    rows, models = rows[chosen].copy(), fit.fold_of[chosen]
    for number, model in enumerate(fit.fold_estimators):
        own = (models == number) & np.isnan(rows).any(1)
        if own.any():
            rows[own] = np.asarray(model.sample_conditional(rows[own], 1, draw_seed(random)))[:, 0]
    return CompletedRows(rows, models)


def pattern_thresholds(
    fit: CrossFit, completed: CompletedRows, is_missing: np.ndarray, contamination: Any
) -> np.ndarray:
    """Return the threshold of rows with given missing cells (N, D), (N,), nats.

    It is that of training rows of which the same cells are hidden: a density of few cells cannot be
    compared with one of many.
    """
    patterns, which = np.unique(is_missing, axis=0, return_inverse=True)
    n_rows, found = len(completed.rows), []
    at_once = max(1, _BLOCK_ROWS // n_rows)
    for first in range(0, len(patterns), at_once):
        hidden = patterns[first : first + at_once, None]
        masked = np.where(hidden, np.nan, completed.rows).reshape(-1, hidden.shape[2])
        scores = fit.log_density(masked, np.tile(completed.models, len(hidden)))
        found += [threshold(own, contamination) for own in scores.reshape(len(hidden), n_rows)]
    return np.array(found)[which.reshape(-1)]
