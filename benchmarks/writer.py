"""The process that commits: one UPDATE per transaction at a steady rate.

Run as ``python -m benchmarks.writer`` with the plan as JSON on stdin (the rows of 400 projects do
not fit an argument). Owns one connection and the clock of commits.
Must never wait for anything but PostgreSQL and its own schedule. Invariant: transaction ``n`` sets
``votes = first_sequence + n`` on row ``ids[n % len(ids)]``, and its time is taken when COMMIT has
returned (CLOCK_MONOTONIC, which all processes share). Output: one JSON object on stdout.
"""

from __future__ import annotations

import sys
import time

import msgspec
from psycopg import pq
from psycopg.pq import abc

_UPDATE = b"UPDATE issues SET votes = $1 WHERE id = $2"


class Plan(msgspec.Struct, frozen=True):
    url: str
    ids: list[str]
    # 0 means as fast as possible.
    rate_per_s: float
    count: int
    first_sequence: int


class Written(msgspec.Struct, frozen=True):
    began_ns: int
    commits_ns: list[int]
    cpu_s: float
    elapsed_s: float


def run(plan: Plan) -> Written:
    connection = pq.PGconn.connect(plan.url.encode())
    if connection.status != pq.ConnStatus.OK:
        raise RuntimeError(connection.get_error_message())
    _check(connection.prepare(b"w", _UPDATE), connection)
    ids = [row_id.encode() for row_id in plan.ids]
    interval_ns = int(1e9 / plan.rate_per_s) if plan.rate_per_s else 0
    commits: list[int] = []
    cpu, began = time.process_time(), time.monotonic_ns()
    for number in range(plan.count):
        # Open loop: a slow commit does not delay the schedule of the next ones.
        wait_ns = began + number * interval_ns - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        values = [str(plan.first_sequence + number).encode(), ids[number % len(ids)]]
        result = connection.exec_prepared(b"w", values)
        commits.append(time.monotonic_ns())
        _check(result, connection)
    elapsed = (time.monotonic_ns() - began) / 1e9
    connection.finish()
    return Written(began, commits, time.process_time() - cpu, elapsed)


def _check(result: abc.PGresult, connection: abc.PGconn) -> None:
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise RuntimeError(connection.get_error_message())


if __name__ == "__main__":
    written = run(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))
    sys.stdout.buffer.write(msgspec.json.encode(written))
