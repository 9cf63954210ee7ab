"""Deprecated names, which work for two minor releases and warn with the new name."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Renamed(NamedTuple):
    """A new name, and the first release without the old one."""

    new: str
    removed_in: str

    def warn(self, owner: str, old: str, stacklevel: int) -> None:
        """Warn that `owner.old` is now `owner.new`.

        Warns
        -----
        FutureWarning
            Python shows it to users of scripts and notebooks, unlike DeprecationWarning.
        """
        warnings.warn(
            f"{owner}.{old} is called {owner}.{self.new} now; the old name will be removed in "
            f"version {self.removed_in}.",
            FutureWarning,
            stacklevel=stacklevel + 1,
        )


def renamed_names(
    module: str, names: dict[str, Renamed], namespace: dict[str, Any]
) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that resolves old names to their new ones.

    Parameters
    ----------
    module : str
        The module's name.
    names : dict of str to Renamed
        Maps each old name to its new one.
    namespace : dict
        The module's `globals()`.

    Examples
    --------
    >>> namespace = {"new_name": 3}
    >>> find = renamed_names("package", {"old_name": Renamed("new_name", "0.3")}, namespace)
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", FutureWarning)
    ...     find("old_name")
    3
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        names[name].warn(module, name, stacklevel=2)
        return namespace[names[name].new]

    return find


class RenamedAttribute:
    """A descriptor: reading the old attribute warns and reads the new one.

    Parameters
    ----------
    old, new : str
        The attribute's old and new name.
    removed_in : str
        First release without the old name.
    """

    # no `__set_name__`: from Python 3.13 on, classes of named tuples call it
    def __init__(self, old: str, new: str, removed_in: str) -> None:
        self.old, self.renamed = old, Renamed(new, removed_in)

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        self.renamed.warn(owner.__name__, self.old, stacklevel=2)
        return getattr(instance, self.renamed.new)


def renamed_parameters(
    owner: str, names: dict[str, Renamed]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a function whose keyword arguments had other names.

    Parameters
    ----------
    owner : str
        Name of the function in messages.
    names : dict of str to Renamed
        Maps each old name to its new one.

    Examples
    --------
    >>> @renamed_parameters("area", {"w": Renamed("width", "0.3")})
    ... def area(width, height):
    ...     return width * height
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", FutureWarning)
    ...     area(w=2, height=3)
    6
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def with_new_names(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, renamed in names.items():
                if old not in kwargs:
                    continue
                if renamed.new in kwargs:
                    raise TypeError(f"{owner} got both {renamed.new} and its old name {old}.")
                renamed.warn(owner, old, stacklevel=2)
                kwargs[renamed.new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_new_names

    return decorated
