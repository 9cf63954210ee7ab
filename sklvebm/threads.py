"""Numbers of threads, chosen by the size of a computation and restored afterwards.

If another process occupies a core, an operation with several threads can take a hundred times
longer than with one: all threads wait at a barrier for the busy core. The package therefore gives
torch one thread and splits computations into parts that run in parallel and wait once per move,
not once per operation. The split depends on the size of the computation alone, so that results do
not depend on the number of threads.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# multiply-adds of one matrix product for which each further thread is worth its overhead
_MULTIPLY_ADDS_PER_THREAD = 2.0e7
# Multiply-adds of one call from which two parts are faster than one, and multiply-adds of each part
# if there are more. A part costs a few dozen operations, about as much as 5e6 multiply-adds.
_MIN_SPLIT_MULTIPLY_ADDS, _MIN_PART_MULTIPLY_ADDS = 4.0e7, 8.0e7
_MAX_PARTS = 8

_lock = threading.Lock()
_own = threading.local()
_team = threading.local()  # of the thread that opened one
_active = 0
_restore = 1
_is_forked = False


def _note_fork() -> None:
    """Record that this process is a fork, in which OpenMP's threads do not exist.

    An operation that waits for them would never return.
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
    """Return the number of parts of an energy call; parameters as in `threads_for`."""
    work = float(n_positions) * n_weights
    if work < _MIN_SPLIT_MULTIPLY_ADDS:
        return 1
    return min(n_positions, max(2, min(_MAX_PARTS, int(work / _MIN_PART_MULTIPLY_ADDS))))


@contextmanager
def team(n_threads: int) -> Iterator[None]:
    """Run the body with one torch thread, and its calls of `side_by_side` on several threads.

    Parameters
    ----------
    n_threads : int
        Upper limit on threads for parts; with one, parts run in turn.
    """
    before = getattr(_team, "executor", None)
    with limited_threads(1), ExitStack() as closing:
        _team.executor = None
        if n_threads > 1:  # threads start at the first task
            n_helpers = min(n_threads, _MAX_PARTS) - 1
            helpers = ThreadPoolExecutor(n_helpers, initializer=_use_threads, initargs=(1,))
            _team.executor = closing.enter_context(helpers)
        try:
            yield
        finally:
            _team.executor = before


def most_threads() -> int:
    """Return the limit on threads for parts: torch's setting, or one where no thread can start.

    No thread can start while the interpreter shuts down, or in a fork.
    """
    alone = _is_forked or not threading.main_thread().is_alive()
    return 1 if alone else torch.get_num_threads()


def side_by_side(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """Return `function` of each part, as `map` does, on the threads of the active `team`.

    Parameters
    ----------
    function : callable
        Must not draw random numbers from a generator that parts share.
    *columns : sequences of one length
        Arguments for each part.
    """
    executor = getattr(_team, "executor", None)
    parts = list(zip(*columns, strict=True))
    if executor is None or len(parts) == 1:
        return [function(*part) for part in parts]
    if not threading.main_thread().is_alive():
        # the interpreter is shutting down and starts no threads
        return [function(*part) for part in parts]
    records, results = torch.is_grad_enabled(), [None] * len(parts)
    waiting = iter(range(len(parts)))  # a free thread takes the next part

    def work() -> None:
        with torch.inference_mode(False), torch.set_grad_enabled(records):
            for number in waiting:
                results[number] = function(*parts[number])

    helpers = [executor.submit(work) for _ in parts[1:]]  # late ones find no parts left
    _team.executor = None  # nested calls run in turn
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

    torch keeps this setting for each Python thread, and a new thread starts with the setting that
    any thread made last. A thread that enters while others have limits may therefore have started
    with a limit; it is restored to the setting of the first thread that entered. Threads started
    in the body need limits of their own.

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
    """Set the number of torch threads of the calling Python thread permanently."""
    # else the thread's first operation replaces its setting by the latest of any thread
    torch.get_num_threads()
    torch.set_num_threads(n_threads)
