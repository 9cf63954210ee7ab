"""Computations that several processes share: collective operations over `torch.distributed`."""

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sklvebm.exceptions import ParticleDivergenceError, RankError

_LOOK_EVERY = timedelta(seconds=1)  # for failures of other ranks, while an operation is waited for
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # that torchrun sets


class Communicator:
    """Collective operations of the ranks of a computation; this one is for a single process.

    All ranks must call the same methods in the same order, except for `alarm`.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    max_bytes : float
        Of rows that rank 0 gathers.
    """

    rank, size, max_bytes = 0, 1, math.inf

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, a new tensor of the same shape."""
        return tensor.clone()

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, (size, ...); all have the same shape (...)."""
        return tensor.unsqueeze(0)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Return the value that rank `source` passes; what other ranks pass is ignored."""
        return value

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order, on rank 0; an empty list on others.

        Values go one after another, so that no other rank holds more than one of them.
        """
        every = [self.broadcast(value, source) for source in range(self.size)]
        return every if self.rank == 0 else []

    def scatter(self, values: Sequence[Any]) -> Any:
        """Return the value that rank 0 has for this rank; other ranks pass an empty sequence."""
        own = values[0] if self.rank == 0 else None
        for rank in range(1, self.size):
            value = self.broadcast(values[rank] if self.rank == 0 else None)
            own = value if rank == self.rank else own
        return own

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace the gradients of parameters by their means over all ranks, in one operation."""

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """Run the body on all ranks; if it raises on one of them, raise on all of them.

        Raises
        ------
        RankError
            If it raised on another rank; names the rank and its error.
        """
        yield

    @contextmanager
    def alarm(self) -> Iterator[None]:
        """Run the body; if it raises, other ranks raise as well where they wait for this one."""
        yield


ALONE = Communicator()
_active: ContextVar[Communicator] = ContextVar("communicator", default=ALONE)


def active() -> Communicator:
    """Return the communicator of the context `distributed`, outside that of a single process."""
    return _active.get()


@contextmanager
def activated(communicator: Communicator) -> Iterator[Communicator]:
    """Make a communicator the active one in the body, of this thread."""
    token = _active.set(communicator)
    try:
        yield communicator
    finally:
        _active.reset(token)


@contextmanager
def distributed(*, timeout: float = 1800.0, max_bytes: float = 2.0**32) -> Iterator[Communicator]:
    """Share `fit` and `score` among the processes of `torch.distributed`.

    Within the context, each process passes its own rows: `fit` of `ParticleLVEBM`,
    `WassersteinFlowEBM`, `PotentialFlowEBM` and `MixtureStack` fits the rows of all processes, and
    all end with the same model. `score` is the mean over the rows of all. Both must be called by
    all processes. Other methods work on the rows of their process alone, as ever.

    Parameters
    ----------
    timeout : float, default=1800.0
        Seconds that a process waits for others in one operation, at most. It must be longer than
        the parts of a fit that rank 0 does alone, during which others wait.
    max_bytes : float, default=2**32
        Bytes of all rows together up to which `fit` gathers them on rank 0.

    Yields
    ------
    communicator : Communicator
        Has the number of this process, `rank`, and the number of processes, `size`.

    Raises
    ------
    RuntimeError
        If there is no process group, and torchrun has not set the environment for one; or if a
        context is active already.
    ValueError
        If a parameter is not a positive number. By `fit`: if all rows together take more than
        `max_bytes`.
    RankError
        By `fit` and `score`, a `RuntimeError`: if another process failed, was killed or did not
        answer in time. The context must be left then.

    See Also
    --------
    checkpoints : Continues a fit of one process after a kill.

    Notes
    -----
    Training of energies and potentials is shared, and so is the density ratio. Rank 0 does
    everything else, and holds all rows; :doc:`/user_guide/distributed` says what that means for
    time and memory.
    Numbers go through the CPU, by gloo, also from GPUs. Ranks trust each other: objects are sent
    as pickles, as by `torch.distributed.broadcast_object_list`.

    Examples
    --------
    A script for ``torchrun --nproc-per-node 2 script.py``, here with a group of one process:

    >>> import torch.distributed as dist
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import MixtureStack, distributed
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> with distributed() as ranks:
    ...     own_rows = load_iris().data[ranks.rank :: ranks.size]
    ...     stack = MixtureStack(effort="fast", random_state=0).fit(own_rows)
    >>> stack.n_features_in_
    4
    >>> dist.destroy_process_group()
    """
    for name, value in {"timeout": timeout, "max_bytes": max_bytes}.items():
        given: Any = value
        is_number = isinstance(given, Real) and not isinstance(given, bool)
        if not (is_number and float(given) > 0.0):
            raise ValueError(f"{name} must be a positive number, got {value!r}.")
    if active() is not ALONE:
        raise RuntimeError("distributed() is active already; leave it before entering it again.")
    with ExitStack() as closing:
        communicator = _communicator(closing, float(timeout), float(max_bytes))
        closing.enter_context(activated(communicator))
        yield communicator


def _communicator(closing: ExitStack, timeout: float, max_bytes: float) -> Communicator:
    """Return the communicator of the default group, which is made where torchrun asks for it."""
    import torch.distributed as dist  # takes long, and most processes need none

    if not dist.is_available():
        raise RuntimeError("distributed() needs a torch that was built with torch.distributed.")
    wait = timedelta(seconds=min(timeout, 1e7))
    if not dist.is_initialized():
        missing = [name for name in _ENVIRONMENT if name not in os.environ]
        if missing:
            raise RuntimeError(
                "distributed() needs a process group: start the script by torchrun, or call "
                f"torch.distributed.init_process_group first ({', '.join(missing)} not set)."
            )
        dist.init_process_group("gloo", timeout=wait)
        closing.callback(dist.destroy_process_group)
    if dist.get_world_size() == 1:
        return ALONE
    # a group of its own: operations of the caller's cannot come between
    group = dist.new_group(backend="gloo", timeout=wait)
    closing.callback(dist.destroy_process_group, group)
    return ProcessGroupCommunicator(group, timeout, max_bytes)


class ProcessGroupCommunicator(Communicator):
    """Collective operations of the processes of a gloo group; see `Communicator`.

    While a process waits, it looks for a note of another one that has failed. The connection to a
    process that was killed is closed, which ends the wait at once.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        All processes.
    timeout : float
        Seconds to wait in one operation.
    max_bytes : float
        Of rows that rank 0 gathers.
    """

    def __init__(self, group: Any, timeout: float, max_bytes: float) -> None:
        import torch.distributed as dist
        from torch.distributed import distributed_c10d

        self._dist, self._group, self._timeout = dist, group, timeout
        self.rank, self.size, self.max_bytes = dist.get_rank(), dist.get_world_size(), max_bytes
        # the store by which the processes have found each other
        self._store = distributed_c10d._get_default_store()
        self._note = f"sklvebm/{group.group_name}/failure"
        self._agreed: Exception | None = None  # the last error that all ranks know of
        self._has_failed = False

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, a new tensor of the same shape."""
        total = tensor.detach().cpu().clone()
        self._wait(lambda: self._dist.all_reduce(total, group=self._group, async_op=True))
        return total.to(tensor.device)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, (size, ...); all have the same shape (...)."""
        own = tensor.detach().cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self._wait(lambda: self._dist.all_gather(parts, own, group=self._group, async_op=True))
        return torch.stack(parts).to(tensor.device)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Return the value that rank `source` passes, any that can be pickled."""
        is_source = self.rank == source
        # arrays of NumPy stay where they are: rows may take much of the memory
        arrays: list[memoryview] = []
        parts: list[Any] = []
        if is_source:
            packed = pickle.dumps(
                value, protocol=5, buffer_callback=lambda buffer: arrays.append(buffer.raw())
            )
            # torch reads from what could be written to only
            writable = [bytearray(part) if part.readonly else part for part in arrays]
            parts = [bytearray(packed), *writable]
        n_parts = torch.tensor([len(parts)])
        self._send(n_parts, source)
        n_bytes = torch.tensor([len(part) for part in parts] or [0] * int(n_parts))
        self._send(n_bytes, source)
        parts = parts if is_source else [bytearray(n) for n in n_bytes.tolist()]
        for part in parts:
            if len(part):
                self._send(torch.frombuffer(part, dtype=torch.uint8), source)
        return value if is_source else pickle.loads(parts[0], buffers=parts[1:])

    def _send(self, tensor: Tensor, source: int) -> None:
        """Fill a tensor with that of rank `source`."""
        self._wait(lambda: self._dist.broadcast(tensor, source, group=self._group, async_op=True))

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace the gradients of parameters by their means over all ranks, in one operation."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not grads:
            return
        flat = self.sum(torch.cat([grad.reshape(-1) for grad in grads])).div_(self.size)
        parts = flat.split([grad.numel() for grad in grads])
        for grad, mean in zip(grads, parts, strict=True):
            grad.copy_(mean.view_as(grad))

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """Run the body on all ranks; if it raises on one of them, raise on all of them."""
        own: Exception | None = None
        try:
            yield
        # broad on purpose: whatever it is, other ranks must not wait for this one
        except Exception as error:
            own = error
        notes = [self.broadcast(own and _described(own), rank) for rank in range(self.size)]
        failures = [f"Rank {r} failed: {note}" for r, note in enumerate(notes) if note]
        if failures:
            self._agreed = RankError(failures[0]) if own is None else own
            raise self._agreed

    @contextmanager
    def alarm(self) -> Iterator[None]:
        """Run the body; if it raises, other ranks raise as well where they wait for this one."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, RankError) or error is self._agreed:
                raise  # the others know
            self._has_failed = True
            diverged = isinstance(error, ParticleDivergenceError)
            note = {"rank": self.rank, "error": _described(error), "diverged": diverged}
            # the process that holds the store may have ended; others see that without a note
            with suppress(RuntimeError):
                self._store.set(self._note, json.dumps(note))
            raise

    def _wait(self, begin: Callable[[], Any]) -> None:
        """Begin an operation and wait until it is complete, or another rank has failed."""
        if self._has_failed:
            raise RankError(
                "A rank has failed before; leave the context distributed() and enter it again."
            )
        until, is_begun = time.monotonic() + self._timeout, False
        while True:
            try:
                if not is_begun:
                    work, is_begun = begin(), True
                work.wait(_LOOK_EVERY)
                return
            except RuntimeError as error:
                # a connection was closed if an operation could not begin, or is complete
                is_lost = not is_begun or work.is_completed()
                # gloo has the same timeout, and may notice first
                is_late = time.monotonic() > until or (is_lost and "Timed out" in str(error))
                is_lost = is_lost and not is_late
                failure = self._failure() or (self._lost(error) if is_lost else None)
                if failure is None and is_late:
                    failure = RankError(
                        f"Another rank did not answer within timeout={self._timeout:g} s. All "
                        "ranks must call fit and score the same number of times."
                    )
                if failure is not None:
                    self._has_failed = True
                    raise failure from error

    def _failure(self) -> Exception | None:
        """Return the failure that another rank has noted, as an error."""
        try:
            if not self._store.check([self._note]):
                return None
            note = json.loads(self._store.get(self._note))
        except RuntimeError as error:
            return self._lost(error)
        message = f"Rank {note['rank']} failed: {note['error']}"
        # as on that rank, so that estimators are left in the same state
        return ParticleDivergenceError(message) if note["diverged"] else RankError(message)

    def _lost(self, error: RuntimeError) -> RankError:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        return RankError(f"The connection to another rank was lost; it may have ended: {reason}")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def mean_over_ranks(ranks: Communicator, value: float, weight: float) -> float:
    """Return the weighted mean of the values of all ranks."""
    total = ranks.sum(torch.tensor([weight * value, weight], dtype=torch.float64))
    return float(total[0] / total[1])
