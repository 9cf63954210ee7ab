"""The rows of one fit: checked, standardised and split once."""

from typing import NamedTuple

import numpy as np

from sklvebm.preprocessing.scaling import Standardisation, check_reach, fit_standardisation
from sklvebm.preprocessing.splitting import Rows, split_rows


class PreparedData(NamedTuple):
    """Standardised rows, with the places of those that are fitted and those that are monitored."""

    standardised: np.ndarray  # (N, D), float64
    standardisation: Standardisation
    split: Rows

    @property
    def fitted(self) -> np.ndarray:
        """Rows that reference and energy are fitted to, (n_fitted, D): a copy."""
        return self.standardised[self.split.fitted]

    @property
    def monitored(self) -> np.ndarray:
        """Rows that decide when to stop and what to keep, (n_monitored, D): a copy."""
        return self.standardised[self.split.monitor]

    @property
    def holds_out(self) -> bool:
        """Whether some rows are not fitted to."""
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
        The same rows are held out whenever the same number of rows is given.
    standardisation : Standardisation or None, default=None
        Units of an earlier fit that is continued; None takes those of X.

    Raises
    ------
    ValueError
        If rows are too far out for any density; names them.
    """
    standardisation = fit_standardisation(X) if standardisation is None else standardisation
    standardised = standardisation.apply(X)
    check_reach(standardised, X)
    split = split_rows(X, held_out_share, np.random.RandomState(split_seed))
    return PreparedData(standardised, standardisation, split)
