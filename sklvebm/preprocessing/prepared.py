"""The rows of one fit: checked, standardised and split once."""

from typing import NamedTuple

import numpy as np

from sklvebm.preprocessing.scaling import Standardisation, check_reach, fit_standardisation
from sklvebm.preprocessing.splitting import Rows, split_rows


class PreparedData(NamedTuple):
    """Standardised rows, with the indices of fitted and monitored rows."""

    standardised: np.ndarray  # (N, D), float64
    standardisation: Standardisation
    split: Rows

    @property
    def fitted(self) -> np.ndarray:
        """Training rows of reference and energy, (n_fitted, D); a copy."""
        return self.standardised[self.split.fitted]

    @property
    def monitored(self) -> np.ndarray:
        """Rows for early stopping and for the acceptance of a model, (n_monitored, D); a copy."""
        return self.standardised[self.split.monitor]

    @property
    def holds_out(self) -> bool:
        """Whether some rows are held out."""
        return len(self.split.fitted) < len(self.standardised)


def prepare(
    X: np.ndarray,
    held_out_share: float,
    split_seed: int,
    standardisation: Standardisation | None = None,
) -> PreparedData:
    """Standardise rows and decide which of them are held out.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Validated rows in the units of the data; not modified.
    held_out_share : float
        Share of the rows to hold out; 0 monitors training rows.
    split_seed : int
        Seed of the split: the same rows are held out of the same number of rows.
    standardisation : Standardisation or None, default=None
        Units of an earlier fit that is continued; None takes those of X.

    Raises
    ------
    ValueError
        If rows are too distant for any density; names them.
    """
    standardisation = fit_standardisation(X) if standardisation is None else standardisation
    standardised = standardisation.apply(X)
    check_reach(standardised, X)
    split = split_rows(X, held_out_share, np.random.RandomState(split_seed))
    return PreparedData(standardised, standardisation, split)
