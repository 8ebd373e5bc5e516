"""One WebSocket, from an accepted TCP connection on: the thin asyncio shell around the sans-I/O
protocol of the ``websockets`` library.

Built on :class:`websockets.server.ServerProtocol` rather than on its asyncio server because the
dispatcher hands over connections whose opening handshake was not read yet, and because a server
that fans one frame out to thousands wants to write without a task switch per socket. Owns framing,
fragmentation, flow control and the closing handshake; knows nothing of what the frames say.

Invariants: frames are delivered in order and none after :attr:`closed`; what is written after the
close began is dropped; the close frame reaches the peer even if it is still sending. Whoever
writes much must look at :attr:`clogged` first; answers to what the peer itself sends are bounded
here, by not reading on while it does not take them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import websockets.http11
from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from view_syncer import wire
from view_syncer.upgrade import Upgrade, read_upgrade
from zerocache.failpoints import Place, reach

# The subprotocol header carries the first message: its line exceeds the library's 8 KiB default.
# Set here and not by the library's environment variable, which is read when the library is first
# imported, by whomever.
websockets.http11.MAX_LINE_LENGTH = 65_536

READ_HIGH_WATER = 64
READ_HIGH_WATER_BYTES = 4 * 1024 * 1024
"""Messages waiting to be processed before reading from the socket pauses."""
CLOSE_TIMEOUT_S = 5.0
MAX_ANSWERS_BYTES = 64 * 1024
"""What may be sent to a clogged peer besides pokes before nothing more is read from it."""
MIN_PROGRESS_BYTES = 4096
"""A peer that takes less of what waits for it counts as one that takes nothing."""

Message = str | bytes


class WebSocket(asyncio.Protocol):
    """Server side of one connection.

    * :attr:`request` completes with the opening request, or fails if there is none; one that is no
      valid upgrade is refused by :meth:`accept`;
    * then call :meth:`accept` once; messages are read with :meth:`receive`, which returns None
      when the connection is over;
    * :meth:`send_text` and :meth:`send_frames` never block; see :attr:`clogged`;
    * ``on_drained`` is called when :attr:`clogged` ends.
    """

    def __init__(self, *, max_size: int, write_limit: int, compression: bool = False) -> None:
        self._max_size = max_size
        self._compression = compression
        # Until the first bytes tell who answers the handshake, this one is fed nothing.
        self._protocol = ServerProtocol(state=State.OPEN, max_size=max_size)
        self._begun = False
        # The request as the library read it, if it was the one.
        self._unusual: Request | None = None
        # What the request is answered with. Nothing must be sent before it.
        self._answer = b""
        self._accepted = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._inbox: deque[Message] = deque()
        self._inbox_bytes = 0
        self._arrived = asyncio.Event()
        self._fragments: list[bytes] = []
        self._reading_paused = False
        self._write_limit = write_limit
        # More than a peer that reads would have left waiting. A single poke may be of any size,
        # so this is asked before one is begun.
        self.clogged = False
        self.on_drained: Callable[[], None] | None = None
        # Sent while clogged, other than by :meth:`send_frames`.
        self._answers = 0
        self._written = 0
        # What the kernel had taken when it was last seen to take enough, and when that was.
        self._taken = 0
        self._taken_at_s = self._loop.time()
        self._closing: asyncio.TimerHandle | None = None
        self.request: asyncio.Future[Upgrade] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.last_sent_s = self._loop.time()
        self.last_received_s = self._loop.time()

    # -- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods but not the base class.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(self._write_limit, self._write_limit // 4)

    def pause_writing(self) -> None:
        self.clogged, self._answers = True, 0

    def resume_writing(self) -> None:
        self.clogged = False
        self._maybe_resume_reading()
        if self.on_drained is not None:
            self.on_drained()

    def data_received(self, data: bytes) -> None:
        self.last_received_s = self._loop.time()
        if not self._begun and self._begin(data):
            return
        self._protocol.receive_data(data)
        self._process()

    def eof_received(self) -> None:
        if self._begun:
            self._protocol.receive_eof()
            self._process()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._begun:
            self._protocol.receive_eof()
        if not self.request.done():
            self.request.set_exception(ConnectionResetError("closed before the upgrade request"))
            self.request.exception()  # nobody may be waiting
        if self._closing is not None:
            self._closing.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        self._arrived.set()

    # -- use ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        # A peer that closes before its upgrade is answered leaves the library half open.
        protocol = self._protocol
        return self._begun and protocol.state is State.OPEN and protocol.close_rcvd is None

    @property
    def close_code(self) -> int | None:
        """What the peer (or the library on its behalf) closed with."""
        return self._protocol.close_code

    @property
    def buffered(self) -> int:
        """Bytes written but not yet taken by the kernel."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def stalled_for_s(self) -> float:
        """For how long the peer has taken next to nothing although something waits for it. As
        exact as the intervals at which it is asked."""
        now, waiting = self._loop.time(), self.buffered
        if not waiting or self._written - waiting >= self._taken + MIN_PROGRESS_BYTES:
            self._taken, self._taken_at_s = self._written - waiting, now
        return now - self._taken_at_s

    def accept(self) -> bool:
        """Answer the :attr:`request`, echoing the first offered subprotocol; False if it is not a
        valid upgrade (an HTTP error was sent instead), or withdrawn."""
        transport = self._transport
        if self._unusual is not None and transport is not None and not transport.is_closing():
            early = self._protocol.data_to_send()
            self._protocol.send_response(self._protocol.accept(self._unusual))
            if self._protocol.state is State.OPEN:
                self._answer = b"".join([*self._protocol.data_to_send(), *early])
        self._accepted = True
        if self.is_open:
            # What the caller says at once goes along.
            self._loop.call_soon(self._flush)
            return True
        self._flush()
        self._close_transport()
        return False

    async def receive(self) -> Message | None:
        """The next message, or None once the connection is closing and all were read."""
        while not self._inbox:
            if not self.is_open or self.closed.done():
                return None
            self._arrived.clear()
            await self._arrived.wait()
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        self._maybe_resume_reading()
        return message

    def send_text(self, data: bytes) -> None:
        if not self.is_open:
            return
        if self._protocol.extensions or not self._accepted:
            self._protocol.send_text(data)
            self._flush()
        else:
            self._flush(wire.text(data))

    def send_frames(self, runs: Sequence[bytes]) -> None:
        """Frames made by :mod:`view_syncer.wire`, which other sockets may be sent as well."""
        transport = self._transport
        if transport is None or not self.is_open or transport.is_closing():
            return
        if self._protocol.extensions:
            for opcode, payload in wire.payloads(runs):
                if opcode == wire.BINARY:
                    self._protocol.send_binary(payload)
                else:
                    self._protocol.send_text(payload)
            self._flush(answer=False)
            return
        if len(runs) == 1:
            transport.write(runs[0])
        else:
            transport.writelines(runs)
        self._written += sum(map(len, runs))
        reach(Place.MID_POKE)
        self.last_sent_s = self._loop.time()

    def ping(self) -> bool:
        """Ask the peer's WebSocket for a sign of life; False if none could be heard or asked for
        at the moment."""
        if not self.is_open or self._reading_paused or self.clogged:
            return False
        sent_s = self.last_sent_s
        self._protocol.send_ping(b"")
        self._flush()
        self.last_sent_s = sent_s  # no pong of the protocol, for which it must not be taken
        return True

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake; the transport goes when the peer answers or times out."""
        if not self.is_open:
            return
        self._protocol.send_close(code, reason)
        self._flush()
        self._await_end()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- internals ----------------------------------------------------------------------------

    def _begin(self, data: bytes) -> bool:
        """The first bytes; True if they are all of a usual request. The library is given any other,
        which may also come in pieces."""
        self._begun = True
        upgrade = None if self._compression else read_upgrade(data)
        if upgrade is not None and not self.request.done():
            self._answer = upgrade.answer
            self.request.set_result(upgrade)
            return True
        self._protocol = ServerProtocol(
            extensions=enable_server_permessage_deflate(None) if self._compression else None,
            select_subprotocol=lambda _, offered: offered[0] if offered else None,
            max_size=self._max_size,
        )
        return False

    def _process(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                if not self.request.done():
                    self._unusual = event
                    headers = event.headers
                    offered = headers.get_all("Sec-WebSocket-Protocol")
                    first = offered[0] if offered else None
                    self.request.set_result(Upgrade(event.path, [*headers.raw_items()], first))
            elif isinstance(event, Frame):
                self._frame(event)
        self._flush()
        if self._protocol.state is State.CONNECTING:
            if self._protocol.close_expected() or self._protocol.parser_exc is not None:
                self._close_transport()
        elif not self.is_open:
            self._await_end()

    def _await_end(self) -> None:
        """Let the peer end the connection. Closing the socket while it still sends would reset
        the connection, and with it the close frame on its way to the peer."""
        self._arrived.set()
        self._resume_reading()
        if self._closing is None and not self.closed.done():
            self._closing = self._loop.call_later(CLOSE_TIMEOUT_S, self.abort)

    def _maybe_resume_reading(self) -> None:
        """Once what was read is processed for the most part, and answers are taken again."""
        few = len(self._inbox) < READ_HIGH_WATER // 4
        takes = not self.clogged or self._answers < MAX_ANSWERS_BYTES
        if few and takes and self._inbox_bytes < READ_HIGH_WATER_BYTES:
            self._resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._fragments = [bytes(frame.data)]
        elif frame.opcode is Opcode.CONT:
            self._fragments.append(bytes(frame.data))
        else:
            return  # pings and closes are answered by the protocol itself
        if not frame.fin:
            return
        data = self._fragments[0] if len(self._fragments) == 1 else b"".join(self._fragments)
        self._fragments = []
        # Text stays bytes: the JSON decoder checks the UTF-8 and reports it as a bad message.
        self._inbox.append(data)
        self._inbox_bytes += len(data)
        self._arrived.set()
        many = len(self._inbox) >= READ_HIGH_WATER or self._inbox_bytes >= READ_HIGH_WATER_BYTES
        if many:
            self._pause_reading()

    def _flush(self, frame: bytes = b"", *, answer: bool = True) -> None:
        """Send what the protocol has to say, and then ``frame``."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._protocol.data_to_send()
            return
        if self.request.done() and not self._accepted:
            return
        chunks = [self._answer, *self._protocol.data_to_send()]
        if frame:
            chunks.append(frame)
        self._answer = b""
        # One system call for all; an empty one, which can only be the last, stands for the end.
        if data := b"".join(chunks):
            transport.write(data)
            self._written += len(data)
            self._answers += len(data) if answer else 0
            self.last_sent_s = self._loop.time()
        if len(chunks) > 1 and not chunks[-1] and transport.can_write_eof():
            transport.write_eof()
        if self.clogged and self._answers >= MAX_ANSWERS_BYTES and self.is_open:
            self._pause_reading()

    def _close_transport(self) -> None:
        if self._transport is not None:
            self._transport.close()
