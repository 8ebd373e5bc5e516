"""Mutations of one client group on their way to the application.

Glue between connections and the group's :class:`~view_syncer.push.Pusher`: who sent what with
which credentials, and which connection hears of a failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from view_syncer.api_client import ApiClient, ApiEndpoint
from view_syncer.auth import Identity
from view_syncer.client_group import ClientGroup
from view_syncer.connection import Connection
from view_syncer.context import ConnectionContext
from view_syncer.push import Pusher, Sender
from zerocache.errors import ClientFacingError
from zerocache.protocol.messages import AckMutationResponses, Push


class GroupPushes:
    """The :class:`~view_syncer.push.PushListener` of one group."""

    def __init__(self, group: ClientGroup, client: ApiClient, endpoint: ApiEndpoint) -> None:
        self.group = group
        self._pusher = Pusher(client, endpoint, group.group_id, self)

    async def push(self, connection: Connection, message: Push) -> None:
        await self._pusher.push(_sender(connection), message)

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
