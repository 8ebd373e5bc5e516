"""Kills everything at any time: ``python -m tests.fuzz.crash --minutes N [--seed S]``.

A PostgreSQL of its own, a node, clients and a write load. Sync workers, the replication process,
the supervisor, the whole node and PostgreSQL itself are killed (-9) at random moments, and the
node's processes at random places of zerocache/failpoints.py. After every round of kills the writes
pause, ``zerocache verify`` must find no difference, and every client must show exactly upstream's
rows, without ever having been told something the protocol forbids. Exit status 1 after a failure;
the node's files are kept then.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import psycopg

from replication_manager.verify import verify
from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.e2e.node import Node
from tests.replication_manager.crash_load import SCHEMA, write_heavily
from tests.view_syncer.crash_clients import Follower, allow_everything, upstream_rows
from zerocache.failpoints import ONCE_VARIABLE, VARIABLE, Place

_CLIENTS = 4
_EVENTS_KEPT = 3_000
_VERIFY_WAIT_S = 90.0
_VICTIMS = ("replication", "worker", "worker", "supervisor", "node", "postgres", "place", "place")
# Those that a running node comes by again and again.
_PLACES = [place for place in Place if place.number >= Place.RECEIVED.number]


class Broken(Exception):
    """Something was lost, doubled or left over."""


class World:
    """The node, its PostgreSQL and its clients, from one round to the next."""

    def __init__(self, cluster: PostgresCluster, folder: Path, rng: random.Random) -> None:
        self._cluster = cluster
        self._folder = folder
        self._rng = rng
        self._database = cluster.url_of(cluster.create_database())
        settings = {"ZERO_QUERY_URL": "", "ZERO_MUTATE_URL": "", "NODE_ENV": "production"}
        self.node = Node(folder, self._database, "crash", "", kind="zerocache", settings=settings)
        self.killed: Counter[str] = Counter()
        self._followers: list[Follower] = []
        self._made = 0

    async def prepare(self) -> None:
        with psycopg.connect(self._database) as connection:
            connection.execute(SCHEMA)
        await asyncio.to_thread(self.node.start)
        allow_everything(self._database, self.node.app_id)
        for _ in range(_CLIENTS):
            self._add_follower()

    async def close(self) -> None:
        for follower in self._followers:
            await follower.close()
        if self.node.process is not None:
            await asyncio.to_thread(self.node.kill9)

    def _add_follower(self) -> None:
        self._made += 1
        self._followers.append(Follower(self.node.url, self._made, 51 + self._made % 2))

    async def round(self) -> None:
        rng = self._rng
        with psycopg.connect(self._database, autocommit=True) as connection:
            connection.execute(
                "DELETE FROM event WHERE id NOT IN "
                "(SELECT id FROM event ORDER BY id DESC LIMIT %s)",
                [_EVENTS_KEPT],
            )
        with write_heavily(self._database, seed=rng.getrandbits(30)):
            for _ in range(rng.randint(1, 4)):
                await asyncio.sleep(rng.expovariate(1.0))
                await self._kill(rng.choice(_VICTIMS))
            await asyncio.sleep(rng.expovariate(1.0))
        await self._check()
        if rng.random() < 0.3:
            await self._followers.pop(rng.randrange(len(self._followers))).close()
            self._add_follower()

    async def _kill(self, victim: str) -> None:
        self.killed[victim] += 1
        match victim:
            case "postgres":
                await asyncio.to_thread(self._cluster.kill9)
                await asyncio.sleep(self._rng.uniform(0, 2))
                await asyncio.to_thread(self._cluster.start)
            case "node":
                await asyncio.to_thread(self.node.kill9)
                await asyncio.to_thread(self.node.start)
            case "supervisor":
                if left := await asyncio.to_thread(self.node.kill9_supervisor):
                    raise Broken(f"still running without their supervisor: {left}")
                await asyncio.to_thread(self.node.start)
            case "place":
                await self._arm()
            case _:
                self._kill_part("view_syncer" if victim == "worker" else "replication_manager")

    async def _arm(self) -> None:
        """Start the node anew, with a place at which one of its processes will die."""
        place, passage = self._rng.choice(_PLACES), self._rng.choice([1, 1, 2, 5, 30])
        fired = self._folder / f"fired-{len(list(self._folder.glob('fired-*')))}"
        self.node.settings[VARIABLE] = f"{place.value}:{passage}"
        self.node.settings[ONCE_VARIABLE] = str(fired)
        await asyncio.to_thread(self.node.kill9)
        # Once per start, however often: a process that dies before it is ready may end the start.
        for _ in range(2):
            try:
                await asyncio.to_thread(self.node.start)
            except RuntimeError:
                if fired.name not in os.listdir(self._folder):
                    raise
                self.node.process = None
            else:
                break
        self.killed[f"armed {place.value}"] += 1

    def _kill_part(self, part: str) -> None:
        victims = [p for p in self.node.processes()[1:] if any(part in w for w in p.cmdline())]
        if victims:
            self._rng.choice(victims).kill()

    async def _check(self) -> None:
        process = self.node.process
        if process is None or process.poll() is not None:
            raise Broken(f"the node ended by itself: {self.node.tail()}")
        verdict = await asyncio.to_thread(
            verify, self._database, self._folder / "replica.db", wait_s=_VERIFY_WAIT_S
        )
        if not verdict.is_equal:
            raise Broken(f"the replica differs: {verdict}")
        expected = await asyncio.to_thread(upstream_rows, self._database)
        for follower in self._followers:
            await follower.shows(expected)


async def _run(seed: str, minutes: float, folder: Path) -> int:
    cluster = await asyncio.to_thread(make_cluster)
    world = World(cluster, folder, random.Random(seed))
    rounds, deadline = 0, time.monotonic() + 60 * minutes
    try:
        await world.prepare()
        while time.monotonic() < deadline:
            await world.round()
            rounds += 1
            print(f"round {rounds}: {sum(world.killed.values())} kills", flush=True)
    except (Broken, AssertionError, psutil.Error, RuntimeError, OSError) as error:
        print(f"FAILED after {rounds} rounds, seed {seed}: {error}\nkept: {folder}")
        return 1
    finally:
        await world.close()
        await asyncio.to_thread(destroy_cluster, cluster)
    print(f"{rounds} rounds, nothing lost: {dict(sorted(world.killed.items()))}")
    shutil.rmtree(folder)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", default=os.urandom(4).hex())
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="zerocache-crash-"))
    print(f"seed {options.seed}, files in {folder}", flush=True)
    return asyncio.run(_run(options.seed, options.minutes, folder))


if __name__ == "__main__":
    raise SystemExit(main())
