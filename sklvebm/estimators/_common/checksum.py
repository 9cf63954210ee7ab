"""A checksum of stored state: a model whose numbers were damaged must not answer with others."""

import hashlib
import numbers
from typing import Any

import numpy as np

_KEY = "_checksum"


def with_checksum(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of arrays and plain types with the checksum of all of them."""
    return {**state, _KEY: _digest(state)}


def without_checksum(state: dict[str, Any]) -> dict[str, Any]:
    """Return what `with_checksum` was given.

    Raises
    ------
    ValueError
        If it is not what it was.
    """
    state = dict(state)
    stored = state.pop(_KEY, None)
    if stored is not None and stored != _digest(state):
        raise ValueError(
            "The stored model is damaged: its numbers are not those that were stored. Store it "
            "again from the model, or copy the file anew."
        )
    return state


def _digest(state: dict[str, Any]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    _feed(hasher, state)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    """Add a value to a hash: its kind and its numbers, whatever container or precision names them.

    Storage may turn tuples into lists and NumPy's scalars into Python's. Objects of other kinds,
    such as a user's own energy, are left out.
    """
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            hasher.update(f"{key}:".encode())
            _feed(hasher, value[key])
    elif isinstance(value, list | tuple):
        hasher.update(f"[{len(value)}".encode())
        for part in value:
            _feed(hasher, part)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        hasher.update(f"{value.dtype.str}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, str):
        hasher.update(value.encode())
    elif isinstance(value, numbers.Real):
        hasher.update(float(value).hex().encode())
