"""Error codes are what operators search for: each has one meaning, and the README tells it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("zerocache", "replication_manager", "view_syncer")
UNKNOWN = "ZC000"


def codes_in_source() -> dict[str, set[str]]:
    """Code -> the packages' files that define it."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for code in re.findall(r'"(ZC\d{3})"', path.read_text()):
                found.setdefault(code, set()).add(str(path.relative_to(ROOT)))
    return found


def codes_in_readme() -> set[str]:
    text = (ROOT / "README.md").read_text()
    found = set(re.findall(r"ZC\d{3}", text))
    for first, last in re.findall(r"ZC(\d{3})–ZC(\d{3})", text):
        found |= {f"ZC{n}" for n in range(int(first), int(last) + 1)}
    return found


def test_every_code_is_explained_in_the_readme() -> None:
    assert codes_in_source().keys() - codes_in_readme() == {UNKNOWN}


def test_a_code_stands_for_one_thing() -> None:
    shared = {
        code: files
        for code, files in codes_in_source().items()
        if len({file.split("/")[1] for file in files}) > 1 and len(files) > 1
    }
    assert shared == {}
