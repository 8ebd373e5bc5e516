"""The bounds of LIKE patterns; what they match is tested where they are used (test_shape.py)."""

from __future__ import annotations

import pytest

from zerocache.errors import QueryError
from zerocache.zql.like import MAX_PATTERN_BYTES, glob_pattern, like_matches


def test_no_pattern_takes_for_ever() -> None:
    """As one regular expression this one would be tried in 10^40 ways."""
    assert not like_matches("a" * 5000, "%a" * 50 + "b")
    assert like_matches("a" * 5000, "%a" * 50 + "%")
    with pytest.raises(QueryError, match="takes too long"):
        like_matches("a" * 10_000_000, "a_" * 10_000)


def test_a_pattern_is_as_long_as_sqlite_reads_it() -> None:
    assert glob_pattern("a" * MAX_PATTERN_BYTES) == "a" * MAX_PATTERN_BYTES
    for pattern in ("a" * (MAX_PATTERN_BYTES + 1), "*" * (MAX_PATTERN_BYTES // 2), "é" * 25_001):
        with pytest.raises(QueryError, match="more than 50000 bytes"):
            glob_pattern(pattern)
