"""`TrainingDisplay`: the course of a fit, and what it kept."""

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklvebm.plotting._panels import panels

BOUNDS = {
    "lower_bound": "ELBO, nats",
    "log_likelihood": "log-likelihood, nats",
}
SWAPS = {"swap_rate": "mean", "least_swap_rate": "least"}


class TrainingDisplay:
    """Picture of the course of a fit: monitored bound, learning rate, swaps of temperatures.

    Make one by `TrainingDisplay.from_estimator` or `from_history`, which also draw it.

    Parameters
    ----------
    epochs : ndarray of shape (n_epochs,)
        Numbers of the epochs.
    values : ndarray of shape (n_epochs,)
        Monitored bound or log-likelihood after each epoch, nats per row.
    learning_rates : ndarray of shape (n_epochs,)
        Learning rate of each epoch.
    swap_rates : dict of str to ndarray of shape (n_epochs,)
        Acceptance of swaps between neighbouring temperatures, by "mean" and "least"; empty without
        temperatures.
    problems : list of str
        What went wrong in each epoch, "" if nothing did. Such epochs were undone.
    value_name : str
        What `values` are.
    kept : str, default=""
        What `fit` kept, as a title.
    kept_value : float or None, default=None
        The monitored value of the model that was kept, nats per row.
    score : tuple of two floats or None, default=None
        Mean score of rows under the fitted model, and its standard error, nats.
    bracket_width : float, default=0.0
        Width of the bracket of log Z, nats: the score may be too low by that much.

    Attributes
    ----------
    ax_ : matplotlib axes
        The axes that were drawn on, around the panels.
    axes_ : ndarray of shape (n_panels, 1)
        The panels.
    figure_ : matplotlib figure
        Their figure.

    See Also
    --------
    EnergyDisplay : The trained energy.
    CalibrationDisplay : Whether the fitted conditionals hold on new rows.

    Examples
    --------
    >>> from sklvebm.plotting import TrainingDisplay
    >>> history = [
    ...     {"epoch": 1, "lower_bound": -3.0, "learning_rate": 0.01, "problem": ""},
    ...     {"epoch": 2, "lower_bound": -2.5, "learning_rate": 0.01, "problem": ""},
    ... ]
    >>> display = TrainingDisplay.from_history(history)
    >>> len(display.axes_)
    2
    """

    def __init__(
        self,
        *,
        epochs: np.ndarray,
        values: np.ndarray,
        learning_rates: np.ndarray,
        swap_rates: dict[str, np.ndarray],
        problems: list[str],
        value_name: str,
        kept: str = "",
        kept_value: float | None = None,
        score: tuple[float, float] | None = None,
        bracket_width: float = 0.0,
    ) -> None:
        self.epochs = epochs
        self.values = values
        self.learning_rates = learning_rates
        self.swap_rates = swap_rates
        self.problems = problems
        self.value_name = value_name
        self.kept = kept
        self.kept_value = kept_value
        self.score = score
        self.bracket_width = bracket_width

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any = None, *, ax: Any = None, **options: Any
    ) -> Self:
        """Draw the course of an estimator's fit.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `history_`.
        X : array-like of shape (n_samples, n_features) or None, default=None
            Held-out rows, whose mean score under the fitted model is drawn with its standard
            error and the width of the bracket of log Z. None draws no score.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : TrainingDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        TypeError
            If the estimator does not train in epochs.
        ValueError
            If the estimator was not trained for an epoch.
        """
        check_is_fitted(estimator)
        history = getattr(estimator, "history_", None)
        if history is None:
            raise TypeError(f"{type(estimator).__name__} has no history_ to draw.")
        bracket = getattr(estimator, "log_partition_", None)
        score = None
        if X is not None:
            scores = np.asarray(estimator.score_samples(X), dtype=np.float64)
            score = (float(scores.mean()), float(scores.std() / np.sqrt(len(scores))))
        return cls.from_history(
            history,
            kept=kept(estimator),
            kept_value=getattr(estimator, f"{_value_of(history)}_", None),
            score=score,
            bracket_width=0.0 if bracket is None else float(bracket.upper - bracket.lower),
            ax=ax,
            **options,
        )

    @classmethod
    def from_history(
        cls,
        history: list[dict[str, Any]],
        *,
        kept: str = "",
        kept_value: float | None = None,
        score: tuple[float, float] | None = None,
        bracket_width: float = 0.0,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Draw a history of epochs.

        Parameters
        ----------
        history : list of dict
            One for each epoch, as in the attribute `history_`.
        kept : str, default=""
            What the fit kept, as a title.
        kept_value : float or None, default=None
            The monitored value of the model that was kept, nats per row.
        score : tuple of two floats or None, default=None
            Mean score of rows under the fitted model, and its standard error, nats.
        bracket_width : float, default=0.0
            Width of the bracket of log Z, nats.
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        **options : dict
            Passed on to `plot`.

        Returns
        -------
        display : TrainingDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If the history is empty.
        """
        name = _value_of(history)

        def column(key: str) -> np.ndarray:
            return np.array([epoch[key] for epoch in history], dtype=np.float64)

        display = cls(
            epochs=column("epoch"),
            values=column(name),
            learning_rates=column("learning_rate"),
            swap_rates={label: column(key) for key, label in SWAPS.items() if key in history[0]},
            problems=[epoch["problem"] for epoch in history],
            value_name=BOUNDS[name],
            kept=kept,
            kept_value=kept_value,
            score=score,
            bracket_width=bracket_width,
        )
        return display.plot(ax, **options)

    def plot(self, ax: Any = None, *, color: str = "tab:blue") -> Self:
        """Draw the course of the fit.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            Where to draw; None makes a figure.
        color : str, default="tab:blue"
            Colour of the curves.

        Returns
        -------
        self : TrainingDisplay
            With `ax_`, `axes_` and `figure_`.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        n_panels = 3 if self.swap_rates else 2
        owner = type(self).__name__
        self.ax_, self.axes_ = panels(owner, ax, (n_panels, 1), size=(6.4, 2.2))
        self.figure_ = self.ax_.figure
        top, middle = self.axes_[:2, 0]
        top.plot(
            self.epochs, self.values, color=color, marker=".", label="monitored rows, each epoch"
        )
        wrong = np.array([bool(problem) for problem in self.problems])
        if wrong.any():
            top.plot(self.epochs[wrong], self.values[wrong], "x", color="crimson", label="undone")
        if self.kept_value is not None:
            top.axhline(self.kept_value, color="0.3", ls="--", label="monitored rows, model kept")
        self._draw_score(top)
        top.set_ylabel(self.value_name)
        top.set_title(self.kept, fontsize="medium")
        top.legend(fontsize="x-small")
        middle.plot(self.epochs, self.learning_rates, color=color, drawstyle="steps-mid")
        middle.set(ylabel="learning rate", yscale="log")
        if self.swap_rates:
            for (label, rates), style in zip(self.swap_rates.items(), ("-", ":"), strict=False):
                self.axes_[2, 0].plot(self.epochs, rates, style, color=color, label=label)
            self.axes_[2, 0].set(ylabel="swaps accepted", ylim=(0.0, 1.02))
            self.axes_[2, 0].legend(fontsize="small")
        for panel in self.axes_[:-1, 0]:
            panel.sharex(self.axes_[-1, 0])
            panel.tick_params(labelbottom=False)
        self.axes_[-1, 0].set_xlabel("epoch")
        return self

    def _draw_score(self, panel: Any) -> None:
        """Draw the score of rows with its error, and by how much it may be too low."""
        if self.score is None:
            return
        mean, error = self.score
        panel.axhline(mean, color="tab:green", label="score of X")
        panel.axhspan(
            mean - error,
            mean + error,
            color="tab:green",
            alpha=0.2,
            lw=0,
            label="its standard error",
        )
        if self.bracket_width > 0.0:
            panel.axhline(
                mean + self.bracket_width,
                color="tab:green",
                ls=":",
                label="score of X with the lower log Z",
            )


def _value_of(history: list[dict[str, Any]]) -> str:
    """Return the name of the monitored value in a history."""
    if not history:
        raise ValueError("history holds no epoch: nothing was trained, or max_iter is 0.")
    return next(name for name in BOUNDS if name in history[0])


def kept(estimator: Any) -> str:
    """Say what a fit kept."""
    improved = getattr(estimator, "improved_", None)
    if improved is None:
        return ""
    if improved:
        return "kept: the trained model"
    return "kept: the reference, because no gain of training was certain"
