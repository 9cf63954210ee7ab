"""The rows of one fit: checked, standardised and split once."""

from typing import NamedTuple

import numpy as np

from sklvebm.preprocessing.margins import Margin
from sklvebm.preprocessing.scaling import Standardisation, check_reach, fit_standardisation
from sklvebm.preprocessing.splitting import Rows, split_rows
from sklvebm.row_weights import DistinctRows, chosen, mean_of


class PreparedData(NamedTuple):
    """Standardised rows, with the indices of fitted and monitored rows."""

    standardised: np.ndarray  # (N, D), float64, NaN in missing cells
    standardisation: Standardisation
    split: Rows
    completed: np.ndarray  # (N, D), `standardised` itself where no cell is missing
    mean_log_slope: float = 0.0  # of the margins, over the monitored rows, nats
    row_weights: np.ndarray | None = None  # (N,), positive, mean one; None where all are equal

    @property
    def fitted(self) -> np.ndarray:
        """Training rows of reference and energy, completed, (n_fitted, D); a copy."""
        return self.completed[self.split.fitted]

    @property
    def monitored(self) -> np.ndarray:
        """Completed rows for early stopping and acceptance of a model, (n_monitored, D); a copy."""
        return self.completed[self.split.monitor]

    @property
    def judged(self) -> np.ndarray:
        """The monitored rows with NaN in missing cells, (n_monitored, D); a copy."""
        return self.standardised[self.split.monitor]

    @property
    def fitted_weights(self) -> np.ndarray | None:
        """Weights of the training rows, (n_fitted,), or None where all are equal."""
        return chosen(self.row_weights, self.split.fitted)

    @property
    def monitored_weights(self) -> np.ndarray | None:
        """Weights of the monitored rows, (n_monitored,), or None where all are equal."""
        return chosen(self.row_weights, self.split.monitor)

    @property
    def log_jacobian(self) -> float:
        """Mean log density of the monitored rows in data units minus that of mapped ones, nats."""
        return self.standardisation.log_jacobian + self.mean_log_slope

    def mapped_by(self, margins: tuple[Margin | None, ...]) -> "PreparedData":
        """Return the data with columns mapped by their densities; modifies the rows."""
        units = self.standardisation._replace(margins=margins)
        slopes = self.standardised[self.split.monitor], units, self.monitored_weights
        mean_log_slope = _mean_log_slope(*slopes)
        rows = units.mapped(self.standardised)
        completed = rows if self.observed is None else units.mapped(self.completed)
        return PreparedData(rows, units, self.split, completed, mean_log_slope, self.row_weights)

    @property
    def holds_out(self) -> bool:
        """Whether some rows are held out."""
        return len(self.split.fitted) < len(self.standardised)

    @property
    def observed(self) -> np.ndarray | None:
        """All rows with NaN in missing cells, (N, D), or None where no cell is missing."""
        return None if self.completed is self.standardised else self.standardised


def prepare(
    distinct: DistinctRows,
    held_out_share: float,
    split_seed: int,
    standardisation: Standardisation | None = None,
) -> PreparedData:
    """Standardise rows and decide which of them are held out.

    Parameters
    ----------
    distinct : DistinctRows
        Validated rows in the units of the data, NaN in missing cells; not modified.
    held_out_share : float
        Share of the rows to hold out; 0 monitors training rows.
    split_seed : int
        Seed of the split: the same rows are held out of the same number of rows.
    standardisation : Standardisation or None, default=None
        Units of an earlier fit that is continued; None takes those of the rows.

    Raises
    ------
    ValueError
        If rows are too distant for any density; names them.
    """
    X, row_weights, places, _ = distinct
    if standardisation is None:
        standardisation = fit_standardisation(X, row_weights, places)
    standardised = standardisation._replace(margins=None).apply(X)
    split = split_rows(X, held_out_share, np.random.RandomState(split_seed))
    monitored_weights = chosen(row_weights, split.monitor)
    mean_log_slope = _mean_log_slope(
        standardised[split.monitor], standardisation, monitored_weights
    )
    rows = standardisation.mapped(standardised)
    check_reach(rows, X, places)
    return PreparedData(rows, standardisation, split, rows, mean_log_slope, row_weights)


def _mean_log_slope(
    rows: np.ndarray, units: Standardisation, row_weights: np.ndarray | None
) -> float:
    """Return the mean log slope of the margins over monitored rows, nats."""
    if units.margins is None or len(rows) == 0:
        return 0.0
    return mean_of(units.log_slopes(rows), row_weights)
