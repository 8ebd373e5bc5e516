"""The codec of port 4848: every public name of the sync protocol in one place.

Sans-I/O; the work is done in ``handshake`` (URL and subprotocol), ``messages`` (upstream),
``downstream`` and ``poke_parts`` (frames to clients) and ``client_schema``.
"""

from __future__ import annotations

from zerocache.protocol import downstream
from zerocache.protocol.client_schema import ClientColumn, ClientSchema, ClientTable, ColumnType
from zerocache.protocol.handshake import (
    MAX_VERSION,
    MIN_VERSION,
    ConnectParams,
    Subprotocol,
    check_version,
    close_reason,
    decode_subprotocol,
    encode_subprotocol,
    parse_connect_url,
)
from zerocache.protocol.messages import (
    AckMutationResponses,
    AnalyzeOptions,
    ChangeDesiredQueries,
    ClearQueries,
    CloseConnection,
    CrudMutation,
    CrudOp,
    CustomMutation,
    DeleteClients,
    DeleteQuery,
    InitConnection,
    Inspect,
    Mutation,
    Ping,
    Pull,
    Push,
    PutQuery,
    QueryOp,
    UpdateAuth,
    UpstreamMessage,
    decode_upstream,
)
from zerocache.protocol.poke_parts import PokeChunks, PokeParts, poke_parts

__all__ = [
    "MAX_VERSION",
    "MIN_VERSION",
    "AckMutationResponses",
    "AnalyzeOptions",
    "ChangeDesiredQueries",
    "ClearQueries",
    "ClientColumn",
    "ClientSchema",
    "ClientTable",
    "CloseConnection",
    "ColumnType",
    "ConnectParams",
    "CrudMutation",
    "CrudOp",
    "CustomMutation",
    "DeleteClients",
    "DeleteQuery",
    "InitConnection",
    "Inspect",
    "Mutation",
    "Ping",
    "PokeChunks",
    "PokeParts",
    "Pull",
    "Push",
    "PutQuery",
    "QueryOp",
    "Subprotocol",
    "UpdateAuth",
    "UpstreamMessage",
    "check_version",
    "close_reason",
    "decode_subprotocol",
    "decode_upstream",
    "downstream",
    "encode_subprotocol",
    "parse_connect_url",
    "poke_parts",
]
