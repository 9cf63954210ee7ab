"""Particles of all rows in one contiguous block: in memory, or in a file where they are many."""

import math
import os
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RowParticles:
    """Particles of all rows, written in place; a deep copy is independent.

    The file is temporary and has no name where the system allows that. Its space is freed with the
    particles, even if the process is killed. The system may take its pages out of memory.

    Parameters
    ----------
    shape : tuple of int
        `(N, K, L)`: rows, particles per row, latents.
    like : Tensor
        Gives dtype and device.
    most_bytes : float, default=math.inf
        Bytes up to which particles stay in memory. Those on a GPU stay there.

    Attributes
    ----------
    values : Tensor of shape (N, K, L)
        Not initialised.
    is_mapped : bool
        Whether they are in a file.

    Raises
    ------
    OSError
        If there is no space for the file.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, most_bytes: float = math.inf) -> None:
        self.most_bytes = most_bytes
        n_bytes = math.prod(shape) * like.element_size()
        self.is_mapped = like.device.type == "cpu" and n_bytes > most_bytes
        if self.is_mapped:
            self.values = _mapped(shape, like.dtype, n_bytes)
        else:
            self.values = torch.empty(shape, dtype=like.dtype, device=like.device)

    def __len__(self) -> int:
        return len(self.values)

    def state(self) -> dict[str, Any]:
        """Return the particles, not copied."""
        return {"values": self.values}

    def load(self, state: dict[str, Any]) -> None:
        """Copy particles that `state` returned to the place of these."""
        self.values.copy_(state["values"])

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowParticles":
        twin = RowParticles(tuple(self.values.shape), self.values, self.most_bytes)
        twin.values.copy_(self.values)
        memo[id(self)] = twin
        return twin


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, n_bytes: int) -> Tensor:
    """Return a tensor on a temporary file of its own."""
    with tempfile.TemporaryFile(prefix="sklvebm-") as file:
        if hasattr(os, "posix_fallocate"):
            # without reserved space, a full disk would end the process at the first write
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        plain = str(dtype).removeprefix("torch.")
        # the map outlives the file object
        return torch.from_numpy(np.memmap(file, dtype=plain, mode="r+", shape=shape))
