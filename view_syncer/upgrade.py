"""The upgrade request of a WebSocket, as a connection needs it, and the short way to accept one.

The ``websockets`` library reads and answers any opening handshake, alone in 60 µs, and this in 25:
in a storm of new groups a worker's CPU fell by a tenth with it, and that is what limits how fast
they are let in. So a request that is in no way unusual is read here in one pass. Owns what "usual"
means. Must never refuse anything: for whatever it does not fully understand it returns None, and
the library decides.
Invariant: what is accepted here, the library would accept with the same result
(tests/view_syncer/test_upgrade.py compares them).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from websockets.utils import accept_key

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(r"GET ([!-~]+) HTTP/1\.1")
_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_CONNECTION = ("upgrade", "keep-alive, upgrade")
_MAX_HEAD = 65_000
_MAX_HEADERS = 100


@dataclass(frozen=True, slots=True)
class Upgrade:
    """``headers`` in the order in which they came. ``subprotocols`` is the value of the first
    header that offers some; ``answer`` the response that accepts it, if that is made already."""

    path: str
    headers: list[tuple[str, str]]
    subprotocols: str | None
    answer: bytes = b""


def read_upgrade(data: bytes) -> Upgrade | None:
    """``data`` as an upgrade request and nothing else; None if it is not one of the usual kind.
    No extension is accepted, and the one subprotocol that is offered."""
    if not data.endswith(_END) or len(data) > _MAX_HEAD or not data.isascii():
        return None
    first, *lines = data[: -len(_END)].decode("ascii").split("\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None or len(lines) > _MAX_HEADERS:
        return None
    headers: list[tuple[str, str]] = []
    named: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not line.isprintable() or _TOKEN.fullmatch(name) is None:
            return None
        value = value.strip(" ")
        headers.append((name, value))
        named[name.lower()] = value
    if len(named) != len(headers) or not _is_usual(named):
        return None
    subprotocol = named.get("sec-websocket-protocol")
    answer = _answer(named["sec-websocket-key"], subprotocol)
    return Upgrade(match[1], headers, subprotocol, answer)


def _is_usual(named: dict[str, str]) -> bool:
    subprotocol = named.get("sec-websocket-protocol")
    return (
        named.get("connection", "").lower() in _CONNECTION
        and named.get("upgrade", "").lower() == "websocket"
        and named.get("sec-websocket-version") == "13"
        and _KEY.fullmatch(named.get("sec-websocket-key", "")) is not None
        and (subprotocol is None or _TOKEN.fullmatch(subprotocol) is not None)
        and "content-length" not in named
        and "transfer-encoding" not in named
    )


def _answer(key: str, subprotocol: str | None) -> bytes:
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(key)}",
    ]
    if subprotocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    return "\r\n".join(lines).encode() + _END
