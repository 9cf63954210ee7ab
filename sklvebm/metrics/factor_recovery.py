"""Prediction of the true factors of rows from their latents."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm.metrics._factors import as_targets, check_latents_and_factors, explained_share
from sklvebm.validation import Interval, check_random_state, validate_params


class FactorRecovery(NamedTuple):
    """Out-of-fold R² of predictions of each factor from all latents; at most one.

    Attributes
    ----------
    linear : ndarray of shape (n_factors,)
        By linear regression: whether the factor is a direction in latent space.
    nearest_neighbours : ndarray of shape (n_factors,)
        By nearest neighbours: whether the latents determine the factor at all.

    See Also
    --------
    factor_recovery : Computes it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import FactorRecovery
    >>> recovery = FactorRecovery(linear=np.array([0.2]), nearest_neighbours=np.array([0.9]))
    >>> bool(recovery.nearest_neighbours[0] > recovery.linear[0])  # determined, but nonlinearly
    True
    """

    linear: np.ndarray
    nearest_neighbours: np.ndarray


@validate_params(
    {
        "latents": ["array-like"],
        "factors": ["array-like"],
        "circular": [tuple, list],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "cv": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    }
)
def factor_recovery(
    latents: Any,
    factors: Any,
    *,
    circular: Sequence[int] = (),
    n_neighbors: int = 10,
    cv: int = 5,
    random_state: Any = None,
) -> FactorRecovery:
    r"""Return the R² of predictions of each factor from the latents, by two regressors.

    .. math:: R^2 = 1 - \sum_i |v_i - \hat v_i|^2 / \sum_i |v_i - \bar v|^2

    on held-out rows, with factors v and predictions `v̂`. A circular factor φ is the point
    `v = (cos φ, sin φ)`, which is continuous at the ends of its interval.

    Parameters
    ----------
    latents : array-like of shape (n_samples, n_latents)
        Latents of rows; standardised inside.
    factors : array-like of shape (n_samples, n_factors)
        Their true factors.
    circular : tuple of int, default=()
        Columns of `factors` that are angles, in radians.
    n_neighbors : int, default=10
        Neighbours, weighted by inverse distance.
    cv : int, default=5
        Number of folds.
    random_state : int, RandomState, Generator or None, default=None
        Source of the folds.

    Returns
    -------
    recovery : FactorRecovery
        `linear` and `nearest_neighbours`: R² of each factor, without unit. One is perfect, zero is
        the value of the mean, and negative values are possible.

    Raises
    ------
    ValueError
        If shapes do not match, a factor is constant, or a parameter is not legal.

    See Also
    --------
    dci : Whether single latents determine single factors.

    Notes
    -----
    Latents that are angles themselves should be passed as cosine and sine.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm.metrics import factor_recovery
    >>> angle = np.random.RandomState(0).uniform(0.0, 2.0 * np.pi, 500)
    >>> latents = np.stack([np.cos(angle), np.sin(angle)], 1)
    >>> factor_recovery(latents, angle[:, None], circular=(0,), random_state=0).linear.round(6)
    array([1.])
    """
    latents, factors = check_latents_and_factors(latents, factors)
    targets = as_targets(factors, circular)
    # one seed gives the same folds for both regressors and all factors
    seed = check_random_state(random_state).randint(2**31 - 1)
    folds = KFold(cv, shuffle=True, random_state=seed)
    regressors = (
        LinearRegression(),
        KNeighborsRegressor(n_neighbors, weights="distance"),
    )
    return FactorRecovery(
        *(
            np.array(
                [
                    explained_share(
                        target,
                        cross_val_predict(
                            make_pipeline(StandardScaler(), regressor), latents, target, cv=folds
                        ).reshape(target.shape),
                    )
                    for target in targets
                ]
            )
            for regressor in regressors
        )
    )
