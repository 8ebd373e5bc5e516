"""What a client's request must satisfy before a group takes any of it over.

Pure checks of a message against the group's record. They never change either, so a request that
is refused leaves no trace. Everything a client is told here is a ``ClientFacingError``.
"""

from __future__ import annotations

from collections.abc import Iterable

from view_syncer.cvr.record import GroupRecord
from zerocache.errors import ClientFacingError
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.messages import DeleteClients, InitConnection, QueryOp


def declared_schema(record: GroupRecord, message: InitConnection) -> ClientSchema:
    """The group's client schema: the stored one, which a re-sent one must equal (§6)."""
    stored, declared = record.client_schema, message.client_schema
    if stored is not None and declared is not None:
        if stored.canonical() != declared.canonical():
            raise ClientFacingError(
                "InvalidConnectionRequest",
                "The client schema differs from the one this client group was made with.",
            )
        return stored
    schema = stored or declared
    if schema is None:
        raise ClientFacingError(
            "InvalidConnectionRequest",
            "The first connection of a client group must carry its client schema.",
        )
    return schema


def check_first_message(record: GroupRecord, client_id: str, message: InitConnection) -> None:
    check_query_ops(record, message.desired_queries_patch)
    if message.deleted is not None:
        check_deleted(client_id, message.deleted)


def check_query_ops(record: GroupRecord, ops: Iterable[QueryOp]) -> None:
    try:
        record.check_query_ops(ops)
    except ValueError as error:
        raise ClientFacingError("InvalidMessage", str(error)) from error


def check_deleted(client_id: str, message: DeleteClients) -> None:
    if client_id in message.client_ids:
        raise ClientFacingError("InvalidMessage", "A client cannot delete itself.")
