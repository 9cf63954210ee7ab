"""Answers about many rows: in chunks that fit in memory, side by side on the processor."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from sklvebm.messages import FEWER_ROWS, naming_memory
from sklvebm.runtime import numerical_session
from sklvebm.threads import limited_threads, most_threads


def answer_rows(
    module: nn.Module,
    rows: np.ndarray,
    device: torch.device,
    answer: Callable[[Any, Tensor, int], Tensor],
    parts: Iterable[slice],
) -> np.ndarray:
    """Apply `answer(module, rows, number of the chunk)` to chunks of rows and join the results.

    On the CPU, chunks run side by side with one torch thread each: no thread waits for another, so
    a busy core costs its share and nothing more. Results do not depend on the number of threads.

    Parameters
    ----------
    module : torch.nn.Module
        Of a fitted model, on `device`.
    rows : ndarray of shape (n_samples, n_columns)
        Taken in float64; not modified.
    device : torch.device
        Where answers are computed.
    answer : callable
        Returns as many numbers, or rows of them, as it is given rows.
    parts : iterable of slice
        The chunks, in order.

    Raises
    ------
    MemoryError
        If memory is short; says what to pass less of.
    """
    tasks = list(enumerate(parts))

    def run(number: int, part: slice) -> np.ndarray:
        # a copy: torch refuses memory that is read-only
        x = torch.from_numpy(np.array(rows[part], dtype=np.float64)).to(device)
        with numerical_session(1):
            return answer(module, x, number).cpu().numpy()

    n_jobs = min(len(tasks), most_threads()) if device.type == "cpu" else 1
    with limited_threads(1), naming_memory(FEWER_ROWS):
        if n_jobs == 1:
            return np.concatenate([run(*task) for task in tasks])
        results = Parallel(n_jobs=n_jobs, require="sharedmem")(delayed(run)(*t) for t in tasks)
    return np.concatenate(results)
