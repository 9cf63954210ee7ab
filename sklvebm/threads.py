"""How many threads a piece of work may use, chosen by its size and always restored.

Operations that share their work out to threads are up to a hundred times slower than on one thread
as soon as another process holds a core, because each waits at a barrier for the busy core. Hence
torch has one thread wherever work can be cut into parts that go side by side: they meet once a
move, not once an operation. How work is cut depends on its size alone, so that results do not
depend on the number of threads.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# One matrix product of a step must have this many multiply-adds before a second thread pays.
_MULTIPLY_ADDS_PER_THREAD = 2.0e7
# Multiply-adds of one call from which two parts pay, and of each of more parts: a part costs a few
# dozen operations more, about what 5e6 multiply-adds do.
_WORTH_TWO_PARTS, _OF_EACH_PART = 4.0e7, 8.0e7
_MOST_PARTS = 8

_lock = threading.Lock()
_own = threading.local()
_team = threading.local()  # of the thread that opened one
_active = 0
_restore = 1
_is_forked = False


def _note_fork() -> None:
    """Note that this process is a fork: OpenMP's threads stayed behind in the parent.

    An operation that shares its work out to them would wait for ever.
    """
    global _is_forked
    _is_forked = True


def is_forked() -> bool:
    """Return whether this process is a fork of one that had imported the package."""
    return _is_forked


os.register_at_fork(after_in_child=_note_fork)


def threads_for(n_positions: int, n_weights: int) -> int:
    """Return the number of threads for energy calls on `n_positions` rows.

    Parameters
    ----------
    n_positions : int
        Rows of one energy call.
    n_weights : int
        Multiply-adds per row, about the number of weights of the network.

    Returns
    -------
    n_threads : int
        Between 1 and torch's current setting.
    """
    wanted = int(n_positions * n_weights / _MULTIPLY_ADDS_PER_THREAD)
    return max(1, min(torch.get_num_threads(), wanted))


def n_parts(n_positions: int, n_weights: int) -> int:
    """Return into how many parts to cut energy calls on `n_positions` rows; arguments as above."""
    work = float(n_positions) * n_weights
    if work < _WORTH_TWO_PARTS:
        return 1
    return min(n_positions, max(2, min(_MOST_PARTS, int(work / _OF_EACH_PART))))


@contextmanager
def team(n_threads: int) -> Iterator[None]:
    """Run the body with one torch thread, and what it gives to `side_by_side` on several threads.

    Parameters
    ----------
    n_threads : int
        Most threads that work on parts; with one, parts are worked on in turn.
    """
    before = getattr(_team, "executor", None)
    with limited_threads(1), ExitStack() as closing:
        _team.executor = None
        if n_threads > 1:  # no thread starts before there is work for it
            n_helpers = min(n_threads, _MOST_PARTS) - 1
            helpers = ThreadPoolExecutor(n_helpers, initializer=_use_threads, initargs=(1,))
            _team.executor = closing.enter_context(helpers)
        try:
            yield
        finally:
            _team.executor = before


def most_threads() -> int:
    """Return how many threads parts of a work may have: torch's setting, or one where none start.

    None start while the interpreter shuts down, and those of a fork stayed in its parent.
    """
    alone = _is_forked or not threading.main_thread().is_alive()
    return 1 if alone else torch.get_num_threads()


def side_by_side(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """Return `function` of each part, as `map` does; on the threads of a `team` where there is one.

    Parameters
    ----------
    function : callable
        Draws no numbers from a source that parts share.
    *columns : sequences of one length
        Its arguments for every part.
    """
    executor = getattr(_team, "executor", None)
    parts = list(zip(*columns, strict=True))
    if executor is None or len(parts) == 1:
        return [function(*part) for part in parts]
    if not threading.main_thread().is_alive():
        # the interpreter is shutting down, and starts no threads any more
        return [function(*part) for part in parts]
    records, results = torch.is_grad_enabled(), [None] * len(parts)
    waiting = iter(range(len(parts)))  # whoever is free takes the next

    def work() -> None:
        with torch.inference_mode(False), torch.set_grad_enabled(records):
            for number in waiting:
                results[number] = function(*parts[number])

    helpers = [executor.submit(work) for _ in parts[1:]]  # those without a thread find nothing left
    _team.executor = None  # within a part, work is done in turn
    try:
        work()
    finally:
        _team.executor = executor
        wait(helpers)
    for helper in helpers:
        helper.result()
    return results


@contextmanager
def limited_threads(n_threads: int) -> Iterator[None]:
    """Run the body with at most `n_threads` torch threads and restore the setting afterwards.

    The count that torch keeps belongs to the Python thread. Each thread gets back what it had when
    it entered; one that enters while others have limits may have started with theirs, and gets back
    what the first to enter had. Threads that are started in the body need limits of their own.

    Parameters
    ----------
    n_threads : int
        Upper limit on torch's intra-operation threads.
    """
    global _active, _restore
    with _lock:
        if _active == 0:
            _restore = torch.get_num_threads()
        _active += 1
        depth = getattr(_own, "depth", 0)
        before = torch.get_num_threads() if depth else _restore
        _own.depth = depth + 1
        _use_threads(1 if _is_forked else min(n_threads, before))
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            _own.depth = depth
            torch.set_num_threads(before)


def _use_threads(n_threads: int) -> None:
    """Set the number of torch threads of the calling Python thread for good."""
    # at its first operation, a thread that has never asked takes what any thread set last
    torch.get_num_threads()
    torch.set_num_threads(n_threads)
