"""Course of the classification that finds a density ratio: its settings, its epochs, its end."""

import copy
import math
from typing import Any, NamedTuple

from sklvebm.models.energies import AnchoredEnergy
from sklvebm.optimisation import copied, write
from sklvebm.training_course import Plateau, Progress

# of the learning rate, on a plateau; how many such reductions come before the plateau that ends it
_LEARNING_RATE_FACTOR, _N_REDUCTIONS = 0.3, 2
# Share of the needed gain without which epochs end at the first plateau. What gained anything in
# the end had more: see docs/benchmarks/defaults.md.
_PLATEAU_SHARE = 0.5


class RatioRecipe(NamedTuple):
    """Settings of the classification."""

    learning_rate: float
    weight_decay: float  # per unit of learning rate
    batch_size: int  # rows
    max_epochs: int
    tol: float  # smallest relevant improvement, nats
    patience: int  # epochs without one that make a plateau
    averaged_over: int  # updates: memory of the running average of the parameters
    needed: float = -math.inf  # mean gain on held-out rows, nats, below which nothing is gained

    def is_hopeless(self, gain: float, n_plateaus: int) -> bool:
        """Return whether further epochs will not reach the needed gain.

        Parameters
        ----------
        gain : float
            Of the best epoch so far on held-out rows, nats.
        n_plateaus : int
            Plateaus so far.
        """
        return n_plateaus > 0 and gain < _PLATEAU_SHARE * self.needed


def ratio_recipe(
    n_rows: int, *, max_epochs: int, tol: float, patience: int, n_networks: int = 1
) -> RatioRecipe:
    """Return settings for numbers of rows and networks; see docs/benchmarks/tables.md."""
    return RatioRecipe(
        learning_rate=3e-3 if n_networks == 1 else 6e-3,
        weight_decay=0.1,
        batch_size=min(256, max(32, n_rows // 16)),
        max_epochs=max_epochs,
        tol=tol,
        patience=patience,
        averaged_over=50,
    )


class RatioEpoch(NamedTuple):
    """One epoch: its gain over the reference on held-out rows, and what it came from."""

    number: int
    gain: float  # nats per row; NaN where parameters are not finite
    learning_rate: float
    loss: float  # of the classification, nats per row

    def progress(self, base: float) -> Progress:
        """Return the epoch for a history; `base` is the reference's log density, nats per row."""
        value, is_sound = base + self.gain, math.isfinite(self.gain)
        problem = "" if is_sound else "the density ratio is not finite"
        return Progress(self.number, value, self.learning_rate, {"ratio_loss": self.loss}, problem)


class RatioCourse:
    """What the epochs have led to: the best energy, the learning rate, when to stop.

    Parameters
    ----------
    energy : AnchoredEnergy
        Before the first epoch; its correction is zero.
    recipe : RatioRecipe
        Settings.
    """

    def __init__(self, energy: AnchoredEnergy, recipe: RatioRecipe) -> None:
        self.best, self.best_gain = copy.deepcopy(energy), 0.0
        self.learning_rate, self.max_epochs = recipe.learning_rate, recipe.max_epochs
        self.recipe, self.plateau = recipe, Plateau(recipe.tol, recipe.patience)
        self.epochs: list[RatioEpoch] = []
        self._has_ended = False

    @property
    def is_over(self) -> bool:
        """Whether no epoch follows."""
        return self._has_ended or len(self.epochs) >= self.max_epochs

    def note(self, epoch: RatioEpoch, average: AnchoredEnergy) -> None:
        """Take note of an epoch, after which the running average is `average`."""
        self.epochs.append(epoch)
        if not math.isfinite(epoch.gain):
            self._has_ended = True
            return
        if epoch.gain > self.best_gain:
            self.best, self.best_gain = copy.deepcopy(average), epoch.gain
        self.plateau.update(epoch.gain)
        is_plateau, n_plateaus = self.plateau.reached(), self.plateau.n_reductions
        if self.recipe.is_hopeless(self.best_gain, n_plateaus):
            self._has_ended = True
        elif is_plateau:
            self._has_ended = n_plateaus > _N_REDUCTIONS
            self.learning_rate *= _LEARNING_RATE_FACTOR

    def numbers(self) -> dict[str, Any]:
        """Return all that `load` needs."""
        return {
            "best": copied(self.best),
            "best_gain": self.best_gain,
            "learning_rate": self.learning_rate,
            "plateau": self.plateau.state(),
            "history": self.epochs,
            "has_ended": self._has_ended,
        }

    def load(self, numbers: dict[str, Any]) -> None:
        """Take over what `numbers` returned."""
        write(self.best, numbers["best"])
        self.best_gain, self.learning_rate = numbers["best_gain"], numbers["learning_rate"]
        self.plateau.load(numbers["plateau"])
        self.epochs, self._has_ended = numbers["history"], numbers["has_ended"]
