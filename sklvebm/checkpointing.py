"""Checkpoints of a long fit: a file from which it is continued after its process has ended."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sklvebm.exceptions import DamagedStateError
from sklvebm.files import replace_file, temporary_prefix
from sklvebm.trees import Arrays, decoded, encoded

_FILE = "checkpoint.npz"
_DESCRIPTION = "description"  # name of the array that holds JSON
_PREFIX = "arrays/"  # of the other names
# the parts of a fit whose states between two epochs are stored, one after the other
RATIO, TRAINING = "the density ratio", "training"


class _Settings(NamedTuple):
    """Where checkpoints go, and how often."""

    folder: Path
    every: float  # seconds


_active: ContextVar[_Settings | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints(folder: str | os.PathLike[str], *, every: float = 60.0) -> Iterator[None]:
    """Store the state of a fit now and then, and continue the fit that a folder has stored.

    Within the context, `fit` of `ParticleLVEBM`, `WassersteinFlowEBM` and `PotentialFlowEBM` writes
    a checkpoint into the folder. After a kill, the same code continues from there. The result is
    that of an uninterrupted fit, to the last bit on the same machine and versions. When the fit
    has succeeded, its checkpoint is removed.

    Parameters
    ----------
    folder : str or path-like
        Made if it does not exist. Gets one file, `checkpoint.npz`, of arrays and JSON. Use a folder
        of its own for each fit that runs at the same time.
    every : float, default=60.0
        Seconds from one checkpoint to the next; 0 stores the state after every epoch. The ends of
        the density ratio and of training are stored in every case.

    Yields
    ------
    nothing : None
        The folder is used by `fit` within the context.

    Raises
    ------
    ValueError
        If `every` is negative or not a number. By `fit`: if the file belongs to a fit of other
        rows, parameters or versions (names them), if it is damaged (`DamagedStateError`), or if
        the fit continues an earlier one (`warm_start`, `partial_fit`).

    See Also
    --------
    save_model : Stores a fitted estimator.

    Notes
    -----
    The file holds the reference, the network with its optimiser, and all particles; those of the
    rows take `n_samples * n_particles * n_components` numbers of `dtype`. It is replaced in one
    step: a kill while it is written leaves the earlier one. Loading runs no code from it.

    A context applies to the thread that entered it, and not to other processes, such as those of
    `GridSearchCV(n_jobs=2)`.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import ParticleLVEBM, checkpoints
    >>> model = ParticleLVEBM(max_iter=2, tol=None, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder, checkpoints(folder):
    ...     model = model.fit(load_iris().data)
    >>> model.n_iter_
    2
    """
    given: Any = every
    is_number = isinstance(given, Real) and not isinstance(given, bool)
    if not is_number or not 0.0 <= float(every) < math.inf:
        raise ValueError(f"every must be a number of seconds >= 0, got {every!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    token = _active.set(_Settings(folder, float(every)))
    try:
        yield
    finally:
        _active.reset(token)


def is_active() -> bool:
    """Return whether a fit is to store checkpoints."""
    return _active.get() is not None


class Checkpoint:
    """The checkpoint of one fit, within `checkpoints`.

    Parameters
    ----------
    identity : dict of str to str
        All that results depend on, by name. A file with another identity is refused.

    Raises
    ------
    ValueError
        If the file belongs to another fit, or is damaged.
    """

    def __init__(self, identity: dict[str, str]) -> None:
        settings = _active.get()
        if settings is None:
            raise RuntimeError("There is a checkpoint within `checkpoints` only.")
        self.path, self._every = settings.folder / _FILE, settings.every
        self._identity = identity
        self._results: dict[str, Any] = {}
        self._stage, self._numbers = "", None  # of the part that was interrupted
        self._written = time.monotonic()
        for left_over in settings.folder.glob(f"{temporary_prefix(self.path)}*"):
            left_over.unlink(missing_ok=True)  # of a process that was killed while it wrote
        self.is_continued = self.path.exists()
        if self.is_continued:
            contents = _read(self.path, identity)
            self._results = contents["results"]
            self._stage, self._numbers = contents["stage"], contents["numbers"]

    @property
    def place(self) -> str:
        """Say after which epoch the fit was interrupted, in words."""
        if self._numbers is None:
            return "before training"
        return f"after epoch {len(self._numbers['course']['history'])} of {self._stage}"

    def result(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a result that was kept under a name, or compute and keep it.

        Parameters
        ----------
        name : str
            Of the result.
        compute : callable
            Returns arrays, tensors, plain values and named tuples of this package.
        """
        if name not in self._results:
            self._results[name] = compute()
            self._write(self._stage, self._numbers)
        return self._results[name]

    def kept(self, stage: str) -> dict[str, Any] | None:
        """Return the state of a stage that was read, once, and forget it; None without one."""
        if stage != self._stage:
            return None
        numbers, self._numbers = self._numbers, None  # particles may take much memory
        return numbers

    def keep(
        self, stage: str, numbers: Callable[[], dict[str, Any]], *, at_once: bool = False
    ) -> None:
        """Write the state of a stage that a function returns, if it is time or `at_once`.

        It takes the place of that of an earlier stage, whose outcome is a result by then.
        """
        if self.is_due(at_once):
            self._write(stage, numbers())

    def is_due(self, at_once: bool) -> bool:
        """Return whether the state of a stage is to be written now."""
        return at_once or time.monotonic() - self._written >= self._every

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def _write(self, stage: str, numbers: dict[str, Any] | None) -> None:
        arrays: Arrays = {}
        contents = {"results": self._results, "stage": stage, "numbers": numbers}
        tree = encoded(contents, arrays)
        description = {"identity": self._identity, "contents": tree}
        text = json.dumps(description, allow_nan=False).encode()
        named = {f"{_PREFIX}{name}": array for name, array in arrays.items()}
        named[_DESCRIPTION] = np.frombuffer(text, dtype=np.uint8)

        def write(file: BinaryIO) -> None:
            # the keywords include an option of another type, which no name here is equal to
            np.savez(file, **named)  # type: ignore[arg-type]

        replace_file(self.path, write)
        self._written = time.monotonic()


def _read(path: Path, identity: dict[str, str]) -> dict[str, Any]:
    """Return the contents of a checkpoint of the fit with the given identity.

    Raises
    ------
    ValueError
        If it belongs to another fit; says in what it differs.
    DamagedStateError
        If it is damaged.
    """
    remedy = f"Delete {path} to start anew."
    with path.open("rb") as opened:
        try:
            with np.load(opened, allow_pickle=False) as file:  # compares checksums
                arrays = {name.removeprefix(_PREFIX): file[name] for name in file.files}
            description = json.loads(arrays.pop(_DESCRIPTION).tobytes())
            theirs, tree = dict(description["identity"]), description["contents"]
        # broad on purpose: damaged archives raise errors of many kinds
        except Exception as error:
            raise DamagedStateError(f"The checkpoint is damaged: {error!r}. {remedy}") from error
    if theirs != identity:
        raise ValueError(
            f"The checkpoint belongs to another fit: {_differences(theirs, identity)}. Repeat that "
            f"fit to continue it, or give this one another folder. {remedy}"
        )
    contents: dict[str, Any] = decoded(tree, arrays)
    return contents


def _differences(theirs: dict[str, str], ours: dict[str, str]) -> str:
    """Return in which parts two identities differ."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{n} was {theirs.get(n)} and is {ours.get(n)}" for n in names)
