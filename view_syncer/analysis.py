"""Explains one query: what the engine runs for it, what that reads, and what would make it cheaper.

Runs the query once as the engine would, on a connection and a snapshot of its own, so it neither
waits for the engine nor holds it up; call it from a thread. Serves ``zerocache analyze-query`` and
the inspector's ``analyze-query`` (sync-protocol.md §7). It changes nothing and judges no access:
whoever may call it, and with which permissions in the query, is the caller's affair.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec

from view_syncer.ivm.advice import SCAN_ROWS, Advice, Examination, PlanLine, examine
from view_syncer.ivm.encode import ClientTables, Encoder, SyncedTable, register_functions
from view_syncer.ivm.pipeline import Pipeline
from view_syncer.ivm.plan import Plan, make_plan
from zerocache.replica.auto_index import ExistingIndex, auto_indexes
from zerocache.replica.reader import load_schema, open_replica
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql.ast import Query, to_json
from zerocache.zql.shape import Instance, lift

Row = dict[str, Any]


class StatementReport(msgspec.Struct, frozen=True, rename="camel"):
    """One statement of one level. ``runs`` is 0 for those only changes call for; ``rows`` came
    back, ``scanned`` were stepped over in full scans and temporary indexes."""

    level: int
    table: str
    purpose: str
    sql: str
    plan: tuple[str, ...]
    full_scans: tuple[str, ...]
    runs: int
    rows: int
    scanned: int


class MissingIndex(msgspec.Struct, frozen=True, rename="camel"):
    index: str
    problem: str
    rows: int
    sql: str


class Analysis(msgspec.Struct, frozen=True, rename="camel"):
    """Times in milliseconds, ``start_ms`` on the monotonic clock. ``read_rows`` by table and
    statement, if asked for; so ``synced_rows`` by table."""

    after_permissions: str
    start_ms: float
    hydrate_ms: float
    encode_ms: float
    synced_row_counts: dict[str, int]
    statements: tuple[StatementReport, ...]
    indexes_used: tuple[str, ...]
    indexes_missing: tuple[MissingIndex, ...]
    auto_indexes: tuple[str, ...]
    warnings: tuple[str, ...]
    synced_rows: dict[str, list[Row]] | None = None
    read_rows: dict[str, dict[str, list[Row]]] | None = None

    @property
    def synced_row_count(self) -> int:
        return sum(self.synced_row_counts.values())

    def protocol_value(self) -> dict[str, Any]:
        """The reply of the inspector, which allows no other members."""
        elapsed = self.hydrate_ms + self.encode_ms
        counts: dict[str, dict[str, int]] = {}
        scans: dict[str, dict[str, int]] = {}
        for report in self.statements:
            if report.runs:
                counts.setdefault(report.table, {})[report.sql] = report.rows
                scans.setdefault(report.table, {})[report.sql] = report.scanned
        value: dict[str, Any] = {
            "warnings": [*self.warnings, *map(_missing_text, self.indexes_missing)],
            "syncedRowCount": self.synced_row_count,
            "start": self.start_ms,
            "end": self.start_ms + elapsed,
            "elapsed": elapsed,
            "afterPermissions": self.after_permissions,
            "readRowCount": sum(report.rows for report in self.statements),
            "readRowCountsByQuery": counts,
            "dbScansByQuery": scans,
            "sqlitePlans": {report.sql: list(report.plan) for report in self.statements},
        }
        if self.synced_rows is not None:
            value["syncedRows"] = self.synced_rows
        if self.read_rows is not None:
            value["readRows"] = self.read_rows
        return value


def analyze(
    replica_file: str | Path,
    query: Query,
    client: ClientTables | None = None,
    *,
    synced_rows: bool = True,
    read_rows: bool = False,
    warnings: tuple[str, ...] = (),
    scan_rows: int = SCAN_ROWS,
) -> Analysis:
    """Run and explain ``query``. Without a client schema every column of the replica counts.

    ``QueryError`` if the replica cannot run it, or a row has no JSON form.
    """
    db = open_replica(replica_file)
    try:
        register_functions(db)
        db.execute("BEGIN")
        schema = load_schema(db)
        client = client or tables_of_replica(schema)
        instance = lift(query, schema, client.row_keys)
        plan = make_plan(instance.shape, schema)
        examination = examine(plan, db, dict(instance.params), scan_rows=scan_rows)
        # Timed without the meter, which slows every row down.
        start_ms = time.monotonic() * 1_000
        pipeline, hydrate_ms = _hydrate(db, plan, instance)
        encoded_ms = time.monotonic() * 1_000
        puts = Encoder(client, schema).puts(db, pipeline.rows())
        encode_ms = time.monotonic() * 1_000 - encoded_ms
        meter = _Meter(db, keep_rows=read_rows)
        with meter:
            _hydrate(db, plan, instance)
        return Analysis(
            after_permissions=to_json(query).decode(),
            start_ms=start_ms,
            hydrate_ms=hydrate_ms,
            encode_ms=encode_ms,
            synced_row_counts={t: len(rows) for t, rows in pipeline.rows().items()},
            statements=tuple(_reports(plan, examination, meter)),
            indexes_used=tuple(_index_text(index) for index in examination.used(db)),
            indexes_missing=tuple(_missing(advice) for advice in examination.advice),
            auto_indexes=tuple(
                _index_text(auto.index)
                for auto in auto_indexes(db)
                if auto.index.table in plan.tables
            ),
            warnings=warnings,
            synced_rows=_rows_by_table(puts) if synced_rows else None,
            read_rows=_read_rows(plan, examination, meter) if read_rows else None,
        )
    finally:
        db.close()


def tables_of_replica(schema: ReplicaSchema) -> ClientTables:
    """The client schema that has every column that can be synced."""
    tables = {
        name: SyncedTable(name, tuple(sorted(table.synced_columns)), table.keys[0])
        for name, table in schema.items()
        if table.keys
    }
    return ClientTables("replica", tables)


class _Meter:
    """Counts, per statement text, what the statements run inside the ``with`` block do."""

    def __init__(self, db: apsw.Connection, *, keep_rows: bool) -> None:
        self._db = db
        self._keep_rows = keep_rows
        self._running = ""
        self.runs: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.scanned: dict[str, int] = {}
        self.rows: dict[str, list[Row]] = {}

    def __enter__(self) -> None:
        self._db.exec_trace = self._started
        self._db.row_trace = self._row
        self._db.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._finished)

    def __exit__(self, *_: object) -> None:
        self._db.exec_trace = None
        self._db.row_trace = None
        self._db.trace_v2(0, None)

    def _started(self, _cursor: apsw.Cursor, sql: str, _bindings: object) -> bool:
        # The engine fetches all rows of a statement before it runs the next.
        self._running = sql
        self.runs[sql] = self.runs.get(sql, 0) + 1
        return True

    def _row(self, cursor: apsw.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        self.counts[self._running] = self.counts.get(self._running, 0) + 1
        if self._keep_rows:
            names = [column[0] for column in cursor.get_description()]
            self.rows.setdefault(self._running, []).append(dict(zip(names, row, strict=True)))
        return row

    def _finished(self, event: Mapping[str, Any]) -> None:
        status = event["stmt_status"]
        steps = status["SQLITE_STMTSTATUS_FULLSCAN_STEP"] + status["SQLITE_STMTSTATUS_AUTOINDEX"]
        self.scanned[event["sql"]] = self.scanned.get(event["sql"], 0) + steps


def _hydrate(db: apsw.Connection, plan: Plan, instance: Instance) -> tuple[Pipeline, float]:
    pipeline = Pipeline(plan, instance)
    started_ms = time.monotonic() * 1_000
    pipeline.hydrate(db)
    return pipeline, time.monotonic() * 1_000 - started_ms


def _reports(plan: Plan, examination: Examination, meter: _Meter) -> list[StatementReport]:
    # Levels may share a statement; what it did is told once.
    reports: dict[str, StatementReport] = {}
    for explained in examination.statements:
        statement = explained.statement
        reports.setdefault(
            statement.sql,
            StatementReport(
                level=statement.level,
                table=plan.levels[statement.level].table,
                purpose=statement.purpose,
                sql=statement.sql,
                plan=_indented(explained.lines),
                full_scans=tuple(dict.fromkeys(x.table for x in explained.lines if x.full_scan)),
                runs=meter.runs.get(statement.sql, 0),
                rows=meter.counts.get(statement.sql, 0),
                scanned=meter.scanned.get(statement.sql, 0),
            ),
        )
    return list(reports.values())


def _indented(lines: tuple[PlanLine, ...]) -> tuple[str, ...]:
    depths: dict[int, int] = {0: -1}
    for line in lines:
        depths[line.id] = depths.get(line.parent, -1) + 1
    return tuple("  " * depths[line.id] + line.detail for line in lines)


def _read_rows(
    plan: Plan, examination: Examination, meter: _Meter
) -> dict[str, dict[str, list[Row]]]:
    found: dict[str, dict[str, list[Row]]] = {}
    for explained in examination.statements:
        statement = explained.statement
        if statement.sql in meter.runs:
            table = plan.levels[statement.level].table
            found.setdefault(table, {})[statement.sql] = meter.rows.get(statement.sql, [])
    return found


def _rows_by_table(puts: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for text in puts:
        put = msgspec.json.decode(text)
        found.setdefault(put["tableName"], []).append(put["value"])
    return found


def _missing(advice: Advice) -> MissingIndex:
    return MissingIndex(str(advice.wish), advice.problem, advice.rows, advice.sql)


def _missing_text(missing: MissingIndex) -> str:
    return (
        f"An index on {missing.index} would help: without it there is a {missing.problem} over "
        f"{missing.rows} rows."
    )


def _index_text(index: ExistingIndex) -> str:
    columns = ", ".join(f"{name} DESC" if down else name for name, down in index.columns)
    return f"{index.name} on {index.table} ({columns})"
