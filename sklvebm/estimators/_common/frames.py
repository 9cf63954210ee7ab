"""Rows in the container of `set_output`, with column names."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import numpy as np
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator

CONTAINERS = ("default", "pandas", "polars")


class ContainerOfRows:
    """`set_output` of an estimator that is no transformer."""

    def set_output(self, *, transform: Any = None) -> Self:
        """Choose the container of draws.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None, default=None
            Arrays, or frames with column names; None changes nothing.

        Returns
        -------
        self : estimator
            The estimator.

        Raises
        ------
        ValueError
            If the container has another name.
        """
        set_container(self, transform)
        return self


def set_container(estimator: Any, transform: Any) -> None:
    """Set the container of an estimator's rows; None changes nothing."""
    if transform is not None and transform not in CONTAINERS:
        words = ", ".join(repr(word) for word in CONTAINERS)
        raise ValueError(f"transform must be one of {words}, got {transform!r}.")
    if transform is not None:
        estimator._sklearn_output_config = {"transform": transform}


def plain_arrays() -> AbstractContextManager[None]:
    """Return a context in which steps exchange NumPy arrays, independent of the configuration."""
    return config_context(transform_output="default", array_api_dispatch=False)


def container_of(estimator: Any) -> str:
    """Return "default", "pandas" or "polars", by the estimator's setting or the global one."""
    own = getattr(estimator, "_sklearn_output_config", {}).get("transform")
    return get_config()["transform_output"] if own is None else own


def features_of(estimator: BaseEstimator) -> list[str]:
    """Return the names of the columns that an estimator was fitted to, or x0, x1, ..."""
    names = getattr(estimator, "feature_names_in_", None)
    return [f"x{i}" for i in range(estimator.n_features_in_)] if names is None else list(names)


def framed(
    estimator: BaseEstimator, rows: np.ndarray, names: Sequence[str] | None = None, like: Any = None
) -> Any:
    """Return rows in the container of an estimator's `set_output`.

    Parameters
    ----------
    estimator : BaseEstimator
        Fitted.
    rows : ndarray of shape (n_samples, n_columns)
        Rows to return.
    names : sequence of str or None, default=None
        Column names; None takes those that the estimator was fitted to.
    like : array-like or None, default=None
        The rows from which these were computed; a pandas frame gives its index.
    """
    return in_container(
        container_of(estimator), rows, features_of(estimator) if names is None else names, like
    )


def in_container(kind: str, rows: np.ndarray, names: Sequence[str], like: Any = None) -> Any:
    """Return rows as an array or as a frame, see `framed`."""
    if kind == "pandas":
        import pandas as pd

        index = like.index if isinstance(like, pd.DataFrame) else None
        return pd.DataFrame(rows, columns=list(names), index=index, copy=False)
    if kind == "polars":
        import polars as pl

        return pl.DataFrame(rows, schema=[str(name) for name in names], orient="row")
    return rows
