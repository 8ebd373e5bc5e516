"""``zerocache analyze-query``: explains a query against a replica file, for people or as JSON.

Owns the command line and the text. The work is done in ``analysis.py``, on a read connection, so a
running server is not disturbed. Rows are shown only where the caller asked for them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from view_syncer.analysis import Analysis, StatementReport, analyze
from view_syncer.ivm.advice import SCAN_ROWS
from view_syncer.ivm.encode import ClientTables
from view_syncer.schema_check import client_tables
from zerocache.config_loader import merged_environment
from zerocache.errors import QueryError, ReplicaError, ZerocacheError
from zerocache.protocol.client_schema import ClientSchema
from zerocache.replica.layout import load_config
from zerocache.replica.reader import open_replica
from zerocache.replica.sql import quote
from zerocache.zql.ast import Query, parse_query
from zerocache.zql.permissions import apply_read_permissions, unreadable_tables

_EXIT_FAILED = 1
_DESCRIPTION = """Explains a query: the SQL of each level, SQLite's plans, rows read and synced,
time, and the indexes that are used and missing. Reads the replica file of this node; the server may
be running."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        analysis = _run(options)
    except (ZerocacheError, OSError, msgspec.DecodeError) as error:
        print(f"zerocache analyze-query: {error}", file=sys.stderr)
        return _EXIT_FAILED
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(analysis), indent=2).decode())
    else:
        print("\n".join(_text(analysis)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zerocache analyze-query", description=_DESCRIPTION)
    default = merged_environment(os.environ, Path(".env")).get("ZERO_REPLICA_FILE", "zero.db")
    parser.add_argument("--replica-file", default=default, help=f"default: {default}")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--ast", help="the query as AST JSON, with server names")
    query.add_argument("--ast-file", type=Path, help="a file with the AST; - reads stdin")
    parser.add_argument(
        "--client-schema", type=Path, help="client schema JSON; default: every synced column"
    )
    parser.add_argument(
        "--apply-permissions", action="store_true", help="apply the deployed read permissions"
    )
    parser.add_argument("--auth-data", default="{}", help="claims for the permissions, JSON")
    parser.add_argument(
        "--min-rows",
        type=int,
        default=SCAN_ROWS,
        help=f"smaller tables need no index; default: {SCAN_ROWS}",
    )
    parser.add_argument("--output-synced-rows", action="store_true", help="show the rows")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(options: argparse.Namespace) -> Analysis:
    query = _query(options)
    warnings: tuple[str, ...] = ()
    if options.apply_permissions:
        permissions = _deployed_permissions(options.replica_file)
        claims = msgspec.json.decode(options.auth_data, type=dict[str, Any])
        warnings = tuple(
            f"Table {table} has no read permission, so none of its rows are synced."
            for table in sorted(unreadable_tables(query, permissions))
        )
        query = apply_read_permissions(query, permissions, claims)
    return analyze(
        options.replica_file,
        query,
        _client(options.client_schema),
        synced_rows=options.output_synced_rows,
        warnings=warnings,
        scan_rows=options.min_rows,
    )


def _query(options: argparse.Namespace) -> Query:
    if options.ast is not None:
        text = options.ast
    elif str(options.ast_file) == "-":
        text = sys.stdin.read()
    else:
        text = options.ast_file.read_text()
    try:
        return parse_query(text)
    except QueryError as error:
        raise QueryError(
            f"{error}: --ast and --ast-file take the JSON of a query with server names, such as "
            '{"table":"task","limit":10}'
        ) from error


def _client(path: Path | None) -> ClientTables | None:
    return None if path is None else client_tables(ClientSchema.from_json(path.read_bytes()))


def _deployed_permissions(replica_file: str) -> dict[str, Any] | None:
    db = open_replica(replica_file)
    try:
        config = load_config(db)
        if config is None:
            raise ReplicaError(
                f"{replica_file} is not a finished replica: there are no permissions in it; name "
                "the file of a server that is running"
            )
        table = quote(f"{config.app_id}.permissions")
        row = db.execute(f"SELECT permissions FROM {table}").fetchone()  # noqa: S608 - quoted
        return None if row is None or row[0] is None else msgspec.json.decode(str(row[0]))
    finally:
        db.close()


def _text(analysis: Analysis) -> Iterator[str]:
    yield f"Query: {analysis.after_permissions}"
    by_table = ", ".join(f"{t} {n:,}" for t, n in sorted(analysis.synced_row_counts.items()) if n)
    yield f"Rows synced: {analysis.synced_row_count:,}" + (f" ({by_table})" if by_table else "")
    yield f"Rows read: {sum(report.rows for report in analysis.statements):,}"
    yield f"Rows scanned: {sum(report.scanned for report in analysis.statements):,}"
    yield f"Time: hydrate {analysis.hydrate_ms:.1f} ms, encode {analysis.encode_ms:.1f} ms"
    level = -1
    for report in analysis.statements:
        if report.level != level:
            level = report.level
            yield f"\nLevel {level}: {report.table}"
        yield from _statement(report)
    yield from _section("Indexes used", analysis.indexes_used)
    yield from _section("Automatic indexes on these tables", analysis.auto_indexes)
    missing = [f"{m.index}: {m.problem} over {m.rows:,} rows" for m in analysis.indexes_missing]
    yield from _section("Indexes missing", missing)
    if analysis.warnings:
        yield from _section("Warnings", analysis.warnings)
    for table, rows in sorted((analysis.synced_rows or {}).items()):
        yield from _section(f"Rows of {table}", [msgspec.json.encode(r).decode() for r in rows])


def _statement(report: StatementReport) -> Iterator[str]:
    if report.runs:
        scanned = f", {report.scanned:,} scanned" if report.scanned else ""
        yield f"  {report.purpose}: {report.runs} run(s), {report.rows:,} rows read{scanned}"
    else:
        yield f"  {report.purpose}: not needed for this hydration"
    yield f"    {report.sql}"
    for line in report.plan:
        yield f"      {line}"
    for table in report.full_scans:
        yield f"      *** FULL SCAN of {table}"


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"\n{title}:"
    for line in lines or ("none",):
        yield f"  {line}"
