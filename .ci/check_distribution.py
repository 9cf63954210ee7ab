"""Checks of a built wheel and sdist: what is inside, and the metadata.

python .ci/check_distribution.py dist
"""

import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
WANTED = ("sklvebm/__init__.py", "sklvebm/py.typed", "sklvebm/plotting/__init__.py")
NOT_WANTED = ("tests/", "examples/", "docs/", ".ci/")
FIELDS = ("Name", "Version", "Summary", "License-Expression", "Requires-Python")


def wheel_problems(names, metadata, sources):
    """Return what is wrong with a wheel.

    Parameters
    ----------
    names : list of str
        Files inside.
    metadata : str
        Its METADATA.
    sources : list of str
        Python files of the package in the repository, from its root.
    """
    fields = Parser().parsestr(metadata)
    found = [f"no {name}" for name in (*WANTED, *sources) if name not in names]
    found += [f"{name} should not be inside" for name in names if name.startswith(NOT_WANTED)]
    found += [f"{name} is no part" for name in names if name.endswith((".pyc", ".png", ".ipynb"))]
    found += [f"no {name} in the metadata" for name in FIELDS if not fields.get(name)]
    if not any("LICENSE" in name for name in names):
        found.append("no licence")
    if not any(line.startswith("torch>=") for line in fields.get_all("Requires-Dist") or []):
        found.append("no dependency on torch")
    return found


def sdist_problems(names):
    """Return what is wrong with the files of an sdist, without their first folder."""
    wanted = (*WANTED, "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff")
    found = [f"no {name}" for name in wanted if name not in names]
    return found + [f"{name} should not be inside" for name in names if name.startswith(NOT_WANTED)]


def main(folder):
    """Print what is wrong, and exit with an error if anything is."""
    (wheel,), (sdist,) = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    sources = [str(path.relative_to(ROOT)) for path in (ROOT / "sklvebm").rglob("*.py")]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        found = wheel_problems(names, archive.read(metadata).decode(), sources)
    with tarfile.open(sdist) as archive:
        found += sdist_problems([name.partition("/")[2] for name in archive.getnames()])
    print("\n".join(found) or f"{wheel.name} and {sdist.name} have what they should")
    sys.exit(bool(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
