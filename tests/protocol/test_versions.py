"""Cookies order as the versions they stand for: clients compare them as plain strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.protocol.versions import ViewVersion, Watermark, lexi_decode, lexi_encode

numbers = st.integers(0, 2**53 - 1)
near = st.one_of(st.integers(0, 50), numbers)
minors = st.one_of(st.none(), st.integers(1, 40))


def watermark(major: int, minor: int | None) -> Watermark:
    text = lexi_encode(major)
    return Watermark(text if minor is None else f"{text}.{lexi_encode(minor)}")


versions = st.builds(
    lambda major, minor, config: ViewVersion(watermark(major, minor), config),
    near,
    minors,
    st.one_of(st.integers(0, 40), numbers),
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "00"), (10, "0a"), (35, "0z"), (36, "110"), (46655, "2zzz"), (2**53 - 1, "a2gosa7pa2gv")],
)
def test_numbers_have_their_lexi_form(number: int, text: str) -> None:
    assert lexi_encode(number) == text
    assert lexi_decode(text) == number


@given(near, near)
def test_lexi_forms_order_as_numbers(a: int, b: int) -> None:
    assert (lexi_encode(a) < lexi_encode(b)) == (a < b)


@given(versions, versions)
def test_cookies_order_as_versions(a: ViewVersion, b: ViewVersion) -> None:
    """Also with the minor versions of what no upstream transaction did: ``110:01`` comes before
    what follows it, although ``.`` sorts before ``:``."""
    assert (a.cookie() < b.cookie()) == (a < b)


@given(versions)
def test_cookie_is_read_as_it_was_written(version: ViewVersion) -> None:
    assert ViewVersion.from_cookie(version.cookie()) == version


@pytest.mark.parametrize(
    "cookie", ["", "foo-bar", "1:2:3", "01:a2gosa7pa2gw", "01:", ":01", "01;", "01;01;01", "zz"]
)
def test_anything_else_is_no_cookie(cookie: str) -> None:
    """sync-protocol.md §10 #35"""
    with pytest.raises(ValueError, match=r"lexi|config"):
        ViewVersion.from_cookie(cookie)
