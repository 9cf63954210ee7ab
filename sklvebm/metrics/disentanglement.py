"""Disentanglement of latents: mutual information gap, DCI, separated attribute predictability."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import KFold

from sklvebm.metrics._factors import as_targets, check_latents_and_factors, explained_share
from sklvebm.validation import HasMethods, Interval, check_random_state, validate_params

_DATA = {"latents": ["array-like"], "factors": ["array-like"]}


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness of latents.

    Attributes
    ----------
    disentanglement : float
        One if every latent predicts one factor, zero if all predict all factors equally.
    completeness : float
        One if every factor is predicted by one latent, zero if by all equally.
    informativeness : float
        Mean out-of-fold R² of the factors; at most one.
    importance : ndarray of shape (n_latents, n_factors)
        Share of each latent in the prediction of each factor; columns sum to one.

    See Also
    --------
    dci : Computes it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import DCI
    >>> DCI(1.0, 1.0, 0.9, importance=np.eye(2)).importance.shape
    (2, 2)
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: np.ndarray


@validate_params({**_DATA, "n_bins": [Interval(Integral, 2, None, closed="left")]})
def mutual_information_gap(latents: Any, factors: Any, *, n_bins: int = 20) -> float:
    r"""Return the mutual information gap of latents and factors.

    .. math:: \frac{1}{K} \sum_{k=1}^K \frac{I(z_{(1)}; v_k) - I(z_{(2)}; v_k)}{H(v_k)}

    with the two latents of largest mutual information I with each of the K factors v_k, and the
    entropy H [1]_.

    Parameters
    ----------
    latents : array-like of shape (n_samples, n_latents)
        Latents of rows, at least two columns.
    factors : array-like of shape (n_samples, n_factors)
        Their true factors.
    n_bins : int, default=20
        Bins of equal counts for columns with more distinct values; other columns are discrete.

    Returns
    -------
    gap : float
        In [0, 1]; one if a single latent determines each factor's bin and the others are
        independent of it.

    Raises
    ------
    ValueError
        If shapes do not match, a factor is constant, or a parameter is not legal.

    See Also
    --------
    sap_score : The gap of predictions instead of information.
    dci : Shares of all latents in the predictions of all factors.

    Notes
    -----
    The information of independent columns is overestimated by about `n_bins² / (2 n_samples)` nats,
    most of which cancels in the gap. Angles need no special treatment: information does not depend
    on the order of bins.

    References
    ----------
    .. [1] R. T. Q. Chen et al., "Isolating sources of disentanglement in variational autoencoders",
       NeurIPS 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import mutual_information_gap
    >>> factors = np.random.RandomState(0).randn(5000, 2)
    >>> mutual_information_gap(factors, factors) > 0.9
    True
    """
    latents, factors = check_latents_and_factors(latents, factors)
    _need_two(latents, "latents")
    binned_latents = [_bins(column, n_bins) for column in latents.T]
    gaps = []
    for factor in factors.T:
        value = _bins(factor, n_bins)
        information = np.sort([mutual_info_score(value, latent) for latent in binned_latents])
        gaps.append((information[-1] - information[-2]) / mutual_info_score(value, value))
    return float(np.mean(gaps))


@validate_params({**_DATA, "circular": [tuple, list]})
def sap_score(latents: Any, factors: Any, *, circular: Sequence[int] = ()) -> float:
    """Return the separated attribute predictability of latents and factors.

    The score is the mean over factors of the difference between the two largest values of R² of
    linear regressions on single latents [1]_. All factors are treated as continuous.

    Parameters
    ----------
    latents : array-like of shape (n_samples, n_latents)
        Latents of rows, at least two columns.
    factors : array-like of shape (n_samples, n_factors)
        Their true factors.
    circular : tuple of int, default=()
        Columns of `factors` that are angles, in radians: the R² of cosine and sine is pooled, and
        is at most about one half for a single latent.

    Returns
    -------
    score : float
        In [0, 1], without unit.

    Raises
    ------
    ValueError
        If shapes do not match, a factor is constant, or a parameter is not legal.

    See Also
    --------
    mutual_information_gap : The gap of information instead of predictions.
    dci : Shares of all latents in the predictions of all factors.

    References
    ----------
    .. [1] A. Kumar, P. Sattigeri and A. Balakrishnan, "Variational inference of disentangled latent
       concepts from unlabeled observations", ICLR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import sap_score
    >>> factors = np.random.RandomState(0).randn(5000, 2)
    >>> sap_score(factors, factors) > 0.99
    True
    """
    latents, factors = check_latents_and_factors(latents, factors)
    _need_two(latents, "latents")
    centred = latents - latents.mean(0)
    variance = (centred**2).mean(0)
    gaps = []
    for target in as_targets(factors, circular):
        target = target - target.mean(0)
        covariance = centred.T @ target / len(target)
        explained = (covariance**2).sum(1) / np.where(variance > 0.0, variance, 1.0)
        two = np.sort(explained)[-2:] / (target**2).mean(0).sum()
        gaps.append(two[1] - two[0])
    return float(np.mean(gaps))


@validate_params(
    {
        **_DATA,
        "circular": [tuple, list],
        "estimator": [HasMethods(["fit", "predict"]), None],
        "cv": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    }
)
def dci(
    latents: Any,
    factors: Any,
    *,
    circular: Sequence[int] = (),
    estimator: Any = None,
    cv: int = 5,
    random_state: Any = None,
) -> DCI:
    r"""Return disentanglement, completeness and informativeness of latents.

    A regressor predicts each factor k of K from all latents j, with importances `P_jk` that sum to
    one over j. With entropies H relative to the logarithm of the number of entries [1]_,

    .. math:: D = \sum_j \rho_j\, \bigl(1 - H(P_{j\cdot} / \textstyle\sum_k P_{jk})\bigr), \qquad
        C = \frac{1}{K} \sum_k \bigl(1 - H(P_{\cdot k})\bigr)

    where `ρ_j` is the share of latent j in the sum of all importances.

    Parameters
    ----------
    latents : array-like of shape (n_samples, n_latents)
        Latents of rows, at least two columns.
    factors : array-like of shape (n_samples, n_factors)
        Their true factors, at least two columns.
    circular : tuple of int, default=()
        Columns of `factors` that are angles, in radians; cosine and sine are predicted together.
    estimator : regressor or None, default=None
        Cloned for each factor and fold; must have `feature_importances_`, or `coef_`, of which the
        absolute values are used and which needs standardised latents. None is a random forest of
        100 trees with at least five rows per leaf.
    cv : int, default=5
        Number of folds; importances are means over them.
    random_state : int, RandomState, Generator or None, default=None
        Source of folds and forests.

    Returns
    -------
    result : DCI
        `disentanglement` and `completeness` in [0, 1], `informativeness` (R²) and `importance`,
        all without unit.

    Raises
    ------
    ValueError
        If shapes do not match, a factor is constant, or a parameter is not legal.

    See Also
    --------
    mutual_information_gap : Compares the two most informative latents of a factor.
    sap_score : The same by predictions from single latents.
    factor_recovery : Whether the latents determine the factors, in any mixture.

    References
    ----------
    .. [1] C. Eastwood and C. K. I. Williams, "A framework for the quantitative evaluation of
       disentangled representations", ICLR 2018. (They report an error for informativeness.)

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import dci
    >>> factors = np.random.RandomState(0).uniform(size=(300, 2))
    >>> dci(factors, factors, random_state=0).disentanglement > 0.9
    True
    """
    latents, factors = check_latents_and_factors(latents, factors)
    _need_two(latents, "latents")
    _need_two(factors, "factors")
    random_state = check_random_state(random_state)
    if estimator is None:
        seed = random_state.randint(2**31 - 1)
        estimator = RandomForestRegressor(min_samples_leaf=5, random_state=seed)
    folds = KFold(cv, shuffle=True, random_state=random_state.randint(2**31 - 1))
    columns, shares = [], []
    for target in as_targets(factors, circular):
        predicted, weight = np.empty_like(target), np.zeros(latents.shape[1])
        for train, test in folds.split(latents):
            model = clone(estimator).fit(latents[train], target[train].squeeze())
            predicted[test] = model.predict(latents[test]).reshape(len(test), -1)
            weight = weight + _importance(model)
        # all latents are equally important for a factor that none predicts
        total = weight.sum()
        columns.append(weight / total if total > 0.0 else np.full(len(weight), 1 / len(weight)))
        shares.append(explained_share(target, predicted))
    importance = np.stack(columns, 1)
    per_latent = importance.sum(1, keepdims=True)
    rows = importance / np.where(per_latent > 0.0, per_latent, 1.0)
    disentanglement = (per_latent[:, 0] / per_latent.sum()) @ (1.0 - _relative_entropy(rows))
    completeness = np.mean(1.0 - _relative_entropy(importance.T))
    return DCI(float(disentanglement), float(completeness), float(np.mean(shares)), importance)


def _need_two(columns: np.ndarray, name: str) -> None:
    if columns.shape[1] < 2:
        raise ValueError(f"{name} must have at least two columns, got {columns.shape[1]}.")


def _bins(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Return the index of a bin for each value, (n,): distinct values, or bins of equal counts."""
    different, index = np.unique(values, return_inverse=True)
    # quantiles would merge rare values of a discrete column
    if len(different) <= n_bins:
        return index
    edges = np.quantile(values, np.linspace(0.0, 1.0, n_bins + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def _importance(model: Any) -> np.ndarray:
    """Return the importance of each latent to a fitted regressor, shape (n_latents,)."""
    if hasattr(model, "feature_importances_"):
        return np.asarray(model.feature_importances_)
    return np.abs(np.atleast_2d(model.coef_)).sum(0)


def _relative_entropy(shares: np.ndarray) -> np.ndarray:
    """Return the entropy of each row over the logarithm of its length, shape (n_rows,)."""
    logarithm = np.log(np.where(shares > 0.0, shares, 1.0))
    return -(shares * logarithm).sum(1) / np.log(shares.shape[1])
