"""A scenario of schema changes as data: recorded while it is invented, replayed, cut down.

Owns the steps and how they are carried out against a real database and replication process. A
transaction's statements run in savepoints, so those that fail (they would again) leave no trace.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import psycopg

from replication_manager.verify import verify
from tests.conftest import PostgresCluster
from tests.fuzz.ddl_statements import Statements
from tests.replication_manager.harness import Replicator, described, make_config
from zerocache.replica.layout import identity_key, load_tables
from zerocache.replica.pending import load_pending

_GENERATION = 'SELECT replicaVersion FROM "_zero.replicationConfig"'
# Everything is named after it, statements included.
APP_ID = "fuzz"
PARTS = "parts"
# Set-up, start, and a first look at what is to stay the same.
_FIRST_STEPS = 3
_RIGHTLY_ANEW = (
    # PostgreSQL itself sometimes cannot decode a transaction that undid a CREATE TABLE.
    "unexpected duplicate for tablespace",
    # It does not tell which tree rows belong to that follow its move in the same transaction.
    "PostgreSQL does not tell them apart",
)
_NUMBERS = re.compile(r"\d+")
_KIND_LENGTH = 50


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """``undone``: numbers of the statements whose savepoint is rolled back although they worked;
    ``rolled_back``: the whole transaction is. ``storm``: DML beside the steps, until the next
    check, as this seed has it."""

    kind: Literal["transaction", "plain", "kill", "start", "check", "fresh", "storm"]
    statements: tuple[str, ...] = ()
    undone: tuple[int, ...] = ()
    rolled_back: bool = False
    seed: int = 0


class Script(msgspec.Struct, frozen=True):
    custom_publication: bool
    steps: tuple[Step, ...]


class World:
    """One database, one replication process; a context manager."""

    def __init__(self, cluster: PostgresCluster, *, custom_publication: bool) -> None:
        self._cluster = cluster
        self._custom = custom_publication
        self._database = cluster.create_database()
        self.url = cluster.url_of(self._database)
        self.db: psycopg.Connection[Any] = psycopg.connect(self.url)
        self._directory = Path(tempfile.mkdtemp(prefix="zc-ddl-"))
        self.replicator = self._new(APP_ID)
        self._generation: list[tuple[Any, ...]] = []
        self._storm: _Storm | None = None
        # Statements that were carried out, without those that failed.
        self.done = 0

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        self._calm()
        self.db.close()
        if self.replicator.process is not None:
            self.replicator.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._cluster.drop_database(self._database)

    def carry_out(self, step: Step) -> None:
        match step.kind:
            case "transaction":
                self._transaction(step)
            case "plain":
                self._plain(step.statements)
            case "kill":
                if self.replicator.process is not None:
                    self.replicator.kill()
            case "start":
                if self.replicator.process is None:
                    self.replicator.start()
            case "storm":
                self._calm()
                self._storm = _Storm(self.url, step.seed)
            case "check":
                self._calm()
                self._check()
            case "fresh":
                self._calm()
                self._against_fresh()

    def _new(self, app_id: str) -> Replicator:
        directory = self._directory / app_id
        directory.mkdir()
        app = {"id": app_id, "publications": (PARTS,) if self._custom else ()}
        return Replicator(make_config(self.url, app_id, directory, app=app), directory)

    def _calm(self) -> None:
        if self._storm is not None:
            self._storm.stop()
            self._storm = None

    def _transaction(self, step: Step) -> None:
        for number, statement in enumerate(step.statements):
            self.try_out(statement, undo=number in step.undone)
        self.end(rolled_back=step.rolled_back)

    def end(self, *, rolled_back: bool) -> None:
        """End the open transaction."""
        if rolled_back:
            self.db.rollback()
        else:
            self.db.commit()

    def try_out(self, statement: str, *, undo: bool) -> None:
        """Run a statement in the open transaction; if it fails, or is to be undone, it leaves no
        trace."""
        try:
            with self.db.transaction(force_rollback=undo):
                self.db.execute(statement.encode())
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise  # the connection is gone
            return
        self.done += 1

    def _plain(self, statements: Sequence[str]) -> None:
        self.db.commit()
        self.db.autocommit = True
        for statement in statements:
            try:
                self.db.execute(statement.encode())
            except psycopg.Error as error:
                if error.sqlstate is None:
                    raise
                continue
            self.done += 1
        self.db.autocommit = False

    def _check(self) -> None:
        settled(self.replicator)
        verdict = verify(self.url, self.replicator.file)
        assert not verdict.schema, f"another schema: {verdict.schema}"
        assert not verdict.differences, f"other rows: {verdict.differences[:10]}"
        generation = self.replicator.rows(_GENERATION)
        log = self.replicator.log()
        if any(reason in log for reason in _RIGHTLY_ANEW):
            self._generation = generation
        assert generation == (self._generation or generation), "it was synced anew"
        self._generation = generation

    def _against_fresh(self) -> None:
        """The replica has the schema that a new one would have."""
        self._mend()
        fresh = self._new(f"fresh_{uuid.uuid4().hex[:8]}")
        try:
            fresh.start()
            settled(fresh)
            settled(self.replicator)
            waiting = _waiting(self.replicator)
            ours, theirs = (
                {name: one for name, one in described(of).items() if name not in waiting}
                for of in (self.replicator, fresh)
            )
            theirs = {k: v for k, v in theirs.items() if not k.startswith(fresh.config.app.id)}
            assert ours == theirs, f"not as freshly synced: {ours}\n!=\n{theirs}"
        finally:
            if fresh.process is not None:
                fresh.kill()

    def _mend(self) -> None:
        """A table whose identity is an index that is gone is followed, but not copied anew."""
        self.db.rollback()
        for (table,) in self.db.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relreplident = 'i'"
        ).fetchall():
            self.db.execute(f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT".encode())
        self.db.commit()


class _Storm:
    """A thread of single DML transactions; what fails for a change under way is tried no more."""

    def __init__(self, url: str, seed: int) -> None:
        self._db = psycopg.connect(url, autocommit=True)
        self._db.execute("SET lock_timeout = '200ms'")
        self._statements = Statements(self._db, f"storm {seed}", APP_ID, None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._blow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._db.close()

    def _blow(self) -> None:
        while not self._stop.is_set():
            try:
                statement = self._statements.dml()
                if not statement.startswith("CREATE"):
                    self._db.execute(statement.encode())
            except psycopg.Error as error:
                if error.sqlstate is None:
                    return


def settled(replicator: Replicator) -> None:
    """Until nothing is outstanding that can be done."""
    for _ in range(2):  # replica identities are set after the fact, as changes of their own
        replicator.catch_up()
        replicator.wait_until(lambda: not (_pending(replicator) - _waiting(replicator)))


def _pending(replicator: Replicator) -> set[str]:
    with contextlib.closing(replicator.connection()) as connection:
        pending = load_pending(connection)
        return {n for n, f in load_tables(connection).items() if f.table.oid in pending}


def _waiting(replicator: Replicator) -> set[str]:
    """Tables whose rows have no key to be matched by: they wait for one, unseen by clients."""
    with contextlib.closing(replicator.connection()) as connection:
        pending = load_pending(connection)
        return {
            name
            for name, facts in load_tables(connection).items()
            if facts.table.oid in pending
            and facts.table.replica_identity != "d"
            and identity_key(facts) is None
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """``kind``: what it has in common with others of the same cause; ``text`` is for people."""

    kind: str
    text: str


def replay(cluster: PostgresCluster, script: Script) -> Failure | None:
    """Carry a script out; what went wrong, if anything did."""
    with World(cluster, custom_publication=script.custom_publication) as world:
        for number, step in enumerate(script.steps):
            if error := failure(world, partial(world.carry_out, step)):
                return replace(error, text=f"step {number}: {error.text}")
    return None


def failure(world: World, function: Callable[[], None]) -> Failure | None:
    try:
        function()
    except Exception as error:
        text = f"{traceback.format_exc()}\n{world.replicator.log()[-6000:]}"
        return Failure(kind_of(error), text)
    return None


def kind_of(error: Exception) -> str:
    """Its type and how its message begins; the numbers, also of names, are chance."""
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {_NUMBERS.sub('#', first_line)[:_KIND_LENGTH]}"


def shrink(script: Script, fails: Callable[[Script], bool], seconds: float) -> Script:
    """The smallest failing script found within ``seconds``."""
    deadline = time.monotonic() + seconds
    improved = True
    while improved:
        improved = False
        for smaller in _cuts(script):
            if time.monotonic() > deadline:
                return script
            if fails(smaller):
                script, improved = smaller, True
                break
    return script


def _cuts(script: Script) -> Iterator[Script]:
    size = len(script.steps)
    while size >= 1:
        # Without its first steps it would be no scenario.
        for start in range(_FIRST_STEPS, len(script.steps), size):
            steps = script.steps[:start] + script.steps[start + size :]
            yield msgspec.structs.replace(script, steps=steps)
        size //= 2
    for at, step in list(enumerate(script.steps))[_FIRST_STEPS:]:
        for number in range(len(step.statements) if len(step.statements) > 1 else 0):
            fewer = step.statements[:number] + step.statements[number + 1 :]
            undone = tuple(n - (n > number) for n in step.undone if n != number)
            less = msgspec.structs.replace(step, statements=fewer, undone=undone)
            steps = (*script.steps[:at], less, *script.steps[at + 1 :])
            yield msgspec.structs.replace(script, steps=steps)
