"""How much of the machine others used while a server was measured.

Owns the bookkeeping of CPU seconds: all that were burnt, less those of our own processes (this
one, PostgreSQL, the server, the writers). Invariant: a number taken on a busy machine says so.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class CpuMeter:
    """CPU seconds since boot, and those of our processes, at one moment.

    * Take it while no server runs: only children that have ended are counted by the kernel.
    """

    at_s: float
    all_s: float
    own_s: float

    @classmethod
    def read(cls, postgres_pid: int) -> CpuMeter:
        times = psutil.cpu_times()
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = time.process_time() + ended.ru_utime + ended.ru_stime + _tree_s(postgres_pid)
        everything = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        return cls(time.monotonic(), everything, own)

    def others_since(self, before: CpuMeter) -> float:
        """CPUs that processes other than ours kept busy on average since ``before``."""
        others = (self.all_s - before.all_s) - (self.own_s - before.own_s)
        return max(0.0, others / (self.at_s - before.at_s))


def _tree_s(pid: int) -> float:
    """A process, its living children, and those it has reaped."""
    root = psutil.Process(pid)
    total = 0.0
    for process in [root, *root.children()]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # has just ended; its parent's sum has it
        total += times.user + times.system
        if process is root:
            total += times.children_user + times.children_system
    return total
