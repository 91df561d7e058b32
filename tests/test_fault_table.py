"""tests/README.md has all 68 faults, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = TESTS / "README.md"
STATES = {"passed", "open", "not applicable"}


def rows() -> list[list[str]]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]
    assert all(len(row) == 5 for row in cells), [row for row in cells if len(row) != 5]
    return cells


def functions(path: Path) -> dict[str, str]:
    """The tests of a file, and the source of each with its parametrisation."""
    source = path.read_text(encoding="utf-8")
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found[node.name] = source
    return found


def test_all_68_rows_are_there_once_and_in_order() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, 69))


def test_every_row_says_how_it_stands() -> None:
    for row in rows():
        state = row[4].split(":")[0]
        assert state in STATES, row
        assert state == "passed" or len(row[4]) > len(state) + 10, f"row {row[0]} does not say why"
        assert row[3] or state != "passed", f"row {row[0]} names no test"


def test_every_named_test_exists() -> None:
    named = 0
    for row in rows():
        for file, test, case in re.findall(r"`([\w/]+\.py)::(\w+)(?:\[([\w-]+)\])?`", row[3]):
            known = functions(TESTS / file)
            assert test in known, f"row {row[0]}: {file} has no {test}"
            if case:
                assert f'"{case.removeprefix("row_")}",' in known[test], f"row {row[0]}: {test} has no case {case}"
            named += 1
        assert row[3].count("::") == len(re.findall(r"`[\w/]+\.py::\w+(?:\[[\w-]+\])?`", row[3])), row
    assert named >= 68
