"""One `fit` of several processes: rows go to rank 0, its fitted attributes to all ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from sklearn.base import BaseEstimator

from sklvebm.communication import ALONE, Communicator, activated, active
from sklvebm.estimators._common.parameters import parameters_of
from sklvebm.estimators._common.validation import checked_weights
from sklvebm.runtime import resolve_device
from sklvebm.validation import as_plain_array

_PLAIN = bool, int, float, str, tuple, list, type(None)  # kinds of values that are compared
_OF_A_RANK = {"device", "memory", "random_state", "verbose"}  # parameters that may differ


class Order(Protocol):
    """What rank 0 sends when it shares a part of a fit."""

    def follow(self, ranks: Communicator, device: torch.device) -> None:
        """Take part, on a device of this rank."""


class Fitted(NamedTuple):
    """What rank 0 sends at the end of a fit."""

    attributes: dict[str, Any]  # arrays and plain types, as they are stored


@contextmanager
def fit_of_ranks() -> Iterator[Communicator]:
    """Yield the ranks of one fit; if it fails on one of them, it fails on all.

    What is fitted within is a matter of one process.
    """
    ranks = active()
    with ranks.alarm(), activated(ALONE):
        yield ranks


def gathered_rows(
    ranks: Communicator, estimator: BaseEstimator, X: np.ndarray, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the rows of all ranks and their weights on rank 0; on others, those of the rank.

    Parameters
    ----------
    ranks : Communicator
        More than one.
    estimator : BaseEstimator
        Before its fit.
    X : ndarray of shape (n_samples, n_features)
        Validated rows of this rank.
    sample_weight : array-like of shape (n_samples,) or None
        Their weights, as they were given.

    Raises
    ------
    ValueError
        If ranks differ in parameters or columns, rows take more than `max_bytes`, or weights are
        not usable.
    RankError
        If this happened on another rank.
    """
    weights: np.ndarray | None = None
    with ranks.agreement():
        if sample_weight is not None:
            checked_weights(sample_weight, X)
            weights = np.asarray(as_plain_array(sample_weight), dtype=np.float64)
    every = [ranks.broadcast(_described(estimator, X), rank) for rank in range(ranks.size)]
    is_weighted = any(ranks.broadcast(weights is not None, rank) for rank in range(ranks.size))
    with ranks.agreement():
        _check_alike(every)
        _check_size(sum(description["rows"] for description in every), X.shape[1], ranks)
    if is_weighted and weights is None:
        weights = np.ones(len(X))
    rows = ranks.collect(X)
    of_rows = ranks.collect(weights) if is_weighted else []
    if ranks.rank > 0:
        return X, weights
    return np.concatenate(rows), np.concatenate(of_rows) if is_weighted else None


def _described(estimator: BaseEstimator, X: np.ndarray) -> dict[str, Any]:
    """Return what must be the same on all ranks, in words, and the number of rows."""
    parameters = parameters_of(estimator)
    same = {
        name: repr(value)
        for name, value in parameters.items()
        if name not in _OF_A_RANK and isinstance(value, _PLAIN)
    }
    own = {
        "the estimator": type(estimator).__name__,
        "the number of columns of X": str(X.shape[1]),
        "the names of columns": str(list(getattr(estimator, "feature_names_in_", []))),
        "whether it is fitted": str(hasattr(estimator, "_training")),
    }
    return {"same": {**same, **own}, "rows": len(X)}


def _check_alike(every: list[dict[str, Any]]) -> None:
    """Raise ValueError if ranks differ."""
    first = every[0]["same"]
    for rank, description in enumerate(every):
        theirs = description["same"]
        names = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
        if names:
            values = "; ".join(f"{n}: {first.get(n)} and {theirs.get(n)}" for n in names)
            raise ValueError(f"Ranks 0 and {rank} differ, and must not: {values}.")


def _check_size(n_rows: int, n_features: int, ranks: Communicator) -> None:
    """Raise ValueError if all rows together are too many for rank 0."""
    n_bytes = np.dtype(np.float64).itemsize * n_rows * n_features
    if n_bytes > ranks.max_bytes:
        raise ValueError(
            f"The rows of all ranks take {n_bytes:.3g} bytes on rank 0, more than "
            f"max_bytes={ranks.max_bytes:g} of distributed(). Pass more, if rank 0 has the memory, "
            "or fit a part of the rows."
        )


def send_fitted(ranks: Communicator, estimator: Any) -> None:
    """Send the fitted attributes of rank 0 to the others, which are in `receive_fitted`."""
    if ranks.size > 1:
        own = set(parameters_of(estimator))
        fitted = {n: v for n, v in vars(estimator).items() if _is_fitted(n) and n not in own}
        ranks.broadcast(Fitted(estimator._to_plain(fitted)))


def _is_fitted(name: str) -> bool:
    return name.endswith("_") or name in ("_model", "_training", "_split_seed")


def receive_fitted(ranks: Communicator, estimator: Any) -> None:
    """Take part in what rank 0 orders, until it sends the fitted attributes, and set these."""
    device = resolve_device(getattr(estimator, "device", "cpu"))
    order: Order | Fitted = ranks.broadcast(None)
    while not isinstance(order, Fitted):
        order.follow(ranks, device)
        order = ranks.broadcast(None)
    vars(estimator).update(estimator._from_plain(order.attributes))


def check_is_alone(estimator: BaseEstimator) -> None:
    """Raise RuntimeError within `distributed` of several processes."""
    if active().size > 1:
        raise RuntimeError(
            f"{type(estimator).__name__}.fit cannot be shared among processes; call it outside of "
            "distributed(), with all rows. ParticleLVEBM, WassersteinFlowEBM, PotentialFlowEBM and "
            "MixtureStack can be fitted within."
        )
