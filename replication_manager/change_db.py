"""The change database: upstream's recent transactions, and who may write them.

Owns the schema ``{app}_{n}/cdc`` (replication.md §7.3) and every statement on it, on one
connection. The log is kept as segments of pgoutput messages (segments.py), which replay exactly;
the two small tables beside it are the reference server's, so that its view-syncers find the
owner's address where they look for it.

Ownership is a *term*: a manager that claims the log raises it, and every later write of the one
before matches no row any more (compare-and-set), whatever that one believes. It needs no lock that
a stopped process could keep, except for the moment between a write and its commit.

Invariant: ``lastWatermark`` moves in the PostgreSQL transaction that stores the segments up to it,
so the log is complete from ``floor`` to ``lastWatermark`` at any time. Nothing here retries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, LiteralString

import psycopg
import structlog
from psycopg import sql

from replication_manager.segments import Part
from replication_manager.slot import Displaced
from zerocache.errors import ConfigurationError, ReplicationError
from zerocache.postgres.connection import SESSION_SETTINGS, abort, connect, explain
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import (
    Lsn,
    lsn_from_text,
    lsn_from_watermark,
    lsn_to_text,
    watermark_from_lsn,
)

_SCRIPTS = ("change_db.sql",)
"""One per version, each run once."""
_CLAIM_LOCK_TIMEOUT_MS = 5_000
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_FIELDS, _LENGTH = struct.Struct(">h"), struct.Struct(">i")
_TERM, _POSITION = struct.Struct(">iq"), struct.Struct(">ii")

log = structlog.get_logger(__name__)


class ChangeDbError(ReplicationError):
    """The change database cannot be used at the moment; nothing that it has is lost."""

    code = "ZC240"


@dataclass(frozen=True, slots=True)
class LogState:
    """What the log has. ``last``: the newest transaction; ``floor``: all after it are there;
    ``reached``: upstream was told up to here, without a transaction after ``last``."""

    replica_version: str
    publications: tuple[str, ...]
    last: Lsn
    floor: Lsn
    reached: Lsn
    owner: str | None
    term: int


class ChangeDb:
    """One connection, used by one thread at a time; :meth:`abort` may come from any."""

    def __init__(self, url: str, shard: ShardNames, owner: str, statement_timeout_ms: int) -> None:
        self._url = url
        self._schema = f"{shard.shard_schema}/cdc"
        self._owner = owner
        self._timeout_ms = statement_timeout_ms
        # The term of our own ownership; None before a claim.
        self._term: int | None = None
        settings = {
            **SESSION_SETTINGS,
            # Parts of a transaction that is still arriving wait in an open one of ours.
            "idle_in_transaction_session_timeout": "0",
            "statement_timeout": str(statement_timeout_ms),
            "synchronous_commit": "on",
        }
        self._connection = connect(url, _purpose(owner), settings=settings)

    def migrate(self) -> None:
        """Create the schema or bring it up to date."""
        history = self._table("zerocacheHistory")
        lock = f"migrate-schema:{self._schema}"
        try:
            with self._connection.transaction():
                self._connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [lock])
                done = self._version()
                if done > len(_SCRIPTS):
                    raise ConfigurationError(
                        f"the change database {self._schema!r} is of version {done}, this program "
                        f"knows {len(_SCRIPTS)}: a newer zerocache made it; run that one, or drop "
                        "the schema so that it is created again",
                        code="ZC241",
                    )
                for script in _SCRIPTS[done:]:
                    self._connection.execute(
                        sql.SQL(_load(script)).format(cdc=sql.Identifier(self._schema))
                    )
                if done < len(_SCRIPTS):
                    self._connection.execute(
                        sql.SQL("CREATE TABLE IF NOT EXISTS {} (version int NOT NULL)").format(
                            history
                        )
                    )
                    self._connection.execute(sql.SQL("DELETE FROM {}").format(history))
                    self._connection.execute(
                        sql.SQL("INSERT INTO {} VALUES (%s)").format(history), [len(_SCRIPTS)]
                    )
        except psycopg.Error as error:
            raise explain(error, self._url, "creating the change database") from error

    def _version(self) -> int:
        present = self._connection.execute(
            "SELECT to_regclass(format('%%I.%%I', %s::text, 'zerocacheHistory')) IS NOT NULL",
            [self._schema],
        ).fetchone()
        if present is None or not present[0]:
            return 0
        row = self._connection.execute(
            sql.SQL("SELECT version FROM {}").format(self._table("zerocacheHistory"))
        ).fetchone()
        return int(row[0]) if row else 0

    def claim(self, expected_term: int | None) -> LogState | None:
        """Become the owner; what the log has, None if it is empty.

        With an ``expected_term``, which was ours, only if nobody else claimed the log since:
        otherwise :class:`Displaced`.
        """
        with _explained():
            for attempt in (1, 2):
                try:
                    with self._connection.transaction():
                        self._connection.execute(
                            "SELECT set_config('lock_timeout', %s, true)",
                            [str(_CLAIM_LOCK_TIMEOUT_MS)],
                        )
                        return self._claim(expected_term)
                except psycopg.errors.LockNotAvailable:
                    if attempt == 2:
                        raise
                    self._end_owner()
        return None

    def _claim(self, expected_term: int | None) -> LogState | None:
        before = self._connection.execute(
            sql.SQL("SELECT term, owner FROM {} FOR UPDATE").format(self._table("replicationState"))
        ).fetchone()
        term, owner = before or (0, None)
        if expected_term is not None and term != expected_term:
            raise Displaced(
                f"{owner} took over the change log {self._schema!r} (term {term}, ours was "
                f"{expected_term}): one app can be replicated by one process only; this one ends. "
                "If that is not a rolling update, give the other node its own ZERO_APP_ID"
            )
        self._term = term + 1
        self._connection.execute(
            sql.SQL(
                'INSERT INTO {} ("lastWatermark", owner, term) VALUES (%s, %s, %s) '
                "ON CONFLICT (lock) DO UPDATE SET owner = EXCLUDED.owner, term = EXCLUDED.term, "
                '"ownerAddress" = NULL'
            ).format(self._table("replicationState")),
            [watermark_from_lsn(0), self._owner, self._term],
        )
        if owner not in (None, self._owner):
            log.info("change_log_taken_over", before=owner, term=self._term)
        return self.state()

    def _end_owner(self) -> None:
        """The owner may be stopped in the middle of a write: its locks end with its connection."""
        row = self._connection.execute(
            sql.SQL("SELECT owner FROM {}").format(self._table("replicationState"))
        ).fetchone()
        if row is None or row[0] is None:
            return
        ended = self._connection.execute(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = %s AND datname = current_database() "
            "AND pid <> pg_backend_pid()",
            [f"zero-{_purpose(row[0])}"],
        ).fetchall()
        log.warning("change_log_owner_ended", owner=row[0], pids=[pid for pid, _ in ended])

    @property
    def term(self) -> int:
        assert self._term is not None, "the log was not claimed"
        return self._term

    def state(self) -> LogState | None:
        """What the log has; None if it was never filled by this program."""
        row = self._connection.execute(
            sql.SQL(
                'SELECT c."replicaVersion", c.publications, s."lastWatermark", s.floor::text, '
                "s.reached::text, s.owner, s.term FROM {} c CROSS JOIN {} s"
            ).format(self._table("replicationConfig"), self._table("replicationState"))
        ).fetchone()
        if row is None or row[3] is None or row[4] is None:
            return None
        return LogState(
            row[0],
            tuple(row[1]),
            lsn_from_watermark(row[2]),
            lsn_from_text(row[3]),
            lsn_from_text(row[4]),
            row[5],
            row[6],
        )

    def reset(self, replica_version: str, publications: Sequence[str], start: Lsn) -> None:
        """Empty the log: it begins after ``start``, for replicas of that generation."""
        with _explained(), self._connection.transaction():
            self._connection.execute(
                sql.SQL("DELETE FROM {}").format(self._table("changeSegments"))
            )
            self._connection.execute(
                sql.SQL(
                    'INSERT INTO {} ("replicaVersion", publications) VALUES (%s, %s) '
                    'ON CONFLICT (lock) DO UPDATE SET "replicaVersion" = '
                    'EXCLUDED."replicaVersion", publications = EXCLUDED.publications, '
                    '"resetRequired" = NULL'
                ).format(self._table("replicationConfig")),
                [replica_version, list(publications)],
            )
            self._own(
                sql.SQL('"lastWatermark" = %s, floor = %s::pg_lsn, reached = %s::pg_lsn'),
                [watermark_from_lsn(start), lsn_to_text(start), lsn_to_text(start)],
            )

    def begin(self) -> None:
        """Open the PostgreSQL transaction that parts are written in."""
        self._connection.execute("BEGIN")

    def write(self, parts: Sequence[Part]) -> None:
        """Copy parts into the open transaction."""
        statement = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(
            self._table("changeSegments")
        )
        with self._connection.cursor().copy(statement) as copy:
            copy.write(_COPY_HEADER)
            for part in parts:
                copy.write(_row(part, self.term))
            copy.write(_COPY_END)

    def commit(self, last: Lsn) -> None:
        """Move the log to ``last`` and commit; :class:`Displaced` if it is not ours any more."""
        self._own(
            sql.SQL('"lastWatermark" = %s, reached = greatest(reached, %s::pg_lsn)'),
            [watermark_from_lsn(last), lsn_to_text(last)],
        )
        # Readers elsewhere follow the log; with the commit they are told to look.
        self._connection.execute("SELECT pg_notify(%s, '')", [self._schema])
        self._connection.execute("COMMIT")

    def record_reached(self, position: Lsn) -> None:
        """Nothing of ours is in upstream's log until ``position``."""
        self._own(sql.SQL("reached = greatest(reached, %s::pg_lsn)"), [lsn_to_text(position)])

    def purge(self, floor: Lsn) -> int:
        """Delete segments of which nothing is after ``floor``; how many parts."""
        with self._connection.transaction():
            rows = self._connection.execute(
                sql.SQL(
                    "WITH gone AS (DELETE FROM {} WHERE watermark <= %s RETURNING watermark) "
                    "SELECT count(*), max(watermark) FROM gone"
                ).format(self._table("changeSegments")),
                [watermark_from_lsn(floor)],
            ).fetchone()
            count, newest = rows or (0, None)
            if newest is not None:
                self._own(
                    sql.SQL("floor = greatest(floor, %s::pg_lsn)"),
                    [lsn_to_text(lsn_from_watermark(newest))],
                )
        return int(count)

    def size_bytes(self) -> int:
        row = self._connection.execute(
            "SELECT pg_total_relation_size(format('%%I.%%I', %s::text, 'changeSegments'))",
            [self._schema],
        ).fetchone()
        return int(row[0]) if row else 0

    def parts_after(self, position: Lsn, until: Lsn) -> Iterator[bytes]:
        """The data of whole segments, in order, that hold every transaction between the two.

        The first may begin with transactions from before ``position``: readers skip those. All is
        streamed; nothing else may be done on this connection meanwhile.
        """
        with _explained(), self._connection.transaction():
            self._connection.execute("SELECT set_config('statement_timeout', '0', true)")
            query = sql.SQL(
                "COPY (SELECT data FROM {} WHERE watermark > {} AND watermark <= {} "
                "ORDER BY watermark, term, pos) TO STDOUT (FORMAT binary)"
            ).format(
                self._table("changeSegments"),
                sql.Literal(watermark_from_lsn(position)),
                sql.Literal(watermark_from_lsn(until)),
            )
            with self._connection.cursor().copy(query) as copy:
                copy.set_types(["bytea"])
                for (data,) in copy.rows():
                    yield data

    def listen(self) -> None:
        """From now on :meth:`wait_for_commit` notices what others store."""
        self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._schema)))

    def wait_for_commit(self, timeout_s: float) -> bool:
        """Wait until something was stored; False if the time is over."""
        return any(True for _ in self._connection.notifies(timeout=timeout_s, stop_after=1))

    def _own(self, assignments: sql.SQL, values: list[Any]) -> None:
        """Change the state row, if it is still ours."""
        done = self._connection.execute(
            sql.SQL("UPDATE {} SET {} WHERE term = %s").format(
                self._table("replicationState"), assignments
            ),
            [*values, self.term],
        )
        if done.rowcount != 1:
            raise Displaced(
                f"another process took over the change log {self._schema!r}: nothing more is "
                "stored or acknowledged by this one, which ends. If that is not a rolling update, "
                "give the other node its own ZERO_APP_ID"
            )

    def _table(self, name: str) -> sql.Identifier:
        return sql.Identifier(self._schema, name)

    def abort(self) -> None:
        """Let go of the network: whoever waits for the server gets an error at once."""
        abort(self._connection)

    def close(self) -> None:
        self._connection.close()


def _purpose(owner: str) -> str:
    # pg_stat_activity cuts names at 63 bytes.
    return f"change-log-{owner}"[:58]


def _row(part: Part, term: int) -> bytes:
    watermark = watermark_from_lsn(part.watermark).encode()
    return b"".join(
        (
            _FIELDS.pack(4),
            _LENGTH.pack(len(watermark)),
            watermark,
            _TERM.pack(8, term),
            _POSITION.pack(4, part.position),
            _LENGTH.pack(len(part.data)),
            part.data,
        )
    )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise change_db_error(error) from error


def change_db_error(error: psycopg.Error) -> ChangeDbError:
    said = error.diag.message_primary or " ".join(str(error).split())
    return ChangeDbError(
        f"the change database failed ({said}): what is not stored there must not be acknowledged "
        "upstream, so the stream waits and is begun again when it is back; check the server of "
        "ZERO_CHANGE_DB"
    )


def _load(name: str) -> LiteralString:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
