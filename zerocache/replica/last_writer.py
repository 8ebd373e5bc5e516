"""How the last writer of a replica ended, from which a start knows how much it has to check.

Owns the row of ``_zero.lastWriter``. Killing a process cannot damage an SQLite file: what it had
written is in the kernel's memory. A machine that dies, or a disk that lies about what it has
stored, can. So a writer notes which boot of which machine it runs in, and that it ended; a file
whose writer did neither end nor belong to the present boot is to be read in full.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from zerocache.replica.layout import LAST_WRITER

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def note_writer(connection: apsw.Connection, *, ended: bool) -> None:
    """Write down that the writer begins, or that it has ended; commits nothing."""
    connection.execute(
        f"INSERT INTO {LAST_WRITER} VALUES (1, ?, ?) ON CONFLICT (lock) "  # noqa: S608 - constant
        "DO UPDATE SET boot = excluded.boot, ended = excluded.ended",
        (boot_id(), ended),
    )


def may_be_torn(connection: apsw.Connection) -> bool:
    """Whether the machine may have died while the file was written."""
    row = connection.execute(f"SELECT boot, ended FROM {LAST_WRITER}").fetchone()  # noqa: S608
    if row is None:
        # Nobody has written since the initial sync, which ends by making the file durable.
        return False
    boot, ended = row
    return not ended and (not boot or boot != boot_id())


def boot_id() -> str:
    """Names this boot of this machine; empty where the system does not tell."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
