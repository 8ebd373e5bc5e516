"""What a client's messages change in its group's record (sync-protocol.md §4.2-4.5).

Functions over a record and a message that passed :mod:`view_syncer.admission`; no I/O. What
clients are to hear of it is noted in the :class:`ConfigChange`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from view_syncer.cvr.record import ClientId, ConfigChange, GroupRecord
from zerocache.protocol.messages import DeleteClients, InitConnection


def configure(
    record: GroupRecord,
    sender: ClientId,
    profile_id: str,
    message: InitConnection,
    now_ms: float,
    change: ConfigChange,
) -> None:
    """Register the client with what it desires."""
    if record.profile_id != profile_id:
        record.profile_id = profile_id
        change.meta = True
    record.add_client(sender, change)
    record.apply_query_ops(sender, message.desired_queries_patch, now_ms, change)


def delete_clients(
    record: GroupRecord, message: DeleteClients | None, now_ms: float, change: ConfigChange
) -> list[ClientId]:
    """Returns all it was about, unknown ones included: all are acknowledged (§4.5)."""
    deleted = list(message.client_ids) if message is not None else []
    for client in deleted:
        record.delete_client(client, now_ms, change)
    return deleted


def retain_clients(
    record: GroupRecord,
    active: Collection[ClientId] | None,
    connected: Iterable[ClientId],
    now_ms: float,
    change: ConfigChange,
) -> list[ClientId]:
    """Delete the clients not listed as alive; connected ones stay, the list can lag (§4.5)."""
    if active is None:
        return []
    alive = {*active, *connected}
    gone = [client for client in record.clients if client not in alive]
    for client in gone:
        record.delete_client(client, now_ms, change)
    return gone
