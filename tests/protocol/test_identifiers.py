"""Names that clients make up."""

from __future__ import annotations

import pytest

from zerocache.protocol.identifiers import MAX_BYTES, fault_of


@pytest.mark.parametrize("name", ["", "g", "ü\n\t\x01", "x" * MAX_BYTES, "é" * (MAX_BYTES // 2)])
def test_anything_short_that_a_database_stores_is_a_name(name: str) -> None:
    assert fault_of(name) is None


@pytest.mark.parametrize("name", ["\0", "a\0b", "x" * (MAX_BYTES + 1), "é" * MAX_BYTES])
def test_what_no_database_stores_is_none(name: str) -> None:
    fault = fault_of(name)
    assert fault is not None
    assert ("NUL" in fault) == ("\0" in name)
