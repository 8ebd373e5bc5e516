"""What a client of the sync protocol holds, and the check of everything a server tells it.

Owns the client-side state (cookie, rows, queries, mutation ids) and the rules of
sync-protocol.md §3. Must never do I/O. Invariant: the state only ever moves from the end of one
poke to the end of the next; whatever the stock client would refuse raises
:class:`ProtocolViolation` here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, Raw

from benchmarks.sync_messages import (
    ClientSchema,
    ColumnType,
    Connected,
    CountedPart,
    JsonScalar,
    MutationOp,
    Other,
    Poke,
    PokeEnd,
    PokePart,
    PokeStart,
    QueryOp,
    Row,
    RowOp,
    ServerErrorBody,
    TableSchema,
)

RowKey: TypeAlias = tuple[str, tuple[JsonScalar, ...]]

MAX_SAFE_INTEGER = 2**53 - 1
# Clients before 1.2 (the last protocol version that is surely theirs) refuse rows of
# tables they did not declare; later ones skip them (sync-protocol.md §3.7).
_LAST_VERSION_REFUSING_UNDECLARED = 45
_CHUNK_VERSION = 52


class ProtocolViolation(Exception):
    """The server sent what the stock client would refuse."""


@dataclass
class SyncState:
    """The local store of a client group; outlives a connection.

    ``keep_rows=False`` counts row operations without parsing or keeping them.
    """

    schema: ClientSchema
    keep_rows: bool = True
    cookie: str | None = None
    rows: dict[RowKey, Row] = field(default_factory=dict)
    last_mutation_ids: dict[str, int] = field(default_factory=dict)
    desired: dict[str, set[str]] = field(default_factory=dict)
    got: set[str] = field(default_factory=set)
    mutation_results: dict[tuple[str, int], Any] = field(default_factory=dict)
    # Row operations applied since the beginning, kept or only counted.
    row_ops: int = 0
    # Rows of tables the schema does not declare: skipped, as clients since 1.2 do.
    undeclared_rows: int = 0

    def table(self, name: str) -> dict[tuple[JsonScalar, ...], Row]:
        """The rows of one table by key."""
        return {key: row for (table, key), row in self.rows.items() if table == name}

    def _clear(self) -> None:
        self.rows.clear()
        self.desired.clear()
        self.got.clear()
        self.mutation_results.clear()

    def apply(self, part: PokePart | CountedPart, *, refuse_undeclared: bool) -> int:
        """Apply one part in the order of sync-protocol.md §3.2; the number of row operations."""
        if part.last_mutation_ids is not UNSET:
            self._apply_last_mutation_ids(part.last_mutation_ids)
        if part.desired is not UNSET:
            for client_id, ops in part.desired.items():
                for op in ops:
                    self._apply_query(self.desired.setdefault(client_id, set()), op)
        if part.got is not UNSET:
            for op in part.got:
                self._apply_query(self.got, op)
        count = self._apply_rows(part, refuse_undeclared)
        if part.mutations is not UNSET:
            for mutation_op in part.mutations:
                self._apply_mutation(mutation_op)
        self.row_ops += count
        return count

    def _apply_last_mutation_ids(self, changes: Mapping[str, int]) -> None:
        for client_id, new in changes.items():
            old = self.last_mutation_ids.get(client_id, 0)
            if new < old:
                raise ProtocolViolation(f"last mutation id of {client_id} fell from {old} to {new}")
            self.last_mutation_ids[client_id] = new

    def _apply_query(self, queries: set[str], op: QueryOp) -> None:
        if op.op == "clear":
            self._clear()
        elif not op.hash:
            raise ProtocolViolation(f"query patch {op.op!r} without a hash")
        elif op.op == "put":
            queries.add(op.hash)
        else:
            queries.discard(op.hash)

    def _apply_rows(self, part: PokePart | CountedPart, refuse_undeclared: bool) -> int:
        if part.rows is UNSET:
            return 0
        if isinstance(part, CountedPart):
            return bytes(part.rows).count(b'"tableName":')
        for op in part.rows:
            self._apply_row(op, refuse_undeclared)
        return len(part.rows)

    def _apply_row(self, op: RowOp, refuse_undeclared: bool) -> None:
        if op.op == "clear":
            self._clear()
            return
        table = self.schema.tables.get(op.table_name)
        if table is None:
            if refuse_undeclared:
                raise ProtocolViolation(f"row of the undeclared table {op.table_name!r}")
            self.undeclared_rows += 1
            return
        if op.op == "put":
            if op.value is UNSET:
                raise ProtocolViolation(f"put into {op.table_name} without a value")
            _check_row(op.table_name, table, op.value)
            self.rows[_row_key(op.table_name, table, op.value)] = op.value
            return
        if op.id is UNSET or set(op.id) != set(table.primary_key):
            raise ProtocolViolation(
                f"{op.op} in {op.table_name} is addressed by {op.id}, "
                f"but its declared key is {table.primary_key}"
            )
        key = _row_key(op.table_name, table, op.id)
        if op.op == "del":
            self.rows.pop(key, None)
        else:
            self._update_row(key, op)

    def _update_row(self, key: RowKey, op: RowOp) -> None:
        old = self.rows.get(key)
        if old is None:
            return
        new = {**old, **({} if op.merge is UNSET else op.merge)}
        if op.constrain is not UNSET:
            new = {name: value for name, value in new.items() if name in op.constrain}
        self.rows[key] = new

    def _apply_mutation(self, op: MutationOp) -> None:
        if op.op == "del":
            if op.id is UNSET:
                raise ProtocolViolation("mutation patch 'del' without an id")
            self.mutation_results.pop((op.id.client_id, op.id.id), None)
            return
        if op.mutation is UNSET:
            raise ProtocolViolation("mutation patch 'put' without a mutation")
        key = (op.mutation.id.client_id, op.mutation.id.id)
        if self.mutation_results.setdefault(key, op.mutation.result) != op.mutation.result:
            raise ProtocolViolation(f"the result of mutation {key} was replaced by another one")


def _row_key(name: str, table: TableSchema, row: Row) -> RowKey:
    values = tuple(row.get(column) for column in table.primary_key)
    for column, value in zip(table.primary_key, values, strict=True):
        if not isinstance(value, str | int | float):
            raise ProtocolViolation(f"key column {name}.{column} holds {value!r}")
    return name, values  # type: ignore[return-value]  # the loop has ruled out the rest


def _check_row(name: str, table: TableSchema, row: Row) -> None:
    for column, declared in table.columns.items():
        if column not in row:
            raise ProtocolViolation(f"row of {name} lacks the declared column {column}")
        if not _fits(declared["type"], row[column]):
            raise ProtocolViolation(
                f"{name}.{column} is declared {declared['type']} but holds {row[column]!r}"
            )


def _fits(declared: ColumnType, value: object) -> bool:
    if value is None or declared == "json":
        return True
    if declared == "boolean":
        return isinstance(value, bool)
    if declared == "string":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) <= MAX_SAFE_INTEGER


@dataclass
class _OpenPoke:
    start: PokeStart
    parts: list[PokePart | CountedPart] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    payload_bytes: int = 0
    frames: int = 1


_envelope: msgspec.json.Decoder[tuple[str, Raw]] = msgspec.json.Decoder(tuple[str, Raw])
_poke_start = msgspec.json.Decoder(PokeStart)
_poke_end = msgspec.json.Decoder(PokeEnd)
_part = msgspec.json.Decoder(PokePart)
_counted_part = msgspec.json.Decoder(CountedPart)
# With the envelope: most bytes of a connection are of such messages, and are looked at once then.
_PART_START = b'["pokePart",'
_part_message: msgspec.json.Decoder[tuple[str, PokePart]] = msgspec.json.Decoder(
    tuple[str, PokePart]
)
_counted_part_message: msgspec.json.Decoder[tuple[str, CountedPart]] = msgspec.json.Decoder(
    tuple[str, CountedPart]
)
_parts: msgspec.json.Decoder[list[PokePart]] = msgspec.json.Decoder(list[PokePart])
_counted_parts: msgspec.json.Decoder[list[CountedPart]] = msgspec.json.Decoder(list[CountedPart])

_NON_FATAL_KINDS = frozenset({"MutationRateLimited", "MutationFailed"})
_OTHER_TYPES: dict[str, Any] = {
    "connected": Connected,
    "pong": dict[str, Any],
    "error": dict[str, Any],
    "deleteClients": dict[str, Any],
    "transformError": list[dict[str, Any]],
    "inspect": dict[str, Any],
    "pushResponse": dict[str, Any],
    "pull": dict[str, Any],
}


class SyncSession:
    """One connection's worth of messages, verified and applied to a :class:`SyncState`.

    * Callers feed frames in order and stop after the first exception.
    * Each call returns what has become visible: a :class:`Poke`, another message, or nothing.
    """

    def __init__(self, state: SyncState, version: int) -> None:
        self.state = state
        self.version = version
        self.poke_count = 0
        # False until the server's first frame; pokes before it are a violation.
        self.connected = False
        # Set by a fatal error frame, after which the server must be silent.
        self.ended = False
        self._poke: _OpenPoke | None = None

    def receive_text(self, data: bytes) -> Poke | Other | None:
        try:
            if data.startswith(_PART_START):
                self._check_turn("pokePart")
                decoder = _part_message if self.state.keep_rows else _counted_part_message
                self._add_part(decoder.decode(data)[1], len(data))
                return None
            kind, body = _envelope.decode(data)
            return self._dispatch(kind, body, len(data))
        except msgspec.DecodeError as error:
            raise ProtocolViolation(f"malformed message ({error}): {data[:200]!r}") from error

    def _dispatch(self, kind: str, body: Raw, size: int) -> Poke | Other | None:
        self._check_turn(kind)
        if kind == "pokePart":
            decoder = _part if self.state.keep_rows else _counted_part
            self._add_part(decoder.decode(body), size)
            return None
        if kind == "pokeStart":
            self._start(_poke_start.decode(body))
            return None
        if kind == "pokeEnd":
            return self._end(_poke_end.decode(body))
        return self._other(kind, body)

    def _check_turn(self, kind: str) -> None:
        if self.ended:
            raise ProtocolViolation(f"{kind!r} was sent after a fatal error")
        if kind.startswith("poke") and not self.connected:
            raise ProtocolViolation(f"{kind!r} was sent before 'connected'")

    def receive_binary(self, data: bytes) -> None:
        """A chunk of a poke (§3.5)."""
        if self.version < _CHUNK_VERSION:
            raise ProtocolViolation(f"binary frame for a client of version {self.version}")
        if data[:1] != b"\x00":
            raise ProtocolViolation(f"binary frame of unknown kind {data[:1]!r}")
        if self._poke is None or self._poke.parts:
            raise ProtocolViolation("chunk outside a poke, or after text parts")
        self._poke.chunks.append(data[1:])
        self._poke.payload_bytes += len(data)
        self._poke.frames += 1

    def _other(self, kind: str, raw: Raw) -> Other:
        if kind not in _OTHER_TYPES:
            raise ProtocolViolation(f"unknown message type {kind!r}")
        body = msgspec.json.decode(raw, type=_OTHER_TYPES[kind])
        if kind == "connected":
            if self.connected:
                raise ProtocolViolation("'connected' was sent twice")
            self.connected = True
        elif kind == "error":
            msgspec.convert(body, ServerErrorBody)
            self.ended = body["kind"] not in _NON_FATAL_KINDS
        elif not self.connected:
            raise ProtocolViolation(f"{kind!r} was sent before 'connected'")
        return Other(kind, body)

    def _start(self, start: PokeStart) -> None:
        if self._poke is not None:
            raise ProtocolViolation(
                f"poke {start.poke_id} began inside poke {self._poke.start.poke_id}"
            )
        if start.base_cookie != self.state.cookie:
            raise ProtocolViolation(
                f"poke {start.poke_id} is based on {start.base_cookie!r}, "
                f"but the client is at {self.state.cookie!r}"
            )
        self._poke = _OpenPoke(start)

    def _open(self, poke_id: str, what: str) -> _OpenPoke:
        if self._poke is None or self._poke.start.poke_id != poke_id:
            current = self._poke.start.poke_id if self._poke else None
            raise ProtocolViolation(f"{what} of poke {poke_id}, but the open poke is {current}")
        return self._poke

    def _add_part(self, part: PokePart | CountedPart, size: int) -> None:
        poke = self._open(part.poke_id, "part")
        if poke.chunks:
            raise ProtocolViolation(f"poke {part.poke_id} mixes text parts and chunks")
        poke.parts.append(part)
        poke.payload_bytes += size
        poke.frames += 1

    def _end(self, end: PokeEnd) -> Poke | None:
        received_ns = time.monotonic_ns()
        poke = self._open(end.poke_id, "end")
        self._poke = None
        if end.cancel:
            return None
        base = poke.start.base_cookie
        if base is not None and end.cookie < base:
            raise ProtocolViolation(f"poke {end.poke_id} goes back from {base!r} to {end.cookie!r}")
        parts = self._all_parts(poke)
        if base == end.cookie and any(map(_has_patches, parts)):
            raise ProtocolViolation(f"poke {end.poke_id} carries patches but stays at {base!r}")
        refuse = self.version <= _LAST_VERSION_REFUSING_UNDECLARED
        row_ops = sum(self.state.apply(part, refuse_undeclared=refuse) for part in parts)
        self.state.cookie = end.cookie
        self.poke_count += 1
        return Poke(
            base,
            end.cookie,
            tuple(part for part in parts if isinstance(part, PokePart)),
            tuple(part for part in parts if isinstance(part, CountedPart)),
            row_ops,
            poke.payload_bytes,
            poke.frames + 1,
            received_ns,
        )

    def _all_parts(self, poke: _OpenPoke) -> list[PokePart | CountedPart]:
        if not poke.chunks:
            return poke.parts
        decoder = _parts if self.state.keep_rows else _counted_parts
        parts = decoder.decode(b"".join(poke.chunks))
        for part in parts:
            if part.poke_id != poke.start.poke_id:
                raise ProtocolViolation(f"poke {poke.start.poke_id} has a part of {part.poke_id}")
        return list(parts)


def _has_patches(part: PokePart | CountedPart) -> bool:
    patches = (part.last_mutation_ids, part.desired, part.got, part.rows, part.mutations)
    return any(patch is not UNSET for patch in patches)
