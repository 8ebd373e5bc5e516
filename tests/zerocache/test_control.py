"""The control channel: both ends in one process, connected by a real socket pair."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from zerocache.control import (
    CONTROL_FD_VARIABLE,
    ChildControl,
    ControlClosed,
    Fatal,
    HandOff,
    ParentControl,
    Progress,
    Ready,
)
from zerocache.errors import ConfigurationError


@pytest.fixture
async def ends() -> AsyncIterator[tuple[ParentControl, ChildControl]]:
    parent, theirs = ParentControl.pair()
    child = ChildControl(theirs)
    yield parent, child
    await parent.close()
    child.close()


Ends = tuple[ParentControl, ChildControl]


async def test_messages_arrive_in_order_and_end_with_the_child(ends: Ends) -> None:
    parent, child = ends
    child.progress("copying task")
    child.ready()
    child.fatal("no such database", 78)
    child.close()
    received = [message async for message in parent.messages()]
    assert received == [Progress("copying task"), Ready(), Fatal("no such database", 78)]


async def test_messages_are_awaited(ends: Ends) -> None:
    parent, child = ends
    messages = parent.messages()
    first = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    child.ready()
    assert await first == Ready()


async def test_unknown_message_is_skipped(ends: Ends) -> None:
    parent, child = ends
    child._sock.send(b'{"type":"future"}')
    child._sock.send(b"\xff")
    child.ready()
    assert await anext(parent.messages()) == Ready()


async def test_long_messages_are_cut_to_a_packet(ends: Ends) -> None:
    parent, child = ends
    child.fatal("\x00" * 100_000)  # six bytes each in JSON
    assert isinstance(await anext(parent.messages()), Fatal)


async def test_socket_is_handed_over_open_and_unread(ends: Ends) -> None:
    parent, child = ends
    received: asyncio.Future[tuple[socket.socket, HandOff]] = asyncio.Future()
    child.start(on_socket=lambda sock, hand_off: received.set_result((sock, hand_off)))
    client, server = socket.socketpair()
    with client, server:
        client.send(b"unread")
        sent = HandOff("192.0.2.1:5", "192.0.2.1", "full")
        await parent.send_socket(server, sent)
        server.close()
        sock, hand_off = await received
        with sock:
            assert hand_off == sent
            assert sock.getblocking() is False
            assert sock.recv(100) == b"unread"
            sock.send(b"answer")
        assert client.recv(100) == b"answer"


async def test_many_sockets_wait_for_a_slow_child(ends: Ends) -> None:
    parent, child = ends
    count = 1500  # more packets than the kernel queues
    client, server = socket.socketpair()
    received = 0
    all_received = asyncio.Event()

    def on_socket(sock: socket.socket, hand_off: HandOff) -> None:
        nonlocal received
        sock.close()
        received += 1
        if received == count:
            all_received.set()

    with client, server:
        sends = [
            asyncio.create_task(parent.send_socket(server, HandOff("p"))) for _ in range(count)
        ]
        await asyncio.sleep(0)
        child.start(on_socket=on_socket)
        await asyncio.gather(*sends)
        await all_received.wait()


async def test_sending_to_a_child_that_is_gone_says_so(ends: Ends) -> None:
    parent, child = ends
    child.close()
    client, server = socket.socketpair()
    with client, server, pytest.raises(ControlClosed):
        await parent.send_socket(server, HandOff("p"))


async def test_sender_that_waits_is_told_when_the_channel_closes(ends: Ends) -> None:
    parent, _child = ends
    client, server = socket.socketpair()
    with client, server:
        sends = [asyncio.create_task(parent.send_socket(server, HandOff("p"))) for _ in range(1500)]
        await asyncio.sleep(0)
        await parent.close()
        results = await asyncio.gather(*sends, return_exceptions=True)
    failures = [result for result in results if result is not None]
    assert failures
    assert all(isinstance(failure, ControlClosed) for failure in failures)


async def test_sending_on_a_closed_channel_says_so(ends: Ends) -> None:
    parent, _child = ends
    await parent.close()
    client, server = socket.socketpair()
    with client, server, pytest.raises(ControlClosed):
        await parent.send_socket(server, HandOff("p"))


async def test_unwanted_socket_is_closed(ends: Ends) -> None:
    parent, child = ends
    child.start()
    client, server = socket.socketpair()
    client.setblocking(False)
    with client:
        await parent.send_socket(server, HandOff("p"))
        server.close()
        # End-of-file proves that no descriptor of the other side is left.
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


async def test_child_notices_that_the_supervisor_is_gone(ends: Ends) -> None:
    parent, child = ends
    gone = asyncio.Event()
    child.start(on_parent_gone=gone.set)
    await parent.close()
    await gone.wait()


async def test_progress_is_dropped_when_nobody_reads(ends: Ends) -> None:
    _parent, child = ends
    for _ in range(5000):
        child.progress("x" * 1000)


@pytest.mark.parametrize("environ", [{}, {CONTROL_FD_VARIABLE: ""}, {CONTROL_FD_VARIABLE: "x"}])
def test_process_started_by_hand_is_told_what_to_run(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="run `zerocache`"):
        ChildControl.from_environment(environ)
