"""The short way through an opening handshake, against the library's."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from view_syncer.upgrade import read_upgrade

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
USUAL = (
    ("Host", "app.example:4848"),
    ("Connection", "Upgrade"),
    ("Pragma", "no-cache"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64)"),
    ("Upgrade", "websocket"),
    ("Origin", "https://app.example"),
    ("Sec-WebSocket-Version", "13"),
    ("Accept-Encoding", "gzip, deflate"),
    ("Cookie", "session=a; theme=b"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ("Sec-WebSocket-Protocol", "eyJhIjoxfQ%3D%3D"),
)
PATH = "/sync/v51/connect?clientID=c&clientGroupID=g&ts=1&lmid=0"


class Handshake(NamedTuple):
    path: str
    headers: list[tuple[str, str]]
    subprotocols: str | None
    answer: dict[str, str]


def head(first: str, headers: list[tuple[str, str]]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"


def by_the_library(data: bytes) -> Handshake | None:
    """None if it does not accept."""
    protocol = ServerProtocol(select_subprotocol=lambda _, offered: offered[0] if offered else None)
    protocol.receive_data(data)
    events = protocol.events_received()
    if not events:
        return None
    request = events[0]
    assert isinstance(request, Request)
    response = protocol.accept(request)
    protocol.send_response(response)
    if protocol.state is not State.OPEN:
        return None
    offered = request.headers.get_all("Sec-WebSocket-Protocol")
    answer = {name: value for name, value in response.headers.raw_items() if name != "Date"}
    first = offered[0] if offered else None
    return Handshake(request.path, [*request.headers.raw_items()], first, answer)


def by_us(data: bytes) -> Handshake | None:
    upgrade = read_upgrade(data)
    if upgrade is None:
        return None
    status, *lines = upgrade.answer.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert status == "HTTP/1.1 101 Switching Protocols"
    answer = dict(line.split(": ", 1) for line in lines)
    return Handshake(upgrade.path, upgrade.headers, upgrade.subprotocols, answer)


def test_what_browsers_send_is_usual() -> None:
    for headers in (
        list(USUAL),
        [("connection", "keep-alive, Upgrade") if h[0] == "Connection" else h for h in USUAL],
        [h for h in USUAL if h[0] != "Sec-WebSocket-Protocol"],
        [(name.lower(), value) for name, value in USUAL],
    ):
        data = head(f"GET {PATH} HTTP/1.1", headers)
        found = by_us(data)
        assert found is not None
        assert found == by_the_library(data)
        assert found.path == PATH


_TEXT = st.text(st.characters(max_codepoint=255), max_size=12)
_NAMES = st.sampled_from([name for name, _ in USUAL] + ["Content-Length", "Transfer-Encoding", "X"])
_VALUES = st.sampled_from(
    [value for _, value in USUAL]
    + ["0", "5", "chunked", "a, b", "a,b", "a b", "13 ", " 13", "8", "", ",", "\t13", "Upgrade,x",
       "x, upgrade", "keep-alive, upgrade", "WebSocket", "websocket, h2c", KEY[:-2], KEY[:-1],
       "A" * 22 + "==", "A" * 21 + "=", "é", "\x80", "\x1f"]
)  # fmt: skip
_FIRSTS = st.sampled_from(
    [f"GET {PATH} HTTP/1.1", "GET / HTTP/1.1", "GET /é HTTP/1.1", "POST / HTTP/1.1",
     "GET / HTTP/1.0", "GET  / HTTP/1.1", "GET /a b HTTP/1.1", "get / HTTP/1.1", "GET /", ""]
)  # fmt: skip
_CHANGES = st.lists(
    st.tuples(st.integers(0, len(USUAL)), st.booleans(), _NAMES | _TEXT, _VALUES | _TEXT),
    max_size=4,
)


@given(first=_FIRSTS, changes=_CHANGES, tail=st.sampled_from([b"", b"", b"\x81\x80abcd", b"\r\n"]))
@example(f"GET {PATH} HTTP/1.1", [(0, False, "Connection", "close")], b"")
def test_what_is_accepted_is_what_the_library_accepts(
    first: str, changes: list[tuple[int, bool, str, str]], tail: bytes
) -> None:
    headers = list(USUAL)
    for at, replaces, name, value in changes:
        headers[at : at + replaces] = [(name, value)]
    data = head(first, headers) + tail
    found = by_us(data)
    if found is not None:
        assert found == by_the_library(data)


@given(st.integers(0, 400), st.binary(max_size=3))
def test_any_byte_may_be_another(at: int, wrong: bytes) -> None:
    data = head(f"GET {PATH} HTTP/1.1", list(USUAL))
    data = data[:at] + wrong + data[at + len(wrong) :]
    found = by_us(data)
    if found is not None:
        assert found == by_the_library(data)


@pytest.mark.parametrize("cut", [1, 30, 300])
def test_a_part_of_a_request_is_left_to_the_library(cut: int) -> None:
    assert read_upgrade(head(f"GET {PATH} HTTP/1.1", list(USUAL))[:-cut]) is None
