"""The control channel between the supervisor and one child: messages, and client sockets.

Owns the packets on a Unix ``SOCK_SEQPACKET`` pair (one JSON object per packet, at most one file
descriptor with it) and both ends of it. Must never decide what a message means for the node: the
supervisor does. Invariant: a descriptor that was received is either handed to the callback or
closed, and a descriptor that was sent stays open at the sender until the sender closes it.

Child:   ``control = ChildControl.from_environment()``, ``control.start(on_socket=…)`` inside the
         running loop, then ``control.ready()``.
Parent:  ``control, child_socket = ParentControl.pair()``, pass ``child_socket`` on, close it,
         ``async for message in control.messages()``.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, Self

import msgspec
import structlog

from zerocache.errors import ConfigurationError, ZerocacheError

CONTROL_FD_VARIABLE = "ZEROCACHE_CONTROL_FD"
RUNTIME_DIR_VARIABLE = "ZEROCACHE_RUNTIME_DIR"

EXIT_CONFIGURATION = 78
EXIT_PARENT_GONE = 255

_MAX_PACKET = 65_536
_MAX_TEXT = 8192  # characters of one message: six bytes each in JSON still fit a packet
_PR_SET_PDEATHSIG = 1

log = structlog.get_logger(__name__)


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child can do its work."""


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The child cannot do its work and a restart would not help: the node should end."""

    message: str
    exit: int = EXIT_CONFIGURATION


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A line for the log about a start that takes long."""

    text: str


class Released(msgspec.Struct, frozen=True, tag="released"):
    """A client's connection that was handed off has ended."""

    address: str


class Figures(msgspec.Struct, frozen=True, tag="figures"):
    """The child's answer to :class:`AskFigures`: what it would tell its operator."""

    request: int
    values: dict[str, Any]


class HandOff(msgspec.Struct, frozen=True, tag="socket"):
    """Comes with the descriptor of a client's connection, from which nothing was read yet.

    ``peer`` is for the log; ``address`` is the client's, behind trusted proxies; ``refusal`` says
    why the client is only to be told to come back later.
    """

    peer: str
    address: str = ""
    refusal: str = ""


class AskFigures(msgspec.Struct, frozen=True, tag="figures"):
    request: int


class ReplicaReady(msgspec.Struct, frozen=True, tag="replica"):
    """The replica can be opened: what the child has been waiting for."""


ChildMessage = Ready | Fatal | Progress | Released | Figures
ParentMessage = HandOff | AskFigures | ReplicaReady


class ControlClosed(ZerocacheError):
    """The child at the other end is gone."""

    code = "ZC150"


class ParentControl:
    """The supervisor's end.

    * ``messages`` may be iterated by one task, which ends before ``close`` is called; it ends
      by itself when the child closed its end.
    * ``send_socket`` may be called by many tasks at once; the caller keeps owning the socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        # Writers queue here: the loop allows one writability callback per descriptor.
        self._sending = asyncio.Lock()
        self._decoder = msgspec.json.Decoder(ChildMessage)
        self._closed = False

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """A new channel: our end, and the socket to pass to the child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    async def messages(self) -> AsyncIterator[ChildMessage]:
        while True:
            try:
                packet = self._sock.recv(_MAX_PACKET)
            except BlockingIOError:
                await _wait_readable(self._sock)
                continue
            except OSError:
                return  # reset: the child died with packets of ours unread
            if not packet:
                return
            try:
                yield self._decoder.decode(packet)
            except msgspec.DecodeError as error:
                log.warning("control_message_ignored", reason=str(error))

    async def send_socket(self, sock: socket.socket, hand_off: HandOff) -> None:
        """Hand a connection to the child; raises ControlClosed when it is gone."""
        await self._send(hand_off, [sock])

    async def ask_figures(self, request: int) -> None:
        """Ask for a :class:`Figures` with this number; raises ControlClosed."""
        await self._send(AskFigures(request), [])

    async def replica_ready(self) -> None:
        """Let a child go on that waits for the replica; raises ControlClosed."""
        await self._send(ReplicaReady(), [])

    async def _send(self, message: ParentMessage, sockets: list[socket.socket]) -> None:
        packet = msgspec.json.encode(message)
        async with self._sending:
            while True:
                if self._closed:
                    raise ControlClosed("The child's control channel is closed. Wait for a new one")
                try:
                    fds = [sock.fileno() for sock in sockets]
                    socket.send_fds(self._sock, [packet], fds, socket.MSG_DONTWAIT)
                    return
                except BlockingIOError:
                    await _wait_writable(self._sock)
                except OSError as error:
                    raise ControlClosed(
                        f"The child is gone ({error}). Wait for a new one"
                    ) from None

    async def close(self) -> None:
        """Close this end, which tells a child that is still alive to exit."""
        if self._closed:
            return
        self._closed = True
        # Wakes whoever waits for this descriptor. Only then may its number become another's:
        # the loop knows callbacks by number.
        with suppress(OSError):  # the child closed first
            self._sock.shutdown(socket.SHUT_RDWR)
        async with self._sending:
            self._sock.close()


class ChildControl:
    """A child's end.

    * ``ready``, ``fatal`` and ``progress`` may be called from any thread, and before ``start``.
    * ``start`` belongs inside the running loop; from then on the process exits when the
      supervisor is gone, because a child without its supervisor can neither be reached by
      clients nor be stopped by the operator.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_socket: Callable[[socket.socket, HandOff], None] | None = None
        self._figures: Callable[[], dict[str, Any]] = dict
        self._decoder: msgspec.json.Decoder[ParentMessage] = msgspec.json.Decoder(ParentMessage)
        # Set when the replica may be opened; only for those whom the supervisor tells.
        self.replica_ready = asyncio.Event()
        self._on_parent_gone: Callable[[], None] = _exit_without_parent

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The channel this process was started with."""
        text = (os.environ if environ is None else environ).get(CONTROL_FD_VARIABLE, "")
        if not text.isdigit():
            raise ConfigurationError(
                f"{CONTROL_FD_VARIABLE} is {text!r}, not a file descriptor. This process is "
                "started by `zerocache`, not by hand; run `zerocache` instead."
            )
        _die_with_parent()
        sock = socket.socket(fileno=int(text))
        # Not for children of ours: they would keep the supervisor from noticing our death.
        sock.set_inheritable(False)
        return cls(sock)

    def start(
        self,
        *,
        on_socket: Callable[[socket.socket, HandOff], None] | None = None,
        figures: Callable[[], dict[str, Any]] | None = None,
        on_parent_gone: Callable[[], None] | None = None,
    ) -> None:
        """Receive from now on. ``on_socket`` owns each non-blocking socket it is given, and tells
        its end with :meth:`released`; ``figures`` must not block."""
        self._on_socket = on_socket
        if figures is not None:
            self._figures = figures
        if on_parent_gone is not None:
            self._on_parent_gone = on_parent_gone
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock.fileno(), self._receive)

    def ready(self) -> None:
        self._send(Ready())

    def fatal(self, message: str, exit: int = EXIT_CONFIGURATION) -> None:
        """Ask for the end of the node; the caller then exits with the same status."""
        self._send(Fatal(message[:_MAX_TEXT], exit))

    def released(self, address: str) -> None:
        self._send(Released(address))

    def progress(self, text: str) -> None:
        try:
            self._sock.send(msgspec.json.encode(Progress(text[:_MAX_TEXT])))
        except OSError:
            # A line for people: not worth waiting for a supervisor that is busy or gone.
            return

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop = None
        self._sock.close()

    def _send(self, message: ChildMessage) -> None:
        packet = msgspec.json.encode(message)
        while True:
            try:
                self._sock.send(packet)
                return
            except BlockingIOError:
                # Full only if the supervisor hangs; these messages must not get lost.
                writable = select.poll()
                writable.register(self._sock, select.POLLOUT)
                writable.poll()
            except OSError as error:
                log.warning("control_message_lost", reason=str(error))
                return

    def _receive(self) -> None:
        for _ in range(16):  # then let the loop turn: a flood of connections must not starve it
            try:
                packet, fds, _flags, _address = socket.recv_fds(self._sock, _MAX_PACKET, 1)
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            if not packet:
                if self._loop is not None:
                    self._loop.remove_reader(self._sock.fileno())
                self._on_parent_gone()
                return
            self._accept(packet, fds)

    def _accept(self, packet: bytes, fds: list[int]) -> None:
        received = deque(socket.socket(fileno=fd) for fd in fds)
        try:
            message = self._decoder.decode(packet)
        except msgspec.DecodeError as error:
            log.warning("control_message_ignored", reason=str(error))
        else:
            if isinstance(message, AskFigures):
                self._send(Figures(message.request, self._figures()))
            elif isinstance(message, ReplicaReady):
                self.replica_ready.set()
            elif self._on_socket is not None and received:
                sock = received.popleft()
                sock.setblocking(False)
                sock.set_inheritable(False)
                self._on_socket(sock, message)
        for leftover in received:
            leftover.close()


def _exit_without_parent() -> None:
    log.error("supervisor_gone", action="exiting")
    # Not sys.exit: there is nobody left to drain for, and nothing may hold this process back.
    os._exit(EXIT_PARENT_GONE)


def _die_with_parent() -> None:
    """Have Linux kill this process with its parent, even while the loop is busy or blocked.

    Elsewhere end-of-file on the channel does the same once the loop turns.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _wait_readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    turned: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()
    loop.add_reader(fd, _resolve, turned)
    try:
        await turned
    finally:
        loop.remove_reader(fd)


async def _wait_writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    turned: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()
    loop.add_writer(fd, _resolve, turned)
    try:
        await turned
    finally:
        loop.remove_writer(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
