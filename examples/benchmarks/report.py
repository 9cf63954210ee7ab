"""What the benchmarks share: rows kept on disk, a header that names the machine, aligned tables."""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sklearn
import torch

import sklvebm

RESULTS = Path(__file__).parent / "results"


class Store:
    """Finished rows, one JSON file each."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        for path in sorted(Path(sklvebm.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
        self.sources = digest.hexdigest()[:12]

    def row(self, key, compute):
        """Return the row kept under `key`; compute and keep it if there is none."""
        path = self.folder / f"{key.replace(' ', '-')}.json"
        if not path.exists():
            print(f"  {key} ...", flush=True)
            row = {"key": key, "sources": self.sources, **compute()}
            unfinished = path.with_suffix(".part")
            unfinished.write_text(json.dumps(row, indent=1, default=plain))
            unfinished.replace(path)
        return json.loads(path.read_text())

    def describe(self):
        """Say how many rows are kept and how many of them other sources computed."""
        rows = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        foreign = sum(row["sources"] != self.sources for row in rows)
        return f"{len(rows)} rows kept in {self.folder}, {foreign} of them from other sources"


def plain(value):
    """Turn what JSON does not know into what it knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value._asdict() if hasattr(value, "_asdict") else str(value)


def print_header(store):
    """Print machine, threads, load, versions and what is kept."""
    print(
        f"{platform.processor() or 'processor unnamed'}, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"{torch.get_num_threads()} torch threads\n"
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}, numpy {np.__version__}, "
        f"sklvebm {sklvebm.__version__} (sources {store.sources})\n{store.describe()}",
        flush=True,
    )


def package_versions(*names):
    """Return one line with the versions of installed packages."""
    return ", ".join(f"{name} {version(name)}" for name in names)


def print_table(title, columns, lines, fails, failures):
    """Print aligned columns, what it would take to fail, and what failed."""
    cells = [columns, *(list(map(str, line)) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        tail = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *tail]).rstrip())
    print(f"Fails if {fails}.")
    print("\n".join(f"FAILED {failure}" for failure in failures) or "Nothing failed.", flush=True)
