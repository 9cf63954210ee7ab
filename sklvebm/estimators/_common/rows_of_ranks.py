"""The rows of a training that several processes share: each rank has a part of them."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from sklvebm.communication import Communicator
from sklvebm.optimisation import Optimisation
from sklvebm.preprocessing.prepared import PreparedData

_CPU = torch.device("cpu")
_FEWEST_ROWS = 2  # of a rank, in a batch and in all


class TrainingRows(NamedTuple):
    """Standardised rows of a training, with their weights, or None where all are equal."""

    fitted: Tensor  # (N, D)
    monitored: Tensor  # (N_monitor, D)
    fitted_weights: Tensor | None = None  # (N,)
    monitored_weights: Tensor | None = None  # (N_monitor,)

    def on(self, device: torch.device) -> "TrainingRows":
        """Return the rows on a device."""
        weights = self.fitted_weights, self.monitored_weights
        moved = [None if part is None else part.to(device) for part in weights]
        return TrainingRows(self.fitted.to(device), self.monitored.to(device), *moved)

    def of_rank(self, rank: int, n_ranks: int) -> "TrainingRows":
        """Return the rows of a rank; numbers of fitted rows differ by one at most."""
        fitted = monitored = slice(rank, None, n_ranks)  # rows may be sorted: shares are alike
        if len(self.monitored) < n_ranks:
            monitored = slice(None)  # each rank has all of them
        weights = (self.fitted_weights, fitted), (self.monitored_weights, monitored)
        own = [None if part is None else part[places].clone() for part, places in weights]
        return TrainingRows(self.fitted[fitted].clone(), self.monitored[monitored].clone(), *own)

    @property
    def total_weight(self) -> float:
        """Sum of the weights of the fitted rows."""
        weights = self.fitted_weights
        return float(len(self.fitted) if weights is None else weights.sum())


class RowsOfRank(NamedTuple):
    """What one rank has that others have not; tensors on the CPU."""

    rows: TrainingRows
    row_share: float  # weight of the rank's rows, one where ranks have equal weights
    seed: int


def can_share_rows(data: PreparedData, n_ranks: int) -> bool:
    """Return whether rows can be divided among ranks: complete ones, enough for each rank."""
    n_rows = len(data.split.fitted)
    return n_ranks > 1 and data.observed is None and n_rows >= _FEWEST_ROWS * n_ranks


def scattered_rows(
    ranks: Communicator, rows: TrainingRows, generator: torch.Generator
) -> RowsOfRank:
    """Give each rank its rows; return those of rank 0, which calls this."""
    parts = [rows.on(_CPU).of_rank(rank, ranks.size) for rank in range(ranks.size)]
    totals = [part.total_weight for part in parts]
    row_shares = [total * ranks.size / sum(totals) for total in totals]
    device = generator.device
    seeds = torch.randint(2**62, (ranks.size,), generator=generator, device=device).tolist()
    own: RowsOfRank = ranks.scatter(
        [RowsOfRank(*of_rank) for of_rank in zip(parts, row_shares, seeds, strict=True)]
    )
    return own


def batch_size_of_rank(batch_size: int, n_rows: int, n_ranks: int) -> int:
    """Return the rows of a batch of one rank, for batches of all ranks together."""
    return max(_FEWEST_ROWS, -(-min(batch_size, n_rows) // n_ranks))


def optimisation_on_cpu(optimisation: Optimisation) -> Optimisation:
    """Return a copy of an optimisation on the CPU."""
    twin = copy.deepcopy(optimisation)
    for model in (twin.energy, twin.average):
        model.to(_CPU)
    twin.optimizer.to(_CPU)
    return twin
