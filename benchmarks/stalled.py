"""One client that does not read, among 100: what the others notice, and what it costs.

All clients read the same 3 queries, and every write changes a row that lies in all of them. First
nobody stalls, then one client stops reading its socket. Reported are the lags of the others
(COMMIT returned until the poke is read), the server's memory, and whether the stalled client was
cut off or, once it reads again, has what the others have.
"""

from __future__ import annotations

import asyncio
import socket

from benchmarks import workbench
from benchmarks.latency import write
from benchmarks.protocol_client import SyncClient
from benchmarks.report import Metric
from benchmarks.servers import Server
from benchmarks.sustained_writes import Group
from benchmarks.workbench import Outcome, Workbench
from benchmarks.writer import Plan

_NAME = "stalled"
_CLIENTS = 100
_RATE = 200.0
_SECONDS = 6.0
_QUICK_SECONDS = 3.0
_TIMEOUT_S = 120.0
# Small, so that what a server may hide in the kernel's buffers is soon used up.
_RECEIVE_BUFFER = 64 * 1024


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Measure a running server that is open for queries; it is left running."""
    groups = [Group(bench, server, 0) for _ in range(_CLIENTS)]
    for group in groups:
        await group.connect()
    outcome = await _phase(bench, server, groups, "nobody stalls")
    stalled, others = groups[0].client, groups[1:]
    _stop_reading(stalled)
    memory = server.usage().pss_mb
    outcome += await _phase(bench, server, others, "one stalls")
    growth = server.usage().pss_mb - memory
    outcome += Outcome([Metric(_NAME, "memory while one stalls", growth, "MB")], [])
    outcome.notes.append(f"{_NAME}: the stalled client {await _aftermath(stalled, others)}")
    for group in groups:
        group.client.close()
    return outcome


def _stop_reading(client: SyncClient) -> None:
    transport = client._transport
    assert transport is not None
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    transport.pause_reading()


async def _phase(bench: Workbench, server: Server, groups: list[Group], case: str) -> Outcome:
    seconds = _QUICK_SECONDS if bench.options.quick else _SECONDS
    first = bench.highest_votes() + 1
    plan = Plan(bench.database_url, bench.issues_of([0]), _RATE, round(_RATE * seconds), first)
    for group in groups:
        group.progress.clear()
    written = await write(plan)
    writes = [(first + number, at) for number, at in enumerate(written.commits_ns)]
    await asyncio.gather(*(group.wait_write(writes[-1][0]) for group in groups))
    lags = sorted(lag for group in groups for lag in group.lags_ms(writes))
    p50, p99 = lags[len(lags) // 2], lags[int(len(lags) * 0.99)]
    return Outcome(
        [
            Metric(_NAME, f"p50 of the others, {case}", p50, "ms"),
            Metric(_NAME, f"p99 of the others, {case}", p99, "ms"),
        ],
        [],
    )


async def _aftermath(stalled: SyncClient, others: list[Group]) -> str:
    """Let it read again."""
    wanted = max(group.client.state.cookie or "" for group in others)
    assert stalled._transport is not None
    stalled._transport.resume_reading()
    pokes = stalled.session.poke_count
    try:
        await stalled.wait_cookie(wanted, _TIMEOUT_S)
    except Exception as error:  # whatever a server did to it is the result
        return f"was lost: {type(error).__name__}: {error}"
    return f"caught up with {stalled.session.poke_count - pokes} pokes"


async def _alone(bench: Workbench, server: Server) -> Outcome:
    await server.start()
    await bench.open_for_queries(server)
    return await measure(bench, server)


if __name__ == "__main__":
    workbench.main("stalled", __doc__, _alone)
