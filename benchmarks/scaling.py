"""How the cost of one change grows: with query instances, with client groups, with rows per query.

    python -m benchmarks.scaling [--scale 1.0] [--markdown]

Each curve is the median time of one single-row change, and the exponent of the power law that fits
it best: 0 is flat, 1 is proportional. ``--markdown`` prints the tables of benchmarks/SCALING.md.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks import dataset, engine_replica, report
from benchmarks.engine import Bench, column, query, timed
from benchmarks.report import Metric, ServerResult
from view_syncer.engine_host import EngineHost
from view_syncer.fan_out import WorkerAdvance
from view_syncer.ivm.engine import Engine
from zerocache import __version__
from zerocache.replica.writer import ReplicaWriter
from zerocache.zql.ast import Query

CHANGES = 40


@dataclass(frozen=True)
class Curve:
    """``points``: (size, seconds)."""

    title: str
    unit: str
    points: tuple[tuple[int, float], ...]

    @property
    def exponent(self) -> float:
        """Slope of the least-squares line through the points on logarithmic axes."""
        xs = [math.log(size) for size, _ in self.points]
        ys = [math.log(seconds) for _, seconds in self.points]
        mean_x, mean_y = statistics.mean(xs), statistics.mean(ys)
        covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
        return covariance / sum((x - mean_x) ** 2 for x in xs)


def instances(bench: Bench) -> Curve:
    """One change that concerns one of N instances of ``where owner_id = ?``."""
    engine = bench.engine()
    client = engine_replica.client_tables()
    points = []
    made = 0
    for size in (100, 1_000, 10_000, 100_000):
        for n in range(made, size):
            engine.subscribe(query("issues", where=column("owner_id", "=", f"u{n:05d}")), client)
        made = size
        points.append((size, _median(bench, engine, bench.issues_of_first_owners())))
    engine.close()
    return Curve("query instances, one concerned", "instances", tuple(points))


def plain_rows(bench: Bench) -> Curve:
    return _rows(
        bench,
        "rows of the query that is concerned",
        lambda size: query("issues", where=column("short_id", "<", size)),
    )


def window_rows(bench: Bench) -> Curve:
    order = [["modified", "desc"]]
    return _rows(
        bench,
        "size of the window that is concerned",
        lambda size: query("issues", where=column("votes", ">=", 0), orderBy=order, limit=size),
    )


def _rows(bench: Bench, title: str, make: Callable[[int], Query]) -> Curve:
    points = []
    for size in (100, 1_000, 10_000, 50_000):
        engine = bench.engine()
        engine.subscribe(make(min(size, bench.sizes.issues)), engine_replica.client_tables())
        points.append((size, _median(bench, engine, range(CHANGES))))
        engine.close()
    return Curve(title, "rows", tuple(points))


def _median(bench: Bench, engine: Engine, issues: Sequence[int]) -> float:
    gc.collect()
    samples = []
    for n in range(CHANGES):
        bench.commit(bench.votes(issues[n % len(issues)], n + 1))
        samples.append(timed(engine.advance))
    return statistics.median(samples)


class _Group:
    """Stands for a client group: the host only needs its identity."""


async def groups(bench: Bench, *, same: bool) -> Curve:
    """One change; N client groups ask the same query, or each asks for its own partition."""
    points = []
    for size in (1, 10, 100, 1_000):
        points.append((size, await _groups(bench, size, same)))
    title = "client groups, all on the same query" if same else "client groups, own queries"
    return Curve(title, "groups", tuple(points))


async def _groups(bench: Bench, size: int, same: bool) -> float:
    arrived = asyncio.Event()

    def on_advance(_: WorkerAdvance) -> None:
        arrived.set()

    def on_fatal(error: BaseException) -> None:
        raise error

    host = EngineHost(bench.path, on_advance, on_fatal)
    host.start()
    client = engine_replica.client_tables()
    for n in range(size):
        project = dataset.project_id(0 if same else n % bench.sizes.projects)
        asked = query("issues", where=column("project", "=", project))
        group = _Group()
        async with host.prepared(group, client, {"q": asked}) as prepared:
            await host.reconcile(group, client, {"q": asked}, (), prepared=prepared)
    samples = []
    for n in range(CHANGES):
        bench.commit(bench.votes(0, n + 1))
        arrived.clear()
        start = time.perf_counter()
        host.notify()
        await arrived.wait()
        samples.append(time.perf_counter() - start)
    await host.close()
    return statistics.median(samples)


async def measure(bench: Bench) -> list[Curve]:
    return [
        instances(bench),
        plain_rows(bench),
        window_rows(bench),
        await groups(bench, same=True),
        await groups(bench, same=False),
    ]


def markdown(curves: Sequence[Curve]) -> str:
    lines = []
    for curve in curves:
        lines += [f"**{curve.title}** (exponent {curve.exponent:.2f})", ""]
        lines.append(
            "| " + curve.unit + " | " + " | ".join(f"{s:,}" for s, _ in curve.points) + " |"
        )
        lines.append("|---" * (len(curve.points) + 1) + "|")
        cells = " | ".join(f"{seconds * 1000:.2f} ms" for _, seconds in curve.points)
        lines += [f"| one change | {cells} |", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    settings = {"scale": options.scale, "zerocache": __version__}
    report.print_header(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replica.db"
        sizes = engine_replica.build(path, options.scale)
        bench = Bench(path, sizes, ReplicaWriter(path), itertools.count(10_000))
        curves = uvloop.run(measure(bench))
        bench.writer.close()
    if options.markdown:
        print(markdown(curves))
        return
    metrics = [
        Metric(curve.title, f"{size:,}", seconds * 1000, "ms", details={"exponent": curve.exponent})
        for curve in curves
        for size, seconds in curve.points
    ]
    result = ServerResult("engine", __version__, tuple(metrics))
    report.print_table([result])
    for curve in curves:
        print(f"{curve.title}: exponent {curve.exponent:.2f}")
    print(report.write("scaling", [result], settings))


if __name__ == "__main__":
    main()
