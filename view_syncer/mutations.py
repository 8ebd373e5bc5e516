"""Mutations of one client group on their way to the application, or to the database.

Glue between connections and the group's :class:`~view_syncer.push.Pusher`: who sent what with
which credentials, and which connection hears of a failure. CRUD mutations, which only old clients
send, go to the :class:`~view_syncer.crud.CrudMutator` instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from view_syncer.api_client import ApiClient, ApiEndpoint
from view_syncer.auth import Identity
from view_syncer.client_group import ClientGroup
from view_syncer.connection import Connection
from view_syncer.context import ConnectionContext
from view_syncer.crud import CrudMutator, Writer
from view_syncer.engine_host import EngineHost
from view_syncer.mutation_limit import MutationLimit
from view_syncer.push import Pusher, Sender, require_own_group
from view_syncer.queries import QuerySource
from zerocache.config import Config
from zerocache.errors import ClientFacingError
from zerocache.protocol.messages import AckMutationResponses, CrudMutation, Push


class Catalog:
    """What a write depends on beside the row, as far as the replica knows."""

    def __init__(self, engine: EngineHost, queries: QuerySource) -> None:
        self._engine = engine
        self._queries = queries

    async def tables(self) -> Collection[str]:
        return self._engine.state.schema.keys()

    @property
    def permissions(self) -> Mapping[str, Any] | None:
        return self._queries.permissions


@dataclass(frozen=True, slots=True)
class Writes:
    """What the groups of a worker need for CRUD mutations; ``mutator`` None: switched off."""

    mutator: CrudMutator | None
    catalog: Catalog
    max_mutations: int | None
    window_ms: float

    @classmethod
    def make(cls, config: Config, engine: EngineHost, queries: QuerySource) -> Writes:
        mutator = None
        if config.enable_crud_mutations:
            mutator = CrudMutator(
                config.upstream.db,
                config.shard_schema,
                max_connections=config.upstream.max_conns // max(1, config.num_sync_workers),
                waits_for_gaps=bool(config.mutate.url),
            )
        limit = config.per_user_mutation_limit
        return cls(mutator, Catalog(engine, queries), limit.max, limit.window_ms)

    async def close(self) -> None:
        if self.mutator is not None:
            await self.mutator.close()


class GroupPushes:
    """The :class:`~view_syncer.push.PushListener` of one group."""

    def __init__(
        self, group: ClientGroup, client: ApiClient, endpoint: ApiEndpoint, writes: Writes
    ) -> None:
        self.group = group
        self._pusher = Pusher(client, endpoint, group.group_id, self)
        self._writes = writes
        time_s = asyncio.get_running_loop().time
        self._limit = MutationLimit(writes.max_mutations, writes.window_ms, time_s)

    async def push(self, connection: Connection, message: Push) -> None:
        mutator = self._writes.mutator
        crud = [m for m in message.mutations if isinstance(m, CrudMutation)]
        if mutator is None or not crud or len(crud) < len(message.mutations):
            await self._pusher.push(_sender(connection), message)
            return
        require_own_group(message, self.group.group_id)
        if connection.auth.kind == "opaque":
            raise ClientFacingError(
                "Internal",
                "CRUD mutations are checked against the claims of a token, but this server does "
                "not read the tokens of this connection. Use custom mutators.",
            )
        for mutation in crud:
            await self._write(mutator, connection, mutation)

    async def _write(
        self, mutator: CrudMutator, connection: Connection, mutation: CrudMutation
    ) -> None:
        if not self._limit.admit(mutation.client_id, mutation.id):
            raise ClientFacingError(
                "MutationRateLimited", "Rate limit exceeded; try again later.", close_code=None
            )
        catalog = self._writes.catalog
        writer = Writer(
            self.group.group_id,
            connection.auth.claims,
            catalog.permissions,
            await catalog.tables(),
        )
        await mutator.run(writer, mutation)

    def acknowledged(self, connection: Connection, message: AckMutationResponses) -> None:
        self._pusher.clean_up_acknowledged(_sender(connection), message.client_id, message.id)

    def deleted(self, client_ids: Sequence[str], context: ConnectionContext) -> None:
        sender = Sender("", "", context.revision, context.mutate)
        self._pusher.clean_up_deleted(sender, client_ids)

    async def drain(self) -> None:
        await self._pusher.drain()

    async def abort(self) -> None:
        await self._pusher.abort()

    # -- PushListener -----------------------------------------------------------------------------

    def fail_connection(self, client_id: str, error: ClientFacingError) -> bool:
        client = self.group.clients.get(client_id)
        if client is None:
            return False
        client.fail(error)
        return True

    def push_succeeded(self, sender: Sender, identity: Identity) -> None:
        self.group.check_user(sender.context.user_id)

    def push_auth_failed(self, sender: Sender) -> None:
        """Nothing to forget: the connection is failed next, and credentials live with it."""


def _sender(connection: Connection) -> Sender:
    context = connection.context
    return Sender(connection.client_id, connection.params.wsid, context.revision, context.mutate)
