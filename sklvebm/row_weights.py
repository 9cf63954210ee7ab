"""Weights of rows: weighted means and their errors, copies, and passes over weighted rows.

Only ratios of weights matter: inside the package they have mean one. None stands for equal weights.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.row_blocks import has_copies


class DistinctRows(NamedTuple):
    """Rows without copies: a row counts as often as its copies together."""

    X: np.ndarray  # (n_distinct, n_features)
    row_weights: np.ndarray | None  # (n_distinct,), positive, mean one; None where all are equal
    places: np.ndarray  # (n_distinct,), of the first copies among the given rows, for messages
    repeated_share: float  # of the given rows that repeat others


def relative(row_weights: np.ndarray) -> np.ndarray | None:
    """Return weights, some of them positive, with mean one over the positive ones.

    None where all are equal.
    """
    weights = row_weights / row_weights.max()  # the sum of the largest numbers may overflow
    n_positive = int((weights > 0.0).sum())
    if n_positive == len(weights) and (weights == weights[0]).all():
        return None
    return weights / weights.sum() * n_positive


def positive_rows(
    X: np.ndarray, row_weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the rows of positive weight, with weights of mean one, or None where they are equal.

    A row of weight zero is as if it were not there.
    """
    if row_weights is None or (row_weights > 0.0).all():
        return X, row_weights
    kept = row_weights > 0.0
    return X[kept], chosen_weights(row_weights, kept)


def chosen_weights(row_weights: np.ndarray | None, kept: np.ndarray) -> np.ndarray | None:
    """Return the weights of the rows that are kept, with mean one; None where all are equal."""
    return None if row_weights is None else relative(row_weights[kept])


def distinct_rows(X: np.ndarray, row_weights: np.ndarray | None) -> DistinctRows:
    """Join copies of rows to one row with the sum of their weights.

    A fit is then the same for a repeated row and for a row of that weight. Without weights and
    copies, or where all rows are copies of one, X is returned as it is. Otherwise the order does
    not depend on that of X.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows, NaN in missing cells.
    row_weights : ndarray of shape (n_samples,) or None
        Positive; None counts each row once.
    """
    n_rows, n_features = X.shape
    if row_weights is None and not has_copies(X):
        return DistinctRows(X, None, np.arange(n_rows), 0.0)
    plain = np.where(np.isnan(X), np.nan, X + 0.0)  # one NaN, one zero
    keys = np.ascontiguousarray(plain).view(np.dtype((np.void, plain.itemsize * n_features)))
    _, first, group = np.unique(keys.reshape(-1), return_index=True, return_inverse=True)
    share = 1.0 - len(first) / n_rows
    if len(first) == 1 or (len(first) == n_rows and row_weights is None):
        return DistinctRows(X, None, np.arange(n_rows), share)
    counts = np.bincount(group.reshape(-1), row_weights)
    # by value: the order stays where columns are shifted or scaled
    order = np.lexsort(X[first].T[::-1])
    first = first[order]
    return DistinctRows(X[first], relative(counts[order]), first, share)


def chosen(row_weights: np.ndarray | None, places: Any) -> np.ndarray | None:
    """Return the weights at given places; None stays None."""
    return None if row_weights is None else row_weights[places]


def mean_of(values: np.ndarray, row_weights: np.ndarray | None = None) -> float:
    """Return the weighted mean of values (n_samples,)."""
    return float(values.mean() if row_weights is None else np.average(values, weights=row_weights))


def standard_error_of(values: np.ndarray, row_weights: np.ndarray | None = None) -> float:
    """Return the standard error of `mean_of`: rows are independent, their weights known."""
    if row_weights is None:
        return float(values.std() / np.sqrt(len(values)))
    shares = row_weights / row_weights.sum()
    return float(np.sqrt((shares**2 * (values - shares @ values) ** 2).sum()))


def as_tensor(row_weights: np.ndarray | None, device: torch.device | None = None) -> Tensor | None:
    """Return weights as a tensor on a device, by default the CPU, float64."""
    return None if row_weights is None else torch.from_numpy(row_weights).to(device)


def mean_on_device(values: Tensor, row_weights: Tensor | None) -> Tensor:
    """Return the weighted mean over the rows of a tensor (n_samples, ...)."""
    if row_weights is None:
        return values.mean(0)
    weights = row_weights.to(values)
    return (weights @ values) / weights.sum()


def pass_over(
    n_rows: int,
    generator: torch.Generator,
    device: torch.device,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Return the rows of one pass in random order, (n_rows,).

    With weights, each row comes as often as its weight says on average: the integer part for
    certain, and once more with the probability of the rest (systematic resampling). Means over
    batches of a pass then estimate weighted means without bias, and the number of rows stays.
    """
    order = torch.randperm(n_rows, generator=generator, device=device)
    if row_weights is None:
        return order
    first = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    return _systematic(row_weights.to(device, torch.float64), first)[order]


def resampled(
    row_weights: np.ndarray | None, random_state: np.random.RandomState
) -> np.ndarray | None:
    """Return rows drawn as `pass_over` draws them, ascending, (n_rows,); None without weights."""
    if row_weights is None:
        return None
    first = torch.tensor(random_state.uniform(), dtype=torch.float64)
    return _systematic(torch.from_numpy(row_weights), first).numpy()


def _systematic(row_weights: Tensor, first: Tensor) -> Tensor:
    """Return as many rows as there are weights, ascending, by systematic resampling.

    Row i comes `w_i` times on average, `w_i` being relative to the mean weight.
    """
    n_rows = len(row_weights)
    until = torch.cumsum(row_weights, 0)
    ticks = torch.arange(n_rows, device=until.device, dtype=until.dtype) + first
    drawn = torch.searchsorted(until, ticks * (until[-1] / n_rows), right=True)
    return drawn.clamp(max=n_rows - 1)  # rounding of the last tick


def quantiles_of(
    values: np.ndarray, levels: Any, row_weights: np.ndarray | None = None
) -> np.ndarray:
    """Return quantiles of values (n_samples,) at levels of any shape.

    With weights, a quantile is the least value up to which rows have the share `level` of the
    weight. Without, values are interpolated.
    """
    if row_weights is None:
        return np.quantile(values, levels)
    order = np.argsort(values)
    until = np.cumsum(row_weights[order])
    # rounding of the sum must not pass over a value
    wanted = np.asarray(levels) * until[-1] * (1.0 - 1e-12)
    return values[order][np.searchsorted(until, wanted).clip(max=len(values) - 1)]
