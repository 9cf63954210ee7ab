"""The documentation site as far as it can be checked without building it."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

import sklvebm
import sklvebm.baselines
import sklvebm.datasets
import sklvebm.metrics
import sklvebm.plotting

ROOT = Path(__file__).parents[1]
DOCS, PACKAGE = ROOT / "docs", ROOT / "sklvebm"
MODULES = (sklvebm, sklvebm.baselines, sklvebm.datasets, sklvebm.metrics, sklvebm.plotting)
GALLERY = sorted((ROOT / "examples").glob("plot_*.py"))
# their objects are global variables of a script
RESULTS = {"ComposedEnergy"}
# functions that return texts of warnings, beside `warnings.warn` itself
OF_WARNINGS = ("problems", "score_problems", "impossible_reference", "_far_values")


def pages_of(index):
    """Return the pages that the table of contents of an index lists."""
    text = (DOCS / index).read_text(encoding="utf-8")
    listed = re.findall(r"^   ([\w./]+)$", text, re.M)
    return {((DOCS / index).parent / name).resolve() for name in listed}


def test_every_page_is_in_a_table_of_contents():
    listed = set().union(*(pages_of(path.relative_to(DOCS)) for path in DOCS.rglob("index.rst")))
    pages = {p.with_suffix("").resolve() for p in DOCS.rglob("*.md") if "_build" not in p.parts}
    assert pages - listed == {DOCS / "README"}


def test_the_reference_lists_every_public_name_once():
    text = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    listed = []
    for block in text.split(".. currentmodule:: ")[1:]:
        module = block.split()[0]
        listed += [f"{module}.{name}" for name in re.findall(r"^   (\w+)$", block, re.M)]
    public = [f"{module.__name__}.{name}" for module in MODULES for name in module.__all__]
    assert sorted(listed) == sorted(public)


def literals(node):
    """Return the fixed texts of an expression, in order."""
    return [
        " ".join(n.value.split())
        for n in ast.walk(node)
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def texts_of_warnings():
    """Yield (file, line, fixed texts of at least fifteen characters) of every warning."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            found = []
            if isinstance(node, ast.FunctionDef) and node.name in OF_WARNINGS:
                body = node.body[1:]  # without the docstring
                calls = [n for part in body for n in ast.walk(part) if isinstance(n, ast.JoinedStr)]
                found = [literals(call) for call in calls]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                found = [literals(node.args[0])]
            for texts in found:
                long = [text for text in texts if len(text) >= 15]
                if long:
                    yield path.relative_to(ROOT), node.lineno, long


WARNINGS = list(texts_of_warnings())


def test_warnings_are_found():
    assert len({file for file, *_ in WARNINGS}) >= 10
    assert any("reached a plateau" in text for *_, texts in WARNINGS for text in texts)


@pytest.mark.parametrize(("file", "line", "texts"), WARNINGS)
def test_every_warning_is_explained(file, line, texts):
    page = " ".join((DOCS / "help" / "warnings.md").read_text(encoding="utf-8").split())
    # as far as the message has no value in it that the page leaves out
    clauses = [re.split(r"[:.(]", text.lstrip(" .:;,)"))[0].strip() for text in texts]
    assert any(len(clause) >= 15 and clause in page for clause in clauses), clauses


def test_every_deprecated_name_is_listed():
    page = (DOCS / "development" / "deprecations.md").read_text(encoding="utf-8")
    for path in PACKAGE.rglob("*.py"):
        if path.stem == "deprecation":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "RenamedAttribute":
                assert all(
                    f"`{arg.value}`" in page or f".{arg.value}`" in page for arg in node.args[:2]
                )
    for old, renamed in sklvebm._RENAMED.items():
        assert f"| `{old}` | `{renamed.new}` | {renamed.removed_in} |" in page


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_scripts_of_the_gallery_are_made_for_it(path):
    text = path.read_text(encoding="utf-8")
    title, line = ast.get_docstring(ast.parse(text)).splitlines()[:2]
    assert line == "=" * len(title)
    assert "argparse" not in text
    assert ".use(" not in text
    assert "savefig" not in text
    assert f'"{path.name}"' in (DOCS / "conf.py").read_text(encoding="utf-8")


def test_what_builds_the_site_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {re.split(r"[><=]", line)[0] for line in project["optional-dependencies"]["docs"]}
    pins = "".join(path.read_text() for path in (ROOT / ".ci").glob("constraints*.txt"))
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", pins, re.M)}
    assert asked <= pinned


@pytest.fixture
def check_site(monkeypatch):
    """The module that checks the built site."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    yield importlib.import_module("check_site")
    del sys.modules["check_site"]


def test_broken_links_and_networks_are_found(check_site, tmp_path):
    (tmp_path / "other.html").write_text('<p id="here"></p>')
    (tmp_path / "a.html").write_text(
        '<a href="other.html#here"></a><a href="other.html#gone"></a><a href="none.html"></a>'
        '<a href="https://example.org/x"></a><script src="https://example.org/y.js"></script>'
        '<link rel="stylesheet" href="none.css"><link rel="canonical" href="https://example.org">'
        '<a href="#gone"></a><img src="data:image/png;base64,xx">'
    )
    assert check_site.problems(tmp_path) == [
        "a.html: no anchor for #gone",
        "a.html: needs a network for https://example.org/y.js",
        "a.html: no file for none.css",
        "a.html: no file for none.html",
        "a.html: no anchor for other.html#gone",
    ]


def test_names_without_a_page_are_found(check_site, tmp_path):
    folder = tmp_path / "api" / "generated"
    folder.mkdir(parents=True)
    (folder / "p.A.html").touch()
    assert check_site.missing_pages(tmp_path, ["p.A", "p.B"]) == ["p.B"]


def test_names_without_examples_are_found(check_site, tmp_path):
    folder = tmp_path / "api" / "generated"
    folder.mkdir(parents=True)
    thumb, heading = '<div class="sphx-glr-thumbcontainer">', "<p>Examples</p>"
    (folder / "p.A.html").write_text(thumb + heading)
    (folder / "p.B.html").write_text(heading)
    (folder / "p.C.html").write_text(thumb)
    assert check_site.missing_examples(tmp_path, ["p.A", "p.B", "p.C", "p.D"]) == [
        "no script of the gallery uses p.B",
        "no example of p.C",
        "no script of the gallery uses p.D",
        "no example of p.D",
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_used_in_the_gallery(module):
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in GALLERY)
    nodes = list(ast.walk(ast.parse(scripts)))
    used = {n.id for n in nodes if isinstance(n, ast.Name)}
    used |= {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    # results of a function appear in its pages by their class
    assert set(module.__all__) - used - RESULTS == set()
