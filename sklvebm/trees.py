"""Stored states as a tree for JSON and a flat table of arrays, and back, without pickle.

Plain values of Python stand for themselves in the tree. Every other node is an object with a key
that says what it is: "array" (a name in the table), "tensor", "number", "strings", "bytes",
"tuple", "mapping", "pairs" (a mapping of other things than strings), "record" (a named tuple of
this package), "source" (of random numbers); callers may add others. Names of arrays are paths, such
as "_plain/energy/arrays/0.weight".
"""

import importlib
import math
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PACKAGES = ("sklvebm", "sklearn")  # whose classes are stored
_ARRAY_KINDS = "bif"  # truth values, integers, floating-point numbers
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")

Arrays = dict[str, np.ndarray]
# return the tree of an object, or None for an object that they do not know
Encoder = Callable[[Any, Arrays, str], dict[str, Any] | None]
# undo that: return the objects of a node in a list of one, or None for a node not theirs
Decoder = Callable[[dict[str, Any], Arrays], list[Any] | None]


def encoded(value: Any, arrays: Arrays, path: str = "", other: Encoder | None = None) -> Any:
    """Return a tree for JSON, and put arrays into a table.

    Parameters
    ----------
    value : object
        What to store.
    arrays : dict of str to ndarray
        Receives the arrays, in the order of C.
    path : str, default=""
        Where the value stands; begins the names of its arrays.
    other : callable or None, default=None
        Encodes further kinds of objects.

    Returns
    -------
    tree : object
        What `json.dump` takes, without NaN and infinity.

    Raises
    ------
    TypeError
        If a value is of no kind that is stored; names the value and its place.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float | np.number | np.bool_):
        return _encoded_number(value)
    if isinstance(value, np.ndarray):
        return _encoded_array(value, arrays, path)
    if isinstance(value, Tensor):
        return {"tensor": _encoded_array(value.detach().cpu().numpy(), arrays, path)}
    if isinstance(value, dict):
        return _encoded_mapping(value, arrays, path, other)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = [
            _part(v, arrays, (path, k), other) for k, v in zip(value._fields, value, strict=True)
        ]
        return {"record": name_of(type(value), path), "fields": fields}
    if isinstance(value, list | tuple):
        parts = [_part(part, arrays, (path, number), other) for number, part in enumerate(value)]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return {"source": type(value).__name__, "state": encoded(_state_of(value), arrays, path)}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    tree = None if other is None else other(value, arrays, path)
    if tree is not None:
        return tree
    raise TypeError(
        f"{path or 'The model'} is a {type(value).__name__}, which cannot be stored as arrays and "
        "plain values. Give the parameter another value before storing, or store the model by "
        "skops or joblib."
    )


def decoded(tree: Any, arrays: Arrays, other: Decoder | None = None) -> Any:
    """Undo `encoded`; `other` knows further nodes.

    Raises
    ------
    ValueError
        If the tree has an unknown node, or names a class that is not stored.
    KeyError
        If an array is missing.
    """
    if isinstance(tree, list):
        return [decoded(part, arrays, other) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "number" in tree:
        return _decoded_number(tree)
    if "array" in tree:
        return _decoded_array(tree, arrays)
    if "strings" in tree:
        strings = np.array(tree["strings"], dtype=tree["dtype"])
        return strings.reshape(tree["shape"])
    if "tensor" in tree:
        return torch.from_numpy(_decoded_array(tree["tensor"], arrays))
    if "bytes" in tree:
        return bytes.fromhex(tree["bytes"])
    if "mapping" in tree:
        return {k: decoded(v, arrays, other) for k, v in tree["mapping"].items()}
    if "pairs" in tree:
        return {decoded(k, arrays, other): decoded(v, arrays, other) for k, v in tree["pairs"]}
    if "tuple" in tree:
        return tuple(decoded(part, arrays, other) for part in tree["tuple"])
    if "record" in tree:
        return class_of(tree["record"], tuple)(*decoded(tree["fields"], arrays, other))
    if "source" in tree:
        return _decoded_source(tree, decoded(tree["state"], arrays, other))
    found = None if other is None else other(tree, arrays)
    if found is not None:
        return found[0]
    raise ValueError(f"The stored model has a value of an unknown kind, with {sorted(tree)}.")


def _part(value: Any, arrays: Arrays, at: tuple[str, Any], other: Encoder | None) -> Any:
    """Return the tree of a value within another; `at` are the place of that and its own name."""
    path, name = at
    return encoded(value, arrays, f"{path}/{name}" if path else str(name), other)


def _encoded_mapping(
    value: dict[Any, Any], arrays: Arrays, path: str, other: Encoder | None
) -> Any:
    """Return a mapping as one of JSON, or as pairs where names are no strings."""
    if all(type(name) is str for name in value):
        return {"mapping": {k: _part(v, arrays, (path, k), other) for k, v in value.items()}}
    return {
        "pairs": [
            [encoded(name, arrays, path, other), _part(part, arrays, (path, number), other)]
            for number, (name, part) in enumerate(value.items())
        ]
    }


def _encoded_number(value: Any) -> Any:
    """Return a number: NaN and infinity as words, NumPy's scalars with their type."""
    number = value.item() if isinstance(value, np.generic) else value
    is_finite = not isinstance(number, float) or math.isfinite(number)
    if is_finite and not isinstance(value, np.generic):
        return number
    dtype = value.dtype.str if isinstance(value, np.generic) else None
    return {"number": number if is_finite else repr(number), "dtype": dtype}


def _decoded_number(tree: dict[str, Any]) -> Any:
    number = float(tree["number"]) if isinstance(tree["number"], str) else tree["number"]
    return number if tree["dtype"] is None else np.dtype(tree["dtype"]).type(number)


def _encoded_array(value: np.ndarray, arrays: Arrays, path: str) -> Any:
    """Return the name, shape and order of an array, which goes to the table; strings stay here."""
    if value.dtype.kind == "U" or (
        value.dtype == object and all(isinstance(part, str) for part in value.flat)
    ):
        dtype = "object" if value.dtype == object else "str"
        return {"strings": value.ravel().tolist(), "dtype": dtype, "shape": list(value.shape)}
    if value.dtype.kind not in _ARRAY_KINDS + "u":
        raise TypeError(f"{path} is an array of {value.dtype}, which cannot be stored.")
    # the order in memory decides the last bit of products
    is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    name, number = path or "array", 1
    while name in arrays:  # a name with a slash in it may be the path of another
        name, number = f"{path}~{number}", number + 1
    arrays[name] = np.ascontiguousarray(value.T if is_fortran else value)
    shape = list(arrays[name].shape) if value.ndim else []
    arrays[name] = arrays[name].reshape(shape)
    order = "F" if is_fortran else "C"
    return {"array": name, "dtype": value.dtype.str, "shape": shape, "order": order}


def _decoded_array(tree: dict[str, Any], arrays: Arrays) -> np.ndarray:
    name = tree["array"]
    if name not in arrays:
        raise KeyError(f"the array {name} is missing")
    found = arrays[name]
    if list(found.shape) != tree["shape"] or found.dtype != np.dtype(tree["dtype"]):
        wanted = f"shape {tuple(tree['shape'])} and dtype {np.dtype(tree['dtype'])}"
        raise ValueError(f"{name} must have {wanted}, got {found.shape} and {found.dtype}.")
    return found.T if tree["order"] == "F" else found


def _state_of(source: np.random.RandomState | np.random.Generator) -> Any:
    """Return the state of a source of random numbers."""
    if isinstance(source, np.random.RandomState):
        return source.get_state(legacy=False)
    return source.bit_generator.state


def _decoded_source(tree: dict[str, Any], state: dict[str, Any]) -> Any:
    """Return a source of random numbers in its state."""
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise ValueError(f"The stored model has an unknown generator {state['bit_generator']}.")
    bits = getattr(np.random, state["bit_generator"])()
    if tree["source"] == "RandomState":
        source = np.random.RandomState(bits)
        source.set_state(state)
        return source
    bits.state = state
    return np.random.Generator(bits)


def name_of(kind: type, path: str) -> str:
    """Return the name of a class that can be found again: the public one where there is one."""
    if kind.__module__.split(".")[0] not in _PACKAGES:
        raise TypeError(
            f"{path or 'The model'} is a {kind.__module__}.{kind.__qualname__}, a class of neither "
            "sklvebm nor scikit-learn. Store it by joblib or skops."
        )
    for package in ("sklvebm", "sklvebm.baselines"):
        public = importlib.import_module(package)
        if kind.__name__ in public.__all__ and getattr(public, kind.__name__) is kind:
            return f"{package}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def class_of(name: str, base: type) -> Any:
    """Return the class of a name, which must be one that is stored."""
    module, _, kind = name.rpartition(".")
    found = None
    if module.split(".")[0] in _PACKAGES:
        found = getattr(importlib.import_module(module), kind, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"The stored model names {name}, which is not one of the classes stored.")
    return found
