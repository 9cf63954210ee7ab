"""The documentation: links and anchors, widths of lines, code blocks, index, citations."""

import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MARKDOWN = [*sorted(ROOT.glob("*.md")), *PAGES]
GUIDE = [ROOT / "README.md", *sorted((DOCS / "user_guide").glob("*.md"))]
PYTHON = sorted(
    path for folder in ("sklvebm", "tests", "examples") for path in (ROOT / folder).rglob("*.py")
)
WIDTH = 100
# pages that are not wrapped yet
NOT_WRAPPED: set[Path] = set()

_FENCE = re.compile(r"^ {0,3}(```+|~~~+)(.*)$")
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
_FILE = re.compile(r"\b(?:examples|tests|sklvebm)/[\w/]+\.py\b")
_CITATION = re.compile(r"docs/[\w/\\-]+\.md")

every_page = pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))


def split_code(text):
    """Return lines of prose with their numbers, and fenced blocks as (language, first, code)."""
    prose, blocks, fence, block = [], [], None, []
    for number, line in enumerate(text.splitlines(), 1):
        mark = _FENCE.match(line)
        if fence is None and mark:
            fence, language, first, block = mark[1], mark[2].strip(), number + 1, []
        elif fence is not None and mark and mark[1].startswith(fence) and not mark[2].strip():
            blocks.append((language, first, "\n".join(block)))
            fence = None
        elif fence is not None:
            block.append(line)
        else:
            prose.append((number, line))
    return prose, blocks


def without_code_spans(text):
    return re.sub(r"(`+).+?\1", "", text, flags=re.S)


def anchors_of(text):
    """Return the anchors that GitHub gives the headings of a page."""
    found, seen = set(), {}
    for _, line in split_code(text)[0]:
        heading = re.match(r"#{1,6} +(.*?) *#*$", line)
        if not heading:
            continue
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        kept = (c for c in title if c in " -_" or unicodedata.category(c)[0] in "LNM")
        anchor = "".join(kept).replace(" ", "-")
        count = seen.get(anchor, 0)
        seen[anchor] = count + 1
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


def links_of(text):
    prose = without_code_spans("\n".join(line for _, line in split_code(text)[0]))
    return _LINK.findall(re.sub(r"\$\$.*?\$\$", "", prose, flags=re.S))  # equations have no links


def broken_links(path, text):
    """Return the relative links of a page whose file or anchor does not exist."""
    broken = []
    for link in links_of(text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or not file.is_relative_to(ROOT):
            broken.append(link)
        elif anchor:
            other = text if file == path else file.read_text(encoding="utf-8")
            if anchor not in anchors_of(other):
                broken.append(link)
    return broken


def long_lines(text):
    """Return the numbers of lines beyond the width, outside of tables, code and link targets."""
    return [
        number
        for number, line in split_code(text)[0]
        if not line.startswith(("|", "    "))
        and len(re.sub(r"(?<=\])\([^()\s]+\)|https?://\S+", "", line)) > WIDTH
    ]


def broken_blocks(text):
    """Return where Python blocks begin that do not compile."""
    broken = []
    for language, first, code in split_code(text)[1]:
        if language == "python":
            try:
                compile(code, "<example>", "exec")
            except SyntaxError:
                broken.append(first)
    return broken


def missing_files(text):
    """Return the Python files that a page names, for instance in a command, and that are gone."""
    return sorted(name for name in set(_FILE.findall(text)) if not (ROOT / name).exists())


def missing_citations(text):
    """Return the pages that a Python file cites and that do not exist."""
    cited = {name.replace("\\", "") for name in _CITATION.findall(text)}
    return sorted(name for name in cited if not (ROOT / name).exists())


def unlisted(pages, links):
    """Return the pages that an index does not link to."""
    return [page for page in pages if page not in links]


@every_page
def test_links_and_anchors_resolve(path):
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


@every_page
def test_lines_are_not_too_long(path):
    if path in NOT_WRAPPED:
        pytest.skip("not wrapped yet")
    assert long_lines(path.read_text(encoding="utf-8")) == []


@every_page
def test_named_files_exist(path):
    assert missing_files(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", GUIDE, ids=lambda path: path.name)
def test_examples_compile(path):
    assert broken_blocks(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", GUIDE[1:], ids=lambda path: path.name)
def test_guide_pages_begin_with_an_example(path):
    """A paragraph says what the reader can do, then code: the first fence is Python."""
    text = path.read_text(encoding="utf-8")
    assert split_code(text)[1][0][0] == "python"
    assert "```python" in text.split("\n## ")[0]


def test_every_page_is_listed():
    index = DOCS / "README.md"
    links = links_of(index.read_text(encoding="utf-8"))
    pages = [str(page.relative_to(DOCS)) for page in PAGES if page != index]
    assert unlisted(pages, links) == []
    assert len(links) == len(set(links))


def test_cited_pages_exist():
    missing = {
        str(path.relative_to(ROOT)): missing_citations(path.read_text(encoding="utf-8"))
        for path in PYTHON
        if path != Path(__file__)
    }
    assert {path: names for path, names in missing.items() if names} == {}


# That each check can fail -------------------------------------------------------------------------


def test_a_broken_link_or_anchor_is_found():
    path = DOCS / "README.md"
    text = (
        "# One two\n## One *two*, three\n[a](nowhere.md) [b](#one-two) [c](#one-three)\n"
        "[d](theory/model.md#no-such-heading) [e](theory/model.md#tails) ![f\ng](images/no.png)\n"
        "`[code](nowhere.md)` [h](https://example.org/nowhere.md)\n```\n[i](nowhere.md)\n```\n"
        "[j](#one-two-three) [k](../../outside.md)\n"
    )
    wrong = [
        "nowhere.md",
        "#one-three",
        "theory/model.md#no-such-heading",
        "images/no.png",
        "../../outside.md",
    ]
    assert broken_links(path, text) == wrong


def test_repeated_headings_have_numbered_anchors():
    assert anchors_of("# A b\n## A b\n```\n# no\n```\n") == {"a-b", "a-b-1"}


def test_a_long_line_is_found():
    long = "word " * 30
    text = f"{long}\n| {long} |\n```\n{long}\n```\n    {long}\nshort\n[a]({'b' * 200}.md)\n* {long}"
    assert long_lines(text) == [1, 9]


def test_an_example_that_does_not_compile_is_found():
    text = "```python\nx = 1\n```\n```text\nx =\n```\n```python\nx =\n```\n"
    assert broken_blocks(text) == [8]


def test_a_named_file_that_does_not_exist_is_found():
    text = "    python examples/quickstart.py --x\n`tests/gone.py`, `estimators/gone.py`"
    assert missing_files(text) == ["tests/gone.py"]


def test_a_page_that_is_not_listed_is_found():
    assert unlisted(["a.md", "b/c.md"], ["a.md"]) == ["b/c.md"]


def test_a_citation_of_a_missing_page_is_found():
    text = r"see docs/theory/model.md, docs/theory/wasserstein\_flow.md" + " and docs/gone" + ".md"
    assert missing_citations(text) == ["docs/gone.md"]
