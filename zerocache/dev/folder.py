"""The local data folder of ``zerocache dev`` (``.zerocache``): its lock and its small files.

Owns who may use the folder. Invariant: one ``zerocache dev`` at a time; the lock ends with the
process, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from zerocache.errors import ConfigurationError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create ``folder`` if needed and hold it; ConfigurationError while another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    # Everything in it can be made again, and nothing in it belongs into a repository.
    (folder / ".gitignore").write_text("*\n")
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise ConfigurationError(
                f"Another `zerocache dev` (process {owner}) uses {folder}. "
                "End it, or give this one its own folder with --data-dir."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def write_psql_script(file: Path, binaries: Path, url: str) -> None:
    """A ``psql`` that knows the database and its password, for copy and paste."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
    with os.fdopen(descriptor, "w") as stream:
        psql = shlex.quote(str(binaries / "psql"))
        stream.write(f'#!/bin/sh\nexec {psql} --dbname={shlex.quote(url)} "$@"\n')
