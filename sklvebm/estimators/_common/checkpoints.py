"""The checkpoint of one `fit`: what identifies it, and when it is removed."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from torch import nn

from sklvebm.checkpointing import Checkpoint, is_active
from sklvebm.estimators._common.config import TrainingConfig
from sklvebm.estimators._common.parameters import parameters_of
from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.row_weights import DistinctRows
from sklvebm.versions import library_versions, own_version

_WITHOUT_EFFECT = {"verbose", "memory", "warm_start"}  # on the result of a first fit
_DIGEST_BYTES = 8


@contextmanager
def checkpoint_of(
    estimator: BaseEstimator, distinct: DistinctRows, config: TrainingConfig, *, is_first: bool
) -> Iterator[Checkpoint | None]:
    """Yield the checkpoint of a fit, None outside of `checkpoints`; remove it after the fit.

    It is also removed if training diverges, because a repetition would diverge, too.

    Parameters
    ----------
    estimator : BaseEstimator
        Before its fit.
    distinct : DistinctRows
        Rows of the fit.
    config : TrainingConfig
        Its parameters.
    is_first : bool
        Whether it is a `fit` from the start.

    Raises
    ------
    ValueError
        If a checkpoint belongs to another fit or is damaged, or if this is no `fit` from the start.
    """
    if not is_active():
        yield None
        return
    if not is_first:
        raise ValueError(
            "checkpoints are for first fits; between calls of partial_fit, or of fit with "
            "warm_start, store the estimator by joblib or save_model, and call them outside."
        )
    checkpoint = Checkpoint(_identity(estimator, distinct, config))
    try:
        yield checkpoint
    except ParticleDivergenceError:
        checkpoint.remove()
        raise
    checkpoint.remove()


def _identity(
    estimator: BaseEstimator, distinct: DistinctRows, config: TrainingConfig
) -> dict[str, str]:
    """Return all that the result of a fit depends on, in words or as digests."""
    parameters = parameters_of(estimator)
    versions = {"sklvebm": own_version(), **library_versions()}
    return {
        **{f"the version of {name}": version for name, version in versions.items()},
        "the estimator": type(estimator).__name__,
        "X": _of_array(distinct.X),
        "sample_weight": _in_words(distinct.row_weights),
        "the type of device": config.torch_device.type,
        **{n: _in_words(v) for n, v in parameters.items() if n not in _WITHOUT_EFFECT},
    }


def _in_words(value: Any) -> str:
    """Return a description of a parameter that is the same in another process."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    name = type(value).__name__
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return name  # its state is kept
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, nn.Module):
        parts = [t.detach().cpu().numpy() for t in value.state_dict().values()]
        return f"{name} {' '.join(map(_of_array, parts))}"
    try:
        return f"{name} {joblib.hash(value)}"
    # broad on purpose: objects that cannot be pickled, such as functions within others, raise
    # errors of many kinds
    except Exception:
        return f"{name} {getattr(value, '__qualname__', '')}"


def _of_array(array: np.ndarray) -> str:
    """Return type, shape and digest of an array."""
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    hasher.update(np.ascontiguousarray(array).data)
    return f"{array.dtype} of shape {array.shape} with digest {hasher.hexdigest()}"
