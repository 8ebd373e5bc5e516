"""CRUD mutations of old clients: a real connection and a real upstream database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import jwt
import psycopg
import pytest
from psycopg import sql

from tests.view_syncer.server import Replica, Server, TestClient, server_config, serving
from tests.view_syncer.test_client_group import failure

SECRET = "a secret of sufficient length for HS256"
ANYONE = [["allow", {"type": "and", "conditions": []}]]


def rule(column: str, left: Any) -> list[Any]:
    right = {"type": "column", "name": column}
    return [["allow", {"type": "simple", "op": "=", "left": right, "right": left}]]


def literal(value: Any) -> Any:
    return {"type": "literal", "value": value}


def static(anchor: str, field: str) -> Any:
    return {"type": "static", "anchor": anchor, "field": field}


def permissions(**task: Any) -> Any:
    return {"tables": {"task": task}}


ALL_RULES = {
    "select": ANYONE,
    "insert": ANYONE,
    "update": {"preMutation": ANYONE, "postMutation": ANYONE},
    "delete": ANYONE,
}
OPEN = permissions(row=ALL_RULES)


class Upstream:
    """The database the mutations write to. The replica is fed by the tests, not from here."""

    def __init__(self, url: str, app_id: str) -> None:
        self.db = psycopg.connect(url, autocommit=True)
        self._clients = sql.Identifier(f"{app_id}_0", "clients")
        self.db.execute(
            "CREATE TABLE task (id text PRIMARY KEY, title text, n int8, done bool, meta json);"
            "CREATE TABLE tag (id text PRIMARY KEY, label text REFERENCES task DEFERRABLE);"
            "INSERT INTO task VALUES ('a', 'A', 0, false, NULL), ('b', 'B', 0, false, NULL)"
        )
        self.db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(f"{app_id}_0")))
        self.db.execute(
            sql.SQL(
                'CREATE TABLE {} ("clientGroupID" text, "clientID" text, "lastMutationID" bigint, '
                '"userID" text, PRIMARY KEY ("clientGroupID", "clientID"))'
            ).format(self._clients)
        )

    def tasks(self) -> dict[str, Any]:
        rows = self.db.execute("SELECT id, title, n, done, meta FROM task ORDER BY id")
        return {row[0]: row[1:] for row in rows}

    def last(self, client: str) -> int | None:
        query = sql.SQL('SELECT "lastMutationID" FROM {} WHERE "clientID" = %s')
        row = self.db.execute(query.format(self._clients), [client]).fetchone()
        return None if row is None else int(row[0])


@pytest.fixture
def upstream(database: str, app_id: str) -> Iterator[Upstream]:
    upstream = Upstream(database, app_id)
    yield upstream
    upstream.db.close()


@dataclass
class Mutating:
    server: Server
    upstream: Upstream

    async def client(self, **options: Any) -> TestClient:
        client = self.server.client(**options)
        await client.connect()
        await client.wait_for(lambda: client.session.poke_count > 0)
        return client


@asynccontextmanager
async def mutating(
    database: str, app_id: str, replica: Replica, upstream: Upstream, **config: Any
) -> AsyncIterator[Mutating]:
    async with serving(replica, server_config(database, app_id, replica.path, **config)) as server:
        await deployed(server, OPEN)
        yield Mutating(server, upstream)


async def deployed(server: Server, rules: Any) -> None:
    """Wait until the worker has heard of them."""
    digest = str(hash(json.dumps(rules)))
    watcher = server.client(group=f"watching {digest}")
    await watcher.connect()
    version = server.replica.deploy_permissions(rules, digest)
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    watcher.close()


@pytest.fixture
async def world(
    database: str, app_id: str, replica: Replica, upstream: Upstream
) -> AsyncIterator[Mutating]:
    async with mutating(database, app_id, replica, upstream) as world:
        yield world


def op(kind: str, table: str = "task", key: tuple[str, ...] = ("id",), **value: Any) -> Any:
    return {"op": kind, "tableName": table, "primaryKey": list(key), "value": value}


def push(client: TestClient, number: int, *ops: Any, group: str = "g", of: str = "") -> None:
    mutation = {
        "type": "crud", "id": number, "clientID": of or client.client_id, "name": "_zero_crud",
        "timestamp": 1, "args": [{"ops": list(ops)}],
    }  # fmt: skip
    client.send(
        "push",
        {
            "clientGroupID": group, "mutations": [mutation], "pushVersion": 1,
            "requestID": "r", "timestamp": 1,
        },
    )  # fmt: skip


async def done(client: TestClient) -> None:
    """Frames are worked on in order, so the answer to a ping follows what came before."""
    seen = sum(m.type == "pong" for m in client.messages)
    client.send("ping", {})
    await client.wait_for(lambda: sum(m.type == "pong" for m in client.messages) > seen)


def errors(client: TestClient) -> list[str]:
    return [m.body["kind"] for m in client.messages if m.type == "error"]


# -- what they do -------------------------------------------------------------------------------


async def test_every_operation_is_written_in_order(world: Mutating) -> None:
    client = await world.client()
    push(client, 1, op("insert", id="c", title="C", n=1, done=True, meta={"x": [1]}))
    push(client, 2, op("update", id="c", title="C2"), op("delete", id="a"))
    push(client, 3, op("upsert", id="b", n=5), op("upsert", id="d", title="D", n=None))
    push(client, 4, op("insert", id="b", title="ignored"))
    await done(client)
    assert errors(client) == []
    assert world.upstream.tasks() == {
        "b": ("B", 5, False, None),
        "c": ("C2", 1, True, {"x": [1]}),
        "d": ("D", None, None, None),
    }
    assert world.upstream.last(client.client_id) == 4


async def test_repeated_mutation_is_ignored_and_a_gap_ends_the_connection(
    world: Mutating,
) -> None:
    """sync-protocol.md §10 #58"""
    client = await world.client()
    push(client, 1, op("update", id="a", n=1))
    push(client, 1, op("update", id="a", n=2))
    await done(client)
    assert world.upstream.tasks()["a"][1] == 1
    assert errors(client) == []
    push(client, 3, op("update", id="a", n=3))
    assert (await failure(client)).kind == "InvalidPush"
    assert world.upstream.tasks()["a"][1] == 1
    assert world.upstream.last(client.client_id) == 1


async def test_mutation_for_a_foreign_group_is_refused(world: Mutating) -> None:
    """sync-protocol.md §10 #58"""
    client = await world.client()
    push(client, 1, op("delete", id="a"), group="another")
    assert (await failure(client)).kind == "InvalidPush"
    assert world.upstream.last(client.client_id) is None


async def test_one_clients_mutations_may_come_through_many_tabs(world: Mutating) -> None:
    first, second = await world.client(), await world.client()
    for number in range(1, 6):
        for tab in (first, second):
            push(tab, number, op("upsert", id=f"x{number}", n=number), of="gone")
    for tab in (first, second):
        await done(tab)
        assert errors(tab) == []
    assert world.upstream.last("gone") == 5
    assert {f"x{n}" for n in range(1, 6)} <= set(world.upstream.tasks())


async def test_missing_mutation_of_the_application_is_waited_for(
    database: str, app_id: str, replica: Replica, upstream: Upstream
) -> None:
    url = {"url": ["http://127.0.0.1:9/never"]}
    async with mutating(database, app_id, replica, upstream, mutate=url) as world:
        client = await world.client()
        with psycopg.connect(database) as other:
            # The application is about to commit mutation 1; ours waits for its lock.
            other.execute(
                sql.SQL("INSERT INTO {} VALUES ('g', %s, 1, NULL)").format(
                    sql.Identifier(f"{app_id}_0", "clients")
                ),
                [client.client_id],
            )
            push(client, 2, op("update", id="a", n=2))
        await done(client)
        assert errors(client) == []
        assert upstream.tasks()["a"][1] == 2


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failing",
    [
        op("insert", "tag", id="t", label="no such task"),
        op("update", id="no such row", n=1),
        op("update", id="a", nosuch=1),
        op("insert", id="z", n="no number"),
        op("insert", "nowhere", id="z"),
        op("delete", title="no key"),
    ],
)
async def test_failing_mutation_has_no_effect_but_its_id(world: Mutating, failing: Any) -> None:
    await deployed(world.server, {"tables": {t: {"row": ALL_RULES} for t in ("task", "tag")}})
    client = await world.client()
    before = world.upstream.tasks()
    push(client, 1, op("update", id="a", n=1), failing)
    push(client, 2, op("update", id="b", n=2))
    await done(client)
    assert errors(client) == ["MutationFailed"]
    assert client.failure is None
    assert world.upstream.last(client.client_id) == 2
    assert world.upstream.tasks() == {**before, "b": ("B", 2, False, None)}


async def test_mutations_above_the_limit_are_refused_and_may_come_again(
    database: str, app_id: str, replica: Replica, upstream: Upstream
) -> None:
    """sync-protocol.md §10 #59"""
    limit = {"max": 2, "window_ms": 3_600_000}
    async with mutating(
        database, app_id, replica, upstream, per_user_mutation_limit=limit
    ) as world:
        client, other = await world.client(), await world.client(group="other")
        for number in (1, 2, 3, 4):
            push(client, number, op("update", id="a", n=number))
        await done(client)
        assert errors(client) == ["MutationRateLimited"] * 2
        assert client.failure is None
        assert upstream.last(client.client_id) == 2
        assert upstream.tasks()["a"][1] == 2
        push(other, 1, op("update", id="a", n=9), group="other")
        await done(other)
        assert upstream.tasks()["a"][1] == 9


async def test_switched_off_they_are_refused(
    database: str, app_id: str, replica: Replica, upstream: Upstream
) -> None:
    config = {"enable_crud_mutations": False}
    async with mutating(database, app_id, replica, upstream, **config) as world:
        client = await world.client()
        push(client, 1, op("delete", id="a"))
        error = await failure(client)
        assert error.kind == "InvalidPush"
        assert "ZERO_ENABLE_CRUD_MUTATIONS" in error.body["message"]
        assert upstream.last(client.client_id) is None


async def test_database_that_is_away_costs_the_connection_and_no_mutation(
    world: Mutating,
) -> None:
    client = await world.client()
    push(client, 1, op("update", id="a", n=1))
    await done(client)
    mutator: Any = world.server.worker._writes.mutator
    async with mutator._pool.connection() as idle:
        pid = idle.info.backend_pid
    world.upstream.db.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    push(client, 2, op("update", id="a", n=2))
    assert (await failure(client)).kind == "ServerOverloaded"
    assert world.upstream.last(client.client_id) == 1
    again = await world.client(client_id=client.client_id, state=client.state)
    push(again, 2, op("update", id="a", n=2))
    await done(again)
    assert world.upstream.last(client.client_id) == 2


# -- permissions --------------------------------------------------------------------------------


DENIED: list[tuple[Any, Any]] = [
    (permissions(row={}), op("insert", id="z")),
    ({}, op("insert", id="z")),
    (permissions(row={"insert": rule("n", literal(7))}), op("insert", id="z", n=8)),
    (permissions(row={"delete": rule("title", literal("B"))}), op("delete", id="a")),
    (
        permissions(row={"update": {"preMutation": rule("n", literal(5)), "postMutation": ANYONE}}),
        op("update", id="a", n=5),
    ),
    (
        permissions(row={"update": {"preMutation": ANYONE, "postMutation": rule("n", literal(5))}}),
        op("update", id="a", n=6),
    ),
    (permissions(row={"update": {"preMutation": ANYONE}}), op("update", id="a", n=6)),
    (
        permissions(row=ALL_RULES, cell={"n": {"insert": rule("n", literal(1))}}),
        op("insert", id="z", n=2),
    ),
    (
        permissions(
            row={
                "update": {
                    "preMutation": ANYONE,
                    "postMutation": rule("title", static("preMutationRow", "title")),
                }
            }
        ),
        op("update", id="a", title="another"),
    ),
    # The key the client names does not choose the row that is judged.
    (
        permissions(row={"delete": rule("title", literal("B"))}),
        op("delete", key=("title",), id="a", title="B"),
    ),
]


@pytest.mark.parametrize(("rules", "denied"), DENIED)
async def test_what_is_not_permitted_changes_nothing_and_is_no_error(
    world: Mutating, rules: Any, denied: Any
) -> None:
    await deployed(world.server, rules)
    client = await world.client()
    before = world.upstream.tasks()
    push(client, 1, denied)
    await done(client)
    assert errors(client) == []
    assert world.upstream.last(client.client_id) == 1
    assert world.upstream.tasks() == before


ALLOWED: list[tuple[Any, Any, str, Any]] = [
    (permissions(row={"insert": rule("n", literal(7))}), op("insert", id="z", n=7), "z", 7),
    (
        permissions(
            row={
                "update": {
                    "preMutation": rule("title", literal("A")),
                    "postMutation": rule("title", static("preMutationRow", "title")),
                }
            }
        ),
        op("update", id="a", n=4),
        "a",
        4,
    ),
    (
        permissions(row=ALL_RULES, cell={"title": {"insert": []}}),
        op("insert", id="z", n=2),
        "z",
        2,
    ),
    (permissions(row=ALL_RULES), op("upsert", id="b", n=3), "b", 3),
]


@pytest.mark.parametrize(("rules", "allowed", "id", "n"), ALLOWED)
async def test_what_is_permitted_is_written(
    world: Mutating, rules: Any, allowed: Any, id: str, n: int
) -> None:
    await deployed(world.server, rules)
    client = await world.client()
    push(client, 1, allowed)
    await done(client)
    assert errors(client) == []
    assert world.upstream.tasks()[id][1] == n


async def test_rules_see_the_claims_of_the_token(
    database: str, app_id: str, replica: Replica, upstream: Upstream
) -> None:
    owned = permissions(row={**ALL_RULES, "insert": rule("title", static("authData", "sub"))})
    async with mutating(database, app_id, replica, upstream, auth={"secret": SECRET}) as world:
        await deployed(world.server, owned)
        token = jwt.encode({"sub": "u"}, SECRET, algorithm="HS256")
        client = await world.client(user_id="u", auth_token=token)
        push(client, 1, op("insert", id="mine", title="u"))
        push(client, 2, op("insert", id="theirs", title="v"))
        await done(client)
        assert errors(client) == []
        assert set(upstream.tasks()) == {"a", "b", "mine"}
        assert upstream.last(client.client_id) == 2
