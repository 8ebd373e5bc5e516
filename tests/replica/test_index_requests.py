"""Wishes on their way from workers to the replication process."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from zerocache.replica.auto_index import IndexWish
from zerocache.replica.index_requests import (
    MAX_WAITING,
    SOCKET_NAME,
    IndexRequester,
    IndexRequestServer,
)

WISHES = [IndexWish("t", (f"c{i}",), (("o", True),)) for i in range(3)]


class Received:
    """What a server was told."""

    def __init__(self) -> None:
        self.wishes: list[IndexWish] = []
        self._changed = asyncio.Event()

    def __call__(self, wish: IndexWish) -> None:
        self.wishes.append(wish)
        self._changed.set()

    async def count(self, wanted: int) -> list[IndexWish]:
        async with asyncio.timeout(10):
            while len(self.wishes) < wanted:
                await self._changed.wait()
                self._changed.clear()
        return self.wishes


async def test_wishes_arrive_in_order(tmp_path: Path) -> None:
    received = Received()
    server = IndexRequestServer(tmp_path / SOCKET_NAME, received)
    await server.start()
    requester = IndexRequester(tmp_path / SOCKET_NAME)
    requester.ask(WISHES[:2])
    assert await received.count(2) == WISHES[:2]
    requester.ask(WISHES[2:])
    assert await received.count(3) == WISHES
    await requester.close()
    await server.close()


async def test_wishes_wait_for_a_server_that_starts_later(tmp_path: Path) -> None:
    requester = IndexRequester(tmp_path / SOCKET_NAME)
    requester.ask(WISHES)
    requester.ask(WISHES)  # asked again while waiting: sent once
    received = Received()
    (tmp_path / SOCKET_NAME).touch()  # left behind by a killed predecessor
    server = IndexRequestServer(tmp_path / SOCKET_NAME, received)
    await server.start()
    assert await received.count(3) == WISHES
    await requester.close()
    await server.close()


async def test_only_so_many_wishes_wait(tmp_path: Path) -> None:
    requester = IndexRequester(tmp_path / SOCKET_NAME)
    many = [IndexWish("t", (f"c{i}",)) for i in range(MAX_WAITING + 5)]
    requester.ask(many)
    received = Received()
    server = IndexRequestServer(tmp_path / SOCKET_NAME, received)
    await server.start()
    assert await received.count(MAX_WAITING) == many[5:]
    await requester.close()
    await server.close()


async def test_closing_gives_up_what_waits(tmp_path: Path) -> None:
    requester = IndexRequester(tmp_path / SOCKET_NAME)
    requester.ask(WISHES)
    async with asyncio.timeout(5):
        await requester.close()


async def test_a_stranger_does_not_harm_the_server(tmp_path: Path) -> None:
    received = Received()
    server = IndexRequestServer(tmp_path / SOCKET_NAME, received)
    await server.start()
    for line in (b"hello\n", b'{"table":1}\n', b"x" * 100_000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(tmp_path / SOCKET_NAME))
            await asyncio.to_thread(stranger.sendall, line)
    requester = IndexRequester(tmp_path / SOCKET_NAME)
    requester.ask(WISHES[:1])
    assert await received.count(1) == WISHES[:1]
    await requester.close()
    await server.close()
