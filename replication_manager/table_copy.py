"""The parallel COPY of all published tables out of one exported snapshot.

Owns the copy connections and the order of the tables. One thread multiplexes them all: PostgreSQL
formats rows in as many processes as there are connections, while this thread decodes and hands
batches to a sink; more threads would only fight for the interpreter lock (measured: one thread
keeps up with what two cores can do). Memory is bounded by one batch per connection, because
nothing is read ahead of the sink. Invariants: all connections see the same snapshot, and every
table is locked against changes of its shape before the first row is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import pq, sql
from psycopg._copy_base import parse_row_binary
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from replication_manager.signals import StopSignal
from replication_manager.silent_copies import SilenceWatch
from zerocache.errors import ReplicationError
from zerocache.postgres.connection import connect
from zerocache.replica.copy_binary import BinaryColumn, BinaryPlan
from zerocache.replica.published import PublishedTable
from zerocache.replica.types import SQLiteValue

# Small enough that the strings of a batch stay in the processor's caches (measured: 15 % of CPU).
BATCH_ROWS = 500
BATCH_BYTES = 1 << 20
_LOCK_TIMEOUT = "30s"
# Everything that shapes the text of a value, as on the replication stream; and row security,
# which must end in an error rather than in missing rows.
_SESSION: LiteralString = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';"
    "SET bytea_output = 'hex'; SET extra_float_digits = 1; SET client_encoding = 'UTF8';"
    "SET idle_in_transaction_session_timeout = 0; SET row_security = off"
)

Sink = Callable[[PublishedTable, bytes, int], None]
"""Takes whole lines of COPY text of one table, without the last newline, and their number."""
ValueSink = Callable[[PublishedTable, list[SQLiteValue], int, int], None]
"""Takes stored values of one table, row after row, the number of rows, and of bytes received."""

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"


@dataclass(frozen=True, slots=True)
class BinaryCopies:
    """The tables that are copied in binary form, by their oid, and where their rows go."""

    plans: Mapping[int, BinaryPlan]
    sink: ValueSink


@dataclass(frozen=True, slots=True)
class TableSize:
    """What the catalogue estimates; never counted."""

    rows: int
    size_bytes: int
    # Rows of inheritance children are published as tables of their own, those of partitions not.
    is_partitioned: bool


def open_snapshot(url: str, purpose: str, snapshot: str) -> psycopg.Connection[Any]:
    """A read-only transaction that sees the database as ``snapshot`` does."""
    connection = connect(url, purpose)
    try:
        connection.execute(_SESSION)
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
    except BaseException:
        connection.close()
        raise
    return connection


def lock_tables(connection: psycopg.Connection[Any], tables: Sequence[PublishedTable]) -> None:
    """Keep the shape of ``tables`` as it is until the transaction ends.

    A table that was rewritten since the snapshot was taken would look empty in it: that is the one
    thing PostgreSQL's snapshots do not cover, so it is looked for here.
    """
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])
    for table in tables:
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(_identifier(table)))
    rewritten = connection.execute(
        "SELECT c.oid::regclass::text FROM pg_class c "
        "WHERE c.oid IN (SELECT coalesce(p.relid, t.oid) FROM unnest(%s::oid[]) AS t(oid) "
        "LEFT JOIN LATERAL pg_partition_tree(t.oid) p ON true) "
        "AND c.relfilenode <> 0 AND c.relfilenode <> pg_relation_filenode(c.oid)",
        [[table.oid for table in tables]],
    ).fetchall()
    if rewritten:
        raise ReplicationError(
            f"the tables {', '.join(name for (name,) in rewritten)} were rewritten or truncated "
            "while the initial sync began: their rows cannot be read any more; it starts over",
            code="ZC233",
        )


def share_locks(connection: psycopg.Connection[Any], tables: Sequence[PublishedTable]) -> bool:
    """Lock ``tables`` on one more connection, after :func:`lock_tables` on another; False if that
    would wait, and the connection is of no use then.

    Who wants a stronger lock meanwhile (TRUNCATE, ALTER TABLE) waits for the first connection, and
    a second one that begins to read would wait behind it: for ever, because the first does not end
    before the others have. PostgreSQL sees no deadlock there.
    """
    names = sql.SQL(", ").join(map(_identifier, tables))
    try:
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT").format(names))
    except (psycopg.errors.LockNotAvailable, psycopg.errors.OutOfMemory):
        return False
    return True


def read_sizes(
    connection: psycopg.Connection[Any], tables: Sequence[PublishedTable]
) -> dict[int, TableSize]:
    """Estimated sizes by table oid, partitions included."""
    rows = connection.execute(
        "SELECT t.oid, sum(greatest(c.reltuples, 0))::int8, sum(pg_table_size(c.oid))::int8, "
        "bool_or(c.relkind = 'p') "
        "FROM unnest(%s::oid[]) AS t(oid) "
        "JOIN LATERAL (SELECT t.oid AS relid UNION SELECT relid FROM pg_partition_tree(t.oid)) p "
        "ON true JOIN pg_class c ON c.oid = p.relid GROUP BY 1",
        [[table.oid for table in tables]],
    )
    return {int(oid): TableSize(count, size, parted) for oid, count, size, parted in rows}


def copy_tables(
    url: str,
    connections: Sequence[psycopg.Connection[Any]],
    tables: Sequence[PublishedTable],
    sizes: dict[int, TableSize],
    sink: Sink,
    stop: StopSignal,
    binary: BinaryCopies | None = None,
) -> None:
    """Copy every table; returns when the last row is in ``sink``, or in that of ``binary``.

    ``url`` is where the ``connections`` lead to: the server is asked there if nothing comes.
    """
    # The largest first, so that the end is not one connection copying alone.
    waiting = deque(sorted(tables, key=lambda table: -sizes[table.oid].size_bytes))
    idle = list(connections)
    active: list[_Copy] = []
    watch = SilenceWatch(url, connections)
    while waiting or active:
        while waiting and idle:
            table = waiting.popleft()
            is_partitioned = sizes[table.oid].is_partitioned
            plan = binary.plans.get(table.oid) if binary is not None else None
            if binary is None or plan is None:
                active.append(_TextCopy(idle.pop(), table, is_partitioned, sink))
            else:
                active.append(_BinaryCopy(idle.pop(), table, is_partitioned, plan, binary.sink))
        ready = stop.wait_readable(*active, timeout_s=watch.timeout_s)
        if not ready:
            watch.silent([copy.connection for copy in active])
            continue
        watch.heard()
        for copy in [copy for copy in active if copy in ready]:
            if copy.advance():
                active.remove(copy)
                idle.append(copy.connection)


class _Copy:
    """One COPY under way on one connection."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        table: PublishedTable,
        statement: sql.Composed,
    ) -> None:
        self.connection = connection
        self._table = table
        self._pgconn = connection.pgconn
        # False until the server has answered the COPY command.
        self._copying = False
        self._pgconn.send_query(statement.as_bytes(connection))
        self._pgconn.flush()

    def fileno(self) -> int:
        return self._pgconn.socket

    def advance(self) -> bool:
        """Take in what has arrived; True once the table is complete."""
        self._pgconn.consume_input()
        if not self._copying:
            if self._pgconn.is_busy():
                return False
            self._begin()
        if not self._receive():
            return False
        self._end()
        return True

    def _receive(self) -> bool:
        """Take in the rows that are there; True after the last one of the table."""
        raise NotImplementedError

    def _flush(self) -> None:
        """Hand on the rows that were taken in."""
        raise NotImplementedError

    def _begin(self) -> None:
        result = self._pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            self._fail(result)
        self._copying = True

    def _end(self) -> None:
        result = self._pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COMMAND_OK:
            self._fail(result)
        while self._pgconn.get_result() is not None:
            pass
        self._flush()

    def _fail(self, result: pq.abc.PGresult | None) -> None:
        if result is not None:
            raise error_from_result(result)
        raise psycopg.OperationalError(self._pgconn.error_message.decode("utf-8", "replace"))


class _TextCopy(_Copy):
    def __init__(
        self,
        connection: psycopg.Connection[Any],
        table: PublishedTable,
        is_partitioned: bool,
        sink: Sink,
    ) -> None:
        columns = map(sql.Identifier, (column.name for column in table.columns))
        super().__init__(connection, table, _copy_statement(table, columns, is_partitioned, "text"))
        self._sink = sink
        # Lines received but not yet handed on, and their size.
        self._lines: list[memoryview] = []
        self._size = 0

    def _receive(self) -> bool:
        receive, append = self._pgconn.get_copy_data, self._lines.append
        while True:
            size, line = receive(1)
            if size <= 0:
                break
            append(line)
            self._size += size
            if self._size >= BATCH_BYTES:
                self._flush()
        if len(self._lines) >= BATCH_ROWS:
            self._flush()
        return size < 0

    def _flush(self) -> None:
        if not self._lines:
            return
        count = len(self._lines)
        self._lines[-1] = self._lines[-1][:-1]
        joined = b"".join(self._lines)
        # A line may be hundreds of megabytes: one copy of it is enough.
        self._lines.clear()
        self._size = 0
        self._sink(self._table, joined, count)


class _BinaryCopy(_Copy):
    def __init__(
        self,
        connection: psycopg.Connection[Any],
        table: PublishedTable,
        is_partitioned: bool,
        plan: BinaryPlan,
        sink: ValueSink,
    ) -> None:
        columns = map(_binary_expression, plan.columns)
        statement = _copy_statement(table, columns, is_partitioned, "binary")
        super().__init__(connection, table, statement)
        self._sink = sink
        self._plan = plan
        self._transformer = Transformer(connection)
        self._transformer.set_loader_types(
            [column.read_as for column in plan.columns], pq.Format.BINARY
        )
        # Values received but not yet handed on, and how many bytes they came in.
        self._values: list[Any] = []
        self._size = 0
        # The stream begins with a signature, maybe in one message with the first row.
        self._signed = False

    def _receive(self) -> bool:
        receive, transformer = self._pgconn.get_copy_data, self._transformer
        enough = BATCH_ROWS * len(self._plan.columns)
        extend = self._values.extend
        while True:
            row: memoryview | bytes
            size, row = receive(1)
            if size <= 0:
                break
            if not self._signed:
                row = self._without_signature(row)
            if len(row) <= len(_TRAILER):
                continue  # it is the trailer, or nothing came with the signature
            extend(parse_row_binary(row, transformer) or ())
            self._size += size
            if self._size >= BATCH_BYTES:
                self._flush()
                extend = self._values.extend
        if len(self._values) >= enough:
            self._flush()
        return size < 0

    def _without_signature(self, message: memoryview) -> bytes:
        if message[: len(_SIGNATURE)] != _SIGNATURE:
            raise ReplicationError(
                f"the server began the copy of table {self._table.wire_name} with "
                f"{bytes(message[: len(_SIGNATURE)])!r}, which is no COPY signature: something "
                "between this program and PostgreSQL changes what they say; connect directly",
                code="ZC245",
            )
        self._signed = True
        return bytes(message[len(_SIGNATURE) :])

    def _flush(self) -> None:
        if not self._values:
            return
        values, self._values = self._values, []
        size, self._size = self._size, 0
        rows = len(values) // len(self._plan.columns)
        self._sink(self._table, self._plan.finish(values), rows, size)


def _identifier(table: PublishedTable) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def _binary_expression(column: BinaryColumn) -> sql.Composable:
    # What has no cast to text of its own is cast by its output function, as for the stream.
    cast = "::pg_catalog.text" if column.cast else ""
    return sql.SQL("{}" + cast).format(sql.Identifier(column.name))


def _copy_statement(
    table: PublishedTable,
    columns: Iterable[sql.Composable],
    is_partitioned: bool,
    form: Literal["text", "binary"],
) -> sql.Composed:
    where: sql.Composable = sql.SQL("")
    if table.row_filter is not None:
        # An expression of the publication, printed by the server.
        where = sql.SQL(" WHERE ") + sql.SQL(table.row_filter)
    return sql.SQL("COPY (SELECT {} FROM {}{}{}) TO STDOUT (FORMAT {})").format(
        sql.SQL(", ").join(columns),
        sql.SQL("" if is_partitioned else "ONLY "),
        _identifier(table),
        where,
        sql.SQL(form),
    )
