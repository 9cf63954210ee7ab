"""Versions and machine properties for bug reports."""

import importlib.metadata
import platform
import sys

import torch

_LIBRARIES = ("sklvebm", "scikit-learn", "torch", "numpy", "scipy", "joblib", "threadpoolctl")


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
    for name in _LIBRARIES:
        print(f"{name} {importlib.metadata.version(name)}")
    print(f"torch threads {torch.get_num_threads()}")
    print(f"CUDA devices {torch.cuda.device_count()}")
