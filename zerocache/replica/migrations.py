"""From the replica formats of older versions of this program to the present one.

Owns the ordered list of steps. Each runs in a transaction of its own that also notes the format
reached, so a crash in between leaves a replica of some format and the next start goes on from
there. A step may touch internal tables and add metadata; what upstream must be asked for (values
that the old format did not keep) is no migration but a new initial sync. A replica of a *newer*
format is never touched here: it is derived data, and the caller makes it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw
import structlog

from zerocache.errors import ReplicaError
from zerocache.replica.layout import (
    CREATE_LAST_WRITER,
    FORMAT_VERSION,
    REPLICATION_CONFIG,
    load_config,
)

_BUSY_TIMEOUT_MS = 30_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Migration:
    """Leads to the format ``to`` from the one before."""

    to: int
    apply: Callable[[apsw.Connection], object]


MIGRATIONS = (Migration(2, lambda connection: connection.execute(CREATE_LAST_WRITER)),)


def migrate(path: Path, steps: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the replica at ``path`` to the format of the last of ``steps``.

    Nobody else may have it open. ``ReplicaError`` if no step leads on from its format.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        for step in steps:
            if _format(connection) < step.to:
                _run(connection, step)
        if steps and _format(connection) != steps[-1].to:
            raise _unknown(path, _format(connection))
    finally:
        connection.close()


def _run(connection: apsw.Connection, step: Migration) -> None:
    found = _format(connection)
    if found != step.to - 1:
        raise _unknown(Path(connection.filename), found)
    with connection:
        step.apply(connection)
        connection.execute(
            f"UPDATE {REPLICATION_CONFIG} SET formatVersion = ?",  # noqa: S608 - a constant
            (step.to,),
        )
    log.info("replica_migrated", file=connection.filename, format=step.to)


def _format(connection: apsw.Connection) -> int:
    config = load_config(connection)
    return 0 if config is None else config.format_version


def _unknown(path: Path, found: int) -> ReplicaError:
    return ReplicaError(
        f"{path} is a replica of format {found}, from which nothing leads to format "
        f"{FORMAT_VERSION}: a new initial sync replaces it"
    )
