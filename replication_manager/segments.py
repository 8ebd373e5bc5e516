"""The bytes of the change log: pgoutput messages of whole transactions, without any I/O.

Owns the form in which upstream's transactions are kept: each message as pgoutput sent it, behind
its length, so that a replay goes through the same code as the stream did and cannot differ from it.
A *segment* is a run of whole transactions and is named after the last one's commit LSN; it is cut
into *parts* of bounded size at arbitrary bytes. PostgreSQL describes a relation once per
connection, but a segment has to be readable alone: the builder repeats descriptions where the
segment first needs them. Left out is what no replica needs: types, origins, messages of others,
and messages that belong to no transaction.

Invariant: a segment that is complete contains every transaction that began and ended between its
first and its last, in order, exactly once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zerocache.protocol.versions import Lsn

PART_BYTES = 256 * 1024

_LENGTH = struct.Struct(">I")
_pack_length = _LENGTH.pack
_LSN = struct.Struct(">Q")
_TRUNCATE = struct.Struct(">xIb")
_ROWS = b"IUD"
_BEGIN, _COMMIT, _RELATION, _TRUNCATED, _LOGICAL = b"BCRTM"
_TRANSACTIONAL = 1


@dataclass(frozen=True, slots=True)
class Part:
    """``watermark``: the last transaction of the segment; ``position``: the number of the part in
    it; ``is_last``: the segment is complete with this part."""

    watermark: Lsn
    position: int
    data: bytes
    is_last: bool


class SegmentBuilder:
    """Collects the messages of one connection.

    * ``add`` every payload, in order; ``cut`` whenever the log should have what is complete.
    * Transactions up to ``stored``, which the log already has, are left out.
    * A transaction too large for one part leaves in pieces, before it is complete.
    """

    def __init__(self, prefix: str, stored: Lsn, part_bytes: int = PART_BYTES) -> None:
        """``prefix``: of the logical messages that replicas understand."""
        self._prefix = prefix.encode()
        self._stored = stored
        self._part_bytes = part_bytes
        # Newest description of every relation of this connection, by oid as on the wire.
        self._relations: dict[bytes, bytes] = {}
        # Relations described in the segment that is being built.
        self._described: set[bytes] = set()
        self._buffer: list[bytes] = []
        self._size = 0
        # Parts of the segment that were handed out; then it ends with the open transaction.
        self._position = 0
        self._in_transaction = False
        self._skipping = False
        # Commit LSN of the newest transaction that began and is not left out.
        self._lsn = Lsn(0)
        self._ready: list[Part] = []

    @property
    def has_complete(self) -> bool:
        """Whether :meth:`cut` would return something."""
        return bool(self._ready) or (self._size > 0 and not self._in_transaction)

    def add(self, payload: bytes) -> None:
        tag = payload[0]
        if tag in _ROWS:
            if payload[1:5] not in self._described:
                self._describe(payload[1:5])
        elif tag == _RELATION:
            self._relations[payload[1:5]] = payload
            if self._skipping or not self._in_transaction:
                return
            self._described.add(payload[1:5])
        elif tag == _TRUNCATED:
            for oid in _truncated(payload):
                self._describe(oid)
        elif tag == _BEGIN:
            self._begin(Lsn(_LSN.unpack_from(payload, 1)[0]))
        elif tag == _COMMIT:
            self._commit(payload)
            return
        elif tag != _LOGICAL or not self._is_ours(payload):
            return
        self._append(payload)

    def cut(self) -> list[Part]:
        """What is ready to be stored; of an open transaction only what was cut before."""
        if self._size and not self._in_transaction:
            self._emit(is_last=True)
        ready, self._ready = self._ready, []
        return ready

    def take_ready(self) -> list[Part]:
        """Parts that became too large to be kept, if any."""
        ready, self._ready = self._ready, []
        return ready

    def _begin(self, lsn: Lsn) -> None:
        self._skipping = lsn <= self._stored
        self._in_transaction = True
        if not self._skipping:
            self._lsn = lsn

    def _commit(self, payload: bytes) -> None:
        self._in_transaction = False
        self._append(payload)
        if self._skipping:
            self._skipping = False
        elif self._position or self._size >= self._part_bytes:
            # What follows must not be named after this transaction.
            self._emit(is_last=True)

    def _describe(self, oid: bytes) -> None:
        description = self._relations.get(oid)
        if description is not None and not self._skipping and oid not in self._described:
            self._described.add(oid)
            self._append(description)

    def _append(self, payload: bytes) -> None:
        if self._skipping:
            return
        self._buffer.append(_pack_length(len(payload)))
        self._buffer.append(payload)
        self._size += len(payload) + 4
        if self._size >= self._part_bytes and self._in_transaction:
            self._emit(is_last=False)

    def _emit(self, *, is_last: bool) -> None:
        data = b"".join(self._buffer)
        self._buffer.clear()
        self._size = 0
        step = self._part_bytes
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        for number, piece in enumerate(pieces, 1):
            last = is_last and number == len(pieces)
            self._ready.append(Part(self._lsn, self._position, piece, last))
            self._position += 1
        if is_last:
            self._position = 0
            self._described.clear()

    def _is_ours(self, payload: bytes) -> bool:
        if not payload[1] & _TRANSACTIONAL or not self._in_transaction:
            return False
        end = payload.index(0, 10)
        return payload[10:end] == self._prefix


def read_messages(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The payloads in the parts of one or more whole segments, in order."""
    # Bytes of a message that is not complete, and how many it takes to go on.
    waiting: list[bytes] = []
    have, need = 0, 4
    for part in parts:
        waiting.append(part)
        have += len(part)
        if have < need:
            continue
        data = waiting[0] if len(waiting) == 1 else b"".join(waiting)
        at, need = 0, 4
        while at + 4 <= len(data):
            end = at + 4 + _LENGTH.unpack_from(data, at)[0]
            if end > len(data):
                need = end - at
                break
            yield data[at + 4 : end]
            at = end
        waiting, have = [data[at:]], len(data) - at
    if have:
        raise ValueError(f"a segment ends inside a message, {have} bytes after its begin")


def _truncated(payload: bytes) -> Iterator[bytes]:
    count, _ = _TRUNCATE.unpack_from(payload)
    start = _TRUNCATE.size
    return (payload[at : at + 4] for at in range(start, start + 4 * count, 4))
