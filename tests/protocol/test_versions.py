"""Watermarks and LSNs (replication.md §5.1, §10.2 #1–#3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.protocol.versions import (
    lexi_decode,
    lexi_encode,
    lsn_from_text,
    lsn_from_watermark,
    lsn_to_text,
    watermark_from_lsn,
)

numbers = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "00"),
        (35, "0z"),
        (36, "110"),
        (46655, "2zzz"),
        (2**53 - 1, "a2gosa7pa2gv"),
        (2**64 - 1, "c3w5e11264sgsf"),
    ],
)
def test_known_watermarks(number: int, text: str) -> None:
    """§10.2 #1"""
    assert lexi_encode(number) == text
    assert lexi_decode(text) == number


@given(numbers, numbers)
def test_watermarks_sort_as_their_numbers(one: int, other: int) -> None:
    assert (watermark_from_lsn(one) < watermark_from_lsn(other)) == (one < other)
    assert lsn_from_watermark(watermark_from_lsn(one)) == one


@pytest.mark.parametrize("text", ["1a", "x", "", "0", "0A", "00a", "0-", " 00"])
def test_what_is_no_watermark(text: str) -> None:
    """§10.2 #2"""
    with pytest.raises(ValueError, match="lexi"):
        lexi_decode(text)


@pytest.mark.parametrize("number", [-1, 36**36])
def test_numbers_without_a_watermark(number: int) -> None:
    """§10.2 #2"""
    with pytest.raises(ValueError, match="cannot encode"):
        lexi_encode(number)


@pytest.mark.parametrize(
    ("lsn", "watermark"),
    [
        ("0/1953A58", "4ft7iw"),
        ("1/0", "61z141z4"),
        ("3/7C2A10F8", "66vjkwl4"),
        ("16/B374D848", "718sh0nk8"),
        ("FFFFFFFF/FFFFFFFF", "c3w5e11264sgsf"),
    ],
)
def test_positions(lsn: str, watermark: str) -> None:
    number = lsn_from_text(lsn)
    assert watermark_from_lsn(number) == watermark
    assert lsn_to_text(number) == lsn


def test_minor_versions_are_of_no_interest_upstream() -> None:
    """§10.2 #3"""
    assert lsn_from_watermark("66vjkwl4.3z8d2") == lsn_from_text("3/7C2A10F8")
    assert "66vjkwl4" < "66vjkwl4.01" < "66vjkwl5"
