"""Stored estimators carry the version of the package that wrote them.

States of earlier versions are read where the numbers in them still mean the same. Otherwise the
error names both versions and the remedy.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sklvebm.exceptions import DamagedStateError
from sklvebm.versions import own_version

_VERSION_KEY = "_sklvebm_version"
_WITHOUT_VERSION = "0.1"  # the last minor version whose states do not carry one
# How version 0.1 fitted, for parameters that it did not have; others get their default.
_IN_0_1 = {"margins": "none", "embedding": "none", "n_networks": 1, "init": "reference"}


class VersionedState:
    """Stored state of an estimator with the version of the package; stands before its base."""

    def _packed(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes as they are stored."""
        return state

    def _unpacked(self, state: dict[str, Any]) -> dict[str, Any]:
        """Undo `_packed`."""
        return state

    def __getstate__(self: Any) -> dict[str, Any]:
        return {**self._packed(super().__getstate__()), _VERSION_KEY: own_version()}

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        state = dict(state)
        writer = state.pop(_VERSION_KEY, _WITHOUT_VERSION)
        with _explained(type(self).__name__, writer):
            state = _completed(type(self), self._unpacked(state))
        if _minor(writer) != _minor(own_version()) and any(name[-1] == "_" for name in state):
            warnings.warn(
                f"This {type(self).__name__} was stored by sklvebm {writer} and is read by "
                f"{own_version()}. Its parameters are unchanged, but scores and draws may differ "
                "where the methods were improved. Store it again to end this warning.",
                UserWarning,
                stacklevel=2,
            )
        # mypy does not know the estimator, whose base class has the method
        super().__setstate__(state)  # type: ignore[misc]


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@contextmanager
def _explained(name: str, writer: str) -> Iterator[None]:
    """Turn errors of a state that another version wrote into one that says what to do."""
    try:
        yield
    except DamagedStateError:
        raise
    # broad on purpose: a state of another layout fails in many ways
    except Exception as error:
        if writer == own_version():
            raise
        remedy = f"=={writer}" if writer.count(".") == 2 else f"=={writer}.*"
        raise ValueError(
            f"This {name} was stored by sklvebm {writer}, and sklvebm {own_version()} cannot read "
            f"it ({type(error).__name__}: {error}). Fit the model again, or load it where the "
            f'version that stored it is installed: pip install "sklvebm{remedy}".'
        ) from error


def _completed(kind: type, state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes with parameters and results that an earlier version did not have."""
    known = inspect.signature(kind).parameters.values()
    missing = {p.name: p.default for p in known if p.name not in state and p.default is not p.empty}
    added: dict[str, Any] = {n: _IN_0_1.get(n, default) for n, default in missing.items()}
    if "_model" in state:
        results = {f"{name}_": value for name, value in _IN_0_1.items() if name in missing}
        added.update({name: value for name, value in results.items() if name not in state})
        if "margins" in missing:
            added["n_bins_"] = np.zeros(state["n_features_in_"], dtype=int)
    return {**added, **state}
