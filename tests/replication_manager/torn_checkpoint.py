"""The replication process on a file system that fails it in the middle of a checkpoint.

``python -m tests.replication_manager.torn_checkpoint`` with ``TORN_AFTER=<writes>``. In WAL mode
only a checkpoint writes to the database file itself: at the given write to it half of the page is
written, and the process killed.
"""

from __future__ import annotations

import os
import signal
import sys

import apsw

VARIABLE = "TORN_AFTER"
_SYSTEM = "unix"


class _File(apsw.VFSFile):
    def __init__(
        self, name: apsw.URIFilename | str | None, flags: list[int], vfs: TearingVFS
    ) -> None:
        super().__init__(_SYSTEM, name, flags)
        self._vfs = vfs
        self._is_replica = isinstance(name, apsw.URIFilename) and name.filename().endswith(".db")

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._is_replica:
            self._vfs.writes += 1
            if self._vfs.writes == self._vfs.fatal:
                super().xWrite(bytes(data)[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
        super().xWrite(data, offset)


class TearingVFS(apsw.VFS):
    """The default of the process from here on; counts the writes to database files."""

    def __init__(self, fatal: int) -> None:
        super().__init__("tearing", _SYSTEM, makedefault=True)
        self.fatal = fatal
        self.writes = 0

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:
        return _File(name, flags, self)


if __name__ == "__main__":
    vfs = TearingVFS(int(os.environ[VARIABLE]))
    from replication_manager.__main__ import main

    sys.exit(main())
