"""How many threads torch may use for a piece of work, chosen by its size and always restored.

Small tensors on many threads are up to a hundred times slower than on one as soon as another
process holds a core, because every operation waits at a barrier for the busy core.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# One matrix product of a step must have this many multiply-adds before a second thread pays.
_MULTIPLY_ADDS_PER_THREAD = 2.0e7

_lock = threading.Lock()
_own = threading.local()
_active = 0
_restore = 1


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


@contextmanager
def limited_threads(n_threads: int) -> Iterator[None]:
    """Run the body with at most `n_threads` torch threads and restore the setting afterwards.

    The count that torch keeps belongs to the Python thread. Each thread gets back what it had when
    it entered; one that is new to torch starts with a limit that another set, and gets back what
    the first to enter had.

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
        torch.set_num_threads(min(n_threads, before))
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            _own.depth = depth
            torch.set_num_threads(before)
