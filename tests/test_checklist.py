"""Every case of sync-protocol.md §10 is covered by a test whose docstring says so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_CASES = range(1, 71)
_REFERENCE = re.compile(r"sync-protocol\.md §10 ((?:#\d+(?:, )?)+)")
_TESTS = Path(__file__).parent


def cases_of(docstring: str) -> set[int]:
    found = _REFERENCE.findall(" ".join(docstring.split()))
    return {int(number) for numbers in found for number in re.findall(r"\d+", numbers)}


def documented_tests() -> Iterator[tuple[str, str]]:
    """The name and the docstring of each test that has one."""
    for path in sorted(_TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if node.name.startswith("test_") and docstring:
                    yield f"{path.relative_to(_TESTS)}::{node.name}", docstring


def covered() -> dict[int, list[str]]:
    """Per case the tests that name it: print this for the map."""
    tests: dict[int, list[str]] = {}
    for name, docstring in documented_tests():
        for case in cases_of(docstring):
            tests.setdefault(case, []).append(name)
    return tests


def test_every_case_of_the_protocol_checklist_has_a_test() -> None:
    tests = covered()
    missing = [case for case in _CASES if case not in tests]
    assert not missing, f"no test names these cases of sync-protocol.md §10: {missing}"


def test_no_test_names_a_case_there_is_not() -> None:
    assert set(covered()) <= set(_CASES)


if __name__ == "__main__":
    for case, names in sorted(covered().items()):
        print(case, *names, sep="\n    ")
