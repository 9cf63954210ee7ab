"""Rows that are read in parts: files, mapped arrays, and objects whose slices are rows."""

import mmap
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

_ARROW_SUFFIXES = ".arrow", ".feather"
_PARQUET_SUFFIXES = ".parquet", ".pq"
_MAX_NAMED = 3  # columns in one message
# in memory already: frames, sparse arrays, and arrays of other libraries with their own devices
_MARKS_OF_MEMORY = "__dataframe__", "iloc", "__array_namespace__", "toarray"
_HELD = Sequence, Mapping, Set, np.generic, torch.Tensor, memoryview, bytearray
_LIBRARIES_OF_FRAMES = {"pandas", "polars", "pyarrow"}


class RowSource(Protocol):
    """Rows that are read in parts: an object with a length, whose slices are rows.

    `fit`, `partial_fit`, `score_samples`, `transform` and `predict_proba` of the three energies and
    of `MixtureStack` take any such object in place of an array. They read slices in ascending
    order, and keep no reference to the object. `h5py.Dataset`, `zarr.Array` and what `open_rows`
    returns are such objects; a class of your own needs the two methods below and no base class.

    `__len__()` returns the number of rows. `__getitem__(part)` gets a slice with start and stop
    within the length, and returns that many rows: a numeric array of shape (n_rows, n_features),
    or a table of pyarrow or pandas, with NaN in missing cells.

    See Also
    --------
    open_rows : Rows of `.npy`, Parquet and Arrow files.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import MixtureStack
    >>> class Generated:
    ...     def __len__(self):
    ...         return 1000
    ...     def __getitem__(self, part):
    ...         angle = np.arange(part.start, part.stop)[:, None]
    ...         return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    >>> model = MixtureStack(max_components=3, random_state=0).fit(Generated())
    >>> model.score_samples(Generated()).shape
    (1000,)
    """

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, part: slice) -> Any:
        """Return the rows of a slice, (n_rows, n_features)."""


def open_rows(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> RowSource:
    """Open a file of rows without reading it into memory.

    Parameters
    ----------
    path : str or path-like
        A `.npy` file of a two-dimensional array, a Parquet file (`.parquet`, `.pq`), or an Arrow
        file (`.arrow`, `.feather`). Tables need pyarrow. Of a Parquet file, one row group at a time
        is in memory.
    columns : sequence of str or None, default=None
        Columns of a table, in this order; None takes all of them. They must be numbers or bools.
        Empty cells become NaN, which stands for missing ones.

    Returns
    -------
    rows : RowSource
        Has a length and returns slices: arrays of a `.npy` file, tables of the others, whose
        column names estimators keep and compare.

    Raises
    ------
    ValueError
        If the file is of another kind, or has no numeric rows; names the columns.
    TypeError
        If `path` is no path.
    FileNotFoundError
        If there is no such file.
    ImportError
        If a table is opened without pyarrow.

    See Also
    --------
    RowSource : What else can be read in parts.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from sklvebm import open_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "rows.npy")
    ...     np.save(path, np.arange(6.0).reshape(3, 2))
    ...     rows = open_rows(path)
    ...     print(len(rows), rows[1:3].tolist())
    3 [[2.0, 3.0], [4.0, 5.0]]
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or path-like, got {type(path).__name__}.")
    place = Path(path)
    suffix = place.suffix.lower()
    known = (".npy", *_PARQUET_SUFFIXES, *_ARROW_SUFFIXES)
    if suffix not in known:
        raise ValueError(
            f"Rows are read from files whose names end with {', '.join(known[:-1])} or "
            f"{known[-1]}, got {str(place)!r}. Convert other files, or pass an object that returns "
            "rows by slices (RowSource)."
        )
    if not place.exists():
        raise FileNotFoundError(f"There is no file {str(place)!r}.")
    if suffix == ".npy":
        if columns is not None:
            raise ValueError("columns must be None for a .npy file, whose columns have no names.")
        return NpyRows(place)
    return ParquetRows(place, columns) if suffix in _PARQUET_SUFFIXES else ArrowRows(place, columns)


class NpyRows:
    """Rows of a `.npy` file, which is mapped while a part is read.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.shape = self._mapped().shape
        except ValueError as error:  # objects, another format
            raise ValueError(f"{str(path)!r} holds no array of numbers: {error}") from error
        if len(self.shape) != 2:
            raise ValueError(
                f"{str(path)!r} must hold rows, an array of two dimensions, got shape {self.shape}."
            )

    def _mapped(self) -> np.ndarray:
        found: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return found

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.array(self._mapped()[part])


class MappedArray:
    """Rows of an array that is mapped from a file; pages that were read are given back.

    Otherwise the system counts them to the memory of the process until others need it.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows on the memory map.
    pages : mmap.mmap or None
        The map, or None if its pages hold changes that are not in the file.
    """

    def __init__(self, X: np.ndarray, pages: mmap.mmap | None) -> None:
        self.X, self.pages, self.shape = X, pages, X.shape

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = np.array(self.X[part])
        if self.pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED)
        return rows


class ParquetRows:
    """Rows of a Parquet file; the last row group that was read stays in memory.

    Parameters
    ----------
    path : Path
        The file.
    columns : sequence of str or None
        Names, or None for all columns.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None) -> None:
        parquet = _pyarrow("parquet")
        self.file = parquet.ParquetFile(path)
        self.schema = _numeric_schema(path, self.file.schema_arrow, columns)
        metadata = self.file.metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self.ends = np.cumsum([0, *sizes])
        self.kept: tuple[int, Any] = -1, None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _group(self, number: int) -> Any:
        if self.kept[0] != number:
            self.kept = -1, None  # frees the last group before the next one is read
            table = self.file.read_row_group(number, columns=self.schema.names)
            self.kept = number, _as_numbers(table, self.schema)
        return self.kept[1]

    def __getitem__(self, part: slice) -> Any:
        return _joined(self.ends, part, self._group, self.schema)


class ArrowRows:
    """Rows of an Arrow file (Feather, version 2), whose record batches are mapped.

    Parameters
    ----------
    path : Path
        The file.
    columns : sequence of str or None
        Names, or None for all columns.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None) -> None:
        self.arrow = _pyarrow()
        try:
            self.file = self.arrow.ipc.open_file(self.arrow.memory_map(str(path)))
        except self.arrow.ArrowInvalid as error:
            raise ValueError(f"{str(path)!r} is no Arrow file: {error}") from error
        self.schema = _numeric_schema(path, self.file.schema, columns)
        sizes = [self.file.get_batch(n).num_rows for n in range(self.file.num_record_batches)]
        self.ends = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _group(self, number: int) -> Any:
        table = self.arrow.Table.from_batches([self.file.get_batch(number)])
        return table.select(self.schema.names)

    def __getitem__(self, part: slice) -> Any:
        return _as_numbers(_joined(self.ends, part, self._group, self.schema), self.schema)


def _pyarrow(module: str = "") -> Any:
    """Return pyarrow, or one of its modules."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet and Arrow files need pyarrow: pip install pyarrow, or save the rows by "
            "numpy.save."
        ) from error
    return getattr(pyarrow, module) if module else pyarrow


def _numeric_schema(path: Path, schema: Any, columns: Sequence[str] | None) -> Any:
    """Return names and floating-point types of the columns to read, as a schema of pyarrow."""
    arrow = _pyarrow()
    if isinstance(columns, str):
        raise TypeError(f"columns must be a sequence of names, got the str {columns!r}.")
    names = list(schema.names if columns is None else columns)
    unknown = [name for name in names if name not in schema.names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if unknown or repeated or not names:
        wrong = "got none"
        if unknown or repeated:
            wrong = f"unknown: {unknown}" if unknown else f"repeated: {repeated}"
        raise ValueError(
            f"columns must be different names of columns of {str(path)!r}, at least one; {wrong}."
        )
    types = [schema.field(name).type for name in names]
    of = arrow.types
    is_number = of.is_integer, of.is_floating, of.is_decimal, of.is_boolean
    others = [
        f"{name!r} ({kind})"
        for name, kind in zip(names, types, strict=True)
        if not any(test(kind) for test in is_number)
    ]
    if others:
        more = f" and {len(others) - _MAX_NAMED} more" if len(others) > _MAX_NAMED else ""
        raise ValueError(
            f"Columns {', '.join(others[:_MAX_NAMED])}{more} of {str(path)!r} are not numeric. "
            "Choose others by open_rows(path, columns=...), or encode them as numbers."
        )
    single = all(kind == arrow.float32() for kind in types)
    kind = arrow.float32() if single else arrow.float64()
    return arrow.schema([(name, kind) for name in names])


def _as_numbers(table: Any, schema: Any) -> Any:
    """Return a table in the floating-point types of a schema."""
    return table.select(schema.names).cast(schema, safe=False)


def _joined(ends: np.ndarray, part: slice, group: Any, schema: Any) -> Any:
    """Return the rows of a slice of a table whose groups end at `ends` (n_groups + 1,)."""
    first, last, _ = part.indices(int(ends[-1]))
    if first >= last:
        return schema.empty_table()
    pieces = []
    for number, (begin, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        if max(first, begin) < min(last, stop):
            length = min(last, stop) - max(first, begin)
            pieces.append(group(number).slice(max(first, begin) - begin, length))
    return _pyarrow().concat_tables(pieces)


def as_source(X: Any) -> RowSource | None:
    """Return what is to be read in parts, or None for anything that is in memory.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        If X is a path that cannot be opened.
    """
    if isinstance(X, str | os.PathLike):
        return open_rows(X)
    if isinstance(X, np.ndarray):
        return _mapped_array(X)
    if isinstance(X, _HELD) or _is_in_memory(X):
        return None
    if isinstance(X, type) or not (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
        return None
    source: RowSource = X
    return source


def _is_in_memory(X: Any) -> bool:
    library = type(X).__module__.split(".")[0]
    return library in _LIBRARIES_OF_FRAMES or any(hasattr(X, mark) for mark in _MARKS_OF_MEMORY)


def _mapped_array(X: np.ndarray) -> MappedArray | None:
    """Return the rows of an array that is mapped from a file; None for other arrays."""
    base: Any = X
    mode = None
    while isinstance(base, np.ndarray):
        mode = getattr(base, "mode", mode)
        base = base.base
    if not isinstance(base, mmap.mmap) or X.ndim != 2:
        return None
    # with "c", changes of the array are in these pages only
    return MappedArray(X, base if mode in ("r", "r+", "w+") else None)


def is_chunks(X: Any) -> bool:
    """Return whether X yields chunks of rows, as a generator does."""
    if isinstance(X, (*_HELD, os.PathLike, type)) or not isinstance(X, Iterable):
        return False
    return not (hasattr(X, "__getitem__") or hasattr(X, "__array__") or _is_in_memory(X))
