"""Sustained writes: the highest commit rate that all clients follow with a bounded p99 lag.

*Same*: every write changes a row that lies in the 3 queries of each of 10, 100 and 400 client
groups. *Own*: each group watches a project of its own, and a write concerns one group. The rate
climbs until the lag (COMMIT returned until the poke is read, over all writes and all groups they
concern) exceeds a quarter of the time the rate is held (2 s of 8 s; less would be a burst that
is drained later), then the border is narrowed down. Servers may coalesce commits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field

import msgspec
from msgspec import UNSET

from benchmarks import queries, workbench
from benchmarks.latency import write
from benchmarks.protocol_client import SyncClient
from benchmarks.report import Metric
from benchmarks.servers import Server
from benchmarks.sync_messages import Poke
from benchmarks.workbench import Outcome, Workbench
from benchmarks.writer import Plan, Written

_NAME = "sustained writes"
_GROUPS = (10, 100, 400)
_QUICK_GROUPS = (10, 50)
_LAG_SHARE = 0.25
_STEP_S = 8.0
_QUICK_STEP_S = 3.0
# The first rate is this over the number of groups; growth until the first failure; then the
# border between the last good and the first bad rate is halved (in ratio) this often.
_FIRST_LOAD = 800.0
_GROWTH = 2.5
_REFINEMENTS = 2
# Nearly all of what was asked for, or the writer was the limit.
_ACHIEVED = 0.9
_DRAIN_S = 120.0


class _Value(msgspec.Struct):
    votes: int = -1


class _Op(msgspec.Struct):
    value: _Value | None = None


_ops: msgspec.json.Decoder[list[_Op]] = msgspec.json.Decoder(list[_Op])


@dataclass
class Group:
    """One client group, the project it watches, and when it had seen which writes."""

    bench: Workbench
    server: Server
    project: int
    # (highest value seen so far, time), one entry a poke that brought a row; both grow.
    progress: list[tuple[int, int]] = field(default_factory=list)
    highest: int = -1
    client: SyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = SyncClient(
            self.server.url,
            self.bench.schema,
            queries.project(self.project),
            keep_rows=False,
            on_poke=self.on_poke,
        )

    async def connect(self) -> None:
        await self.client.connect()
        await self.client.wait_got(*queries.project(self.project), timeout_s=_DRAIN_S)

    def on_poke(self, poke: Poke) -> None:
        for part in poke.counted:
            for op in () if part.rows is UNSET else _ops.decode(part.rows):
                if op.value is not None and op.value.votes > self.highest:
                    self.highest = op.value.votes
        self.progress.append((self.highest, poke.received_ns))

    async def wait_write(self, sequence: int) -> None:
        await self.client.wait_for(lambda: self.highest >= sequence, _DRAIN_S)

    def lags_ms(self, writes: list[tuple[int, int]]) -> Iterator[float]:
        """Lag of each (value, commit time) that concerns this group, in order."""
        arrivals = iter(self.progress)
        seen, at = next(arrivals)
        for value, committed_ns in writes:
            while seen < value:
                seen, at = next(arrivals)
            yield (at - committed_ns) / 1e6


@dataclass(frozen=True)
class Step:
    """One rate, held for a while."""

    offered_per_s: float
    committed_per_s: float
    p50_lag_ms: float
    p99_lag_ms: float
    lag_bound_ms: float
    pokes: int
    client_cpus: float
    server_cpus: float

    @property
    def followed(self) -> bool:
        return self.p99_lag_ms <= self.lag_bound_ms

    @property
    def writer_limited(self) -> bool:
        return self.committed_per_s < self.offered_per_s * _ACHIEVED


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Measure a running server that is open for queries; it is left running."""
    outcome = Outcome([], [])
    for count in _QUICK_GROUPS if bench.options.quick else _GROUPS:
        # Project 0 is shared, 1 is the latency benchmark's, the others belong to one group each.
        outcome += await _measure_groups(bench, server, "same", count, lambda _: 0)
        outcome += await _measure_groups(bench, server, "own", count, lambda n: n + 2)
    return outcome


async def _measure_groups(
    bench: Workbench, server: Server, case: str, count: int, project: Callable[[int], int]
) -> Outcome:
    groups = [Group(bench, server, project(n)) for n in range(count)]
    for group in groups:
        await group.connect()
    steps = await climb(lambda rate: _step(bench, server, groups, rate), _FIRST_LOAD / count)
    for group in groups:
        group.client.close()
    best = max((step for step in steps if step.followed), key=lambda step: step.committed_per_s)
    limit = "the writer" if best.writer_limited else "the lag"
    note = (
        f"{_NAME}, {count} groups ({case}): p50/p99 lag {best.p50_lag_ms:.0f}/"
        f"{best.p99_lag_ms:.0f} ms, {best.pokes} pokes; limited by {limit}; CPUs: server "
        f"{best.server_cpus:.2f}, client {best.client_cpus:.2f}"
    )
    metric = Metric(
        _NAME,
        f"{count} groups, {case}",
        best.committed_per_s,
        "writes/s",
        True,
        {"steps": [asdict(step) for step in steps], "limited_by": limit},
    )
    return Outcome([metric], [note])


async def climb(step: Callable[[float], Awaitable[Step]], first: float) -> list[Step]:
    """Try rates from ``first`` upwards until one is not followed, then narrow the border."""
    steps = [await step(first)]
    while not steps[-1].followed:  # even the first was too much
        steps.append(await step(steps[-1].offered_per_s / _GROWTH))
    good, bad = steps[-1], steps[-2] if len(steps) > 1 else None
    while bad is None and not good.writer_limited:
        steps.append(await step(good.offered_per_s * _GROWTH))
        good, bad = (steps[-1], None) if steps[-1].followed else (good, steps[-1])
    for _ in range(_REFINEMENTS if bad is not None else 0):
        assert bad is not None
        steps.append(await step((good.offered_per_s * bad.offered_per_s) ** 0.5))
        good, bad = (steps[-1], bad) if steps[-1].followed else (good, steps[-1])
    return steps


async def _step(bench: Workbench, server: Server, groups: list[Group], rate: float) -> Step:
    seconds = _QUICK_STEP_S if bench.options.quick else _STEP_S
    writes = max(10, round(rate * seconds))
    projects = sorted({group.project for group in groups})
    first = bench.highest_votes() + 1
    plan = Plan(bench.database_url, bench.issues_of(projects), rate, writes, first)
    for group in groups:
        group.progress.clear()
    server_cpu, cpu, began = server.usage().cpu_s, time.process_time(), time.monotonic()
    written = await write(plan)
    concerning = _writes_by_project(projects, plan, written)
    concerned = [group for group in groups if concerning[group.project]]
    await asyncio.gather(
        *(group.wait_write(concerning[group.project][-1][0]) for group in concerned)
    )
    elapsed = time.monotonic() - began
    client_cpus = (time.process_time() - cpu) / elapsed
    server_cpus = (server.usage().cpu_s - server_cpu) / elapsed
    pokes = sum(len(group.progress) for group in groups)
    lags = sorted(lag for group in concerned for lag in group.lags_ms(concerning[group.project]))
    return Step(
        rate,
        writes / written.elapsed_s,
        lags[len(lags) // 2],
        lags[min(len(lags) - 1, int(len(lags) * 0.99))],
        seconds * 1000 * _LAG_SHARE,
        pokes,
        round(client_cpus, 3),
        round(server_cpus, 3),
    )


def _writes_by_project(
    projects: list[int], plan: Plan, written: Written
) -> dict[int, list[tuple[int, int]]]:
    writes: dict[int, list[tuple[int, int]]] = {project: [] for project in projects}
    for number, committed_ns in enumerate(written.commits_ns):
        project = projects[number % len(projects)]
        writes[project].append((plan.first_sequence + number, committed_ns))
    return writes


async def _alone(bench: Workbench, server: Server) -> Outcome:
    await server.start()
    await bench.open_for_queries(server)
    return await measure(bench, server)


if __name__ == "__main__":
    workbench.main("sustained_writes", __doc__, _alone)
