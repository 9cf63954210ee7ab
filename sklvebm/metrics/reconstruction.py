"""Errors of reconstructions of rows."""

from typing import Any

import numpy as np

from sklvebm.metrics._pairwise import check_two_samples
from sklvebm.validation import validate_params


@validate_params({"X": ["array-like"], "X_reconstructed": ["array-like"], "relative": ["boolean"]})
def reconstruction_rmse(X: Any, X_reconstructed: Any, *, relative: bool = False) -> float:
    r"""Return the root mean squared error of reconstructions, per coordinate.

    .. math:: \Bigl( \frac{1}{n d} \sum_{i=1}^n |x_i - \hat x_i|^2 \Bigr)^{1/2}

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows.
    X_reconstructed : array-like of shape (n_samples, n_features)
        Their reconstructions, in the same order.
    relative : bool, default=False
        Whether to divide by the error of the mean of X. A value near one then means that the
        reconstruction hardly depends on the row.

    Returns
    -------
    rmse : float
        In units of X; without unit if `relative`. Zero is best.

    Raises
    ------
    ValueError
        If shapes differ, or X is constant with `relative=True`.

    See Also
    --------
    factor_recovery : Prediction of factors from latents.

    Examples
    --------
    >>> from sklvebm.metrics import reconstruction_rmse
    >>> round(reconstruction_rmse([[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]), 4)
    0.7071
    """
    X, reconstructed = check_two_samples(X, X_reconstructed, least=1)
    if len(X) != len(reconstructed):
        raise ValueError(
            f"X and X_reconstructed must have equally many rows, got {len(X)} and "
            f"{len(reconstructed)}."
        )
    error = float(np.sqrt(np.mean((X - reconstructed) ** 2)))
    if not relative:
        return error
    spread = float(np.sqrt(np.mean((X - X.mean(0)) ** 2)))
    if spread == 0.0:
        raise ValueError("X must not be constant if the error is relative.")
    return error / spread
