"""One call of `fit`: rows, parameters, random numbers and output."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from sklvebm.checkpointing import TRAINING, Checkpoint
from sklvebm.communication import ALONE, Communicator
from sklvebm.estimators._common.keeper_of_ranks import KeeperOfRanks
from sklvebm.estimators._common.transactional_fit import Reporter
from sklvebm.mixtures.missing_fit import completed_by
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.stacking import MixtureChoice
from sklvebm.preprocessing.margins import Margin
from sklvebm.preprocessing.prepared import PreparedData
from sklvebm.training_course import Progress


class FitSession(NamedTuple):
    """The input of one call of `fit` to the steps of its family."""

    data: PreparedData
    config: Any  # the family's own kind of TrainingConfig
    random_state: np.random.RandomState  # source of all seeds
    report: Reporter  # receives stages, and the progress of each epoch in the units of X
    continues: bool = False  # an earlier fit
    keep_best: bool = True  # keep the epoch with the best monitored value, not the last average
    choice: MixtureChoice | None = None  # of the reference's mixtures, where already made
    checkpoint: Checkpoint | None = None  # within `checkpoints`
    ranks: Communicator = ALONE  # that take part in training; this is rank 0

    def draw_seed(self) -> int:
        """Draw a seed from `random_state`."""
        return self.random_state.randint(np.iinfo(np.int32).max)

    def cached(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose results are kept in `memory` and in the checkpoint."""
        in_memory, checkpoint = self.config.cached(function), self.checkpoint
        if checkpoint is None:
            return in_memory

        def cached(*args: Any, **kwargs: Any) -> Any:
            return checkpoint.result(function.__name__, lambda: in_memory(*args, **kwargs))

        return cached

    def keeper(self, n_chains: int = 0, stage: str = TRAINING) -> KeeperOfRanks | None:
        """Return the keeper of a stage of this process alone; None without a checkpoint."""
        checkpoint = self.checkpoint
        return None if checkpoint is None else KeeperOfRanks(ALONE, checkpoint, n_chains, stage)

    def completed_by(self, reference: MixtureReference) -> "FitSession":
        """Return the session with missing cells drawn from a reference given the observed cells."""
        if self.data.observed is None:
            return self
        return self._replace(data=completed_by(self.data, reference, self.draw_seed()))

    def mapped_by(self, margins: tuple[Margin | None, ...]) -> "FitSession":
        """Return the session with columns mapped by their histograms."""
        return self._replace(data=self.data.mapped_by(margins))

    def report_epoch(self, progress: Progress) -> bool:
        """Report an epoch, with its value in the units of X; return whether training is to stop."""
        jacobian = self.data.log_jacobian
        return self.report(progress, progress.lower_bound + jacobian)


class Outcome(NamedTuple):
    """The result of a family's training."""

    model: Any  # has a `standardisation`
    diagnostics: Any
    training: Any  # the start of a continued fit
    history: list[Progress]
    value: float  # monitored value of the model, nats per row, units of X
    improved: bool  # the model is better than the reference
    is_reference: bool  # the model is the reference, because training did not help
    converged: bool
    device: torch.device
    one_epoch: bool = False  # of `partial_fit`
    log_jacobian: float = 0.0  # mean over the monitored rows, from mapped rows to X, nats
