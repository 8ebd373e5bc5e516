"""``zerocache verify``: compares a replica with its upstream, row by row.

Owns the way to two snapshots that can be compared without stopping anybody: an upstream snapshot,
then a replica snapshot at or after its position, once the running replication process has got
there. What the replica is ahead by may look like differences, so those that a change in that short
span explains count only if they are there in every one of several rounds. Nothing is changed on
either side but for one empty transaction upstream, which marks the position. Invariant: row
contents are printed only when asked for; keys, names and counts always are.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apsw
import psycopg

from replication_manager.comparison import Difference, TableComparison, compare_table
from replication_manager.schema_drift import schema_differences
from replication_manager.signals import StopSignal
from replication_manager.table_copy import copy_tables, open_snapshot, read_sizes
from zerocache.config import Config
from zerocache.config_loader import load_config
from zerocache.errors import ConfigurationError, ReplicaError, ReplicationError, ZerocacheError
from zerocache.postgres.connection import connect
from zerocache.postgres.introspection import read_published_schema
from zerocache.protocol.versions import Lsn, lsn_from_text, lsn_from_watermark, watermark_from_lsn
from zerocache.replica.copy_text import decode_rows
from zerocache.replica.layout import TableFacts, load_tables
from zerocache.replica.layout import load_config as load_replica_config
from zerocache.replica.pending import load_pending
from zerocache.replica.published import PublishedTable
from zerocache.replica.reader import open_replica, read_state
from zerocache.replica.types import column_decoder

EXIT_EQUAL = 0
EXIT_DIFFERENT = 1
EXIT_IMPOSSIBLE = 2
_ROUNDS = 4
_WAIT_S = 30.0
_COMMIT_S = 5.0
_POLL_S = 0.05
_MAX_PRINTED = 1_000
_USAGE = """\
Usage: zerocache verify [--show-values] [flags]

Compares the replica with its upstream database, row by row, while both go on. Prints each
difference (table, key, columns; the differing values only with --show-values). Exit status: 0 if
there is none, 1 if there are some, 2 if they cannot be compared. The flags are those of the server.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``compared``: rows of upstream that were looked at in the first round. ``schema``: how the
    tables differ, which are not compared then. ``unfinished``: tables that were not compared,
    because the replica is still reading them again after a schema change."""

    compared: int
    differences: tuple[Difference, ...]
    schema: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        return not self.differences and not self.schema


def verify(url: str, file: Path, *, wait_s: float = _WAIT_S) -> Verdict:
    """Compare the replica ``file`` with ``url``.

    ``ReplicationError`` if the replica does not reach upstream's position in ``wait_s``.
    """
    certain: dict[Difference, None] = {}
    doubtful: dict[Difference, Difference] | None = None
    compared = 0
    tables: set[str] | None = None
    outcome = Verdict(0, ())
    for _ in range(_ROUNDS):
        comparison = _Round(url, file, tables, wait_s)
        outcome = comparison.run()
        if outcome.schema:
            if comparison.is_late:
                break  # it was waited for long enough
            continue  # a change may be on its way
        compared = compared or outcome.compared
        again = {one: one for one in outcome.differences if one.is_explainable}
        certain |= dict.fromkeys(one for one in outcome.differences if not one.is_explainable)
        doubtful = again if doubtful is None else _seen_twice(doubtful, again)
        tables = {one.table for one in doubtful}
        if not tables:
            break
    if outcome.schema:
        return outcome
    differences = tuple(certain | dict.fromkeys((doubtful or {}).values()))
    return Verdict(compared, differences, unfinished=outcome.unfinished)


def _seen_twice(
    before: Mapping[Difference, Difference], now: Mapping[Difference, Difference]
) -> dict[Difference, Difference]:
    """What is the same in both: values that differ because they are changing do not stay."""
    kept = {}
    for one in before.keys() & now.keys():
        values = tuple(pair for pair in before[one].values if pair in now[one].values)
        if values:
            kept[one] = replace(now[one], values=values)
    return kept


class _Round:
    """One comparison of two snapshots; ``only`` restricts it to some tables."""

    def __init__(self, url: str, file: Path, only: set[str] | None, wait_s: float) -> None:
        self._url = url
        self._file = file
        self._only = only
        self._wait_s = wait_s
        self._compared = 0
        self._differences: list[Difference] = []
        # Whether the snapshot may lack what the WAL has before the position.
        self._is_unsure = False
        # Whether the replica did not get as far as it had to.
        self.is_late = False

    def run(self) -> Verdict:
        with ExitStack() as stack:
            before, holder = self._hold_snapshot(stack)
            (name,) = holder.execute("SELECT pg_export_snapshot()").fetchall()[0]
            snapshot = stack.enter_context(open_snapshot(self._url, "verify", name))
            try:
                replica = stack.enter_context(closing(self._replica_at(_mark(self._url))))
            except ReplicationError:
                self.is_late = True
                # One of another schema may well be one that is not going to catch up.
                with closing(open_replica(self._file)) as present:
                    if found := _schema_differences(snapshot, present):
                        return Verdict(0, (), tuple(found))
                raise
            if found := _schema_differences(snapshot, replica):
                return Verdict(0, (), tuple(found))
            facts = load_tables(replica)
            pending = load_pending(replica)
            unfinished = [name for name in facts if facts[name].table.oid in pending]
            tables = [
                facts[name].table
                for name in facts.keys() - unfinished
                if self._only is None or name in self._only
            ]
            self._compare(snapshot, replica, tables, facts, watermark_from_lsn(before))
        return Verdict(
            self._compared, tuple(self._differences), unfinished=tuple(sorted(unfinished))
        )

    def _hold_snapshot(self, stack: ExitStack) -> tuple[Lsn, psycopg.Connection[Any]]:
        """A transaction whose snapshot has everything that ended before the returned position.

        See "Transaction IDs and snapshots" in the PostgreSQL docs, "System information functions".
        """
        settings = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
        holder = stack.enter_context(connect(self._url, "verify", settings=settings))
        before = _position(holder, "pg_current_wal_insert_lsn()")
        # A transaction is in the WAL, and perhaps in the replica, some time before snapshots see
        # it: those that may have been between the two at that position must be over. All of them
        # have a smaller number than one that is handed out now (a snapshot's xmax is no such
        # bound: it is the highest that is *over*, plus one).
        ((began,),) = holder.execute("SELECT pg_current_xact_id()").fetchall()
        deadline_s = time.monotonic() + _COMMIT_S
        while True:
            holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            ((oldest,),) = holder.execute(
                "SELECT pg_snapshot_xmin(pg_current_snapshot())"
            ).fetchall()
            if int(oldest) >= int(began):
                return before, holder
            if time.monotonic() >= deadline_s:
                # One that is open for that long is probably not being committed, but may be (a
                # commit can wait for a standby): only what stays is a difference then.
                self._is_unsure = True
                return before, holder
            holder.execute("ROLLBACK")
            _pause()

    def _replica_at(self, position: Lsn) -> apsw.Connection:
        """A snapshot of the replica that has everything up to ``position``."""
        deadline_s = time.monotonic() + self._wait_s
        while True:
            connection = open_replica(self._file)
            connection.execute("BEGIN")
            reached = lsn_from_watermark(read_state(connection).version)
            if reached >= position:
                return connection
            connection.close()
            if time.monotonic() > deadline_s:
                raise ReplicationError(
                    f"the replica {self._file} has not reached upstream's position in "
                    f"{self._wait_s:.0f} s: what is on its way cannot be told from what is missing;"
                    " start zerocache, or wait until it has caught up",
                    code="ZC237",
                )
            # Another process writes the file; its notifications are for its workers only.
            _pause()

    def _compare(
        self,
        snapshot: psycopg.Connection[Any],
        replica: apsw.Connection,
        tables: Sequence[PublishedTable],
        facts: dict[str, TableFacts],
        since: str,
    ) -> None:
        comparisons: dict[int, TableComparison] = {}
        decoders = {}
        for table in tables:
            comparisons[table.oid] = compare_table(replica, facts[table.wire_name], since)
            decoders[table.oid] = [column_decoder(column) for column in table.columns]

        def look(table: PublishedTable, lines: bytes, count: int) -> None:
            rows = decode_rows(lines, decoders[table.oid])
            self._note(comparisons[table.oid].add(rows))
            self._compared += count

        with closing(StopSignal()) as never:
            sizes = read_sizes(snapshot, tables)
            copy_tables(self._url, [snapshot], tables, sizes, look, never)
        for comparison in comparisons.values():
            self._note(comparison.finish())

    def _note(self, differences: Iterable[Difference]) -> None:
        self._differences.extend(
            replace(one, is_explainable=one.is_explainable or self._is_unsure)
            for one in differences
        )


def _pause() -> None:
    threading.Event().wait(_POLL_S)


def _schema_differences(upstream: psycopg.Connection[Any], replica: apsw.Connection) -> list[str]:
    config = load_replica_config(replica)
    if config is None:
        raise ReplicaError(
            f"{replica.filename} holds no replica: nothing can be compared; correct "
            "ZERO_REPLICA_FILE"
        )
    schema = read_published_schema(upstream, config.publications)
    return schema_differences(load_tables(replica), schema, suspicions=False)


def _position(connection: psycopg.Connection[Any], expression: str) -> Lsn:
    rows = connection.execute(f"SELECT ({expression})::text".encode()).fetchall()
    return lsn_from_text(rows[0][0])


def _mark(url: str) -> Lsn:
    """Make an empty transaction that replication carries; its commit is after the result."""
    with connect(url, "verify") as connection:
        return _position(connection, "pg_logical_emit_message(true, 'zerocache/verify', '')")


def print_verdict(
    verdict: Verdict, *, show_values: bool, write: Callable[[str], object] = print
) -> None:
    for text in verdict.schema:
        write(f"schema: {text}")
    for table in verdict.unfinished:
        write(f"{table}: not compared, it is being read again after a schema change")
    for difference in verdict.differences[:_MAX_PRINTED]:
        write(_line(difference, show_values))
    if len(verdict.differences) > _MAX_PRINTED:
        write(f"... and {len(verdict.differences) - _MAX_PRINTED} more")
    found = len(verdict.differences) + len(verdict.schema)
    write(f"{verdict.compared} rows compared, {found or 'no'} difference{'s' * (found != 1)}")


def _line(difference: Difference, show_values: bool) -> str:
    key = ", ".join(f"{name}={value!r}" for name, value in difference.key)
    names = ", ".join(name for name, _, _ in difference.values)
    text = f"{difference.table} ({key}): "
    if difference.kind == "different":
        text += f"other values of {names}"
    else:
        where = "missing in the replica" if difference.kind == "missing" else "only in the replica"
        text += where if difference.count == 1 else f"{where}, {difference.count} times"
    if show_values:
        for name, upstream, replica in difference.values:
            text += f"\n    {name}: upstream {upstream!r}, replica {replica!r}"
    return text


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if "--help" in arguments or "-h" in arguments:
        print(_USAGE, end="")
        return EXIT_EQUAL
    flags = [argument for argument in arguments if argument != "--show-values"]
    try:
        config, _ = load_config(flags, os.environ, dotenv=Path(".env"))
        verdict = _verify(config)
    except (ZerocacheError, psycopg.Error, apsw.Error) as error:
        print(f"zerocache verify: {error}", file=sys.stderr)
        return EXIT_IMPOSSIBLE
    print_verdict(verdict, show_values="--show-values" in arguments)
    if not verdict.is_equal:
        return EXIT_DIFFERENT
    return EXIT_IMPOSSIBLE if verdict.unfinished else EXIT_EQUAL


def _verify(config: Config) -> Verdict:
    file = Path(config.replica.file)
    if not file.is_file():
        raise ConfigurationError(
            f"there is no replica at {file}: nothing can be compared; correct ZERO_REPLICA_FILE, "
            "or start zerocache so that it makes one"
        )
    return verify(config.upstream.db, file)
