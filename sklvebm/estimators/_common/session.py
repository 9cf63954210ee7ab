"""One call of `fit`: its rows, its parameters, its random numbers, its output."""

from typing import Any, NamedTuple

import numpy as np
import torch

from sklvebm.estimators._common.transactional_fit import Reporter
from sklvebm.preprocessing.prepared import PreparedData
from sklvebm.training import Progress


class FitSession(NamedTuple):
    """Everything that one call of `fit` hands to the steps of its family."""

    data: PreparedData
    config: Any  # the family's own kind of TrainingConfig
    random_state: np.random.RandomState  # source of all seeds
    report: Reporter  # receives stages, and the progress of each epoch in the units of X
    continues: bool = False  # whether there was a fit before
    keep_best: bool = True  # the epoch with the best monitored value; else the last average

    def draw_seed(self) -> int:
        """Draw a seed from the source of all seeds."""
        return self.random_state.randint(np.iinfo(np.int32).max)

    def report_epoch(self, progress: Progress) -> None:
        """Print the progress of an epoch, with its value in the units of X."""
        jacobian = self.data.standardisation.log_jacobian
        self.report(progress, progress.lower_bound + jacobian)


class Outcome(NamedTuple):
    """What a family's training returns to the estimator."""

    model: Any  # answers questions; has a `standardisation`
    diagnostics: Any
    training: Any  # what a continued fit starts from
    history: list[Progress]
    value: float  # monitored, of what is kept: nats per row, units of X
    improved: bool  # on the reference
    is_reference: bool  # the model is the reference: training did not help
    converged: bool
    device: torch.device
    one_epoch: bool = False  # of `partial_fit`
