"""The query engine alone: no network, no processes; 100k issues, 300k comments, 200k labels.

    python -m benchmarks.engine [--scale 1.0] [--only NAME ...]

Times are medians of repeated runs on one thread. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import dataset, engine_replica, report
from benchmarks.report import Metric, ServerResult
from view_syncer.ivm.engine import Engine, Subscription
from zerocache import __version__
from zerocache.protocol.versions import lexi_encode
from zerocache.replica.reader import open_replica
from zerocache.replica.types import SQLiteValue
from zerocache.replica.writer import ReplicaWriter
from zerocache.zql.ast import Query, parse_query

INSTANCE_COUNTS = (100, 1_000, 10_000, 100_000)


@dataclass
class Bench:
    """One replica with its writer; a fresh engine per benchmark."""

    path: Path
    sizes: dataset.Sizes
    writer: ReplicaWriter
    watermarks: Iterator[int]

    def engine(self) -> Engine:
        return Engine(self.path)

    def commit(self, change: Callable[[ReplicaWriter], None]) -> None:
        """One upstream transaction, one commit."""
        self.writer.begin_transaction(lexi_encode(next(self.watermarks)))
        change(self.writer)
        self.writer.end_transaction()
        self.writer.commit()

    def votes(self, issue: int, votes: int) -> Callable[[ReplicaWriter], None]:
        key = dataset.issue_id(issue % self.sizes.issues)
        return lambda w: w.update("issues", None, {"id": key, "votes": votes})

    def issues_of_first_owners(self) -> list[int]:
        """Issues that one of the first hundred users owns: what every number of owner queries
        sees alike."""
        reader = open_replica(self.path)
        rows = reader.execute("SELECT short_id FROM issues WHERE owner_id < 'u00100'").fetchall()
        reader.close()
        return [int(str(number)) for (number,) in rows]


def column(name: str, op: str, value: object) -> dict[str, object]:
    left = {"type": "column", "name": name}
    return {"type": "simple", "op": op, "left": left, "right": {"type": "literal", "value": value}}


def query(table: str, **parts: object) -> Query:
    return parse_query({"table": table, **parts})


def page(where: Mapping[str, object] | None = None, limit: int = 100) -> Query:
    return query("issues", where=where, orderBy=[["modified", "desc"]], limit=limit)


def tree(where: Mapping[str, object] | None = None) -> Query:
    comments = {"table": "comments", "alias": "comments"}
    labels = {"table": "labels", "alias": "labels"}
    junction = {
        "table": "issue_labels",
        "alias": "labels",
        "related": [_related("label_id", "id", labels)],
    }
    return query(
        "issues",
        where=where,
        orderBy=[["modified", "desc"]],
        limit=100,
        related=[_related("id", "issue_id", comments), _related("id", "issue_id", junction)],
    )


def _related(parent: str, child: str, subquery: Mapping[str, object]) -> dict[str, object]:
    return {
        "correlation": {"parentField": [parent], "childField": [child]},
        "subquery": subquery,
    }


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def hydrate_once(engine: Engine, asked: Query) -> tuple[float, int]:
    """Seconds to compute and encode a query that nobody runs, and its rows."""
    start = time.perf_counter()
    subscription = engine.subscribe(asked, engine_replica.client_tables())
    rows = engine.rows(subscription)
    seconds = time.perf_counter() - start
    engine.unsubscribe(subscription)
    return seconds, len(rows)


# -- benchmarks --------------------------------------------------------------------------------


def hydration(bench: Bench) -> Iterator[Metric]:
    engine = bench.engine()
    # The SQL generator's own first use is part of a process's start, not of a query.
    engine.subscribe(query("labels", limit=1), engine_replica.client_tables())
    for name, make in (("100-row ordered page", page), ("100 issues, comments, labels", tree)):
        new = [hydrate_once(engine, make(where))[0] * 1000 for where in new_shapes()]
        samples = []
        rows = 0
        for _ in range(15):
            seconds, rows = hydrate_once(engine, make())
            samples.append(seconds * 1000)
        yield Metric(
            "hydrate", f"{name} ({rows} rows), first of its shape", statistics.median(new), "ms",
            details={"samples": new},
        )  # fmt: skip
        # The first one is.
        known = statistics.median(samples[1:])
        yield Metric("hydrate", f"{name} ({rows} rows), known shape", known, "ms")
    samples = []
    half = bench.sizes.issues // 2
    for _ in range(5):
        seconds, rows = hydrate_once(engine, query("issues", where=column("short_id", "<", half)))
        samples.append(rows / seconds)
    yield Metric("hydrate", f"{half} rows", statistics.median(samples), "rows/s", True)
    engine.close()


def new_shapes() -> Iterator[dict[str, object]]:
    """Filters of different shapes that every issue passes."""
    passed = [
        column(name, op, value)
        for name in ("votes", "short_id")
        for op, value in (("<=", 10**9), ("!=", -1), (">=", -1))
    ]
    for pair in itertools.permutations(passed, 2):
        yield {"type": "and", "conditions": list(pair)}


def different_pipelines(bench: Bench) -> Iterator[Metric]:
    """One change that 300 different queries see."""
    engine = bench.engine()
    client = engine_replica.client_tables()
    for n in range(300):
        where = {
            "type": "or",
            "conditions": [column("votes", "<", 10**6 + n), column("open", "=", True)],
        }
        engine.subscribe(
            query("issues", where=where, orderBy=[["modified", "asc"]], limit=50 + n % 50), client
        )
    samples = []
    for n in range(20):
        bench.commit(bench.votes(0, n + 1))
        samples.append(timed(engine.advance))
    yield Metric(
        "one change", "300 different hot pipelines", statistics.median(samples) * 1000, "ms"
    )
    engine.close()


def owner_instances(bench: Bench) -> Iterator[Metric]:
    """One change that matches 1 of N instances of ``where owner_id = ?``."""
    engine = bench.engine()
    client = engine_replica.client_tables()
    owned = bench.issues_of_first_owners()
    made = 0
    for count in INSTANCE_COUNTS:
        for n in range(made, count):
            engine.subscribe(query("issues", where=column("owner_id", "=", f"u{n:05d}")), client)
        made = count
        gc.collect()
        samples = []
        for n in range(60):
            bench.commit(bench.votes(owned[n % len(owned)], n + 1))
            samples.append(timed(engine.advance))
        yield Metric(
            "one change", f"1 of {count} owner queries", statistics.median(samples) * 1000, "ms"
        )
    engine.close()


def windows(bench: Bench) -> Iterator[Metric]:
    """A window of 100: insert at the top, delete in the middle, edit across the border."""
    for top, indexed, order in ((10**14, True, "modified"), (2 * 10**14, False, "title")):
        engine = bench.engine()
        client = engine_replica.client_tables()
        subscription = engine.subscribe(
            query("issues", orderBy=[[order, "desc"]], limit=100), client
        )
        seconds = 0.0
        changes = 900
        for n in range(changes):
            bench.commit(_window_change(engine, subscription, n, order, top + n))
            seconds += timed(engine.advance)
        name = "window of 100" if indexed else "window of 100, order without index"
        yield Metric("limit", name, changes / seconds, "changes/s", True)
        engine.close()


def _window_change(
    engine: Engine, subscription: Subscription, n: int, order: str, top: int
) -> Callable[[ReplicaWriter], None]:
    value: SQLiteValue = float(top) if order == "modified" else f"\U0010ffff{top}"
    new: dict[str, SQLiteValue] = {
        "id": f"w{top}", "short_id": top % 2**31, "project": "p0000", "title": "new",
        "description": "", "open": 1, "owner_id": None, "votes": 0, "meta": "{}",
        "created": 0.0, "modified": 0.0, order: value,
    }  # fmt: skip
    if n % 3 == 0:
        return lambda w: w.insert("issues", new)
    rowid = sorted(subscription.pipeline.rows()["issues"])[50]
    (key,) = engine.db.execute("SELECT id FROM issues WHERE _rowid_ = ?", (rowid,)).fetchone()  # type: ignore[misc]
    if n % 3 == 1:
        return lambda w: w.delete("issues", {"id": key})
    low: SQLiteValue = 0.0 if order == "modified" else ""
    return lambda w: w.update("issues", None, {"id": key, order: low})


def large_transaction(bench: Bench) -> Iterator[Metric]:
    """100k changed rows at once, 20 pipelines concerned."""
    engine = bench.engine()
    client = engine_replica.client_tables()
    for n in range(10):
        engine.subscribe(page(limit=100 + n), client)
        engine.subscribe(
            query("issues", where=column("project", "=", dataset.project_id(n))), client
        )

    def change(writer: ReplicaWriter) -> None:
        for n in range(bench.sizes.issues):
            bench.votes(n, -1)(writer)

    bench.commit(change)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    engine_seconds = timed(engine.advance)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    del engine_seconds  # slowed down by tracing: measured again without it
    engine.close()
    engine = bench.engine()
    for n in range(10):
        engine.subscribe(page(limit=100 + n), client)
        engine.subscribe(
            query("issues", where=column("project", "=", dataset.project_id(n))), client
        )
    bench.commit(change)
    yield Metric("100k rows in one transaction", "20 pipelines", timed(engine.advance), "s")
    yield Metric("100k rows in one transaction", "peak memory", peak / 1e6, "MB")
    engine.close()


def memory(bench: Bench) -> Iterator[Metric]:
    engine = bench.engine()
    client = engine_replica.client_tables()
    # The shapes' plans are shared by all their instances: made before the measurement.
    for asked in (query("issues", where=_between(-2, -1)), _window(0)):
        engine.unsubscribe(engine.subscribe(asked, client))
    gc.collect()
    tracemalloc.start()
    kept = [
        engine.subscribe(query("issues", where=_between(n * 1000, n * 1000 + 1000)), client)
        for n in range(10)
    ]
    per_plain = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    tracemalloc.start()
    kept += [engine.subscribe(_window(n), client) for n in range(1, 11)]
    per_window = tracemalloc.get_traced_memory()[0] / 10
    tracemalloc.stop()
    yield Metric("memory", "pipeline of 1,000 rows", per_plain / 1000, "KB")
    yield Metric("memory", "window of 1,000 rows", per_window / 1000, "KB")
    engine.close()


def _window(votes: int) -> Query:
    order = [["modified", "desc"]]
    return query("issues", where=column("votes", "<", 10**9 + votes), orderBy=order, limit=1000)


def _between(low: int, high: int) -> dict[str, object]:
    return {
        "type": "and",
        "conditions": [column("short_id", ">=", low), column("short_id", "<", high)],
    }


BENCHMARKS = {
    f.__name__: f
    for f in (hydration, different_pipelines, owner_instances, windows, large_transaction, memory)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", choices=sorted(BENCHMARKS), default=None)
    options = parser.parse_args()
    settings = {"scale": options.scale, "zerocache": __version__}
    report.print_header(settings)
    metrics: list[Metric] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replica.db"
        sizes = engine_replica.build(path, options.scale)
        bench = Bench(path, sizes, ReplicaWriter(path), itertools.count(10_000))
        for name, benchmark in BENCHMARKS.items():
            if options.only is None or name in options.only:
                metrics.extend(benchmark(bench))
        bench.writer.close()
    result = ServerResult("engine", __version__, tuple(metrics))
    report.print_table([result])
    print(report.write("engine", [result], settings))


if __name__ == "__main__":
    main()
