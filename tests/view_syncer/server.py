"""A worker in this process, with everything around it real but the supervisor.

Owns a replica file with its writer, the socket that announces its versions, and a port whose
connections go to the worker. Invariant: a transaction is visible to the worker's readers when
:meth:`Replica.write` returns, and was announced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.protocol_client import DesiredQuery, SyncClient, ast_query
from benchmarks.sync_messages import ClientSchema, Poke, TableSchema
from benchmarks.sync_state import SyncState
from tests.replica.tables import column, index, table
from view_syncer.worker import Worker
from zerocache.config import Config
from zerocache.control import HandOff
from zerocache.protocol.versions import lexi_decode, lexi_encode
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.layout import ReplicaConfig
from zerocache.replica.notifier import VersionNotifier
from zerocache.replica.published import PublishedSchema, PublishedTable
from zerocache.replica.writer import ReplicaWriter

Row = dict[str, Any]

ALLOW = {"row": {"select": [["allow", {"type": "and", "conditions": []}]]}}
PERMISSIONS = {"tables": {"task": ALLOW, "tag": ALLOW, "counter": ALLOW}}
ALL_TASKS = ast_query({"table": "task"})
ALL_TAGS = ast_query({"table": "tag"})
ALL_COUNTERS = ast_query({"table": "counter"})
SCHEMA = ClientSchema(
    {
        "task": TableSchema(
            {
                "id": {"type": "string"},
                "title": {"type": "string"},
                "n": {"type": "number"},
                "done": {"type": "boolean"},
                "meta": {"type": "json"},
            },
            ["id"],
        ),
        "tag": TableSchema({"id": {"type": "string"}, "label": {"type": "string"}}, ["id"]),
    }
)


def task_where(**equal: Any) -> DesiredQuery:
    """The tasks with these values."""
    conditions = [
        {
            "type": "simple",
            "op": "=",
            "left": {"type": "column", "name": name},
            "right": {"type": "literal", "value": value},
        }
        for name, value in equal.items()
    ]
    return ast_query({"table": "task", "where": {"type": "and", "conditions": conditions}})


def published(app_id: str) -> PublishedSchema:
    shard = f"{app_id}_0"
    key: dict[str, Any] = {"not_null": True}
    tables: list[tuple[PublishedTable, tuple[str, ...]]] = [
        (
            table(
                "task",
                [
                    column("id", 1, **key),
                    column("title", 2),
                    column("n", 3, "int8", type_category="N"),
                    column("done", 4, "bool", type_category="B"),
                    column("meta", 5, "json", type_category="U"),
                    column("raw", 6, "bytea", type_category="U"),
                ],
                primary_key=("id",),
                oid=1,
            ),
            ("id",),
        ),
        (table("tag", [column("id", 1, **key), column("label", 2)], primary_key=("id",)), ("id",)),
        (
            table(
                "counter",
                [column("n", 1, "int8", type_category="N", **key), column("label", 2)],
                primary_key=("n",),
            ),
            ("n",),
        ),
        (
            table(
                "permissions",
                [
                    column("lock", 1, "bool", type_category="B", **key),
                    column("permissions", 2),
                    column("hash", 3),
                ],
                schema=app_id,
                primary_key=("lock",),
            ),
            ("lock",),
        ),
        (
            table(
                "clients",
                [
                    column("clientGroupID", 1, **key),
                    column("clientID", 2, **key),
                    column("lastMutationID", 3, "int8", type_category="N", **key),
                    column("userID", 4),
                ],
                schema=shard,
                primary_key=("clientGroupID", "clientID"),
            ),
            ("clientGroupID", "clientID"),
        ),
        (
            table(
                "mutations",
                [
                    column("clientGroupID", 1, **key),
                    column("clientID", 2, **key),
                    column("mutationID", 3, "int8", type_category="N", **key),
                    column("result", 4, "json", type_category="U", **key),
                ],
                schema=shard,
                primary_key=("clientGroupID", "clientID", "mutationID"),
            ),
            ("clientGroupID", "clientID", "mutationID"),
        ),
    ]
    return PublishedSchema(
        tables=tuple(t for t, _ in tables),
        indexes=tuple(index(t, *keys, unique=True, is_primary=True) for t, keys in tables),
    )


class Replica:
    """The file, its writer, and the announcement of its versions."""

    def __init__(self, directory: Path, app_id: str, tasks: Iterable[Row] = ()) -> None:
        self.path = directory / "replica.db"
        self.socket_path = directory / "version-ready.sock"
        self.app_id = app_id
        self._build(self.path, "01", tasks)
        self.writer = ReplicaWriter(self.path)
        self.notifier = VersionNotifier(self.socket_path)

    def _build(self, path: Path, generation: str, tasks: Iterable[Row]) -> None:
        config = ReplicaConfig(
            replica_version=generation, publications=("p",), app_id=self.app_id, shard_num=0
        )
        with BulkLoader(path, config, published(self.app_id)) as loader:
            loader.insert_rows("task", [task_values(**row) for row in tasks])
            loader.insert_rows(f"{self.app_id}.permissions", [(1, json.dumps(PERMISSIONS), "h0")])
            loader.finish()

    def resync(self, generation: str, tasks: Iterable[Row]) -> None:
        """Put a new copy of upstream, made at that version, in the place of this one."""
        copy = self.path.with_name(f"copy-{generation}.db")
        self._build(copy, generation, tasks)
        self.writer.close()
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        copy.rename(self.path)
        self.writer = ReplicaWriter(self.path)
        self.notifier.publish(self.version)

    @property
    def version(self) -> str:
        return self.writer.state.version

    def write(self, *steps: Callable[[ReplicaWriter], None]) -> str:
        """One upstream transaction; returns its version."""
        version = lexi_encode(lexi_decode(self.version.partition(".")[0]) + 1)
        self.writer.begin_transaction(version)
        for step in steps:
            step(self.writer)
        self.writer.end_transaction()
        self.writer.commit()
        self.notifier.publish(version)
        return version

    def deploy_permissions(self, permissions: Any, digest: str) -> str:
        values: Row = {"lock": 1, "permissions": json.dumps(permissions), "hash": digest}
        return self.write(lambda w: w.update(f"{self.app_id}.permissions", None, values))

    def set_last_mutation_id(self, group: str, client: str, last: int) -> str:
        row: Row = {
            "clientGroupID": group,
            "clientID": client,
            "lastMutationID": last,
            "userID": None,
        }
        name = f"{self.app_id}_0.clients"
        key = {"clientGroupID": group, "clientID": client}

        def step(writer: ReplicaWriter) -> None:
            if last > 1:
                with contextlib.suppress(Exception):
                    writer.delete(name, key)
            writer.insert(name, row)

        return self.write(step)


def task_values(id: str, title: str = "", n: int = 0, done: int = 0, meta: str = "null") -> Any:
    return (id, title, n, done, meta, None)


def put_task(id: str, **values: Any) -> Callable[[ReplicaWriter], None]:
    names = ("id", "title", "n", "done", "meta", "raw")
    return lambda writer: writer.insert(
        "task", dict(zip(names, task_values(id, **values), strict=True))
    )


def edit_task(id: str, **values: Any) -> Callable[[ReplicaWriter], None]:
    return lambda writer: writer.update("task", {"id": id}, {"id": id, **values})


def delete_task(id: str) -> Callable[[ReplicaWriter], None]:
    return lambda writer: writer.delete("task", {"id": id})


def put_counter(n: int, label: str = "") -> Callable[[ReplicaWriter], None]:
    return lambda writer: writer.insert("counter", {"n": n, "label": label})


def put_tag(id: str, label: str = "") -> Callable[[ReplicaWriter], None]:
    return lambda writer: writer.insert("tag", {"id": id, "label": label})


class TestClient(SyncClient):
    """A protocol client whose first message can say more."""

    __test__ = False

    def __init__(self, *args: Any, init: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*args, record=True, **options)
        self._more = init or {}

    def _init_body(self) -> dict[str, Any]:
        return {**super()._init_body(), **self._more}

    @property
    def titles(self) -> dict[Any, Any]:
        return {key[0]: row["title"] for key, row in self.state.table("task").items()}


class Server:
    """A running worker and its port."""

    def __init__(self, replica: Replica, config: Config) -> None:
        self.replica = replica
        self.config = config
        self.fatal: list[BaseException] = []
        self.worker = Worker(config, self.fatal.append)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self.clients: list[TestClient] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        await self.worker.start(self.replica.socket_path)
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self) -> None:
        """May be called again by whoever does not know."""
        if self._accepting.cancelling() or self._accepting.done():
            return
        for client in self.clients:
            client.close()
        self._accepting.cancel()
        self._socket.close()
        await self.worker.stop()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, address = await loop.sock_accept(self._socket)
            self.worker.adopt(sock, HandOff(f"{address[0]}:{address[1]}", address[0]))

    def client(self, *queries: DesiredQuery, group: str = "g", **options: Any) -> TestClient:
        options.setdefault("client_group_id", group)
        schema = options.pop("schema", SCHEMA)
        client = TestClient(self.url, schema, queries, **options)
        self.clients.append(client)
        return client

    async def connected(self, *queries: DesiredQuery, **options: Any) -> TestClient:
        """A client that has all its queries."""
        client = self.client(*queries, **options)
        await client.connect()
        await client.wait_for(lambda: client.session.poke_count > 0)
        await client.wait_got(*queries)
        return client

    def group(self, group_id: str = "g") -> Any:
        return self.worker._groups.get(group_id)


def server_config(database: str, app_id: str, replica: Path, **given: Any) -> Config:
    return Config.model_validate(
        {
            "upstream": {"db": database},
            "replica": {"file": str(replica)},
            "app": {"id": app_id},
            "num_sync_workers": 1,
            "task_id": "test",
            "development": True,
            **given,
        }
    )


@asynccontextmanager
async def serving(replica: Replica, config: Config) -> AsyncIterator[Server]:
    server = Server(replica, config)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        assert not server.fatal, server.fatal


def cookies(client: TestClient) -> list[tuple[str | None, str]]:
    return [(poke.base_cookie, poke.cookie) for poke in client.pokes]


def row_ops(poke: Poke) -> list[tuple[str, str]]:
    """(op, id) of each row operation."""
    found: list[tuple[str, str]] = []
    for part in poke.parts:
        for op in part.rows or ():
            key = op.value if op.op == "put" else op.id
            found.append((op.op, str((key or {}).get("id"))))
    return found


def got_ops(poke: Poke) -> list[tuple[str, str]]:
    return [(op.op, op.hash) for part in poke.parts for op in part.got or ()]


def desired_ops(poke: Poke, client_id: str) -> list[tuple[str, str]]:
    return [
        (op.op, op.hash) for part in poke.parts for op in (part.desired or {}).get(client_id, ())
    ]


def copied(state: SyncState) -> SyncState:
    """What a client has persisted, to go on from after a reload."""
    return SyncState(
        state.schema,
        cookie=state.cookie,
        rows=dict(state.rows),
        last_mutation_ids=dict(state.last_mutation_ids),
        desired={client: set(queries) for client, queries in state.desired.items()},
        got=set(state.got),
        mutation_results=dict(state.mutation_results),
    )


async def until(condition: Callable[[], bool]) -> None:
    """For what has no event of its own: that something is gone."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
