"""Fuzzes schema changes: ``python -m tests.fuzz.ddl --minutes N [--seed S]``.

A real PostgreSQL gets random transactions of DDL mixed with DML while the replication process runs
and is killed now and then. Oracles after every round: ``zerocache verify`` finds no difference,
nothing was synced anew, and in the end the replica's schema equals that of a freshly synced one.
Exit status 1 after a failure, whose script is saved as it is, and printed and saved after it was
cut down for ``--shrink`` minutes to what fails alike;
``--replay FILE`` carries it out again.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import msgspec

from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.fuzz.ddl_script import (
    APP_ID,
    PARTS,
    Failure,
    Script,
    Step,
    World,
    failure,
    replay,
    shrink,
)
from tests.fuzz.ddl_statements import Statements

_ROUNDS_PER_DATABASE = 12


class _Scenario:
    """Invents steps and carries them out at once: each depends on what is there."""

    def __init__(self, world: World, seed: str, parts: str | None) -> None:
        self._world = world
        self._statements = Statements(world.db, seed, APP_ID, parts)
        self._rng = random.Random(f"steps {seed}")
        self.steps: list[Step] = []

    def run(self, deadline: float) -> None:
        self._do(Step("transaction", tuple(self._statements.setup())))
        self._do(Step("start"))
        self._do(Step("check"))
        for _ in range(_ROUNDS_PER_DATABASE):
            self._round()
            if time.monotonic() > deadline:
                break
        self._do(Step("fresh"))

    def _round(self) -> None:
        rng = self._rng
        if rng.random() < 0.3:
            self._do(Step("storm", seed=rng.getrandbits(30)))
        for _ in range(rng.randint(1, 10)):
            self._transaction()
        if rng.random() < 0.3:
            self._do(Step("kill"))
            for _ in range(rng.randint(0, 4)):
                self._transaction()
            self._do(Step("start"))
        self._do(Step("check"))

    def _transaction(self) -> None:
        """One to six statements. They are drawn one by one, each from what the last one left."""
        rng, world = self._rng, self._world
        if rng.random() < 0.08:
            plain = self._statements.plain()
            world.db.rollback()
            self._do(Step("plain", (plain,)))
            return
        statements: list[str] = []
        undone: list[int] = []
        for number in range(rng.randint(1, 6)):
            draw = self._statements.ddl if rng.random() < 0.45 else self._statements.dml
            statements.append(draw())
            if rng.random() < 0.07:
                undone.append(number)
            # Tried out here, so that the next one is drawn from what it leaves.
            world.try_out(statements[-1], undo=number in undone)
        rolled_back = rng.random() < 0.1
        self.steps.append(Step("transaction", tuple(statements), tuple(undone), rolled_back))
        world.end(rolled_back=rolled_back)

    def _do(self, step: Step) -> None:
        self.steps.append(step)
        self._world.carry_out(step)


def scenario(
    cluster: PostgresCluster, seed: str, deadline: float
) -> tuple[int, int, Script, Failure | None]:
    """Rounds on one database: the steps, the statements that worked, what went wrong."""
    custom = random.Random(seed).random() < 0.5
    with World(cluster, custom_publication=custom) as world:
        running = _Scenario(world, seed, PARTS if custom else None)
        error = failure(world, lambda: running.run(deadline))
        return len(running.steps), world.done, Script(custom, tuple(running.steps)), error


def _report(cluster: PostgresCluster, script: Script, error: Failure, minutes: float) -> None:
    print(error.text, flush=True)
    name = f"ddl-{random.SystemRandom().getrandbits(32):08x}"
    _save(script, Path(f"/tmp/{name}-whole.json"))

    def fails_alike(smaller: Script) -> bool:
        again = replay(cluster, smaller)
        return again is not None and again.kind == error.kind

    small = shrink(script, fails_alike, minutes * 60)
    file = Path(f"/tmp/{name}.json")
    _save(small, file)
    for step in small.steps:
        print(f"-- {step.kind} {step.undone or ''}{' (rolled back)' if step.rolled_back else ''}")
        print(*step.statements, sep=";\n")
    print(f"again: python -m tests.fuzz.ddl --replay {file}", flush=True)
    print(f"as it was found: /tmp/{name}-whole.json", flush=True)


def _save(script: Script, file: Path) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(script)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.fuzz.ddl")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", default=None, help="printed by every run; default: random")
    parser.add_argument("--shrink", type=float, default=5.0, help="minutes spent on a failure")
    parser.add_argument("--replay", type=Path, default=None, help="a saved script")
    options = parser.parse_args()
    seed = options.seed or f"{random.SystemRandom().getrandbits(32):08x}"
    deadline = time.monotonic() + options.minutes * 60
    cluster = make_cluster()
    steps = statements = number = 0
    try:
        if options.replay is not None:
            error = replay(cluster, msgspec.json.decode(options.replay.read_bytes(), type=Script))
            print("no failure" if error is None else error.text)
            return int(error is not None)
        while time.monotonic() < deadline:
            made, done, script, error = scenario(cluster, f"{seed}:{number}", deadline)
            steps, statements, number = steps + made, statements + done, number + 1
            if error is not None:
                print(f"FAILURE, seed {seed}, database {number - 1}", flush=True)
                _report(cluster, script, error, options.shrink)
                return 1
            print(f"{number} databases, {steps} steps, {statements} statements", flush=True)
    finally:
        destroy_cluster(cluster)
    print(f"seed {seed}: no failure; {number} databases, {steps} steps, {statements} statements")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
