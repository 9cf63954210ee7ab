"""Errors of other packages, raised again with the column or the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_OOM_TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "unable to allocate")
_MAX_NAMED = 3  # in one message
FEWER_ROWS = "pass fewer rows, or decrease working_memory by sklearn.set_config"


@contextmanager
def naming_columns(X: Any) -> Iterator[None]:
    """Name the columns of X that are not numeric, if the body fails because of them."""
    try:
        yield
    except (TypeError, ValueError) as error:
        found = _without_numbers(X)
        if not found:
            raise
        kind = ValueError if isinstance(error, ValueError) else TypeError
        named = ", ".join(found[:_MAX_NAMED])
        more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        noun, verb = ("Column", "is") if len(found) == 1 else ("Columns", "are")
        raise kind(
            f"{noun} {named}{more} of X {verb} not numeric: {error}. Encode such columns as "
            "numbers, or drop them."
        ) from error


def _without_numbers(X: Any) -> list[str]:
    """Return the names or indices of columns that are not numeric."""
    if hasattr(X, "column_names"):  # of pyarrow
        columns = [(repr(name), X[name]) for name in X.column_names]
    elif hasattr(X, "columns"):
        columns = [(repr(name), X[name]) for name in X.columns]
    else:
        try:
            rows = np.asarray(X, dtype=object)
        except (TypeError, ValueError):
            return []
        if rows.ndim != 2 or hasattr(X, "toarray"):
            return []
        columns = [(str(place), column) for place, column in enumerate(rows.T)]
    return [name for name, column in columns if not _is_numeric(column)]


def _is_numeric(column: Any) -> bool:
    if np.asarray(column).dtype.kind in "mM":  # times, which NumPy converts to integers
        return False
    try:
        np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        # missing and complex numbers have other messages
        return not any(_is_other(value) for value in np.asarray(column, dtype=object))
    return True


def _is_other(value: Any) -> bool:
    """Return whether a value is neither a number nor missing."""
    if value is None or type(value).__name__ in ("NAType", "NaTType") or np.iscomplexobj(value):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return True
    return False


@contextmanager
def naming_memory(remedy: str) -> Iterator[None]:
    """Raise with a remedy, if the body runs out of memory.

    Parameters
    ----------
    remedy : str
        An imperative, such as "decrease batch_size".

    Raises
    ------
    MemoryError
        In place of torch's errors and of those without a remedy.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_memory and not any(words in text for words in _OOM_TEXTS):
            raise
        if remedy in str(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise MemoryError(f"Out of memory ({reason}); {remedy}.") from error
