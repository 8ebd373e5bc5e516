"""The file of the SQLite store: opened, its tables created or migrated.

Owns the connection settings and the version row. The workers of one node share the file, each with
its own connections; opening is serialized by SQLite's write lock. Every commit is on disk before
it returns.
"""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

import apsw

from view_syncer.cvr.statements import text
from zerocache.errors import ConfigurationError

TABLES_VERSION = 1
# From each version to the next one; 0 is an empty file.
_STEPS = {0: (1, "create_1")}
BUSY_MS = 10_000
"""How long a worker waits for the others of its node; their transactions take milliseconds."""
_RETRY_S = 0.01
_UNUSABLE = (apsw.CantOpenError, apsw.NotADBError, apsw.ReadOnlyError)


def path_of(url: str) -> Path:
    """The file that ``sqlite:/path`` or ``sqlite:///path`` names."""
    parts = urlsplit(url)
    if parts.netloc or not parts.path or parts.path == ":memory:":
        raise ConfigurationError(
            "ZERO_CVR_DB starts with 'sqlite:' but does not name a file that the workers of this "
            "node can share. Set it to sqlite:/absolute/path/to/file.db."
        )
    return Path(parts.path)


def open_file(path: Path, schema: str) -> apsw.Connection:
    """A connection to a file with present tables; ``ConfigurationError`` if that cannot be."""
    try:
        db = connect(path)
    except _UNUSABLE as error:
        raise ConfigurationError(
            f"ZERO_CVR_DB names the file {path}, which cannot be used: {error}. It must be a file "
            "that zerocache made, or none; its directory must exist and be writable."
        ) from error
    try:
        db.execute("BEGIN IMMEDIATE")
        _migrate(db, path, schema)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def connect(path: Path) -> apsw.Connection:
    db = apsw.Connection(str(path))
    db.set_busy_timeout(BUSY_MS)
    _switch_to_wal(db)
    # A cookie must survive a power cut as soon as a client has it (sync-protocol.md §5.1.4).
    db.execute("PRAGMA synchronous = FULL")
    return db


def _switch_to_wal(db: apsw.Connection) -> None:
    """Once per file. SQLite does not wait for its turn here, so this does."""
    give_up = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except apsw.BusyError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_RETRY_S)


def _migrate(db: apsw.Connection, path: Path, schema: str) -> None:
    version, owner = _present(db)
    if owner not in (None, schema):
        raise ConfigurationError(
            f"The view records in {path} (ZERO_CVR_DB) belong to {owner!r}, not to {schema!r}: "
            "every app and shard needs a file of its own."
        )
    if version > TABLES_VERSION:
        raise ConfigurationError(
            f"The view records in {path} (ZERO_CVR_DB) have version {version}; this server knows "
            f"versions up to {TABLES_VERSION}. Run the newer server that wrote them, or delete "
            "the file: all clients then start over."
        )
    while version < TABLES_VERSION:
        version, step = _STEPS[version]
        db.execute(text("sqlite_sql", step))
        if owner is None:
            db.execute("INSERT INTO view_meta (version, schema) VALUES (?, ?)", (version, schema))
            owner = schema
        db.execute("UPDATE view_meta SET version = ?", (version,))


def _present(db: apsw.Connection) -> tuple[int, str | None]:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    if "view_meta" not in tables:
        return 0, None
    version, owner = next(iter(db.execute("SELECT version, schema FROM view_meta")))
    return version, owner
