"""Checks the sync protocol against a model: ``python -m tests.fuzz.model --minutes N [--seed S]``.

A real node on a real PostgreSQL, many clients, random actions, kills (not with ``--no-kill``).
Episodes follow each other until the time is over. A failure is printed with its seed and its
actions, cut down by replaying parts of them, and kept with the node's log in the folder named;
``--replay FILE`` plays a kept list of actions again. Exit status 1 after a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.fuzz.model_plan import STORES, Action, Choice, Count, Plan, make_plan
from tests.fuzz.model_run import Episode

_LENGTH = 120
_SHRINK_SECONDS = 240.0


def run_plan(plan: Plan, cluster: PostgresCluster, folder: Path, count: Count) -> str | None:
    """Play an episode; what went wrong, if anything. ``folder`` then holds the evidence."""

    async def play(database: str) -> None:
        episode = Episode(plan, database, folder, count)
        try:
            await episode.run()
        finally:
            (folder / "actions.log").write_text(episode.log)

    name = cluster.create_database()
    try:
        asyncio.run(play(cluster.url_of(name)))
    except Exception as error:
        (folder / "plan.json").write_text(plan.to_json())
        (folder / "error").write_text(traceback.format_exc())
        return f"{type(error).__name__}: {error}"
    finally:
        count.episodes += 1
        cluster.drop_database(name)
    return None


def shrink(plan: Plan, fails: Callable[[Plan], bool], seconds: float) -> Plan:
    """Remove parts, large ones first, as long as it still fails. Timing is not repeatable, so a
    part that was needed may stay and one that was not may be kept."""
    deadline = time.monotonic() + seconds
    size = len(plan.actions) // 2
    while size >= 1:
        for smaller in list(_without(plan.actions, size)):
            if time.monotonic() > deadline:
                return plan
            if fails(replace(plan, actions=smaller)):
                plan = replace(plan, actions=smaller)
                break
        else:
            size //= 2
    return plan


def _without(actions: tuple[Action, ...], size: int) -> Iterator[tuple[Action, ...]]:
    for start in range(0, len(actions), size):
        yield actions[:start] + actions[start + size :]


def _report(plan: Plan, problem: str, cluster: PostgresCluster, folder: Path) -> None:
    print(f"\nFAILURE, seed {plan.seed}, evidence in {folder}\n{problem}", flush=True)
    number = 0

    def fails(smaller: Plan) -> bool:
        nonlocal number
        number += 1
        return run_plan(smaller, cluster, folder / f"shrink{number}", Count()) is not None

    small = shrink(plan, fails, _SHRINK_SECONDS)
    (folder / "small.json").write_text(small.to_json())
    print(f"cut down from {len(plan.actions)} to {len(small.actions)} actions:")
    print("\n".join(map(str, small.actions)), flush=True)


def check(
    minutes: float, seed: str, allowed: list[Choice], *, failures: int = 1, cut: bool = True
) -> int:
    """Episodes until the time is over, of each kind in turn; the number of those that failed."""
    base = Path(tempfile.mkdtemp(prefix="zerocache-model-"))
    cluster, count, failed, number = make_cluster(max_connections="200"), Count(), 0, 0
    start = time.monotonic()
    print(f"seed {seed}, {minutes:g} minutes, folder {base}", flush=True)
    try:
        while time.monotonic() - start < minutes * 60 and failed < failures:
            plan = make_plan(f"{seed}:{number}", allowed[number % len(allowed)])
            folder = base / f"episode{number}"
            problem = run_plan(plan, cluster, folder, count)
            number += 1
            if problem is None:
                shutil.rmtree(folder)
            else:
                failed += 1
                if cut:
                    _report(plan, problem, cluster, folder)
                else:
                    print(f"\nFAILURE {plan.seed}, evidence in {folder}\n{problem}", flush=True)
            print(f"{time.monotonic() - start:.0f} s: {count}", flush=True)
    finally:
        destroy_cluster(cluster)
    print(f"seed {seed}: {failed} failures; {count}")
    return failed


def _replay(path: Path) -> int:
    folder = Path(tempfile.mkdtemp(prefix="zerocache-model-"))
    cluster = make_cluster(max_connections="200")
    try:
        problem = run_plan(Plan.from_json(path.read_text()), cluster, folder, Count())
    finally:
        destroy_cluster(cluster)
    print(f"{problem}\nevidence in {folder}" if problem else "no failure")
    return 1 if problem else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.fuzz.model")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", default=None, help="printed by every run; default: random")
    parser.add_argument("--groups", type=int, default=4, help="of three clients, or of ten")
    parser.add_argument(
        "--store",
        choices=STORES,
        action="append",
        help="where view records are; default: each in turn",
    )
    parser.add_argument("--two", action="store_true", help="sometimes with a second view-syncer")
    parser.add_argument("--no-kill", action="store_true", help="nothing is killed or restarted")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    parser.add_argument("--no-shrink", action="store_true", help="do not cut failures down")
    parser.add_argument("--replay", type=Path, help="play the actions kept in a file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all children are ended too
    if options.replay is not None:
        return _replay(options.replay)
    seed = options.seed or f"{random.SystemRandom().getrandbits(32):08x}"
    allowed = [
        Choice(_LENGTH, options.groups, not options.no_kill, store, options.two)
        for store in options.store or STORES
    ]
    failed = check(
        options.minutes, seed, allowed, failures=options.failures, cut=not options.no_shrink
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
