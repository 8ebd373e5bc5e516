"""What a client's request must satisfy before a group takes any of it over.

Pure checks of a message against the group's record. They never change either, so a request that
is refused leaves no trace. Everything a client is told here is a ``ClientFacingError``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from view_syncer.cvr.record import GroupRecord
from zerocache.errors import ClientFacingError
from zerocache.options_limits import ClientLimits
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.messages import DeleteClients, InitConnection, PutQuery, QueryOp


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


def check_first_message(
    record: GroupRecord, client_id: str, message: InitConnection, limits: ClientLimits
) -> None:
    check_query_ops(record, message.desired_queries_patch, limits)
    if message.deleted is not None:
        check_deleted(client_id, message.deleted)


def check_query_ops(record: GroupRecord, ops: Sequence[QueryOp], limits: ClientLimits) -> None:
    try:
        record.check_query_ops(ops)
    except ValueError as error:
        raise ClientFacingError("InvalidMessage", str(error)) from error
    puts = [op for op in ops if isinstance(op, PutQuery)]
    if limits.max_args_bytes:
        for op in puts:
            _check_size(op, limits.max_args_bytes)
    most = limits.max_queries_per_group
    if most and puts:
        wanted = {query for _, query in record.desires} | {op.hash for op in puts}
        if len(wanted) > most:
            raise ClientFacingError(
                "InvalidMessage",
                f"The client group would want {len(wanted)} queries; this server allows {most}.",
            )


def _check_size(op: PutQuery, most: int) -> None:
    size = len(op.ast_json or b"")
    if op.args is not None:
        size += len(msgspec.json.encode(op.args))
    if size > most:
        raise ClientFacingError(
            "InvalidMessage",
            f"The definition of query {op.hash!r} has {size} bytes; this server allows {most}.",
        )


def check_deleted(client_id: str, message: DeleteClients) -> None:
    if client_id in message.client_ids:
        raise ClientFacingError("InvalidMessage", "A client cannot delete itself.")
