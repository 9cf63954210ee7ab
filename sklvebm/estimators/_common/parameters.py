"""Legal values of constructor parameters, checked at the start of `fit`."""

import inspect
import math
from collections.abc import Iterable
from numbers import Integral, Real
from os import PathLike
from typing import Any, NamedTuple, Protocol, cast

import numpy as np


class Number(NamedTuple):
    """An interval of integers or real numbers; `low` is included unless `open_low`."""

    integer: bool
    low: float
    high: float = math.inf
    open_low: bool = False
    none: bool = False  # None is allowed as well
    word: str = ""  # a string that is allowed as well
    flag: bool = False  # True and False are allowed as well, for 1 and 0

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is outside; see `check_parameters`."""
        if self.none and value is None:
            return
        if isinstance(value, str) and self.word and value == self.word:
            return
        if self.flag and isinstance(value, bool):
            return
        kind = Integral if self.integer else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} must be {self}, got {value!r} of type {type(value).__name__}.")
        number = cast(float, value)
        above = number > self.low if self.open_low else number >= self.low
        if not (above and number <= self.high and math.isfinite(number)):
            raise ValueError(f"{name} must be {self}, got {value!r}.")

    def __str__(self) -> str:
        noun = "an integer" if self.integer else "a number"
        rule = f"{noun} {'>' if self.open_low else '>='} {self.low:g}"
        if math.isfinite(self.high):
            rule += f" and <= {self.high:g}"
        if self.none:
            rule += " or None"
        return f"{rule} or {self.word!r}" if self.word else rule


class OneOf(NamedTuple):
    """One of a set of strings."""

    options: tuple[str, ...]
    others: str = ""  # other allowed values, for messages; checked elsewhere

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is not one of the options; see `check_parameters`."""
        if not isinstance(value, str):
            raise TypeError(f"{name} must be {self}, got {value!r} of type {type(value).__name__}.")
        if value not in self.options:
            raise ValueError(f"{name} must be {self}, got {value!r}.")

    def __str__(self) -> str:
        rule = "one of " + ", ".join(repr(option) for option in self.options)
        return f"{rule}, {self.others}" if self.others else rule


class SomeOf(NamedTuple):
    """A non-empty sequence of strings, each at most once."""

    options: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is not a sequence of the options; see `check_parameters`."""
        rule = f"{name} must be a sequence of {', '.join(map(repr, self.options))}, got {value!r}"
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f"{rule} of type {type(value).__name__}.")
        given = list(value)
        if not given or len(set(given)) < len(given) or not set(given) <= set(self.options):
            raise ValueError(f"{rule}.")


class Shares(NamedTuple):
    """A non-empty sequence of numbers between zero and one, both excluded."""

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is not a sequence of such numbers; see `check_parameters`."""
        rule = f"{name} must be a non-empty sequence of numbers > 0 and < 1, got {value!r}"
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f"{rule} of type {type(value).__name__}.")
        shares = list(value)
        if not shares or not all(isinstance(s, Real) and 0.0 < float(s) < 1.0 for s in shares):
            raise ValueError(f"{rule}.")


class Flag(NamedTuple):
    """True or False."""

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is not a boolean; see `check_parameters`."""
        if not isinstance(value, bool | np.bool_):
            raise TypeError(
                f"{name} must be True or False, got {value!r} of type {type(value).__name__}."
            )


class Widths(NamedTuple):
    """A non-empty sequence of positive integers."""

    word: str = ""  # a string that is allowed as well
    none: bool = False  # None is allowed as well

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is not a sequence of widths; see `check_parameters`."""
        if self.none and value is None:
            return
        if isinstance(value, str) and self.word and value == self.word:
            return
        rule = f"{name} must be {self}, got {value!r}"
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f"{rule} of type {type(value).__name__}.")
        widths = list(value)
        if not widths or any(
            isinstance(w, bool) or not isinstance(w, Integral) or w < 1 for w in widths
        ):
            raise ValueError(f"{rule}.")

    def __str__(self) -> str:
        rule = "a non-empty sequence of integers >= 1"
        if self.none:
            rule += " or None"
        return f"{rule} or {self.word!r}" if self.word else rule


class Seed(NamedTuple):
    """A seed of `numpy.random.RandomState`, or a random generator of NumPy."""

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` is not a seed; see `check_parameters`."""
        rule = (
            f"{name} must be None, a RandomState, a Generator or an integer from 0 to 2**32 - 1, "
            f"got {value!r}"
        )
        if value is None or value is np.random:
            return
        if isinstance(value, np.random.RandomState | np.random.Generator):
            return
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{rule} of type {type(value).__name__}.")
        if not 0 <= cast(int, value) < 2**32:
            raise ValueError(f"{rule}.")


class Cache(NamedTuple):
    """None, a folder, or an object with a method `cache`, such as `joblib.Memory`."""

    def check(self, name: str, value: Any) -> None:
        """Raise if `value` stores no results; see `check_parameters`."""
        is_store = hasattr(value, "cache") and not isinstance(value, type)
        if not (value is None or isinstance(value, str | PathLike) or is_store):
            raise TypeError(
                f"{name} must be None, a folder or a joblib.Memory, got {value!r} of type "
                f"{type(value).__name__}."
            )


class Rule(Protocol):
    """The allowed values of a parameter; `str` of it describes them."""

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError or ValueError if `value` is not legal, with the parameter's name."""


def parameters_of(estimator: Any) -> dict[str, Any]:
    """Return the values of the parameters of the package's own constructor, by name.

    A subclass may have another constructor, with presets for example, if it sets the attributes.

    Raises
    ------
    TypeError
        If a subclass does not set one of them.
    """
    package = __name__.split(".")[0]
    own = next(
        kind
        for kind in type(estimator).__mro__
        if kind.__module__.split(".")[0] == package and "__init__" in vars(kind)
    )
    names = list(inspect.signature(own).parameters)
    missing = [name for name in names if not hasattr(estimator, name)]
    if missing:
        raise TypeError(
            f"{type(estimator).__name__} must have the attributes of {own.__name__}, got none of "
            f"{missing}; call super().__init__ in its constructor."
        )
    return {name: getattr(estimator, name) for name in names}


def resolved_attributes(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return fitted attributes with the values used for parameters that may be "auto"."""
    values = {name: getattr(config, name) for name in names}
    return {f"{name}_": _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else tuple(int(width) for width in value)


def check_parameters(parameters: dict[str, Any], rules: dict[str, Rule]) -> None:
    """Check parameters against their rules.

    Parameters
    ----------
    parameters : dict
        Name to value, as `parameters_of` returns it.
    rules : dict
        Name to rule.

    Raises
    ------
    TypeError
        If a value has the wrong type; names the parameter, the rule and the value.
    ValueError
        If a value has the right type and is not allowed; names the same.
    """
    for name, rule in rules.items():
        rule.check(name, parameters[name])
