"""A WebSocket client's framing (RFC 6455) without I/O, made to cost the load side little.

Owns the bytes of the handshake and of frames. Must never touch a socket, and knows nothing of the
sync protocol. Invariant: whatever way the stream is cut into chunks, the same messages come out.
Extensions are not offered, so no frame is ever compressed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from typing import NamedTuple

TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA

_CONTINUATION = 0x0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEADER_LIMIT = 65536


class WebSocketError(Exception):
    """The peer broke RFC 6455 or refused the upgrade."""


class Message(NamedTuple):
    """A whole data message or control frame; fragments are already joined."""

    opcode: int
    payload: bytes


def new_key() -> str:
    return base64.b64encode(os.urandom(16)).decode()


def upgrade_request(host: str, target: str, key: str, headers: dict[str, str]) -> bytes:
    """The bytes that ask for the upgrade. ``target`` is path and query, already encoded."""
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def split_response(data: bytes) -> tuple[bytes, bytes] | None:
    """Head and remainder, once the blank line has arrived."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    if separator:
        return head, rest
    if len(data) > _HEADER_LIMIT:
        raise WebSocketError(f"no end of the response head within {_HEADER_LIMIT} bytes")
    return None


def check_response(head: bytes, key: str) -> dict[str, str]:
    """The response's headers (names in lower case) if it is a proper 101."""
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split(" ")[1:2] != ["101"]:
        raise WebSocketError(f"the server answered {status!r} instead of switching protocols")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    if headers.get("sec-websocket-accept") != base64.b64encode(digest).decode():
        raise WebSocketError("the response carries a wrong Sec-WebSocket-Accept")
    return headers


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """One final, masked frame, as clients must send them."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    mask = os.urandom(4)
    # XOR as one big integer: two orders of magnitude faster than a loop over the bytes.
    pad = (mask * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
    return head + mask + masked


class FrameReader:
    """Turns the byte stream of a server into messages.

    * Callers feed every chunk once, in order.
    * A message is returned by the call that completed it.
    """

    def __init__(self) -> None:
        # Bytes of a frame that has not arrived whole; empty most of the time.
        self._pending = b""
        # Opcode and payloads of a fragmented message between its first and last frame.
        self._fragment_opcode: int | None = None
        self._fragments: list[bytes] = []

    def feed(self, data: bytes) -> list[Message]:
        if self._pending:
            data = self._pending + data
        messages: list[Message] = []
        position, size = 0, len(data)
        while size - position >= 2:
            start, length = _payload_bounds(data, position, size)
            end = start + length
            if end > size:
                break
            message = self._frame(data[position], data[start:end])
            if message is not None:
                messages.append(message)
            position = end
        self._pending = data[position:]
        return messages

    def _frame(self, first: int, payload: bytes) -> Message | None:
        if first & 0x70:
            raise WebSocketError(f"frame with reserved bits {first:#x}; no extension was offered")
        opcode, final = first & 0x0F, bool(first & 0x80)
        if opcode >= CLOSE or (final and opcode != _CONTINUATION):
            if opcode < CLOSE and self._fragment_opcode is not None:
                raise WebSocketError("a new message began inside a fragmented one")
            return Message(opcode, payload)
        return self._fragment(opcode, final, payload)

    def _fragment(self, opcode: int, final: bool, payload: bytes) -> Message | None:
        if (opcode == _CONTINUATION) is (self._fragment_opcode is None):
            raise WebSocketError(f"fragment with opcode {opcode} out of sequence")
        if self._fragment_opcode is None:
            self._fragment_opcode = opcode
        self._fragments.append(payload)
        if not final:
            return None
        message = Message(self._fragment_opcode, b"".join(self._fragments))
        self._fragment_opcode, self._fragments = None, []
        return message


def _payload_bounds(data: bytes, position: int, size: int) -> tuple[int, int]:
    """Start and length of the payload; a start beyond the data if the header is incomplete."""
    length = data[position + 1]
    if length < 126:
        return position + 2, length
    if length == 126:
        if size - position < 4:
            return size + 1, 0
        return position + 4, data[position + 2] << 8 | data[position + 3]
    if length == 127:
        if size - position < 10:
            return size + 1, 0
        return position + 10, int.from_bytes(data[position + 2 : position + 10], "big")
    raise WebSocketError("a server's frame is masked, which RFC 6455 forbids")


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack("!H", code) + reason.encode()[:123]


def parse_close(payload: bytes) -> tuple[int, str]:
    """Code and reason; 1005 stands for "none given"."""
    if len(payload) < 2:
        return 1005, ""
    return int.from_bytes(payload[:2], "big"), payload[2:].decode(errors="replace")
