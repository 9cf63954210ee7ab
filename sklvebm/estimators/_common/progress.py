"""Tasks of a fit for scikit-learn's callbacks, which exist from its version 1.9 on.

A fit is one task. Its parts are "reference", an "epoch" for each epoch, and "normalising". All are
direct parts of the fit, so that `ProgressBar` draws one bar.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn before 1.9
    # mypy sees both branches
    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for scikit-learn's class, without `set_callbacks`."""

    def with_callbacks(method: Any) -> Any:
        """Return the method."""
        return method


_N_OTHER_TASKS = 2  # the reference, normalising


class CallbackSupport(CallbackSupportMixin):
    """`set_callbacks` of an estimator, where scikit-learn has callbacks."""


def n_tasks_of(estimator: Any, one_epoch: bool = False) -> int | None:
    """Return the largest number of parts of a fit; None before `max_iter` is known to be legal."""
    n_epochs = 1 if one_epoch else estimator.max_iter
    is_legal = isinstance(n_epochs, Integral) and int(n_epochs) >= 0
    return int(n_epochs) + _N_OTHER_TASKS if is_legal else None


@contextmanager
def fit_task(estimator: Any, X: Any, n_tasks: int | None) -> Iterator[None]:
    """Tell callbacks of an estimator that its fit begins and ends; nothing if it has none.

    Stands around `unchanged_on_failure`, so that callbacks are taken down after a failure, too.
    """
    has_parent = hasattr(estimator, "_parent_callback_ctx")  # a pipeline, for example
    if not (has_parent or getattr(estimator, "_skl_callbacks", None)):
        yield
        return
    try:
        context = estimator._init_callback_context(max_subtasks=n_tasks)
        context.call_on_fit_task_begin(estimator=estimator, X=X)
        yield
        # no further attributes, because the estimator itself is fitted; no y, which is ignored
        context.call_on_fit_task_end(estimator=estimator, X=X, reconstruction_attributes=dict)
    finally:
        # takes down what `_init_callback_context` has set up; a decorated `fit` would add a level
        # to the stack, on which the places of warnings are counted
        with_callbacks(lambda _: None)(estimator)


class Tasks:
    """The parts of a fit, as callbacks see them.

    Parameters
    ----------
    estimator : estimator
        Within `fit_task`.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator
        self.fit = getattr(estimator, "_callback_fit_ctx", None)
        self.current: Any = None
        self.name = ""
        self.n_begun = 0
        self.stops = False  # whether a callback has asked to stop training

    def begin(self, name: str) -> None:
        """End the current part and begin another; nothing if it is the current one."""
        if self.fit is None or name == self.name:
            return
        self.end()
        if self._has_room(1):
            self.current, self.name = self.fit.subcontext(task_name=name), name
            self.n_begun += 1
            self.current.call_on_fit_task_begin(estimator=self.estimator)

    def end(self) -> None:
        """End the current part, if there is one."""
        context, self.current, self.name = self.current, None, ""
        if context is not None:
            self.stops |= bool(context.call_on_fit_task_end(estimator=self.estimator))

    def epoch(self) -> None:
        """Begin and end the part of an epoch, which training reports when it is over."""
        # the last part is that of normalising
        if self._has_room(2):
            self.begin("epoch")
            self.end()

    def _has_room(self, n_more: int) -> bool:
        most = None if self.fit is None else self.fit.max_subtasks
        return most is None or self.n_begun + n_more <= most
