"""Fuzzes the query engine: ``python -m tests.fuzz.engine --minutes N [--seed S]``.

Every scenario is judged by a fresh hydration after each step, by variations of its queries, and
by a real PostgreSQL at the end. A failure is cut down and printed as JSON with its seed; play it
again with ``--replay FILE``. Exit status 1 after a failure.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import _SETTINGS, PostgresCluster, free_port
from tests.fuzz.check import Count, run
from tests.fuzz.generate import Generator
from tests.fuzz.scenario import Scenario, from_json, to_json
from tests.fuzz.shrink import shrink
from tests.fuzz.upstream import Upstream

_SCENARIOS_PER_WORLD = 15
_SHRINK_SECONDS = 90
_REPORT_SECONDS = 30


@contextmanager
def _postgres() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="zerocache-fuzz-pg-"))
    cluster = PostgresCluster(directory, free_port(), dict(_SETTINGS))
    try:
        cluster.initialize()
        cluster.start()
        yield cluster.url_of(cluster.create_database())
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


def judge(scenario: Scenario, upstream: Upstream | None, count: Count) -> None:
    with tempfile.TemporaryDirectory(prefix="zerocache-fuzz-") as folder:
        replica = run(scenario, Path(folder) / "replica.db", count)
        try:
            if upstream is not None:
                upstream.check(scenario, replica, count)
        finally:
            replica.close()


def _error(scenario: Scenario, upstream: Upstream | None) -> str | None:
    try:
        judge(scenario, upstream, Count())
    except Exception:
        return traceback.format_exc()
    return None


def _report_failure(scenario: Scenario, seed: str, upstream: Upstream) -> None:
    print(
        f"\nFAILURE, seed {seed}, {scenario.size} rows and changes; cutting it down …", flush=True
    )
    error = _error(scenario, upstream)
    # A failure without PostgreSQL shrinks much faster.
    judge_with = upstream if _error(scenario, None) is None else None
    small = shrink(scenario, lambda s: _error(s, judge_with) is not None, _SHRINK_SECONDS)
    print(_error(small, judge_with) or error)
    print(
        f"reproducer ({small.size} rows and changes), for --replay:\n{to_json(small)}\n", flush=True
    )


def _worlds(seed: str) -> Iterator[tuple[str, Scenario]]:
    number = 0
    while True:
        name = f"{seed}:{number}"
        world = Generator(name)
        for i in range(_SCENARIOS_PER_WORLD):
            yield f"{name} scenario {i}", world.scenario()
        number += 1


def fuzz(minutes: float, seed: str, most_failures: int) -> int:
    count, failures = Count(), 0
    start = reported = time.monotonic()
    print(f"seed {seed}, {minutes:g} minutes", flush=True)
    with _postgres() as url:
        upstream = Upstream(url)
        for name, scenario in _worlds(seed):
            try:
                judge(scenario, upstream, count)
            except Exception:
                failures += 1
                _report_failure(scenario, name, upstream)
            now = time.monotonic()
            over = now - start > minutes * 60 or failures >= most_failures
            if over or now - reported > _REPORT_SECONDS:
                reported = now
                rate = count.scenarios / (now - start)
                print(f"{now - start:.0f} s: {count} ({rate:.1f} scenarios/s)", flush=True)
            if over:
                break
        upstream.close()
    print(f"seed {seed}: {failures} failures; {count}")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.fuzz.engine")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", default=None, help="printed by every run; default: random")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    parser.add_argument("--replay", type=Path, help="judge one scenario from a file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that PostgreSQL is ended too
    if options.replay is None:
        seed = options.seed or f"{random.SystemRandom().getrandbits(32):08x}"
        return fuzz(options.minutes, seed, options.failures)
    with _postgres() as url:
        upstream = Upstream(url)
        error = _error(from_json(options.replay.read_bytes()), upstream)
        upstream.close()
    print(error or "no failure")
    return 1 if error else 0


if __name__ == "__main__":
    raise SystemExit(main())
