"""Files that are replaced in one step."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file in one step: it has its old or its new content at any time, also after a crash.

    Parameters
    ----------
    path : Path
        The file; its folder exists.
    write : callable
        Writes the content to an open binary file.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path))
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def temporary_prefix(path: Path) -> str:
    """Return what the names of temporary files of a file begin with."""
    return f".{path.name}-"


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a loss of power, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
