"""Fitted estimators as a tree for JSON and a flat table of arrays, and back, without pickle.

Adds two nodes to those of `sklvebm.trees`: "reference" (a `MixtureReference`) and "estimator" (a
class and its state).
"""

from typing import Any

from sklearn.base import BaseEstimator

from sklvebm import trees
from sklvebm.estimators._common.serialization import plain_reference, reference_from_plain
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.trees import Arrays

_FOR_A_SESSION = {"_skl_callbacks"}  # attributes that belong to a session, not to a model


def encoded(value: Any, arrays: Arrays, path: str = "") -> Any:
    """Return a tree for JSON, and put arrays into a table; see `sklvebm.trees.encoded`.

    Raises
    ------
    TypeError
        If a value is no array, plain value or estimator of this package or of scikit-learn; names
        the value and its place.
    """
    return trees.encoded(value, arrays, path, _encoded_object)


def decoded(tree: Any, arrays: Arrays) -> Any:
    """Undo `encoded`; raises as `sklvebm.trees.decoded`."""
    return trees.decoded(tree, arrays, _decoded_object)


def _encoded_object(value: Any, arrays: Arrays, path: str) -> dict[str, Any] | None:
    """Return the tree of an estimator or a reference, None for anything else."""
    if isinstance(value, BaseEstimator):
        name = trees.name_of(type(value), path)
        attributes = value.__getstate__().items()
        state = {name: part for name, part in attributes if name not in _FOR_A_SESSION}
        return {"estimator": name, "state": encoded(state, arrays, path)}
    if type(value) is MixtureReference:
        return {"reference": encoded(plain_reference(value), arrays, path)}
    return None


def _decoded_object(tree: dict[str, Any], arrays: Arrays) -> list[Any] | None:
    """Undo `_encoded_object`, in a list of one."""
    if "estimator" in tree:
        kind = trees.class_of(tree["estimator"], BaseEstimator)
        estimator = kind.__new__(kind)
        estimator.__setstate__(decoded(tree["state"], arrays))
        return [estimator]
    if "reference" in tree:
        return [reference_from_plain(decoded(tree["reference"], arrays))]
    return None
