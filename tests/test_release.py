"""What a release consists of: versions that agree, a recipe, files inside of wheel and sdist."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sklvebm

ROOT = Path(__file__).parents[1]
CI = ROOT / ".ci"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
METADATA = "\n".join(
    [
        "Name: sklvebm",
        "Version: 1",
        "Summary: s",
        "License-Expression: BSD-3-Clause",
        "Requires-Python: >=3.11",
        "Requires-Dist: torch>=2.6",
    ]
)
FILES = [
    "sklvebm/__init__.py",
    "sklvebm/py.typed",
    "sklvebm/plotting/__init__.py",
    "sklvebm-1.dist-info/licenses/LICENSE",
]


@pytest.fixture
def check(monkeypatch):
    """The module that checks what was built."""
    monkeypatch.syspath_prepend(CI)
    yield importlib.import_module("check_distribution")
    del sys.modules["check_distribution"]


def test_every_place_names_the_same_version():
    version = sklvebm.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'version: "{version}"' in (CI / "conda" / "recipe.yaml").read_text()
    assert f"version = {{{version}}}" in (ROOT / "docs/development/citing.md").read_text()


def test_the_recipe_has_the_requirements_of_the_project():
    text = (CI / "conda" / "recipe.yaml").read_text()
    run = text.split("  run:\n")[1].split("\ntests:")[0]
    listed = set(re.findall(r"^    - (.+)$", run, re.M))
    names = {"torch": "pytorch"}
    wanted = {f"python {PROJECT['requires-python']}"}
    for line in PROJECT["dependencies"]:
        name, floor = line.split(">=")
        wanted.add(f"{names.get(name, name)} >={floor}")
    assert listed == wanted


def test_a_sound_wheel_has_no_problems(check):
    assert check.wheel_problems(FILES, METADATA, ["sklvebm/__init__.py"]) == []


@pytest.mark.parametrize(
    ("more", "without", "problem"),
    [
        ("tests/test_x.py", None, "tests/test_x.py should not be inside"),
        ("sklvebm/x.pyc", None, "sklvebm/x.pyc is no part"),
        (None, "sklvebm/py.typed", "no sklvebm/py.typed"),
        (None, "sklvebm-1.dist-info/licenses/LICENSE", "no licence"),
    ],
)
def test_wrong_files_in_a_wheel_are_found(check, more, without, problem):
    names = [name for name in [*FILES, more] if name not in (None, without)]
    assert check.wheel_problems(names, METADATA, []) == [problem]


def test_missing_sources_and_metadata_are_found(check):
    assert check.wheel_problems(FILES, METADATA, ["sklvebm/new.py"]) == ["no sklvebm/new.py"]
    without = METADATA.replace("Requires-Dist: torch>=2.6", "").replace("Summary: s", "Summary: ")
    assert check.wheel_problems(FILES, without, []) == [
        "no Summary in the metadata",
        "no dependency on torch",
    ]


def test_wrong_files_in_an_sdist_are_found(check):
    names = [*FILES[:3], "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"]
    assert check.sdist_problems(names) == []
    assert check.sdist_problems([*names[1:], "docs/x.txt"]) == [
        "no sklvebm/__init__.py",
        "docs/x.txt should not be inside",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage"), (["1.2"], "is no version such as"), (["999.0.0"], "committed|differs")],
)
def test_a_release_that_is_not_prepared_is_refused(arguments, message):
    done = subprocess.run([CI / "release", *arguments], capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(message, done.stderr)
