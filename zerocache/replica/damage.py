"""How a process that only reads the replica says that it found it damaged.

Owns the file ``<replica>-damaged`` beside the replica: whoever meets a page that SQLite cannot make
sense of leaves it, the replication process looks for it once a second, reads the replica in full
and makes it anew if the finding is true. It survives restarts, so a damage that takes the node down
is not forgotten with it. Nothing but its existence and its text means anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import structlog

SUFFIX = "-damaged"
DAMAGES = (apsw.CorruptError, apsw.NotADBError)

log = structlog.get_logger(__name__)


def is_reported(replica: Path) -> bool:
    return _report(replica).exists()


def forget(replica: Path) -> None:
    """The report was looked into."""
    _report(replica).unlink(missing_ok=True)


@contextmanager
def reported(replica: Path) -> Iterator[None]:
    """Leave a report if reading the replica inside the block fails by its damage."""
    try:
        yield
    except DAMAGES as error:
        log.error("replica_damaged", file=str(replica), reason=str(error))
        _report(replica).write_text(f"{type(error).__name__}: {error}\n")
        raise


def _report(replica: Path) -> Path:
    return replica.with_name(replica.name + SUFFIX)
