"""Work that is recorded once and replayed: CUDA graphs of functions that work in fixed tensors.

A GPU takes a few microseconds to start each of the small operations of an update, and often less to
run it. A graph starts all of them at once.
"""

import warnings
from collections.abc import Callable, Hashable

import torch

Work = Callable[[], None]

_WARM_UP = 3  # calls before a recording: libraries choose kernels, and results that are kept appear
_MOST_KEPT = 16  # recordings; each has memory of its own


class Recordings:
    """A function without arguments, replayed where its device can record.

    Parameters
    ----------
    work : callable
        Reads and writes tensors that stay where they are, with operations that depend on `kind`
        alone. It leaves nothing else behind: a replay does not run its Python code.
    generator : torch.Generator
        Source of all its random numbers; replays go on where it is.

    Notes
    -----
    Graphs have never run on a GPU: tests replay operations on a simulated device.
    """

    def __init__(self, work: Work, generator: torch.Generator) -> None:
        self.work, self.generator = work, generator
        self._recorder = recorder_of(generator.device)
        self._calls: dict[Hashable, int] = {}
        self._replays: dict[Hashable, Work] = {}

    def __call__(self, kind: Hashable) -> None:
        """Do the work once, as a replay if there is a recording of this kind.

        Parameters
        ----------
        kind : hashable
            All numbers of the host, and shapes, that the operations depend on.
        """
        if kind in self._replays:
            self._replays[kind]()
            return
        calls = self._calls[kind] = self._calls.get(kind, 0) + 1
        if self._recorder is None or calls <= _WARM_UP:
            self.work()
            return
        if len(self._replays) == _MOST_KEPT:  # kinds with an earlier learning rate do not come back
            self._replays.clear()
            self._calls.clear()
        try:
            self._replays[kind] = self._recorder(self.work, self.generator)
        # broad on purpose: operations of users' energies may refuse with any error
        except Exception as error:
            self._recorder = None
            warnings.warn(
                f"Steps cannot be recorded as a CUDA graph ({error}); they run operation by "
                "operation, with the same results.",
                RuntimeWarning,
                stacklevel=2,
            )
            self.work()


def recorder_of(device: torch.device) -> Callable[[Work, torch.Generator], Work] | None:
    """Return the function that records work on a device; None where there is none.

    It takes the work and its generator, does the work once and returns what repeats it.
    """
    return record_graph if device.type == "cuda" else None


def can_record(device: torch.device) -> bool:
    """Return whether work on a device can be recorded."""
    return recorder_of(device) is not None


def record_graph(work: Work, generator: torch.Generator) -> Work:
    """Record work as a CUDA graph, run the graph once and return its replay."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    replay: Work = graph.replay
    return replay
