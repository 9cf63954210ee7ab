"""Settings of the process during a computation: seeds, devices, threads, NumPy errors, memory."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from sklearn import get_config
from threadpoolctl import threadpool_limits

from sklvebm.threads import is_forked, limited_threads
from sklvebm.validation import check_random_state

P = ParamSpec("P")
R = TypeVar("R")

# particles processed at once: 8 MB for the activations of a layer of 128 units in float64
_CHUNK_PARTICLES = 2**13


def without_numpy_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function in which NumPy neither raises nor warns of floating-point errors.

    The package handles results that underflow to zero or overflow to infinity.
    """

    @functools.wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> R:
        # not `errstate` as a decorator, which all threads share in NumPy 1
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return quiet


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """Return a torch generator on `device`, seeded."""
    return torch.Generator(device=device).manual_seed(seed)


def generator_of(random_state: Any) -> np.random.RandomState:
    """Return a NumPy generator; None gives fresh entropy and leaves the global one unchanged.

    A `numpy.random.Generator` is advanced by one draw, which seeds the result.
    """
    return np.random.RandomState() if random_state is None else check_random_state(random_state)


def draw_seed(random_state: Any) -> int:
    """Return an integer seed from None, an int, a `RandomState` or a `Generator` of NumPy."""
    return int(generator_of(random_state).randint(np.iinfo(np.int32).max))


def resolve_device(device: str) -> torch.device:
    """Return the torch device of the parameter `device`.

    Raises
    ------
    ValueError
        If the device is unknown or not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0', got {device!r}."
        ) from error
    if resolved.type == "cpu":
        return resolved
    try:
        is_usable = resolved.type != "cuda" or torch.cuda.is_available()
        if is_usable:
            # any device of torch that supports double precision
            torch.zeros((), dtype=torch.float64, device=resolved).item()
    # broad on purpose: torch raises various errors for unavailable devices
    except Exception:
        is_usable = False
    if not is_usable:
        raise ValueError(
            f"device={device!r} is not available on this machine, or has no double precision; use "
            "device='auto' or 'cpu'."
        )
    return resolved


def _default_device_cpu() -> AbstractContextManager[Any]:
    """Return a context in which new tensors lie on the CPU."""
    # entered only if it changes the device: it slows every call of torch
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextmanager
def numerical_session(n_threads: int) -> Iterator[None]:
    """Run the body without inference mode, autocast and gradients, with a limit on threads.

    The default device is the CPU, whatever `torch.set_default_device` was given: estimators have a
    parameter `device`.

    Parameters
    ----------
    n_threads : int
        Upper limit on torch's threads.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        np.errstate(all="ignore"),
        limited_threads(n_threads),
        threadpool_limits(1) if is_forked() else nullcontext(),
        _default_device_cpu(),
    ):
        yield


def working_memory() -> float:
    """Return scikit-learn's limit on temporary arrays, in bytes: `sklearn.set_config` sets it."""
    return get_config()["working_memory"] * 2.0**20


def chunks(n_rows: int, particles_per_row: int, numbers_per_particle: int = 1) -> Iterator[slice]:
    """Yield slices of rows whose particles fit into one chunk, and into the working memory.

    Parameters
    ----------
    n_rows : int
        Rows in all.
    particles_per_row : int
        Particles of each row.
    numbers_per_particle : int, default=1
        Approximate numbers in double precision that are held for each particle.
    """
    affordable = int(working_memory() / (8 * numbers_per_particle))
    size = max(1, min(_CHUNK_PARTICLES, affordable) // particles_per_row)
    for first in range(0, n_rows, size):
        yield slice(first, first + size)
