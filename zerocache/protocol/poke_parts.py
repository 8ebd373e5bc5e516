"""Cuts the patches of one poke into frames (sync-protocol.md §3.2, §3.4, §3.5).

Owns the limits of parts and chunks. Fragments arrive already encoded and are only joined; nothing
here looks inside a row. Invariant: the frames handed out so far plus those of :meth:`finish` carry
every fragment exactly once, in the order of arrival within its kind, and part boundaries mean
nothing to the receiver.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from zerocache.protocol.joined_rows import Block, JoinedRows

MAX_ENTRIES: Final = 100
MAX_ROW_CHARACTERS: Final = 1_048_576
MAX_CHUNK_BYTES: Final = 1_048_576
BINARY_CHUNKS_SINCE: Final = 52
"""First protocol version that understands binary chunks; older clients die of a binary frame."""

_CHUNK_TAG: Final = b"\x00"
_encode: Final = msgspec.json.encode


class PokeParts:
    """Collects fragments and hands out finished ``pokePart`` frames (text).

    - ``add_*`` may be called in any order and number; a full part becomes a frame at once;
    - :meth:`take` hands out the frames finished so far, :meth:`finish` all that remain;
    - after :meth:`finish` the object is spent. No fragments at all: no frames.
    """

    binary = False

    def __init__(self, poke_id: str) -> None:
        self._head = b'{"pokeID":' + _encode(poke_id)
        self._frames: list[bytes] = []
        self._reset()

    def _reset(self) -> None:
        self._entries = 0  # patch entries of any kind in the open part
        self._row_characters = 0  # size of the rows in the open part, without separators
        self._lmids: dict[str, int] = {}
        self._desired: dict[str, list[bytes]] = {}
        self._got: list[bytes] = []
        self._rows: list[bytes] = []  # joined runs, not single rows
        self._mutations: list[bytes] = []

    def add_lmid(self, client_id: str, mutation_id: int) -> None:
        self._lmids[client_id] = mutation_id
        self._count_one()

    def add_desired(self, client_id: str, fragments: Iterable[bytes]) -> None:
        for fragment in fragments:
            self._desired.setdefault(client_id, []).append(fragment)
            self._count_one()

    def add_got(self, fragments: Iterable[bytes]) -> None:
        for fragment in fragments:
            self._got.append(fragment)
            self._count_one()

    def add_mutations(self, fragments: Iterable[bytes]) -> None:
        for fragment in fragments:
            self._mutations.append(fragment)
            self._count_one()

    def add_rows(self, rows: Sequence[str] | Sequence[bytes]) -> None:
        """Add encoded row operations, all of one type (text counts characters, bytes bytes)."""
        if isinstance(rows, JoinedRows):
            for block in rows.blocks:
                self._add_block(block)
            return
        start = 0
        while start < len(rows):
            run = rows[start : start + MAX_ENTRIES - self._entries]
            joined, size = _join(run)
            if self._row_characters + size >= MAX_ROW_CHARACTERS:
                run = self._until_limit(run)
                joined, size = _join(run)
            self._rows.append(joined)
            self._entries += len(run)
            self._row_characters += size
            start += len(run)
            if self._entries >= MAX_ENTRIES or self._row_characters >= MAX_ROW_CHARACTERS:
                self.close_part()

    def _add_block(self, block: Block) -> None:
        """As it is, unless no part may hold it."""
        if block.length > MAX_ENTRIES or len(block.data) >= MAX_ROW_CHARACTERS:
            self.add_rows(block.operations())
            return
        entries, size = self._entries + block.length, self._row_characters + len(block.data)
        if entries > MAX_ENTRIES or size >= MAX_ROW_CHARACTERS:
            self.close_part()
            entries, size = block.length, len(block.data)
        self._rows.append(block.data)
        self._entries, self._row_characters = entries, size
        if entries == MAX_ENTRIES:
            self.close_part()

    def _until_limit(self, run: Sequence[str] | Sequence[bytes]) -> Sequence[str] | Sequence[bytes]:
        """The shortest start of ``run`` that reaches the limit: it is checked after adding."""
        size = self._row_characters
        for index, row in enumerate(run):
            size += len(row)
            if size >= MAX_ROW_CHARACTERS:
                return run[: index + 1]
        return run

    def _count_one(self) -> None:
        self._entries += 1
        if self._entries >= MAX_ENTRIES:
            self.close_part()

    def take(self) -> list[bytes]:
        """Frames finished since the last call."""
        frames, self._frames = self._frames, []
        return frames

    def finish(self) -> list[bytes]:
        """Close the open part; every frame not yet taken."""
        if self._entries:
            self.close_part()
        return self.take()

    def close_part(self) -> None:
        pieces = [self._head]
        if self._lmids:
            pieces += (b',"lastMutationIDChanges":', _encode(self._lmids))
        if self._desired:
            clients = (_encode(c) + b":" + _array(ops) for c, ops in self._desired.items())
            pieces += (b',"desiredQueriesPatches":{', b",".join(clients), b"}")
        if self._got:
            pieces += (b',"gotQueriesPatch":', _array(self._got))
        if self._rows:
            # Most of a poke: not copied before the part is put together.
            pieces.append(b',"rowsPatch":[')
            for run in self._rows:
                pieces += (run, b",")
            pieces[-1] = b"]"
        if self._mutations:
            pieces += (b',"mutationsPatch":', _array(self._mutations))
        pieces.append(b"}")
        self._reset()
        self._emit(pieces)

    def _emit(self, part: Sequence[bytes]) -> None:
        """``part`` in pieces."""
        self._frames.append(b"".join((b'["pokePart",', *part, b"]")))


class PokeChunks(PokeParts):
    """The same parts as slices of one JSON array, for *binary* frames.

    A poke without parts is one chunk that holds ``[]``. A slice never ends inside a character.
    """

    binary = True

    def __init__(self, poke_id: str, max_chunk_bytes: int = MAX_CHUNK_BYTES) -> None:
        super().__init__(poke_id)
        self._slice_bytes = max_chunk_bytes - len(_CHUNK_TAG)
        if self._slice_bytes < 4:
            raise ValueError(f"chunks of {max_chunk_bytes} bytes cannot hold every character")
        self._buffer = bytearray()
        self._open = b"["

    def _emit(self, part: Sequence[bytes]) -> None:
        self._buffer += self._open
        for piece in part:
            self._buffer += piece
        self._open = b","
        self._cut()

    def _cut(self) -> None:
        """Emit every full slice; one that could still grow stays."""
        start = 0
        while len(self._buffer) - start > self._slice_bytes:
            end = start + self._slice_bytes
            while self._buffer[end] & 0xC0 == 0x80:  # the next slice would start mid-character
                end -= 1
            self._frames.append(_CHUNK_TAG + self._buffer[start:end])
            start = end
        del self._buffer[:start]

    def finish(self) -> list[bytes]:
        if self._entries:
            self.close_part()
        self._buffer += b"[]" if self._open == b"[" else b"]"
        self._cut()
        self._frames.append(_CHUNK_TAG + self._buffer)
        return self.take()


def poke_parts(poke_id: str, version: int) -> PokeParts:
    """The assembler for a client's protocol version; its ``binary`` says how to send frames."""
    return PokeChunks(poke_id) if version >= BINARY_CHUNKS_SINCE else PokeParts(poke_id)


def _array(items: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


def _join(rows: Sequence[str] | Sequence[bytes]) -> tuple[bytes, int]:
    """The rows as one run, and their size without separators."""
    separators = len(rows) - 1
    if isinstance(rows[0], str):
        text = ",".join(rows)  # type: ignore[arg-type]  # the sequence holds one type
        return text.encode(), len(text) - separators
    data = b",".join(rows)  # type: ignore[arg-type]
    return data, len(data) - separators
