"""Judges the replica file that a start finds.

Owns the question whether the file is a replica of this app and these publications, and undamaged.
It changes the file only to bring an older format to the present one, and it refuses to call a
database that somebody else made a broken replica: that one would be overwritten.

How much is read: always the header, the internal tables and the catalogue; all of a small file,
because that takes a moment; all of a large one only if it may be torn (its writer was cut off with
the machine, last_writer.py) or a reader has met a damage (damage.py). What nobody has touched is
not read again at every start: at a gigabyte a second, that would be the start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec

from zerocache.errors import ConfigurationError, ReplicaError, ResyncRequired
from zerocache.postgres.shard import ShardNames
from zerocache.replica import damage
from zerocache.replica.last_writer import may_be_torn
from zerocache.replica.layout import FORMAT_VERSION, ReplicaConfig, load_config
from zerocache.replica.migrations import migrate
from zerocache.replica.reader import open_replica, read_state

FOREIGN_FILE = "ZC302"
ALWAYS_CHECKED_BYTES = 64 * 1024 * 1024
_MEGABYTE = 1_000_000


def require_usable(
    path: Path, shard: ShardNames, report: Callable[[str], None] = lambda _: None
) -> None:
    """``ResyncRequired`` says why the file is not a replica to go on with.

    ``report`` gets a line for people before something that may take long.
    """
    if not path.exists():
        raise ResyncRequired(f"there is no replica at {path} yet; an initial sync creates it")
    try:
        config = _read_config(path)
        if config is not None and config.format_version < FORMAT_VERSION:
            report(f"bringing the replica to format {FORMAT_VERSION}")
            migrate(path)
            config = _read_config(path)
        _require_config(config, path, shard)
        problem = _damage(path, report)
    except (apsw.Error, ReplicaError, ValueError, msgspec.MsgspecError) as error:
        raise ResyncRequired(
            f"the replica {path} cannot be read ({error}); an initial sync renews it"
        ) from error
    if problem is not None:
        raise ResyncRequired(
            f"the replica {path} is damaged ({problem}); an initial sync renews it"
        )
    damage.forget(path)


def _read_config(path: Path) -> ReplicaConfig | None:
    connection = open_replica(path)
    try:
        _require_ours(connection, path)
        return load_config(connection)
    finally:
        connection.close()


def _damage(path: Path, report: Callable[[str], None]) -> str | None:
    """What SQLite finds wrong in as much of the file as has to be read."""
    connection = open_replica(path)
    try:
        read_state(connection)
        size = path.stat().st_size
        if size > ALWAYS_CHECKED_BYTES:
            if not (damage.is_reported(path) or may_be_torn(connection)):
                return None
            report(f"reading the replica in full ({size / _MEGABYTE:.0f} MB): it may be damaged")
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchall()[0]
    finally:
        connection.close()
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
    if config.format_version > FORMAT_VERSION:
        raise ResyncRequired(
            f"{path} is a replica of format {config.format_version}, made by a newer version of "
            f"this program, which knows formats up to {FORMAT_VERSION}; an initial sync replaces it"
        )
    wanted = (shard.app_id, shard.number, shard.all_publications)
    found = (config.app_id, config.shard_num, tuple(sorted(config.publications)))
    if found != wanted:
        raise ResyncRequired(
            f"{path} is a replica of (app, shard, publications) {found}, not of {wanted}; "
            "an initial sync replaces it"
        )
