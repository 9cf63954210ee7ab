"""Rows that are read in parts: each part checked as an array would be, errors that name its rows.

A table in memory is one part. What reads a source part by part holds one part at a time.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from sklvebm.messages import naming_columns
from sklvebm.row_blocks import row_blocks
from sklvebm.row_sources import RowSource, as_source
from sklvebm.validation import as_plain_array

M = TypeVar("M", bound=Callable[..., Any])


def validated(
    estimator: BaseEstimator, X: Any, *, reset: bool, least: int, may_miss: bool
) -> np.ndarray:
    """Return rows as a float array (n_samples, n_features), checked by scikit-learn.

    The estimator stores the columns if `reset`, otherwise has them.

    Raises
    ------
    ValueError, TypeError
        If X is not usable, or has other columns than the rows fitted.
    """
    with naming_columns(X):
        rows: np.ndarray = validate_data(
            estimator,
            as_plain_array(X),
            reset=reset,
            dtype=[np.float64, np.float32],
            order="C",
            ensure_min_samples=least,
            ensure_all_finite="allow-nan" if may_miss else True,
        )
    return rows


class CheckedSource:
    """Rows of a source, checked when they are read; the first of them at once.

    Parameters
    ----------
    estimator : BaseEstimator
        Stores the columns if `reset`, otherwise has them.
    source : RowSource
        The rows.
    reset : bool
        Whether these are the rows of a new fit.
    least : int, default=1
        Smallest number of rows.
    may_miss : bool, default=False
        Whether cells may be missing, NaN.

    Attributes
    ----------
    shape : tuple of int
        `(n_samples, n_features)`.
    dtype : numpy.dtype
        That of the first row, float64 or float32.

    Raises
    ------
    ValueError, TypeError
        If the first row is not usable, or rows are too few.
    """

    def __init__(
        self,
        estimator: BaseEstimator,
        source: RowSource,
        *,
        reset: bool,
        least: int = 1,
        may_miss: bool = False,
    ) -> None:
        self.source, self.may_miss = source, may_miss
        n_rows = len(source)
        if n_rows < least:
            raise ValueError(
                f"Found {n_rows} rows in X ({type(source).__name__}), while a minimum of {least} "
                "is required."
            )
        how: dict[str, Any] = {"reset": reset, "may_miss": may_miss}
        first = validated(estimator, source[0:1], least=1, **how)
        self.shape: tuple[int, ...] = n_rows, first.shape[1]
        self.dtype = first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def block(self, part: slice) -> np.ndarray:
        """Return the rows of a slice, checked, (n_rows, n_features).

        Raises
        ------
        ValueError, TypeError
            If they are not usable, or are others than their number or the first row promised.
        """
        return self.checked(self.source[part], part)

    def checked(self, given: Any, part: slice) -> np.ndarray:
        """Return what the source gave for a slice as an array; see `block`."""
        where = f"Rows {part.start} to {part.stop - 1} of X"
        try:
            with naming_columns(given):
                rows: np.ndarray = check_array(
                    as_plain_array(given),
                    dtype=self.dtype,
                    order="C",
                    ensure_min_samples=0,
                    ensure_all_finite="allow-nan" if self.may_miss else True,
                )
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{where}: {error}") from error
        wanted = part.stop - part.start, self.shape[1]
        if rows.shape != wanted:
            raise ValueError(
                f"{where} must have shape {wanted}, by the length and the first row of X "
                f"({type(self.source).__name__}), but its slice has shape {rows.shape}."
            )
        return rows

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield slices, in order, and their rows."""
        for part in row_blocks(self):
            yield part, self.block(part)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.block(part)

    def gathered(self) -> np.ndarray:
        """Return all rows in memory, (n_samples, n_features)."""
        rows = np.empty(self.shape, dtype=self.dtype)
        for part, block in self.blocks():
            rows[part] = block
        return rows


def answers_in_parts(method: M) -> M:
    """Return a method of rows that answers a source part by part; other rows as it did.

    Its first argument is X. It returns an array of one entry for each row, which depends on this
    row alone.
    """

    @functools.wraps(method)
    def answered(self: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
        source = as_source(X)
        if source is None:
            return method(self, X, *args, **kwargs)
        check_is_fitted(self)
        how: dict[str, Any] = {"reset": False, "may_miss": self._may_miss_cells}
        rows = CheckedSource(self, source, **how)
        answers: Any = None
        for part in row_blocks(rows):
            given = source[part]
            rows.checked(given, part)
            answer = method(self, given, *args, **kwargs)  # a table keeps the names of its columns
            if answers is None:
                answers = np.empty((len(rows), *answer.shape[1:]), dtype=answer.dtype)
            answers[part] = answer
        return answers

    # `wraps` keeps the signature, which mypy cannot see
    return answered  # type: ignore[return-value]
