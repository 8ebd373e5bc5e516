"""Initial sync: from an empty directory to the first answered health check.

Rows per second include the start of the program, because that is what an operator waits for.
"""

from __future__ import annotations

from benchmarks import workbench
from benchmarks.report import Metric
from benchmarks.servers import Server
from benchmarks.workbench import Outcome, Workbench

_NAME = "initial sync"


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Start ``server`` for the first time; it is left running."""
    seconds = await server.start()
    usage = server.usage()
    rows = bench.sizes.total
    details = {"rows": rows, "replica_mb": server.replica_mb(), "cpu_s": usage.cpu_s}
    return Outcome(
        [
            Metric(_NAME, f"{rows // 1000}k rows", rows / seconds, "rows/s", True, details),
            Metric(_NAME, "time until ready", seconds, "s"),
            Metric(_NAME, "CPU used by the server", usage.cpu_s, "s"),
            Metric(_NAME, "memory when ready (PSS)", usage.pss_mb, "MB"),
            Metric(_NAME, "replica file", server.replica_mb(), "MB"),
        ],
        [],
    )


if __name__ == "__main__":
    workbench.main("initial_sync", __doc__, measure)
