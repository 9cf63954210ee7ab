"""Validation of function arguments, with messages like scikit-learn's."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
import torch
from sklearn.utils import check_random_state as _check_random_state

P = ParamSpec("P")
R = TypeVar("R")


class InvalidParameterError(ValueError, TypeError):
    """An argument of a function has an invalid value or type."""


class Interval(NamedTuple):
    """An interval of integers or real numbers; None is no limit."""

    type: type  # Integral or Real
    left: float | None
    right: float | None
    closed: str = "left"  # "left", "right", "both" or "neither"

    def allows(self, value: Any) -> bool:
        """Return whether a value lies inside."""
        if isinstance(value, bool | np.bool_) or not isinstance(value, self.type):
            return False
        number = cast(float, value)
        left = -math.inf if self.left is None else self.left
        right = math.inf if self.right is None else self.right
        above = number >= left if self.closed in ("left", "both") else number > left
        below = number <= right if self.closed in ("right", "both") else number < right
        return bool(above and below)

    def __str__(self) -> str:
        noun = "an int" if self.type is Integral else "a float"
        opening = "[" if self.closed in ("left", "both") else "("
        closing = "]" if self.closed in ("right", "both") else ")"
        left = "-inf" if self.left is None else self._written(self.left)
        right = "inf" if self.right is None else self._written(self.right)
        return f"{noun} in the range {opening}{left}, {right}{closing}"

    def _written(self, limit: float) -> str:
        return str(limit) if self.type is Integral else str(float(limit))


class StrOptions(NamedTuple):
    """One of a set of strings."""

    options: frozenset[str]

    def allows(self, value: Any) -> bool:
        """Return whether a value is one of them."""
        return isinstance(value, str) and value in self.options

    def __str__(self) -> str:
        return f"a str among {{{', '.join(repr(option) for option in sorted(self.options))}}}"


class HasMethods(NamedTuple):
    """An object with methods."""

    methods: Sequence[str]

    def allows(self, value: Any) -> bool:
        """Return whether a value has all methods."""
        return all(callable(getattr(value, method, None)) for method in self.methods)

    def __str__(self) -> str:
        return "an object implementing " + " and ".join(repr(name) for name in self.methods)


def _is_array_like(value: Any) -> bool:
    shaped = any(hasattr(value, name) for name in ("__len__", "shape", "__array__"))
    return shaped and not isinstance(value, str | bytes | dict) and not callable(value)


def _is_random_state(value: Any) -> bool:
    if value is None or value is np.random:
        return True
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return True
    return Interval(Integral, 0, 2**32).allows(value)


_NAMED_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "array-like": (_is_array_like, "an array-like"),
    "boolean": (lambda value: isinstance(value, bool | np.bool_), "a bool"),
    "random_state": (
        _is_random_state,
        "None, an int in the range [0, 4294967295], a RandomState or a Generator",
    ),
}


def _is_allowed(rule: Any, value: Any) -> bool:
    if rule is None:
        return value is None
    if rule is callable:
        return callable(value)
    if isinstance(rule, str):
        return _NAMED_RULES[rule][0](value)
    if isinstance(rule, type):
        return isinstance(value, rule)
    return rule.allows(value)


def _in_words(rule: Any) -> str:
    if rule is None:
        return "None"
    if rule is callable:
        return "a callable"
    if isinstance(rule, str):
        return _NAMED_RULES[rule][1]
    return f"an instance of {rule.__name__!r}" if isinstance(rule, type) else str(rule)


def validate_params(
    constraints: Mapping[str, Iterable[Any]],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks the arguments of a function when it is called.

    Parameters
    ----------
    constraints : dict
        Maps the name of an argument to its rules, of which one must hold: an `Interval`,
        `StrOptions`, `HasMethods`, type, None, `callable`, "array-like", "boolean" or
        "random_state".

    Raises
    ------
    InvalidParameterError
        By the decorated function; names the parameter, the rules and the value.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            # Python reports wrong names of arguments
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)
            for name, rules in constraints.items():
                value = given.get(name, signature.parameters[name].default)
                if name not in given or any(_is_allowed(rule, value) for rule in rules):
                    continue
                words = [_in_words(rule) for rule in rules]
                last = f" or {words[-1]}" if len(words) > 1 else words[-1]
                raise InvalidParameterError(
                    f"The {name!r} parameter of {function.__name__} must be "
                    f"{', '.join(words[:-1])}{last}. Got {value!r} instead."
                )
            # underflow, such as of exp(-1000), is expected and gives zero
            with np.errstate(all="ignore"):
                return function(*args, **kwargs)

        vars(checked)["_parameter_constraints"] = constraints
        return checked

    return decorate


def check_random_state(random_state: Any) -> np.random.RandomState:
    """Return a `RandomState` as scikit-learn's function of this name, and from a `Generator`.

    A `Generator` is advanced by one draw, which seeds the result.
    """
    if isinstance(random_state, np.random.Generator):
        return np.random.RandomState(random_state.integers(2**32, dtype=np.uint32))
    return _check_random_state(random_state)


def in_container_of(X: Any, rows: np.ndarray) -> Any:
    """Return rows as a frame with the columns of X, if X is a pandas or polars frame.

    An estimator that was fitted to a frame warns of rows without names.
    """
    library = type(X).__module__.split(".")[0]
    if library == "pandas":
        return type(X)(rows, columns=X.columns)
    if library == "polars":
        return type(X)(rows, schema=X.columns, orient="row")
    return rows


def as_plain_array(X: Any) -> Any:
    """Convert torch tensors to NumPy arrays; return anything else unchanged."""
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype in (torch.bfloat16, torch.float16) else X).numpy()
    return X
