"""The change database and the thread that fills it, on a real PostgreSQL."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest

from replication_manager.change_db import ChangeDb, ChangeDbError, LogState
from replication_manager.change_store import ChangeStore, StoreLimits
from replication_manager.reservations import Reservations
from replication_manager.segments import Part, SegmentBuilder, read_messages
from replication_manager.slot import Displaced
from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.replication_manager.test_segments import begin, commit, relation, row, transaction
from zerocache.errors import ConfigurationError
from zerocache.metrics import Metrics
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import Lsn

PUBLICATIONS = ("_p", "q")
WAIT_S = 60.0


@pytest.fixture
def shard(app_id: str) -> ShardNames:
    return ShardNames(app_id)


@pytest.fixture
def open_db(database: str, shard: ShardNames) -> Iterator[Callable[..., ChangeDb]]:
    made: list[ChangeDb] = []

    def open_(owner: str = "one", timeout_ms: int = 20_000, url: str = database) -> ChangeDb:
        db = ChangeDb(url, shard, owner, timeout_ms)
        db.migrate()
        made.append(db)
        return db

    yield open_
    for db in made:
        db.close()


@pytest.fixture
def db(open_db: Callable[..., ChangeDb]) -> ChangeDb:
    db = open_db()
    assert db.claim(None) is None
    db.reset("1aa", PUBLICATIONS, Lsn(10))
    return db


@pytest.fixture
def start(db: ChangeDb) -> Iterator[Callable[..., ChangeStore]]:
    made: list[ChangeStore] = []

    def start_(
        db: ChangeDb = db,
        durable: Callable[[], Lsn] = lambda: Lsn(0),
        reservations: Reservations | None = None,
        **limits: float,
    ) -> ChangeStore:
        chosen = StoreLimits(**limits)  # type: ignore[arg-type]
        holds = reservations or Reservations()
        store = ChangeStore(db, Lsn(10), durable, holds, Metrics(), chosen)
        made.append(store)
        store.start()
        return store

    yield start_
    for store in made:
        store.close()


def parts_of(*payloads: bytes, part_bytes: int = 1000) -> list[Part]:
    builder = SegmentBuilder("app/0/ddl", Lsn(0), part_bytes)
    for payload in payloads:
        builder.add(payload)
    return builder.cut()


def one(lsn: int, size: int = 3) -> list[Part]:
    return parts_of(*transaction(lsn, relation(1), row(1, size)))


def state_of(db: ChangeDb) -> LogState:
    state = db.state()
    assert state is not None
    return state


def watermarks(db: ChangeDb, after: int = 0) -> list[int]:
    parts = db.parts_after(Lsn(after), Lsn(2**60))
    begun = [message for message in read_messages(parts) if message[:1] == b"B"]
    return [int.from_bytes(message[1:9], "big") for message in begun]


def test_what_was_put_is_stored_and_may_be_acknowledged(
    open_db: Callable[..., ChangeDb], start: Callable[..., ChangeStore]
) -> None:
    store = start()
    for lsn in range(20, 40):
        store.put(one(lsn))
    assert store.drain(WAIT_S)
    assert store.stored == 39
    reader = open_db()
    state = state_of(reader)
    assert (state.last, state.floor, state.reached) == (39, 10, 39)
    assert (state.replica_version, state.publications) == ("1aa", PUBLICATIONS)
    assert watermarks(reader) == list(range(20, 40))
    assert watermarks(reader, after=30) == list(range(31, 40))


def test_a_transaction_that_is_not_complete_is_not_in_the_log(
    open_db: Callable[..., ChangeDb], start: Callable[..., ChangeStore]
) -> None:
    store = start()
    builder = SegmentBuilder("app/0/ddl", Lsn(0), 100)
    for payload in [begin(20), relation(1), row(1, 5000)]:
        builder.add(payload)
    store.put(builder.take_ready())
    assert store.drain(WAIT_S)
    reader = open_db()
    assert store.stored == 10
    assert watermarks(reader) == []
    builder.add(commit(20))
    store.put(builder.cut())
    assert store.drain(WAIT_S)
    assert store.stored == 20
    parts = reader.parts_after(Lsn(0), Lsn(100))
    assert list(read_messages(parts)) == transaction(20, relation(1), row(1, 5000))


def test_a_write_holds_no_more_rows_than_allowed(
    db: ChangeDb,
    open_db: Callable[..., ChangeDb],
    start: Callable[..., ChangeStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[int] = []
    write = db.write

    def counting(parts: Sequence[Part]) -> None:
        written.append(len(parts))
        write(parts)

    monkeypatch.setattr(db, "write", counting)
    store = start(batch_rows=3)
    store.put([part for lsn in range(20, 30) for part in one(lsn)])
    assert store.drain(WAIT_S)
    assert written == [3, 3, 3, 1]
    assert watermarks(open_db()) == list(range(20, 30))


def test_an_idle_position_is_stored_before_it_is_acknowledged(
    open_db: Callable[..., ChangeDb], start: Callable[..., ChangeStore]
) -> None:
    store = start()
    store.put(one(20))
    assert store.drain(WAIT_S)
    store.mark_reached(Lsn(500))
    deadline = time.monotonic() + WAIT_S
    while store.stored < 500 and time.monotonic() < deadline:
        store.wait_for_change(0.5)
    state = state_of(open_db())
    assert (store.stored, state.last, state.reached) == (500, 20, 500)


def test_who_was_succeeded_stores_nothing_more(
    open_db: Callable[..., ChangeDb], start: Callable[..., ChangeStore]
) -> None:
    store = start()
    store.put(one(20))
    assert store.drain(WAIT_S)
    second = open_db("two")
    state = second.claim(None)
    assert state is not None
    assert state.last == 20
    assert state.owner == "two"
    store.put(one(30))
    assert not store.drain(WAIT_S)
    with pytest.raises(Displaced):
        store.check()
    assert store.stored == 20
    assert watermarks(second) == [20]


def test_a_successor_does_not_wait_for_an_unfinished_transaction(
    open_db: Callable[..., ChangeDb], start: Callable[..., ChangeStore]
) -> None:
    first = start()
    builder = SegmentBuilder("app/0/ddl", Lsn(0), 100)
    for payload in [begin(20), relation(1), row(1, 5000)]:
        builder.add(payload)
    first.put(builder.take_ready())
    assert first.drain(WAIT_S)
    second_db = open_db("two", timeout_ms=10_000)
    second_db.claim(None)
    second = start(second_db)
    # The same transaction, under the same watermark.
    second.put(one(20))
    assert second.drain(WAIT_S)
    builder.add(commit(20))
    first.put(builder.cut())
    assert not first.drain(WAIT_S)
    with pytest.raises(Displaced):
        first.check()
    reader = open_db("reader")
    assert watermarks(reader) == [20]


def test_a_returning_owner_notices_its_successor(
    open_db: Callable[..., ChangeDb], db: ChangeDb
) -> None:
    open_db("two").claim(None)
    with pytest.raises(Displaced, match="two took over"):
        open_db("one").claim(db.term)


def test_a_returning_owner_without_successor_goes_on(
    open_db: Callable[..., ChangeDb], db: ChangeDb
) -> None:
    again = open_db("one")
    state = again.claim(db.term)
    assert state is not None
    assert again.term == db.term + 1


def test_an_owner_that_is_stopped_inside_a_write_is_ended(
    open_db: Callable[..., ChangeDb], db: ChangeDb
) -> None:
    db.begin()
    db.write(one(20))
    db.record_reached(Lsn(20))  # the row of the owner is locked now
    second = open_db("two", timeout_ms=10_000)
    state = second.claim(None)
    assert state is not None
    assert state.last == 10
    with pytest.raises(psycopg.OperationalError):
        db.commit(Lsn(20))


def test_purge_stays_behind_every_reservation(
    open_db: Callable[..., ChangeDb], start: Callable[..., ChangeStore]
) -> None:
    durable = Lsn(10)
    reservations = Reservations()
    reservations.hold("subscriber", Lsn(22))
    purged = threading.Event()

    def sync() -> Lsn:
        purged.set()
        return durable

    store = start(durable=sync, reservations=reservations, purge_interval_s=0.05)
    for lsn in range(20, 30):
        store.put(one(lsn))
        assert store.drain(WAIT_S)
    reader = open_db()

    def settled(expected: list[int]) -> bool:
        deadline = time.monotonic() + WAIT_S
        while watermarks(reader) != expected and time.monotonic() < deadline:
            purged.clear()
            purged.wait(1)
        return watermarks(reader) == expected

    durable = Lsn(25)
    assert settled(list(range(23, 30)))
    assert state_of(reader).floor == 22
    reservations.release("subscriber")
    assert settled(list(range(26, 30)))
    assert (state_of(reader).floor, state_of(reader).last) == (25, 29)


def test_without_a_durable_replica_nothing_is_purged(
    open_db: Callable[..., ChangeDb], start: Callable[..., ChangeStore]
) -> None:
    rounds = threading.Semaphore(0)

    def sync() -> Lsn:
        rounds.release()
        return Lsn(0)

    store = start(durable=sync, purge_interval_s=0.02)
    store.put(one(20))
    for _ in range(5):
        assert rounds.acquire(timeout=WAIT_S)
    assert watermarks(open_db()) == [20]


def test_memory_is_bounded_while_the_database_is_locked(
    database: str, shard: ShardNames, start: Callable[..., ChangeStore]
) -> None:
    store = start(queue_bytes=5_000)
    with psycopg.connect(database) as blocker:
        table = f'"{shard.shard_schema}/cdc"."replicationState"'
        blocker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        lsn = 20
        while not store.is_full:
            store.put(one(lsn, 500))
            lsn += 1
        assert store.stored == 10
        store.check()
    store.wait_for_space(WAIT_S)
    assert not store.is_full
    assert store.drain(WAIT_S)
    assert store.stored == lsn - 1


def test_a_write_that_takes_too_long_has_failed(
    database: str,
    shard: ShardNames,
    open_db: Callable[..., ChangeDb],
    start: Callable[..., ChangeStore],
) -> None:
    slow = open_db("one", timeout_ms=1_500)
    slow.claim(None)
    store = start(slow)
    with psycopg.connect(database) as blocker:
        table = f'"{shard.shard_schema}/cdc"."replicationState"'
        blocker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        store.put(one(20))
        assert not store.drain(WAIT_S)
        with pytest.raises(ChangeDbError, match="change database failed"):
            store.check()


def test_a_server_that_says_nothing_is_given_up(
    db: ChangeDb, database: str, shard: ShardNames
) -> None:
    now = 0.0
    store = ChangeStore(
        db,
        Lsn(10),
        lambda: Lsn(0),
        Reservations(),
        Metrics(),
        StoreLimits(statement_s=2.0),
        monotonic=lambda: now,
    )
    with psycopg.connect(database) as blocker:
        table = f'"{shard.shard_schema}/cdc"."replicationState"'
        blocker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        store.start()
        store.put(one(20))
        assert not store.drain(0.1)
        store.check()
        now = 5.0
        with pytest.raises(ChangeDbError, match="not answered"):
            store.check()
        # The lock is still there: closing does not wait for it.
        store.close()
    assert not store.is_idle or store.stored == 10


def test_a_server_that_ends_is_noticed(shard: ShardNames) -> None:
    cluster = make_cluster()
    try:
        db = ChangeDb(cluster.url, shard, "one", 20_000)
        db.migrate()
        db.claim(None)
        db.reset("1aa", PUBLICATIONS, Lsn(10))
        store = ChangeStore(db, Lsn(10), lambda: Lsn(0), Reservations(), Metrics(), StoreLimits())
        store.start()
        store.put(one(20))
        assert store.drain(WAIT_S)
        cluster.stop()
        store.put(one(30))
        assert not store.drain(WAIT_S)
        with pytest.raises(ChangeDbError):
            store.check()
        assert store.stored == 20
        store.close()
    finally:
        destroy_cluster(cluster)


def test_the_schema_of_a_newer_version_is_refused(
    open_db: Callable[..., ChangeDb], database: str, shard: ShardNames
) -> None:
    open_db()
    with psycopg.connect(database) as connection:
        table = f'"{shard.shard_schema}/cdc"."zerocacheHistory"'
        connection.execute(f"UPDATE {table} SET version = 99".encode())
    with pytest.raises(ConfigurationError, match="version 99"):
        open_db()


def test_tables_of_the_reference_server_are_taken_over(
    open_db: Callable[..., ChangeDb], database: str, shard: ShardNames
) -> None:
    cdc = f'"{shard.shard_schema}/cdc"'
    with psycopg.connect(database) as connection:
        connection.execute(
            f"CREATE SCHEMA {cdc};"
            f'CREATE TABLE {cdc}."replicationConfig" ("replicaVersion" TEXT NOT NULL, '
            'publications TEXT[] NOT NULL, "resetRequired" BOOL, '
            "lock INTEGER PRIMARY KEY DEFAULT 1 CHECK (lock=1));"
            f'CREATE TABLE {cdc}."replicationState" ("lastWatermark" TEXT NOT NULL, owner TEXT, '
            '"ownerAddress" TEXT, lock INTEGER PRIMARY KEY DEFAULT 1 CHECK (lock=1));'
            f"INSERT INTO {cdc}.\"replicationConfig\" VALUES ('5abc', '{{p}}');"
            f"INSERT INTO {cdc}.\"replicationState\" VALUES ('5abd', 'them', 'host:4849')".encode()
        )
    db = open_db()
    # Its log is not ours: it counts as empty.
    assert db.claim(None) is None
    db.reset("1aa", PUBLICATIONS, Lsn(10))
    assert state_of(db).last == 10


def test_a_role_without_rights_is_told(postgres: PostgresCluster, app_id: str) -> None:
    name = postgres.create_database()
    postgres.psql(f'CREATE ROLE "{app_id}" LOGIN')
    try:
        db = ChangeDb(postgres.url_of(name, app_id), ShardNames(app_id), "one", 5_000)
        with pytest.raises(ConfigurationError, match="creating the change database"):
            db.migrate()
        db.close()
    finally:
        postgres.drop_database(name)
        postgres.psql(f'DROP ROLE "{app_id}"')
