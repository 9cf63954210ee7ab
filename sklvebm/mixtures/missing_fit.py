"""Expectation maximisation for mixtures of rows with missing cells, and completed rows.

The expectation over the missing cells is exact: given the observed cells, each component has a
normal distribution of the others, whose mean and covariance enter the moments.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.mixtures.expectation_maximization import (
    PRIOR_ROWS,
    Mixture,
    fit_mixture,
    of_moments,
)
from sklvebm.mixtures.missing_cells import (
    Block,
    blocks,
    components_of,
    components_of_mixture,
    conditioned_pairs,
    diagonal_log_components,
    draw_missing,
    evidence_of,
    score_observed,
)
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.preprocessing.prepared import PreparedData
from sklvebm.preprocessing.scaling import without_outliers
from sklvebm.row_weights import chosen, mean_of

N_MONITORED_COPIES = 8  # completions of a monitored row
_LEAST_SHARE = 1e-16  # of a component in a row, below which it does not change sums over rows
_MIN_GAIN_PER_ITERATION = 1e-3  # nats per row; a smaller gain ends the iterations
_MAX_GAUSSIAN_ITERATIONS = 100  # of a single Gaussian, where half of the cells may be missing
# of the mixtures that complete rows: variances added, iterations, rows, parameters per cell
_RIDGES, _MAX_ITERATIONS, _MAX_ROWS, _MAX_PARAMETER_SHARE = (1e-6, 1e-4, 1e-2), 20, 6000, 0.25


class Moments(NamedTuple):
    """Expected sums over rows, for each component."""

    counts: Tensor  # (M,)
    first: Tensor  # (M, D)
    second: Tensor  # (M, D, D), or (M, D), of each column alone, for mixtures of variances
    log_likelihood: Tensor  # 0-d, sum over rows, nats


def expected_moments(
    found: list[Block], mixture: Mixture, row_weights: Tensor | None = None
) -> Moments:
    """Return the moments of complete rows that are expected given the observed cells.

    Parameters
    ----------
    found : list of Block
        All rows.
    mixture : Mixture
        Present parameters.
    row_weights : Tensor of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.
    """
    components = components_of_mixture(mixture)
    (m, d), total = components.means.shape, components.means.new_zeros(())
    counts, first = components.means.new_zeros(m), components.means.new_zeros(m, d)
    second = components.means.new_zeros(m, d, d)
    for block in found:
        evidence = evidence_of(block, components)
        log_density = torch.logsumexp(evidence.log_joint, 1)
        kept = block.is_row.double()
        if row_weights is not None:
            kept = kept * row_weights[block.index]
        shares = torch.exp(evidence.log_joint - log_density.unsqueeze(1)) * kept.unsqueeze(1)
        total += (log_density * kept).sum()
        counts += shares.sum((0, 2))
        # most components have no share in most rows
        pattern, component = torch.nonzero(shares.amax(2) > _LEAST_SHARE, as_tuple=True)
        own = shares[pattern, component]  # (S, R)
        given = conditioned_pairs(block, components, evidence, pattern, component)
        weighted = own.unsqueeze(2) * given.centres
        first.index_add_(0, component, weighted.sum(1))
        of_pairs = weighted.mT @ given.centres + own.sum(1)[:, None, None] * given.covariances
        second.index_add_(0, component, of_pairs)
    return Moments(counts, first, second, total)


def diagonal_moments(X: Tensor, mixture: Mixture, row_weights: Tensor | None = None) -> Moments:
    """Return what `expected_moments` does, for a mixture of variances.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features), float64
        All rows, NaN in missing cells.
    mixture : Mixture
        Present parameters.
    row_weights : Tensor of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.
    """
    means, variances = (torch.from_numpy(a) for a in (mixture.means, mixture.covariances))
    log_joint = diagonal_log_components(X, mixture)
    evidence = torch.logsumexp(log_joint, 1)
    shares = torch.exp(log_joint - evidence[:, None])  # (N, M)
    if row_weights is not None:
        shares, evidence = shares * row_weights[:, None], evidence * row_weights
    seen = (~torch.isnan(X)).to(X)
    values, counts = torch.nan_to_num(X, nan=0.0), shares.sum(0)
    hidden = counts[:, None] - shares.mT @ seen  # (M, D), rows whose cell is missing
    first = shares.mT @ values + hidden * means
    second = shares.mT @ values.square() + hidden * (means.square() + variances)
    return Moments(counts, first, second, evidence.sum())


def fit_with_missing(
    X: np.ndarray,
    first: Mixture,
    ridge: float | np.ndarray,
    *,
    max_iter: int,
    row_weights: np.ndarray | None = None,
) -> Mixture:
    """Climb the likelihood of the observed cells from a given mixture.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows, NaN in missing cells.
    first : Mixture
        Where to start; its covariance type is kept.
    ridge : float or ndarray of shape (n_features,)
        Added to variances, squared units of X.
    max_iter : int
        Iterations at most; they end once one gains less than 0.001 nats per row.
    row_weights : ndarray of shape (n_samples,) or None, default=None
        How often each row counts; None counts each row once.

    Returns
    -------
    mixture : Mixture
        With the ridge, and the prior covariance of `fit_mixture`.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is numerically singular.
    """
    rows = torch.from_numpy(X)
    is_diagonal = first.covariance_type == "diag"
    found = [] if is_diagonal else list(blocks(rows, components_of_mixture(first)))
    weights = None if row_weights is None else torch.from_numpy(row_weights)
    total = len(X) if row_weights is None else float(row_weights.sum())
    mixture, before = first, -np.inf
    try:
        for _ in range(max_iter):
            if is_diagonal:
                moments = diagonal_moments(rows, mixture, weights)
            else:
                moments = expected_moments(found, mixture, weights)
            now = float(moments.log_likelihood) / total
            if now - before < _MIN_GAIN_PER_ITERATION:
                break
            before = now
            mixture = _maximised(moments, mixture.covariance_type, ridge)
    except RuntimeError as error:  # of torch, where a matrix has no root
        raise np.linalg.LinAlgError(str(error)) from error
    return mixture


def _maximised(moments: Moments, covariance_type: str, ridge: float | np.ndarray) -> Mixture:
    """Return the likeliest mixture given expected moments."""
    counts = moments.counts + 10.0 * np.finfo(float).eps
    means = moments.first / counts[:, None]
    if covariance_type == "tied":
        covariances = moments.second.sum(0) - (counts[:, None] * means).mT @ means
        covariances = covariances / counts.sum()
    elif covariance_type == "diag":
        covariances = (moments.second / counts[:, None] - means.square()).clamp(min=0.0)
    else:
        covariances = moments.second / counts[:, None, None]
        covariances = covariances - means[:, :, None] * means[:, None, :]
    weights, centres, matrices = (p.numpy().copy() for p in (counts, means, covariances))
    return of_moments(Mixture(weights, centres, matrices, covariance_type), ridge, PRIOR_ROWS)


def likeliest_gaussian(
    X: np.ndarray, ridge: float, row_weights: np.ndarray | None = None
) -> Mixture:
    """Return the Gaussian with the highest likelihood of the observed cells of rows X (N, D)."""
    # a column without observed cells among these rows has the moments of standardised ones
    is_empty = np.isnan(X).all(axis=0)
    known = np.where(is_empty, 0.0, X)
    means = np.nanmean(known, axis=0)
    variances = np.where(is_empty, 1.0, np.nanvar(known, axis=0)) + ridge
    first = Mixture(np.ones(1), means[None], np.diag(variances)[None], "full")
    try:
        most = _MAX_GAUSSIAN_ITERATIONS
        return fit_with_missing(X, first, ridge, max_iter=most, row_weights=row_weights)
    except np.linalg.LinAlgError:  # columns of very different size
        return first


def _inner(X: np.ndarray) -> np.ndarray:
    """Return rows X (N, D) with distant values clipped; a column may have no observed cell."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return without_outliers(X)


def completed(X: np.ndarray, mixture: Mixture, seed: int) -> np.ndarray:
    """Return rows X (N, D) with missing cells drawn from a mixture given the others."""
    generator = torch.Generator().manual_seed(seed)
    # a value far out would carry the drawn cells along
    inner = torch.from_numpy(_inner(X))
    draws = draw_missing(inner, components_of_mixture(mixture), 1, generator)
    return np.where(np.isnan(X), draws[:, 0].numpy(), X)


def complete_rows(
    X: np.ndarray,
    seed: int,
    fitted: np.ndarray | None = None,
    row_weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return standardised rows X (N, D) with missing cells drawn given the others.

    The draws are those of the mixture that gives the observed cells of held-out rows the highest
    likelihood, of mixtures with 1, 2, 4, ... full covariances. Each one starts from rows that the
    one before has completed. Only the rows of the index `fitted` are used, or all, with the given
    weights (N,) or equal ones. Without missing cells, X is returned.
    """
    if not np.isnan(X).any():
        return X
    some = np.arange(len(X)) if fitted is None else fitted
    some = some[~np.isnan(X[some]).all(axis=1)]
    order = np.random.RandomState(seed).permutation(some)[:_MAX_ROWS]
    n_held_out = len(order) // 5
    # weights of held-out rows, and of the others
    judging, weights = (chosen(row_weights, o) for o in (order[:n_held_out], order[n_held_out:]))
    held_out, rows = np.split(_inner(X[order]), [n_held_out])
    gaussians = {r: likeliest_gaussian(rows, r, weights) for r in _RIDGES}
    scores = {r: _score(gaussian, held_out, judging) for r, gaussian in gaussians.items()}
    ridge = max(scores, key=scores.__getitem__)
    best, best_score, n_components = gaussians[ridge], scores[ridge], 2
    while n_held_out > 0 and n_components * X.shape[1] ** 2 <= _MAX_PARAMETER_SHARE * rows.size:
        try:
            full = completed(rows, best, seed)
            start = fit_mixture(full, n_components, "full", ridge, seed, row_weights=weights)
            most = _MAX_ITERATIONS
            found = fit_with_missing(rows, start, ridge, max_iter=most, row_weights=weights)
        except np.linalg.LinAlgError:
            break
        score = _score(found, held_out, judging)
        if score <= best_score:
            break
        best, best_score, n_components = found, score, 2 * n_components
    return completed(X, best, seed)


def _score(mixture: Mixture, X: np.ndarray, row_weights: np.ndarray | None) -> float:
    """Return the mean log density of the observed cells of rows X (N, D), nats."""
    return mean_of(score_observed(mixture, X), row_weights) if len(X) else -np.inf


def with_completed_rows(data: PreparedData, seed: int) -> PreparedData:
    """Return the data with missing cells drawn by `complete_rows`, from its fitted rows."""
    rows = complete_rows(data.standardised, seed, data.split.fitted, data.row_weights)
    return data if rows is data.standardised else data._replace(completed=rows)


def monitored_completions(data: PreparedData, reference: MixtureReference, seed: int) -> np.ndarray:
    """Return several completions of each monitored row, row by row, (n_monitored * K, D).

    They are draws of a reference given the observed cells: the mean over them of the ratio of an
    energy's density to the reference's estimates the ratio for the observed cells.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, components = torch.from_numpy(data.judged), components_of(reference)
    return draw_missing(rows, components, N_MONITORED_COPIES, generator).flatten(0, 1).numpy()


def completed_by(data: PreparedData, reference: MixtureReference, seed: int) -> PreparedData:
    """Return the data with missing cells drawn from a reference given the observed cells."""
    if data.observed is None:
        return data
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(data.observed)
    draws = draw_missing(rows, components_of(reference), 1, generator)
    return data._replace(completed=draws[:, 0].numpy())
