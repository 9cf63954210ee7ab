"""Computations on many rows, in chunks that fit in memory and run in parallel on the CPU."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from sklvebm.messages import FEWER_ROWS, naming_memory
from sklvebm.row_blocks import Sliceable
from sklvebm.runtime import numerical_session
from sklvebm.threads import limited_threads, most_threads


def answer_rows(
    module: nn.Module,
    rows: Sliceable,
    device: torch.device,
    answer: Callable[[Any, Tensor, int], Tensor],
    parts: Iterable[slice],
) -> np.ndarray:
    """Apply `answer(module, rows, number of the chunk)` to chunks of rows and join the results.

    On the CPU, chunks run in parallel with one torch thread each, and a busy core delays only its
    own chunks. Results do not depend on the number of threads.

    Parameters
    ----------
    module : torch.nn.Module
        Module of a fitted model, on `device`.
    rows : ndarray or MappedRows of shape (n_samples, n_columns)
        Converted to float64, chunk by chunk; not modified.
    device : torch.device
        Device of the computation.
    answer : callable
        Returns one number, or one row of numbers, for each row.
    parts : iterable of slice
        The chunks, in order.

    Raises
    ------
    MemoryError
        If memory is short; with a remedy.
    """
    tasks = list(enumerate(parts))

    def run(number: int, part: slice) -> np.ndarray:
        # a copy, because torch does not accept read-only memory
        x = torch.from_numpy(np.array(rows[part], dtype=np.float64)).to(device)
        with numerical_session(1):
            return answer(module, x, number).cpu().numpy()

    n_jobs = min(len(tasks), most_threads()) if device.type == "cpu" else 1
    with limited_threads(1), naming_memory(FEWER_ROWS):
        if n_jobs == 1:
            return np.concatenate([run(*task) for task in tasks])
        results = Parallel(n_jobs=n_jobs, require="sharedmem")(delayed(run)(*t) for t in tasks)
    return np.concatenate(results)
