"""Judges the replica file that a start finds.

Owns the question whether the file is a replica of this app and these publications, undamaged as
far as a look at it can tell. It never changes the file, and it refuses to call a database that
somebody else made a broken replica: that one would be overwritten.
"""

from __future__ import annotations

from pathlib import Path

import apsw
import msgspec

from zerocache.errors import ConfigurationError, ReplicaError, ResyncRequired
from zerocache.postgres.shard import ShardNames
from zerocache.replica.layout import FORMAT_VERSION, ReplicaConfig, load_config
from zerocache.replica.reader import open_replica, read_state

FOREIGN_FILE = "ZC302"
_MAX_CHECKED_BYTES = 64 * 1024 * 1024


def require_usable(path: Path, shard: ShardNames) -> None:
    """``ResyncRequired`` says why the file is not a replica to go on with."""
    if not path.exists():
        raise ResyncRequired(f"there is no replica at {path} yet; an initial sync creates it")
    try:
        connection = open_replica(path)
    except (apsw.Error, ReplicaError) as error:
        raise _unreadable(path, error) from error
    try:
        _require_ours(connection, path)
        config = load_config(connection)
        read_state(connection)
        problem = _damage(connection, path)
    except (apsw.Error, ReplicaError, ValueError, msgspec.MsgspecError) as error:
        raise _unreadable(path, error) from error
    finally:
        connection.close()
    if problem is not None:
        raise ResyncRequired(
            f"the replica {path} is damaged ({problem}); an initial sync renews it"
        )
    _require_config(config, path, shard)


def _damage(connection: apsw.Connection, path: Path) -> str | None:
    """What SQLite finds wrong, for files small enough to be read in a moment."""
    if path.stat().st_size > _MAX_CHECKED_BYTES:
        return None
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchall()[0]
    return None if found == "ok" else str(found)


def _require_ours(connection: apsw.Connection, path: Path) -> None:
    names = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    ]
    if names and not any(name.startswith("_zero.") for name in names):
        raise ConfigurationError(
            f"{path} is an SQLite database that is not a replica (it has the table {names[0]!r}): "
            "zerocache would overwrite it; point ZERO_REPLICA_FILE to a file of its own",
            code=FOREIGN_FILE,
        )


def _require_config(config: ReplicaConfig | None, path: Path, shard: ShardNames) -> None:
    if config is None:
        raise ResyncRequired(f"{path} holds no replica; an initial sync creates it")
    wanted = (shard.app_id, shard.number, shard.all_publications, FORMAT_VERSION)
    found = (
        config.app_id,
        config.shard_num,
        tuple(sorted(config.publications)),
        config.format_version,
    )
    if found != wanted:
        raise ResyncRequired(
            f"{path} is a replica of (app, shard, publications, format) {found}, not of {wanted}; "
            "an initial sync replaces it"
        )


def _unreadable(path: Path, error: Exception) -> ResyncRequired:
    return ResyncRequired(f"the replica {path} cannot be read ({error}); an initial sync renews it")
