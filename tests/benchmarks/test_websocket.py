"""Framing of the benchmarks' WebSocket client, against bytes written by hand."""

from __future__ import annotations

import base64
import hashlib
import struct

import pytest

from benchmarks import websocket
from benchmarks.websocket import FrameReader, Message, WebSocketError


def server_frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    first = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        return first + bytes([len(payload)]) + payload
    if len(payload) < 65536:
        return first + b"\x7e" + struct.pack("!H", len(payload)) + payload
    return first + b"\x7f" + struct.pack("!Q", len(payload)) + payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_frames_of_every_length_form_are_read(size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert FrameReader().feed(server_frame(1, payload)) == [Message(1, payload)]


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_the_cut_of_the_stream_does_not_matter(cut: int) -> None:
    frames = [(1, b"a"), (2, b"b" * 300), (9, b""), (1, b"c" * 70_000)]
    stream = b"".join(server_frame(*frame) for frame in frames)
    head, tail = stream[:400], stream[400:]
    reader = FrameReader()
    messages = []
    for start in range(0, len(head), cut):
        messages += reader.feed(head[start : start + cut])
    messages += reader.feed(tail)
    assert messages == [Message(*frame) for frame in frames]


def test_fragments_are_joined_and_control_frames_may_come_between() -> None:
    stream = (
        server_frame(1, b"ab", final=False)
        + server_frame(9, b"ping")
        + server_frame(0, b"cd", final=False)
        + server_frame(0, b"ef")
    )
    assert FrameReader().feed(stream) == [Message(9, b"ping"), Message(1, b"abcdef")]


@pytest.mark.parametrize(
    "stream",
    [
        server_frame(0, b"continues nothing"),
        server_frame(1, b"a", final=False) + server_frame(1, b"b"),
        b"\xc1\x01a",  # compressed, though no extension was offered
        b"\x81\x81mask",  # masked by a server
    ],
)
def test_broken_framing_is_refused(stream: bytes) -> None:
    with pytest.raises(WebSocketError):
        FrameReader().feed(stream)


@pytest.mark.parametrize("size", [0, 5, 126, 70_000])
def test_client_frames_are_masked_and_can_be_unmasked(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    frame = websocket.encode_frame(websocket.TEXT, payload)
    offset = {0: 2, 5: 2, 126: 4, 70_000: 10}[size]
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    mask, masked = frame[offset : offset + 4], frame[offset + 4 :]
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked)) == payload


def test_response_head_is_split_from_the_first_frames() -> None:
    assert websocket.split_response(b"HTTP/1.1 101 x\r\nA: b") is None
    assert websocket.split_response(b"HTTP/1.1 101 x\r\n\r\n\x81") == (b"HTTP/1.1 101 x", b"\x81")


def test_only_a_proper_101_is_accepted() -> None:
    key = websocket.new_key()
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    accept = b"Sec-WebSocket-Accept: " + base64.b64encode(digest)
    headers = websocket.check_response(b"HTTP/1.1 101 Switching Protocols\r\n" + accept, key)
    assert headers["sec-websocket-accept"] == base64.b64encode(digest).decode()
    with pytest.raises(WebSocketError, match="503"):
        websocket.check_response(b"HTTP/1.1 503 Busy\r\n" + accept, key)
    with pytest.raises(WebSocketError, match="Accept"):
        websocket.check_response(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: wrong", key)


def test_close_payload_carries_code_and_reason() -> None:
    assert websocket.parse_close(websocket.close_payload(3000, "no")) == (3000, "no")
    assert websocket.parse_close(b"") == (1005, "")
