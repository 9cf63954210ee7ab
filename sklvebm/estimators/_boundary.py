"""Arrays in, arrays out: conversion, standardisation, seeds, devices and global state."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from threadpoolctl import threadpool_limits

from sklvebm.estimators._messages import naming_columns
from sklvebm.thread_limits import is_forked, limited_threads
from sklvebm.validation import check_random_state

# particles handled at once: 8 MB per activation of a layer of 128 units in float64
_CHUNK_PARTICLES = 2**13
_REACH = 20.0  # interquartile ranges: values farther from the median count as that far in the scale
_UNREACHABLE = 1e30  # scales of a column: squares must be finite in single precision
_FAR = 1e6  # scales: values farther out are named
_MOST_NAMED = 3  # rows of a column
_ROUNDINGS = 8.0  # spacings of floating-point numbers: values no farther apart are one
FAR_OUT = 1e100  # standardised units: squares are finite, and all that counts is the direction
_OVERFLOWING = 1e150  # standard deviations: squares and products with precisions may be infinite


def without_numpy_errors(function: Callable) -> Callable:
    """Return a function in which `np.seterr` of the caller raises and warns of nothing.

    What is too small for a number is zero, and what is too large infinite, wherever that matters.
    """

    @functools.wraps(function)
    def quiet(*args: Any, **kwargs: Any) -> Any:
        # not `errstate` as a decorator: one of NumPy 1 is shared by all threads
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return quiet


class Standardisation(NamedTuple):
    """Affine map of the data to zero mean and unit variance, column by column."""

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,), standard deviation, 1 for constant columns

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Return standardised rows in float64; X is not modified."""
        with np.errstate(over="ignore"):  # what is beyond all numbers is infinitely far out
            rows = np.subtract(X, self.mean, dtype=np.float64)
            rows /= self.scale  # in place: rows can be most of the memory there is
        return rows

    def invert(self, X: np.ndarray) -> np.ndarray:
        """Return rows in the units of the data, float64."""
        return X * self.scale + self.mean

    @property
    def log_jacobian(self) -> float:
        """Log density in data units minus log density in standardised units, in nats."""
        return -float(np.log(self.scale).sum())


def standardisation(X: np.ndarray) -> Standardisation:
    """Measure mean and standard deviation of each column, outliers moved in.

    Warns
    -----
    UserWarning
        If columns are constant, where a density has no scale, or values are a million scales from
        the others.
    """
    X = np.asarray(X, dtype=np.float64)
    inner = without_outliers(X)
    mean = inner.mean(axis=0)
    # the squares of the smallest numbers are zero
    spread = np.abs(inner - mean).max(axis=0)
    unit = np.where((spread > 0.0) & (spread < 1.0 / _OVERFLOWING), spread, 1.0)
    scale = unit * (inner / unit).std(axis=0)
    # 0.1 + 0.2 and 0.3 are one value
    constant = np.ptp(X, axis=0) <= _ROUNDINGS * np.spacing(np.abs(X).max(axis=0))
    if constant.any():
        warnings.warn(
            f"Columns {np.flatnonzero(constant).tolist()} of X are constant. Their density is set "
            "by a variance floor of 1e-6; remove them, or compare scores on this X only.",
            UserWarning,
            stacklevel=5,
        )
    chart = Standardisation(np.where(constant, X[0], mean), np.where(constant, 1.0, scale))
    far = np.abs(chart.apply(X)) > _FAR
    if far.any():
        warnings.warn(_far_values(X, far), UserWarning, stacklevel=5)
    return chart


def _far_values(X: np.ndarray, far: np.ndarray) -> str:
    """Return the message on values of X (N, D) that are far out by flags (N, D)."""
    columns, found = np.flatnonzero(far.any(axis=0)), []
    for column in columns[:_MOST_NAMED]:
        rows, others = np.flatnonzero(far[:, column]), X[~far[:, column], column]
        distance = np.abs(X[rows, column] - others.mean()).max() / others.std()
        distance = min(distance, np.finfo(np.float64).max)
        names = ", ".join(str(row) for row in rows[:_MOST_NAMED])
        more = f" and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else ""
        subject, verb = ("row", "is") if len(rows) == 1 else ("rows", "are")
        found.append(
            f"{subject} {names}{more} of column {column} {verb} "
            f"{distance:.0e} scales from the others".replace("e+", "e")
        )
    if len(columns) > _MOST_NAMED:
        found.append(f"{len(columns) - _MOST_NAMED} more columns have such rows")
    text = "; ".join(found)
    return (
        f"{text[0].upper()}{text[1:]}. If such values stand for missing or unknown ones, remove "
        "their rows; else transform the columns, by a logarithm for example."
    )


def zero_where_squares_overflow(log_density: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return log densities (N,) of standardised rows (N, D), -inf instead of NaN very far out.

    Every reference is zero there, but the difference of two infinite terms is no number.
    """
    far = np.abs(rows).max(axis=1) > _OVERFLOWING
    return np.where(np.isnan(log_density) & far, -np.inf, log_density)


def repeats_together(X: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an order of rows in which those that repeat each other are neighbours.

    Cut anywhere between groups, no part then has copies of another's rows, on which overfitting
    would look like success. A group of repeated rows is where its first row was.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows.
    order : ndarray of shape (n_samples,)
        A permutation of their places; returned as it is where no rows repeat.
    """
    _, group = np.unique(X[order], axis=0, return_inverse=True)
    group = group.reshape(-1)
    if group.max(initial=-1) + 1 == len(order):
        return order
    first = np.full(len(order), len(order))
    np.minimum.at(first, group, np.arange(len(order)))
    return order[np.argsort(first[group], kind="stable")]


def check_reach(standardised: np.ndarray, X: np.ndarray) -> None:
    """Raise ValueError if rows (n_samples, n_features) are too far out for any density.

    Raises
    ------
    ValueError
        Names rows, columns, and what such values often are.
    """
    far = ~(np.abs(standardised) < _UNREACHABLE)
    if not far.any():
        return
    rows, columns = np.flatnonzero(far.any(1)), np.flatnonzero(far.any(0))
    first = X[rows[0], np.flatnonzero(far[rows[0]])[0]]
    named = ", ".join(map(str, rows[:_MOST_NAMED])) + (", ..." if len(rows) > _MOST_NAMED else "")
    raise ValueError(
        f"Rows [{named}] of X are {_UNREACHABLE:g} scales or more from the others in columns "
        f"{columns.tolist()} (for instance {first:.4g}), farther than any density can be "
        "computed. If such values are codes for missing ones, replace them or drop the rows."
    )


def finite(rows: np.ndarray) -> np.ndarray:
    """Return rows with the largest numbers in place of infinite ones."""
    most = np.finfo(np.float64).max
    return np.clip(rows, -most, most)


def without_outliers(X: np.ndarray) -> np.ndarray:
    """Return X with values far out moved in, so that few of them do not set a scale."""
    low, middle, high = np.quantile(X, [0.25, 0.5, 0.75], axis=0)
    reach = _REACH * (high - low)
    for column in np.flatnonzero(~(reach > 0.0)):
        # half of the values are the same: the others say how far apart values are
        away = np.abs(X[:, column] - middle[column])
        others = away[away > 0.0]
        reach[column] = 2.0 * _REACH * np.median(others) if len(others) else np.inf
    return np.clip(X, middle - reach, middle + reach)


def as_plain_array(X: Any) -> Any:
    """Turn torch tensors into NumPy arrays and leave everything else alone."""
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype in (torch.bfloat16, torch.float16) else X).numpy()
    return X


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """Return a torch generator on `device`, seeded."""
    return torch.Generator(device=device).manual_seed(seed)


def generator_of(random_state: Any) -> np.random.RandomState:
    """Return a NumPy generator; None is fresh entropy, so that the global one stays as it is.

    A `numpy.random.Generator` is moved on by one draw, which seeds the result.
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
        If the device is not known or not available here.
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
            # whatever torch knows: a device serves if it holds a number in double precision
            torch.zeros((), dtype=torch.float64, device=resolved).item()
    # broad on purpose: torch has no one error for a device that is not there
    except Exception:
        is_usable = False
    if not is_usable:
        raise ValueError(
            f"device={device!r} is not available on this machine, or has no double precision; use "
            "device='auto' or 'cpu'."
        )
    return resolved


def _default_device_cpu() -> AbstractContextManager:
    """Return a context in which new tensors lie on the CPU."""
    # entered only where it changes something: it takes a part in every call of torch
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextmanager
def numerical_session(n_threads: int) -> Iterator[None]:
    """Run the body outside of inference mode and autocast, without gradients, with few threads.

    Tensors without a device of their own are made on the CPU, whatever `torch.set_default_device`
    says: estimators have their own parameter.

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
        Particles of each.
    numbers_per_particle : int, default=1
        About how many numbers in double precision an answer makes for each.
    """
    affordable = int(working_memory() / (8 * numbers_per_particle))
    size = max(1, min(_CHUNK_PARTICLES, affordable) // particles_per_row)
    for first in range(0, n_rows, size):
        yield slice(first, first + size)


def checked_rows(estimator: BaseEstimator, X: Any, *, reset: bool, least: int = 1) -> np.ndarray:
    """Return X as a float array (n_samples, n_features), checked by scikit-learn.

    Parameters
    ----------
    estimator : BaseEstimator
        Remembers the columns if `reset`, else knows them.
    X : array-like of shape (n_samples, n_features)
        Rows in the units of the data.
    reset : bool
        Whether these are the rows that a fit starts from.
    least : int, default=1
        Fewest rows.

    Raises
    ------
    ValueError, TypeError
        If X is not usable, or has other columns than the rows fitted.
    """
    with naming_columns(X):
        return validate_data(
            estimator,
            as_plain_array(X),
            reset=reset,
            dtype=[np.float64, np.float32],
            order="C",
            ensure_min_samples=least,
        )
