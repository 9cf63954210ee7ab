"""Files and objects that are read in parts: the rows they hold, and errors for all others."""

import builtins

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

from sklvebm import open_rows
from sklvebm.row_sources import MappedArray, as_source, is_chunks

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

X = np.random.RandomState(0).normal(size=(50, 3))
NAMES = ["a", "b", "c"]


def table(rows=X, **others):
    columns = {name: rows[:, j] for j, name in enumerate(NAMES)}
    return pa.table({**columns, **others})


def npy(folder, rows=X):
    np.save(folder / "rows.npy", rows)
    return folder / "rows.npy"


def groups(folder, given=None):
    given = table() if given is None else given
    parquet.write_table(given, folder / "rows.parquet", row_group_size=7)
    return folder / "rows.parquet"


def batches(folder, given=None):
    given = table() if given is None else given
    path = str(folder / "rows.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, given.schema) as writer:
        writer.write_table(given, max_chunksize=9)
    return folder / "rows.arrow"


@pytest.mark.parametrize("make", [npy, groups, batches])
def test_slices_of_a_file_are_its_rows(make, tmp_path):
    rows = open_rows(make(tmp_path))
    assert len(rows) == 50
    for first, last in [(0, 50), (0, 1), (6, 8), (7, 14), (13, 47), (49, 50), (20, 20), (48, 99)]:
        np.testing.assert_array_equal(np.asarray(rows[first:last]), X[first:last])
    np.testing.assert_array_equal(np.asarray(as_source(str(make(tmp_path)))[3:5]), X[3:5])


@pytest.mark.parametrize("make", [groups, batches])
def test_columns_of_a_table_are_numbers(make, tmp_path):
    holes = [None if i % 5 == 0 else i for i in range(50)]
    others = {"whole": pa.array(holes), "yes": pa.array(X[:, 0] > 0), "word": ["x"] * 50}
    path = make(tmp_path, table(**others))
    rows = open_rows(path, columns=["whole", "c", "yes"])[0:50]
    assert rows.column_names == ["whole", "c", "yes"]
    expected = [[np.nan if v is None else v for v in holes], X[:, 2], X[:, 0] > 0]
    np.testing.assert_array_equal(np.asarray(rows), np.array(expected, dtype=float).T)
    single = make(tmp_path, table(X.astype(np.float32)))
    assert np.asarray(open_rows(single)[0:2]).dtype == np.float32
    with pytest.raises(ValueError, match=r"Columns 'word' \(string\) of .* are not numeric"):
        open_rows(make(tmp_path, table(**others)))


@pytest.mark.parametrize(
    ("columns", "kind", "words"),
    [
        (["a", "z"], ValueError, r"unknown: \['z'\]"),
        (["a", "a"], ValueError, r"repeated: \['a'\]"),
        ([], ValueError, "at least one; got none"),
        ("a", TypeError, "sequence of names, got the str 'a'"),
    ],
)
def test_columns_that_a_table_has_not(columns, kind, words, tmp_path):
    with pytest.raises(kind, match=words):
        open_rows(groups(tmp_path), columns=columns)


def test_files_that_hold_no_rows(tmp_path):
    with pytest.raises(TypeError, match="path must be a str or path-like, got int"):
        open_rows(3)
    with pytest.raises(ValueError, match=r"end with \.npy, .*got 'rows\.csv'"):
        open_rows("rows.csv")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy"):
        open_rows(tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match="columns must be None for a .npy file"):
        open_rows(npy(tmp_path), columns=["a"])
    with pytest.raises(ValueError, match=r"two dimensions, got shape \(50,\)"):
        open_rows(npy(tmp_path, X[:, 0]))
    with pytest.raises(ValueError, match="no array of numbers"):
        open_rows(npy(tmp_path, np.array([["a", {}]], dtype=object)))
    (tmp_path / "text.arrow").write_text("not a table")
    with pytest.raises(ValueError, match="is no Arrow file"):
        open_rows(tmp_path / "text.arrow")
    assert len(open_rows(npy(tmp_path, X[:0]))) == 0


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    path, original = groups(tmp_path), builtins.__import__

    def no_pyarrow(name, *arguments, **options):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_pyarrow)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        open_rows(path)
    assert len(open_rows(npy(tmp_path))) == 50


def test_what_is_read_in_parts_and_what_is_not(tmp_path):
    class Generated:
        def __len__(self):
            return 5

        def __getitem__(self, part):
            return X[part]

    held = [X, X.tolist(), pd.DataFrame(X), torch.from_numpy(X), csr_array(X), table(), {1: X}]
    assert [as_source(rows) for rows in held] == [None] * len(held)
    assert as_source(Generated) is None
    source = Generated()
    assert as_source(source) is source
    mapped = np.load(npy(tmp_path), mmap_mode="r")
    for rows in (mapped, mapped[3:], np.asarray(mapped), mapped[:, :2]):
        np.testing.assert_array_equal(as_source(rows)[1:4], rows[1:4])
    assert as_source(mapped + 0.0) is None


def test_pages_with_changes_are_kept(tmp_path):
    """A private map has changes that are in no file: giving its pages back would lose them."""
    for mode in ("c", "r+"):
        mapped = np.load(npy(tmp_path), mmap_mode=mode)
        mapped[0] = 7.0
        source = as_source(mapped)
        assert isinstance(source, MappedArray)
        np.testing.assert_array_equal(source[0:1], np.full((1, 3), 7.0))
        np.testing.assert_array_equal(source[0:1], np.full((1, 3), 7.0))


def test_chunks_are_what_can_only_be_passed_through():
    class Loader:
        def __iter__(self):
            return iter([X])

        def __len__(self):
            return 1

    assert all(map(is_chunks, [iter([X]), (x for x in [X]), Loader()]))
    held = [X, X.tolist(), (X,), "rows.npy", pd.DataFrame(X), torch.from_numpy(X), csr_array(X)]
    assert not any(map(is_chunks, [*held, {1: X}, Loader, 3]))
