"""Who a connection is from: the address of the client behind trusted proxies, and its page.

Pure functions over a request's headers. Must never believe a header of a peer that is not a
trusted proxy: whoever connects can write what it likes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    return tuple(ip_network(text, strict=False) for text in texts)


def client_address(peer: str, headers: Mapping[str, str], trusted: Sequence[Network]) -> str:
    """The nearest address that is not a trusted proxy. A proxy appends whom it speaks for to
    X-Forwarded-For, so the list is read from its end."""
    if not trusted or not _is_trusted(peer, trusted):
        return peer
    forwarded = [part.strip() for part in headers.get("x-forwarded-for", "").split(",")]
    address = peer
    for hop in reversed([part for part in forwarded if part]):
        if not _is_address(hop):
            return address  # what a proxy wrote last that makes sense
        address = hop
        if not _is_trusted(hop, trusted):
            return address
    if address == peer and _is_address(real := headers.get("x-real-ip", "").strip()):
        return real
    return address


def origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    """Whether a page of this origin may connect. Programs that are no browser send none, and a
    page cannot leave it out."""
    if not allowed or origin is None:
        return True
    return any(_matches(origin.lower(), pattern.lower()) for pattern in allowed)


def _matches(origin: str, pattern: str) -> bool:
    scheme, wildcard, domain = pattern.partition("://*.")
    if not wildcard:
        return origin == pattern.rstrip("/")
    return origin.startswith(f"{scheme}://") and origin.endswith(f".{domain.rstrip('/')}")


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    if not _is_address(address):
        return False
    parsed = ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in trusted)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
