"""Versions and machine properties for bug reports."""

import importlib
import importlib.metadata
import platform
import sys

import torch

_LIBRARIES = ("scikit-learn", "torch", "numpy", "scipy", "joblib", "threadpoolctl")


def own_version() -> str:
    """Return the version of this package.

    It is read from the code that runs: the metadata of an installation may be another's.
    """
    # the number stands in the package's own file, which imports this one
    return str(importlib.import_module("sklvebm").__version__)


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that results depend on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def show_versions() -> None:
    """Print versions of Python and libraries, the machine, threads and CUDA devices.

    See Also
    --------
    sklearn.show_versions : The same for scikit-learn and its dependencies.

    Examples
    --------
    >>> import sklvebm
    >>> sklvebm.show_versions()  # doctest: +ELLIPSIS
    python ...
    """
    print(f"python {sys.version.split()[0]}")
    print(f"machine {platform.platform()}")
    print(f"sklvebm {own_version()}")
    for name, version in library_versions().items():
        print(f"{name} {version}")
    print(f"torch threads {torch.get_num_threads()}")
    print(f"CUDA devices {torch.cuda.device_count()}")
