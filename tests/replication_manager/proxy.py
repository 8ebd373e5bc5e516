"""A TCP proxy whose connections can fall silent, as behind a firewall that forgets them."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress


class Proxy:
    """Forwards to ``port`` on this host. ``freeze``: what is connected hears nothing any more;
    ``swallow``: what is sent goes nowhere, instead of waiting."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        # Connections of an earlier generation than this are frozen.
        self._generation = 0
        self._swallow = True
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self, *, swallow: bool = True) -> None:
        self._swallow = swallow
        self._generation += 1

    def close(self) -> None:
        self._listener.close()
        for sock in self._sockets:
            # Wakes the thread that forwards it.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [ours, theirs]
                arguments = (ours, theirs, self._generation)
                threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(self, ours: socket.socket, theirs: socket.socket, generation: int) -> None:
        other = {ours: theirs, theirs: ours}
        with suppress(OSError, ValueError):
            while True:
                for source in select.select([ours, theirs], [], [])[0]:
                    data = source.recv(65536)
                    if data and generation != self._generation:
                        if not self._swallow:
                            return
                        continue  # it stays open, and nothing passes
                    if not data:
                        other[source].shutdown(socket.SHUT_WR)
                        return
                    other[source].sendall(data)
