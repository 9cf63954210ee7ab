"""The table of what users of scikit-learn expect names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "development" / "expectations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.*?) \|", PAGE, re.M)


def test_the_table_has_every_expectation_once():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 55))


@pytest.mark.parametrize(("number", "expectation", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_the_tests_of_an_expectation_exist(number, expectation, tests):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert named, expectation
    assert tests.count("`") == 2 * len(named)
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
