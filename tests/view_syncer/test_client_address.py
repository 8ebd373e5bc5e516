"""Whose address counts behind proxies, and which pages may connect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from view_syncer.client_address import client_address, origin_allowed, parse_networks

TRUSTED = parse_networks(["10.0.0.0/8", "2001:db8::/32"])
CLIENT, PROXY, OUTER = "203.0.113.9", "10.0.0.1", "10.0.0.2"


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        (CLIENT, {}, CLIENT),
        (CLIENT, {"x-forwarded-for": "1.2.3.4", "x-real-ip": "1.2.3.4"}, CLIENT),
        (PROXY, {"x-forwarded-for": CLIENT}, CLIENT),
        (PROXY, {"x-forwarded-for": f"1.2.3.4, {CLIENT}, {OUTER}"}, CLIENT),
        (PROXY, {"x-forwarded-for": f"spoofed, {CLIENT}"}, CLIENT),
        (PROXY, {"x-forwarded-for": f"{CLIENT}, nonsense, {OUTER}"}, OUTER),
        (PROXY, {"x-real-ip": CLIENT}, CLIENT),
        (PROXY, {"x-real-ip": "nonsense"}, PROXY),
        (PROXY, {"x-forwarded-for": ""}, PROXY),
        (PROXY, {"x-forwarded-for": f"{OUTER}, {OUTER}"}, OUTER),
        ("2001:db8::7", {"x-forwarded-for": "2001:470::1"}, "2001:470::1"),
        ("::ffff:10.0.0.1", {"x-forwarded-for": CLIENT}, CLIENT),
    ],
)
def test_nearest_address_that_is_no_trusted_proxy_counts(
    peer: str, headers: dict[str, str], expected: str
) -> None:
    assert client_address(peer, headers, TRUSTED) == expected


def test_without_trusted_proxies_no_header_is_believed() -> None:
    assert client_address(PROXY, {"x-forwarded-for": CLIENT}, ()) == PROXY


@given(forwarded=st.text(max_size=60), real=st.text(max_size=20))
def test_no_header_breaks_it(forwarded: str, real: str) -> None:
    headers = {"x-forwarded-for": forwarded, "x-real-ip": real}
    assert client_address(PROXY, headers, TRUSTED)
    assert client_address(CLIENT, headers, TRUSTED) == CLIENT


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.example", True),
        ("https://APP.example", True),
        ("https://x.sub.example", True),
        ("https://a.b.sub.example", True),
        ("https://sub.example", False),
        ("http://x.sub.example", False),
        ("https://evilsub.example", False),
        ("https://app.example.evil", False),
        ("null", False),
        (None, True),
    ],
)
def test_origins(origin: str | None, allowed: bool) -> None:
    assert origin_allowed(origin, ["https://app.example", "https://*.sub.example"]) is allowed
    assert origin_allowed(origin, [])
