"""A request to stop that wakes up whoever waits on a socket.

Owns a pipe: its read end becomes readable when the request is made, and stays so. Safe to set from
a signal handler and from any thread.
"""

from __future__ import annotations

import os
import select
from typing import Protocol


class Readable(Protocol):
    """Anything ``select`` accepts."""

    def fileno(self) -> int: ...


class Stopped(Exception):
    """Work was given up because the process is asked to end."""


class StopSignal:
    """Set once, never cleared."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._set = False

    @property
    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        if not self._set:
            self._set = True
            os.write(self._write_fd, b"!")

    def fileno(self) -> int:
        return self._read_fd

    def check(self) -> None:
        """Raise :class:`Stopped` if the request was made."""
        if self._set:
            raise Stopped

    def wait(self, timeout_s: float | None) -> None:
        """Sleep (None: for ever); :class:`Stopped` as soon as the request is made."""
        select.select([self._read_fd], [], [], timeout_s)
        self.check()

    def wait_readable(self, *others: Readable, timeout_s: float | None) -> list[Readable]:
        """Wait until one of ``others`` is readable; :class:`Stopped` if asked to end."""
        ready, _, _ = select.select([self, *others], [], [], timeout_s)
        self.check()
        return [other for other in others if other in ready]

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)
