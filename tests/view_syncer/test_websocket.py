"""One socket: framing, limits and endings, over real TCP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from benchmarks import websocket as peer
from view_syncer import websocket as module
from view_syncer import wire
from view_syncer.websocket import WebSocket

MAX_SIZE = 10 * 1024 * 1024


class Pair:
    """A server-side socket and the raw stream of its peer."""

    def __init__(self, server: WebSocket, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self._frames = peer.FrameReader()
        self._messages: list[peer.Message] = []
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def send_text(self, text: bytes) -> None:
        await self.send(peer.encode_frame(peer.TEXT, text))

    async def receive(self) -> peer.Message:
        async with asyncio.timeout(10):
            while not self._messages:
                data = await self._loop.sock_recv(self.sock, 65536)
                assert data, "the server ended the stream"
                self._messages += self._frames.feed(data)
        return self._messages.pop(0)

    async def receive_close(self) -> tuple[int, str]:
        while (message := await self.receive()).opcode != peer.CLOSE:
            pass
        return peer.parse_close(message.payload)

    async def ended(self) -> None:
        """Until the server has ended the stream."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                while await self._loop.sock_recv(self.sock, 65536):
                    pass


class Port:
    """Accepts WebSockets and hands out both ends."""

    def __init__(self) -> None:
        self._accepted: asyncio.Queue[WebSocket] = asyncio.Queue()
        self.sockets: list[socket.socket] = []

    async def start(self, write_limit: int = 1 << 20, *, compression: bool = False) -> None:
        def accept() -> WebSocket:
            server = WebSocket(max_size=MAX_SIZE, write_limit=write_limit, compression=compression)
            self._accepted.put_nowait(server)
            return server

        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(accept, "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()

    async def raw(self) -> Pair:
        sock = socket.socket()
        sock.setblocking(False)
        self.sockets.append(sock)
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        return Pair(await self._accepted.get(), sock)

    async def open(self, subprotocol: str = "e30%3D") -> Pair:
        pair = await self.raw()
        await pair.send(request({"Sec-WebSocket-Protocol": subprotocol}))
        async with asyncio.timeout(5):
            await pair.server.request
            assert pair.server.accept()
            head = b""
            while (parts := peer.split_response(head)) is None:
                head += await asyncio.get_running_loop().sock_recv(pair.sock, 65536)
        headers = peer.check_response(parts[0], KEY)
        assert headers["sec-websocket-protocol"] == subprotocol
        return pair


KEY = peer.new_key()


def request(headers: dict[str, str]) -> bytes:
    return peer.upgrade_request("h", "/sync/v51/connect", KEY, headers)


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    port = Port()
    await port.start()
    yield port
    for sock in port.sockets:
        sock.close()
    port.server.close()
    await port.server.wait_closed()


@pytest.mark.parametrize("compression", [False, True])
async def test_nothing_is_said_before_the_upgrade_is_answered(compression: bool) -> None:
    port = Port()
    await port.start(compression=compression)
    pair = await port.raw()
    await pair.send(request({}))
    await pair.server.request
    await pair.send(peer.encode_frame(peer.PING, b"early") + peer.encode_frame(peer.TEXT, b"too"))
    await pair.server._arrived.wait()
    with pytest.raises(BlockingIOError):
        pair.sock.recv(1, socket.MSG_PEEK)
    assert pair.server.accept()
    assert await pair.server.receive() == b"too"
    said = b""
    async with asyncio.timeout(10):
        while b"early" not in said:
            said += await asyncio.get_running_loop().sock_recv(pair.sock, 65536)
    assert said.startswith(b"HTTP/1.1 101 ")
    pair.sock.close()
    port.server.close()


@pytest.mark.parametrize("compression", [False, True])
@pytest.mark.parametrize("version", ["13", "12"])
async def test_a_peer_that_leaves_before_its_answer(compression: bool, version: str) -> None:
    port = Port()
    await port.start(compression=compression)
    pair = await port.raw()
    await pair.send(request({}).replace(b"Version: 13", b"Version: " + version.encode()))
    await pair.server.request
    pair.sock.close()
    async with asyncio.timeout(10):
        await pair.server.closed
    assert not pair.server.accept()
    assert await pair.server.receive() is None
    port.server.close()


async def test_a_request_in_pieces_is_accepted(port: Port) -> None:
    pair = await port.raw()
    data = request({"Sec-WebSocket-Protocol": "e30%3D"})
    pair.server.data_received(data[:40])  # as if it had come so
    await pair.send(data[40:])
    assert (await pair.server.request).path == "/sync/v51/connect"
    assert pair.server.accept()
    pair.server.send_text(b"hello")
    said = b""
    async with asyncio.timeout(10):
        while b"hello" not in said:
            said += await asyncio.get_running_loop().sock_recv(pair.sock, 65536)
    assert said.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("size", [8_193, 16_384, 60_000])
async def test_long_subprotocol_is_accepted_and_echoed(port: Port, size: int) -> None:
    await port.open("a" * size)


async def test_header_beyond_every_limit_is_refused(port: Port) -> None:
    pair = await port.raw()
    await pair.send(request({"Sec-WebSocket-Protocol": "a" * 70_000}))
    await pair.ended()
    with pytest.raises(ConnectionResetError):
        await pair.server.request


async def test_first_of_several_subprotocols_is_chosen(port: Port) -> None:
    pair = await port.raw()
    await pair.send(request({"Sec-WebSocket-Protocol": "one, two"}))
    await pair.server.request
    assert pair.server.accept()
    head = await asyncio.get_running_loop().sock_recv(pair.sock, 65536)
    assert b"Sec-WebSocket-Protocol: one\r\n" in head


async def test_request_that_is_no_upgrade_is_answered_and_ended(port: Port) -> None:
    pair = await port.raw()
    await pair.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await pair.server.request
    assert not pair.server.accept()
    data = await asyncio.get_running_loop().sock_recv(pair.sock, 65536)
    assert data.startswith(b"HTTP/1.1 4")
    await pair.ended()


@pytest.mark.parametrize("at_once", [True, False])
async def test_upgrade_that_the_peer_closes_before_the_answer_is_not_accepted(
    port: Port, at_once: bool
) -> None:
    pair = await port.raw()
    closing = peer.encode_frame(peer.CLOSE, peer.close_payload(1000))
    opening = request({"Sec-WebSocket-Protocol": "e30%3D"})
    await pair.send(opening + closing if at_once else opening)
    await pair.server.request
    if not at_once:
        await pair.send(closing)
        assert await pair.server.receive() is None
    assert not pair.server.accept()
    pair.server.send_text(b"into the void")
    pair.server.close()
    await pair.ended()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\r\n\r\n", b"GET / HT", b""])
async def test_garbage_instead_of_a_request_fails_the_request(port: Port, garbage: bytes) -> None:
    pair = await port.raw()
    if garbage:
        await pair.send(garbage)
    pair.sock.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionResetError):
            await pair.server.request
        await pair.server.closed


async def test_messages_arrive_in_order_and_none_is_the_end(port: Port) -> None:
    pair = await port.open()
    for number in range(200):
        await pair.send_text(str(number).encode())
    await pair.send(peer.encode_frame(peer.CLOSE, peer.close_payload(1000)))
    received = []
    async with asyncio.timeout(10):
        while (message := await pair.server.receive()) is not None:
            received.append(int(message))
    assert received == list(range(200))
    assert await pair.receive_close() == (1000, "")


async def test_fragmented_message_is_put_together(port: Port) -> None:
    pair = await port.open()
    parts = [b'["pi', b"ng\xe2\x82", b'\xac",{}]']
    opcodes = [0x01, 0x00, 0x80]
    for opcode, part in zip(opcodes, parts, strict=True):
        frame = bytearray(peer.encode_frame(peer.TEXT, part))
        frame[0] = opcode
        await pair.send(bytes(frame))
        await pair.send(peer.encode_frame(peer.PING, b"between"))
    assert await pair.server.receive() == b"".join(parts)
    assert (await pair.receive()).opcode == peer.PONG


@pytest.mark.parametrize("fragmented", [False, True])
async def test_message_above_the_limit_closes_with_1009_that_arrives(
    port: Port, fragmented: bool
) -> None:
    """The peer is still sending when the limit is noticed: a reset would swallow the code on
    which clients decide not to send the same message again."""
    pair = await port.open()
    if fragmented:
        half = bytearray(peer.encode_frame(peer.TEXT, b"x" * (6 * 1024 * 1024)))
        half[0] = 0x01
        rest = bytearray(peer.encode_frame(peer.TEXT, b"x" * (6 * 1024 * 1024)))
        rest[0] = 0x80
        data = bytes(half) + bytes(rest)
    else:
        data = peer.encode_frame(peer.TEXT, b"x" * (MAX_SIZE + 1))
    await pair.send(data + data[: 4 * 1024 * 1024])
    code, _ = await pair.receive_close()
    assert code == 1009
    assert await pair.server.receive() is None


async def test_message_at_the_limit_is_read(port: Port) -> None:
    pair = await port.open()
    sending = asyncio.create_task(pair.send_text(b"x" * MAX_SIZE))
    message = await pair.server.receive()
    assert message is not None
    assert len(message) == MAX_SIZE
    await sending


async def test_unmasked_frame_closes_with_1002(port: Port) -> None:
    pair = await port.open()
    await pair.send(b"\x81\x02{}")
    assert (await pair.receive_close())[0] == 1002


async def test_close_carries_code_and_reason_and_ends_after_the_answer(port: Port) -> None:
    pair = await port.open()
    pair.server.close(3000, "no")
    assert await pair.receive_close() == (3000, "no")
    assert await pair.server.receive() is None
    await pair.send(peer.encode_frame(peer.CLOSE, peer.close_payload(3000)))
    await pair.ended()
    pair.sock.close()
    async with asyncio.timeout(5):
        await pair.server.closed


async def test_peer_that_never_answers_a_close_is_cut_off(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.05)
    pair = await port.open()
    pair.server.close()
    async with asyncio.timeout(5):
        await pair.server.closed


async def test_nothing_is_sent_after_the_close(port: Port) -> None:
    pair = await port.open()
    pair.server.send_text(b"before")
    pair.server.close()
    pair.server.send_text(b"after")
    pair.server.send_frames([wire.frame(wire.BINARY, b"\x00after")])
    assert (await pair.receive()).payload == b"before"
    assert (await pair.receive()).opcode == peer.CLOSE


async def test_reset_by_the_peer_ends_the_reader(port: Port) -> None:
    pair = await port.open()
    reading = asyncio.create_task(pair.server.receive())
    pair.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.sock.close()
    async with asyncio.timeout(5):
        assert await reading is None
        await pair.server.closed
    pair.server.send_text(b"into the void")
    pair.server.close()


async def test_peer_that_goes_without_a_close_ends_the_reader(port: Port) -> None:
    pair = await port.open()
    pair.sock.close()
    async with asyncio.timeout(5):
        assert await pair.server.receive() is None


async def test_reading_pauses_while_nobody_takes_the_messages(port: Port) -> None:
    pair = await port.open()
    text = b"x" * 65_536
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while sent < 2_000:
                await pair.send_text(text)
                sent += 1
    assert len(pair.server._inbox) <= 2 * module.READ_HIGH_WATER
    assert sent < 1_500
    for _ in range(sent):
        async with asyncio.timeout(5):
            assert await pair.server.receive() == text


async def test_message_of_any_size_may_be_sent_to_a_peer_that_reads(port: Port) -> None:
    pair = await port.open()
    text = b"x" * (5 << 20)
    for _ in range(3):
        pair.server.send_text(text)
    assert pair.server.clogged
    for _ in range(3):
        assert (await pair.receive()).payload == text
    assert not pair.server.clogged


async def test_peer_that_takes_nothing_is_seen_to_stall(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await port.open()
    clock = 1000.0
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: clock)
    assert pair.server.stalled_for_s() == 0
    pair.server.send_text(b"x" * (20 << 20))
    pair.server.stalled_for_s()
    clock += 7
    assert pair.server.stalled_for_s() == 7
    monkeypatch.undo()
    await pair.receive()
    assert pair.server.stalled_for_s() == 0
