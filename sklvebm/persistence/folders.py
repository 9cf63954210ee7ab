"""`save_model` and `load_model`: a fitted estimator in a folder, without pickle."""

import hashlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from sklearn.base import BaseEstimator

from sklvebm.exceptions import DamagedStateError
from sklvebm.files import replace_file
from sklvebm.persistence.trees import decoded, encoded
from sklvebm.trees import Arrays
from sklvebm.versions import library_versions, own_version

_DESCRIPTION = "model.json"
_FORMAT = 1  # of the description; a later one may have nodes that this version does not know
_DIGEST_BYTES = 16


def save_model(estimator: BaseEstimator, folder: str | os.PathLike[str]) -> Path:
    """Store an estimator in a folder: its arrays by safetensors, everything else as JSON.

    Both files can be read by other programs, and loading them runs no code of theirs. Files are
    replaced in one step: if storing fails or is interrupted, an earlier model in the folder stays.
    Needs the package safetensors (`pip install "sklvebm[safetensors]"`).

    Parameters
    ----------
    estimator : estimator
        An estimator of this package, fitted or not. It may contain estimators of scikit-learn.
        Energies of your own, `joblib.Memory` and other objects among its parameters are refused.
    folder : str or path-like
        Made if it does not exist. Gets `model.json` and `arrays-<digest>.safetensors`; arrays are
        named by their place, such as `_plain/energy/arrays/0.weight`.

    Returns
    -------
    folder : Path
        The folder.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    TypeError
        If a value cannot be stored as arrays and plain values; names it and the remedy.

    See Also
    --------
    load_model : Undoes this.

    Notes
    -----
    Callbacks of scikit-learn (`set_callbacks`) are not stored.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import MixtureStack, load_model, save_model
    >>> X = load_iris().data
    >>> model = MixtureStack(max_components=2, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(model, folder).name == folder.split("/")[-1]
    ...     loaded = load_model(folder)
    True
    >>> loaded.score(X) == model.score(X)
    True
    """
    storage = _safetensors()
    arrays: Arrays = {}
    tree = encoded(estimator, arrays)
    if not isinstance(tree, dict) or "estimator" not in tree:
        raise TypeError(f"estimator must be an estimator, got a {type(estimator).__name__}.")
    data = storage.save(arrays)
    digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
    description: dict[str, Any] = {
        "format": _FORMAT,
        "versions": {"sklvebm": own_version(), **library_versions()},
        "arrays": f"arrays-{digest}.safetensors",
        "digest": digest,
        "model": tree,
    }
    text = json.dumps(description, indent=1, allow_nan=False)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _named_arrays(folder)
    # the description is written last: until then it names the earlier arrays
    replace_file(folder / description["arrays"], lambda file: file.write(data))
    replace_file(folder / _DESCRIPTION, lambda file: file.write(text.encode()))
    if earlier is not None and earlier != description["arrays"]:
        (folder / earlier).unlink(missing_ok=True)
    return folder


def load_model(folder: str | os.PathLike[str]) -> Any:
    """Load an estimator that `save_model` stored.

    Parameters
    ----------
    folder : str or path-like
        Folder with the two files.

    Returns
    -------
    estimator : estimator
        With the same parameters, scores and draws, to the last bit. Its `device` is as it was:
        "auto" takes what this machine has.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    FileNotFoundError
        If one of the files is missing.
    DamagedStateError
        If a file is damaged.
    ValueError
        If another version stored the model and this one cannot read it; names both and the remedy.

    Warns
    -----
    UserWarning
        If another minor version stored the model.

    See Also
    --------
    save_model : Stores an estimator.

    Examples
    --------
    >>> import tempfile
    >>> from sklvebm import MixtureStack, load_model, save_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_model(save_model(MixtureStack(max_components=2), folder))
    MixtureStack(max_components=2)
    """
    storage, folder = _safetensors(), Path(folder)
    if not (folder / _DESCRIPTION).is_file():
        raise FileNotFoundError(f"{folder} has no {_DESCRIPTION}, which save_model writes.")
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        name, digest = str(description["arrays"]), description["digest"]
        tree, writer, number = (description[k] for k in ("model", "versions", "format"))
        writer = str(writer["sklvebm"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedStateError(f"{folder / _DESCRIPTION} is damaged: {error!r}.") from error
    if number != _FORMAT:
        raise ValueError(_remedy(writer, f"the format is {number}, this version reads {_FORMAT}"))
    if name != Path(name).name:
        raise DamagedStateError(f"{folder / _DESCRIPTION} names arrays outside of its folder.")
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} has no {name}: copy all files of the folder.")
    data = (folder / name).read_bytes()
    if hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest() != digest:
        raise DamagedStateError(f"{folder / name} is damaged: its digest does not match.")
    try:
        return decoded(tree, storage.load(data))
    except (KeyError, AttributeError, ImportError) as error:
        raise ValueError(_remedy(writer, f"{type(error).__name__}: {error}")) from error


def _remedy(writer: str, reason: str) -> str:
    return (
        f"The model was stored by sklvebm {writer}, and sklvebm {own_version()} cannot read it "
        f"({reason}). Fit it again, or load it where the version that stored it is installed."
    )


def _safetensors() -> ModuleType:
    """Return the module for arrays of NumPy."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            'save_model and load_model need safetensors: pip install "sklvebm[safetensors]". '
            "skops and joblib store models without it."
        ) from error
    return safetensors.numpy


def _named_arrays(folder: Path) -> str | None:
    """Return the file of arrays that the description in a folder names, None without one."""
    try:
        name = str(json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))["arrays"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_ours = name == Path(name).name and name.startswith("arrays-")
    return name if is_ours else None
