"""The replication process on a disk that is full as long as a certain file exists.

``python -m tests.replication_manager.filling_disk`` with ``DISK_FULL=<file>``: meanwhile no file of
SQLite's can be written to.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import apsw

VARIABLE = "DISK_FULL"
_SYSTEM = "unix"


class _File(apsw.VFSFile):
    def __init__(self, name: apsw.URIFilename | str | None, flags: list[int], sign: Path) -> None:
        super().__init__(_SYSTEM, name, flags)
        self._sign = sign

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._sign.exists():
            raise apsw.FullError("no space left, says the test")
        super().xWrite(data, offset)


class FillingVFS(apsw.VFS):
    """The default of the process from here on."""

    def __init__(self, sign: Path) -> None:
        super().__init__("filling", _SYSTEM, makedefault=True)
        self._sign = sign

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:
        return _File(name, flags, self._sign)


if __name__ == "__main__":
    vfs = FillingVFS(Path(os.environ[VARIABLE]))
    from replication_manager.__main__ import main

    sys.exit(main())
