r"""Gaussian mixtures of rows with missing cells: marginals, conditionals and their draws.

A row x has observed cells O and missing cells U, marked by NaN. For a component N(m, C),

.. math:: x_O \sim N(m_O, C_{OO}), \qquad
          x_U \mid x_O \sim N(m_U + C_{UO} C_{OO}^{-1} (x_O - m_O),\;
                              C_{UU} - C_{UO} C_{OO}^{-1} C_{OU})

so that the marginal density of the observed cells and the distribution of the missing ones are
mixtures again, both exact. Rows with the same missing cells share the matrices. Matrices of several
patterns are inverted together: those of the missing cells are replaced by the identity.

Shape letters: `P` patterns of missing cells, `R` rows of one pattern, `M` components, `K`
covariances, `D` columns.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklvebm.mixtures.components import LOG_2PI
from sklvebm.mixtures.expectation_maximization import Mixture
from sklvebm.mixtures.reference import MixtureReference

_BLOCK_NUMBERS = 2**22  # numbers of the largest tensors of a block
_QUANTILE_STEPS = 90  # bisections: a bracket of 1e10, of defensive components, becomes 1e-17
_BRACKET = 10.0  # standard deviations around all components; holds every quantile


class Components(NamedTuple):
    """Components of a mixture over rows, float64."""

    log_weights: Tensor  # (M,), nats
    means: Tensor  # (M, D)
    covariances: Tensor  # (K, D, D)
    covariance_of: Tensor  # (M,)
    scales: Tensor  # (M,), multiply the standard deviations


def components_of(reference: MixtureReference) -> Components:
    """Return the components of a reference in its standardised units."""
    roots = reference.roots.double()
    roots = torch.diag_embed(roots) if reference.is_diagonal else roots
    roots = reference.root.double() @ roots
    return Components(
        reference.log_weights.double(),
        reference.to_features(reference.means).double(),
        roots @ roots.mT,
        reference.covariance_of,
        reference.scales.double(),
    )


def numbers_per_row(reference: MixtureReference) -> int:
    """Return the numbers in memory for a row whose missing cells no other row has."""
    (m, d), k = reference.means.shape, len(reference.roots)
    return 4 * (m * d + k * d * d)


def components_of_mixture(mixture: Mixture) -> Components:
    """Return the components of a fitted mixture."""
    covariances, covariance_of = mixture.covariance_matrices()
    weights = torch.from_numpy(np.maximum(mixture.weights, 1e-300))
    means = torch.from_numpy(mixture.means)
    which = torch.from_numpy(covariance_of)
    matrices = torch.from_numpy(np.ascontiguousarray(covariances))
    return Components(torch.log(weights), means, matrices, which, torch.ones_like(weights))


class Block(NamedTuple):
    """Rows of several patterns, with equal numbers of rows for each."""

    # (P, R), of the rows; patterns with fewer rows repeat some; hides `tuple.index`
    index: Tensor  # type: ignore[assignment]
    is_row: Tensor  # (P, R), False for such repeats
    is_observed: Tensor  # (P, D)
    values: Tensor  # (P, R, D), zero in missing cells


def blocks(X: Tensor, components: Components) -> Iterator[Block]:
    """Yield all rows of X (N, D), NaN in missing cells, in blocks of limited size.

    A block holds patterns with similar numbers of rows, so that few rows are repeated.
    """
    n_components, n_features = components.means.shape
    of_pattern = 4 * max(n_components, len(components.covariances)) * n_features**2
    of_row = 4 * n_components * n_features
    is_missing = torch.isnan(X).cpu().numpy()
    patterns, group = np.unique(is_missing, axis=0, return_inverse=True)
    rows_of = _rows_of_groups(group.reshape(-1), len(patterns))
    most_rows = max(1, (_BLOCK_NUMBERS - of_pattern) // of_row)
    parts = [
        (pattern, rows[first : first + most_rows])
        for pattern, rows in zip(patterns, rows_of, strict=True)
        for first in range(0, len(rows), most_rows)
    ]
    parts.sort(key=lambda part: len(part[1]))
    while parts:
        n_rows = 2 ** math.ceil(math.log2(len(parts[0][1])))
        most = max(1, _BLOCK_NUMBERS // (of_pattern + n_rows * of_row))
        taken = [part for part in parts[:most] if len(part[1]) <= n_rows]
        parts = parts[len(taken) :]
        yield _block(X, taken)


def _rows_of_groups(group: np.ndarray, n_groups: int) -> list[np.ndarray]:
    """Return the indices of the rows of each group, ascending."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group, minlength=n_groups))[:-1])


def _block(X: Tensor, parts: list[tuple[np.ndarray, np.ndarray]]) -> Block:
    n_rows = max(len(rows) for _, rows in parts)
    index = np.stack([np.resize(rows, n_rows) for _, rows in parts])
    is_row = np.arange(n_rows) < np.array([[len(rows)] for _, rows in parts])
    is_observed = ~np.stack([pattern for pattern, _ in parts])
    where, kept, seen = (torch.from_numpy(a).to(X.device) for a in (index, is_row, is_observed))
    values = torch.nan_to_num(X[where].double(), nan=0.0)
    return Block(where, kept, seen, values)


class Conditioned(NamedTuple):
    """Components given the observed cells of a block's rows."""

    log_joint: Tensor  # (P, M, R), log weight plus log density of the observed cells, nats
    centres: Tensor  # (P, M, R, D), conditional means; the values themselves in observed cells
    covariances: Tensor  # (P, K, D, D), of the missing cells given the others; zero elsewhere
    gains: Tensor  # (P, K, D, D), from residuals of observed cells to shifts of all cells


class Evidence(NamedTuple):
    """What the observed cells of a block's rows say about the components."""

    log_joint: Tensor  # (P, M, R), log weight plus log density of the observed cells, nats
    residuals: Tensor  # (P, M, R, D), from the means over the scales; zero in missing cells
    precisions: Tensor  # (P, K, D, D), of the observed cells; zero elsewhere


def evidence_of(block: Block, components: Components) -> Evidence:
    """Return what the observed cells of a block say about the components.

    Raises
    ------
    torch.linalg.LinAlgError
        If a covariance is numerically singular.
    """
    log_weights, means, covariances, of, scales = components
    seen = block.is_observed.double()
    n_seen = seen.sum(1)
    pairs = (seen[:, :, None] * seen[:, None, :]).unsqueeze(1)  # (P, 1, D, D)
    root = torch.linalg.cholesky(covariances * pairs + torch.diag_embed(1.0 - seen).unsqueeze(1))
    log_det = 2.0 * torch.log(torch.diagonal(root, dim1=2, dim2=3)).sum(2)
    precisions = torch.cholesky_inverse(root) * pairs
    residuals = (block.values.unsqueeze(1) - means[:, None]) * seen[:, None, None]
    residuals = residuals / scales[:, None, None]
    forms = ((residuals @ precisions[:, of]) * residuals).sum(3)
    constant = log_weights - 0.5 * log_det[:, of] - n_seen[:, None] * torch.log(scales)
    constant = constant - 0.5 * LOG_2PI * n_seen[:, None]
    return Evidence(constant.unsqueeze(2) - 0.5 * forms, residuals, precisions)


def conditioned(block: Block, components: Components) -> Conditioned:
    """Return the components given the observed cells of a block.

    Raises
    ------
    torch.linalg.LinAlgError
        If a covariance is numerically singular.
    """
    _, means, covariances, of, scales = components
    log_joint, residuals, precisions = evidence_of(block, components)
    gains = precisions @ covariances
    left = covariances - covariances @ gains
    left = left * _hidden_pairs(block).unsqueeze(1)
    shifts = (residuals @ gains[:, of]) * scales[:, None, None]
    centres = torch.where(
        block.is_observed[:, None, None], block.values.unsqueeze(1), means[:, None] + shifts
    )
    return Conditioned(log_joint, centres, left, gains)


class ConditionedPairs(NamedTuple):
    """Some components given the observed cells of some patterns: S pairs of both."""

    centres: Tensor  # (S, R, D), conditional means; the values themselves in observed cells
    covariances: Tensor  # (S, D, D), of the missing cells given the others; zero elsewhere


def conditioned_pairs(
    block: Block, components: Components, evidence: Evidence, pattern: Tensor, component: Tensor
) -> ConditionedPairs:
    """Return what `conditioned` does for pairs of a pattern (S,) and a component (S,) alone."""
    _, means, covariances, of, scales = components
    which = of[component]
    own = covariances[which]
    gains = evidence.precisions[pattern, which] @ own
    left = (own - own @ gains) * _hidden_pairs(block)[pattern]
    shifts = (evidence.residuals[pattern, component] @ gains) * scales[component, None, None]
    centres = torch.where(
        block.is_observed[pattern, None], block.values[pattern], means[component, None] + shifts
    )
    return ConditionedPairs(centres, left)


def _hidden_pairs(block: Block) -> Tensor:
    """Return 1 for pairs of missing cells of each pattern, else 0, (P, D, D)."""
    hidden = (~block.is_observed).double()
    return hidden[:, :, None] * hidden[:, None, :]


def _scattered(block: Block, values: Tensor, out: Tensor) -> None:
    """Write values (P, R, ...) of a block's rows to their places in `out` (N, ...)."""
    out[block.index[block.is_row]] = values[block.is_row].to(out)


def log_components(X: Tensor, components: Components) -> Tensor:
    """Return log weights plus log densities of the observed cells of X (N, D), (N, M), nats."""
    found = X.new_empty((len(X), len(components.means)), dtype=torch.float64)
    for block in blocks(X, components):
        _scattered(block, evidence_of(block, components).log_joint.mT, found)
    return found


def log_marginal(X: Tensor, components: Components) -> Tensor:
    """Return the log density of the observed cells of rows X (N, D), (N,), nats.

    It is zero for a row without observed cells, as the weights sum to one.
    """
    found = X.new_empty(len(X), dtype=torch.float64)
    for block in blocks(X, components):
        log_joint = evidence_of(block, components).log_joint
        _scattered(block, torch.logsumexp(log_joint, 1), found)
    return found


def reference_log_components(reference: MixtureReference, x: Tensor) -> Tensor:
    """Return the components' log densities of rows x (N, D), (N, M), up to one number a row; nats.

    Those of complete rows are densities of the reference's own coordinates.
    """
    return by_completeness(
        x,
        lambda rows: reference.log_components(reference.from_features(rows)),
        lambda rows: log_components(rows, components_of(reference)),
    )


def reference_log_marginal(reference: MixtureReference, x: Tensor) -> Tensor:
    """Return the log density of the observed cells of rows x (N, D) under a reference, (N,), nats.

    Complete rows get the same numbers as from `MixtureReference.log_marginal`.
    """
    return by_completeness(
        x, reference.log_marginal, lambda rows: log_marginal(rows, components_of(reference))
    )


def by_completeness(
    x: Tensor, of_complete: Callable[[Tensor], Tensor], of_others: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply one function to complete rows of x (N, D) and one to rows with missing cells."""
    is_complete = ~torch.isnan(x).any(1)
    if bool(is_complete.all()):
        return of_complete(x)
    others = of_others(x[~is_complete]).to(x)
    if not bool(is_complete.any()):
        return others
    found = others.new_empty((len(x), *others.shape[1:]))
    found[is_complete], found[~is_complete] = of_complete(x[is_complete]).to(others), others
    return found


def diagonal_log_components(X: Tensor, mixture: Mixture) -> Tensor:
    """Return log weights plus log densities of the observed cells of X (N, D), (N, M), nats.

    The mixture has variances only: columns of a component are independent, so that patterns of
    missing cells need no matrices.
    """
    means, variances = (torch.from_numpy(a).to(X) for a in (mixture.means, mixture.covariances))
    weights = torch.from_numpy(np.maximum(mixture.weights, 1e-300)).to(X)
    scales, log_scales = variances.rsqrt(), 0.5 * (torch.log(variances) + LOG_2PI)
    found = X.new_empty((len(X), len(means)))
    size = max(1, _BLOCK_NUMBERS // means.numel())
    for out, rows in zip(found.split(size), X.split(size), strict=True):
        seen = ~torch.isnan(rows)
        # a mean in place of a missing cell has no residual
        residuals = torch.where(seen[:, None], rows[:, None] - means, 0.0) * scales
        out.copy_(-0.5 * residuals.square().sum(2) - seen.to(X) @ log_scales.mT)
    return found + torch.log(weights)


def score_observed(mixture: Mixture, X: np.ndarray) -> np.ndarray:
    """Return log densities of the observed cells of rows X (N, D), (N,), nats."""
    if not np.isnan(X).any():
        return mixture.score_samples(X)
    if mixture.covariance_type == "diag":
        return torch.logsumexp(diagonal_log_components(torch.from_numpy(X), mixture), 1).numpy()
    return log_marginal(torch.from_numpy(X), components_of_mixture(mixture)).numpy()


def conditional_mean(X: Tensor, components: Components) -> Tensor:
    """Return rows X (N, D) with missing cells replaced by their means given the others."""
    found = X.double().clone()
    for block in blocks(X, components):
        given = conditioned(block, components)
        shares = torch.softmax(given.log_joint, 1)
        _scattered(block, (shares.unsqueeze(3) * given.centres).sum(1), found)
    return torch.where(torch.isnan(X), found, X.double())


def conditional_quantiles(X: Tensor, components: Components, levels: Tensor) -> Tensor:
    """Return quantiles of each missing cell given the observed cells of its row.

    Parameters
    ----------
    X : Tensor of shape (N, D)
        Rows, NaN in missing cells.
    components : Components
        The mixture.
    levels : Tensor of shape (Q,)
        Probabilities between zero and one.

    Returns
    -------
    quantiles : Tensor of shape (N, Q, D), float64
        Observed cells have the same value at all levels.
    """
    found = X.double().unsqueeze(1).repeat(1, len(levels), 1)
    for block in blocks(X, components):
        if bool(block.is_observed.all()):
            continue
        given = conditioned(block, components)
        shares = torch.softmax(given.log_joint, 1).unsqueeze(3)  # (P, M, R, 1)
        variances = torch.diagonal(given.covariances, dim1=2, dim2=3)[:, components.covariance_of]
        spread = variances.clamp(min=0.0).sqrt() * components.scales[:, None]
        spread = spread.unsqueeze(2).clamp(min=1e-150)  # (P, M, 1, D)
        # columns of each pattern, missing ones first; the others of shorter patterns are unused
        most = int((~block.is_observed).sum(1).max())
        columns = block.is_observed.int().argsort(dim=1, stable=True)[:, None, None, :most]
        centres, spread = (torch.take_along_dim(t, columns, 3) for t in (given.centres, spread))
        values = [_quantile(shares, centres, spread, level) for level in levels.tolist()]
        full = centres.new_zeros(len(centres), centres.shape[2], len(levels), X.shape[1])
        full.scatter_(3, columns.expand(*full.shape[:3], -1), torch.stack(values, 2))
        _scattered(block, full, found)
    return torch.where(torch.isnan(X).unsqueeze(1), found, X.double().unsqueeze(1))


def _quantile(shares: Tensor, centres: Tensor, spread: Tensor, level: float) -> Tensor:
    """Return the quantile of mixtures of normals, (P, R, D), by bisection over components (1)."""
    low = (centres - _BRACKET * spread).amin(1)
    high = (centres + _BRACKET * spread).amax(1)
    for _ in range(_QUANTILE_STEPS):
        middle = 0.5 * (low + high)
        below = torch.special.ndtr((middle.unsqueeze(1) - centres) / spread)
        is_low = (shares * below).sum(1) < level
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return 0.5 * (low + high)


def draw_missing(
    X: Tensor, components: Components, n_draws: int, generator: torch.Generator
) -> Tensor:
    """Draw the missing cells of rows X (N, D) given the others, exactly; (N, n_draws, D), float64.

    A component is drawn given the observed cells, then a whole row of it, whose observed cells are
    moved to the given values together with what depends on them.
    """
    found = X.double().unsqueeze(1).repeat(1, n_draws, 1)
    roots = torch.linalg.cholesky(components.covariances)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": X.device}
    for block in blocks(X, components):
        if bool(block.is_observed.all()):
            continue
        given = conditioned(block, components)
        cumulative = torch.softmax(given.log_joint, 1).cumsum(1).transpose(1, 2).contiguous()
        p, r, m = cumulative.shape
        uniform = torch.rand(p, r, n_draws, **options) * cumulative[:, :, -1:]
        component = torch.searchsorted(cumulative, uniform).clamp(max=m - 1)  # (P, R, n_draws)
        for number in range(n_draws):
            chosen = component[:, :, number]
            noise = torch.randn(block.values.shape, **options)
            root = roots[components.covariance_of[chosen]]
            deviation = torch.einsum("prd,pred->pre", noise, root)
            _scattered(block, _moved(block, given, components, chosen, deviation), found[:, number])
    return torch.where(torch.isnan(X).unsqueeze(1), found, X.double().unsqueeze(1))


def _moved(
    block: Block, given: Conditioned, components: Components, chosen: Tensor, deviation: Tensor
) -> Tensor:
    """Return rows (P, R, D) with the observed cells of a block.

    Each was drawn from its component `chosen` (P, R) as its mean plus a `deviation` (P, R, D). What
    the observed cells' part of the deviation explains is taken out.
    """
    which = components.covariance_of[chosen]
    pattern = torch.arange(len(which), device=which.device)[:, None]
    seen = block.is_observed.double().unsqueeze(1)
    explained = torch.einsum("prd,prde->pre", deviation * seen, given.gains[pattern, which])
    left = (deviation - explained) * components.scales[chosen].unsqueeze(2)
    return torch.take_along_dim(given.centres, chosen[:, None, :, None], 1).squeeze(1) + left
