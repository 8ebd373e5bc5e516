"""A child process for the tests of the supervisor: says what happens to it, answers sockets.

Owns nothing: a stand-in for the replication process and for sync workers that speaks the real
control protocol. Every event is a line in the file given by ``--events``. Must be run as a
program. Invariant: it behaves like the real children towards signals and the control channel.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from zerocache.config import Config
from zerocache.control import RUNTIME_DIR_VARIABLE, ChildControl, HandOff


class FakeChild:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.name = options.role if options.index is None else f"{options.role}-{options.index}"
        self.stopping = asyncio.Event()
        self.taken = 0
        self.answers: set[asyncio.Task[None]] = set()

    def note(self, event: str) -> None:
        with Path(self.options.events).open("a") as events:
            events.write(f"{event} {self.name} {os.getpid()}\n")

    async def run(self) -> int:
        control = self.control = ChildControl.from_environment()
        control.start(on_socket=self.take, figures=lambda: {"taken": self.taken, "role": "fake"})
        Config.from_environment()
        assert os.stat(os.environ[RUNTIME_DIR_VARIABLE]).st_mode & 0o777 == 0o700
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        self.note("started")
        if self.options.behaviour == "crash":
            return 3
        if self.options.behaviour == "configuration":
            return 78
        if self.options.behaviour == "fatal":
            control.fatal("ZERO_UPSTREAM_DB: no such database", 78)
            return 78
        if self.options.gate:
            # Opening a named pipe blocks until the test opens its other end.
            await asyncio.to_thread(Path(self.options.gate).read_bytes)
        if self.options.waits:
            control.progress("loaded")
            await control.replica_ready.wait()
            control.progress("opened")
        control.progress("almost there")
        control.ready()
        await self.stopping.wait()
        if self.options.behaviour == "stubborn":
            self.note("ignored")
            await asyncio.Event().wait()
        self.note("stopped")
        return 0

    def take(self, sock: socket.socket, hand_off: HandOff) -> None:
        self.taken += 1
        task = asyncio.get_running_loop().create_task(self.answer(sock, hand_off))
        self.answers.add(task)
        task.add_done_callback(self.answers.discard)

    async def answer(self, sock: socket.socket, hand_off: HandOff) -> None:
        """Tell the client who got its request, and what of it arrived; keep the connection until
        the client closes it, if it asked for that."""
        loop = asyncio.get_running_loop()
        with sock:
            request = (await loop.sock_recv(sock, 65_536)).decode().split("\r\n")[0]
            words = (self.name, os.getpid(), request, hand_off.peer, hand_off.refusal)
            await loop.sock_sendall(sock, "|".join(map(str, words)).encode())
            if "keep" in request and not hand_off.refusal:
                await loop.sock_recv(sock, 1)
        if not hand_off.refusal:
            self.control.released(hand_off.address)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--events", required=True)
    parser.add_argument("--behaviour", default="good")
    parser.add_argument("--gate")
    parser.add_argument("--index", type=int)
    parser.add_argument("--waits", action="store_true", help="for the replica, as workers do")
    return asyncio.run(FakeChild(parser.parse_args()).run())


if __name__ == "__main__":
    sys.exit(main())
