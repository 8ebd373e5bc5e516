"""What one poke says, and the recent pokes of a group.

A :class:`PokeBody` is a group's move from one version to the next, as encoded patch operations;
it is framed once per wire form however many sockets receive it, and whole pokes from the same base
are the same bytes. A :class:`History` keeps the last of them, so that a client that was away for a
moment, or too slow for one, is brought up to date by one merged poke. Replaying bodies in order
always ends in the newest state: a later operation on a key wins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from view_syncer import wire
from view_syncer.coalesce import RowKeys, coalesced
from zerocache.protocol import downstream
from zerocache.protocol.joined_rows import size_of
from zerocache.protocol.poke_parts import PokeChunks, PokeParts
from zerocache.protocol.versions import NEVER, ViewVersion

SMALL_POKE_BYTES = 65_536
"""Pokes up to this size are joined to one run of bytes, that is to one write per socket."""

MAX_HISTORY_OPERATIONS = 10_000
MAX_HISTORY_BYTES = 128 * 1024
MAX_FIRST_BYTES = 16 * 1024
"""What a group begins with is not kept if it is larger: it would be half of what the group costs,
and whoever lacks it has nothing yet and is sent everything."""

CLEAR_ROWS = '{"op":"clear"}'
"""Wipes everything the client has, earlier operations of the poke included (§3.3)."""


@dataclass(slots=True)
class PokeBody:
    """``rows`` are runs of encoded row operations in order; ``desired`` is by client."""

    version: ViewVersion
    lmids: dict[str, int] = field(default_factory=dict)
    desired: dict[str, list[bytes]] = field(default_factory=dict)
    got: list[bytes] = field(default_factory=list)
    rows: list[Sequence[str]] = field(default_factory=list)
    mutations: list[bytes] = field(default_factory=list)
    clear: bool = False
    _weight: tuple[int, int] | None = None
    # What was made of it for the wire: the frames of its parts, and whole pokes by their base.
    _parts: dict[bool, tuple[bytes, ...]] = field(default_factory=dict)
    _pokes: dict[tuple[ViewVersion | None, bool], tuple[bytes, ...]] = field(default_factory=dict)

    def add(self, bodies: Iterable[PokeBody]) -> None:
        """Have the effect of ``bodies`` in order, after what is here already."""
        for body in bodies:
            self.lmids.update(body.lmids)
            for client, operations in body.desired.items():
                self.desired.setdefault(client, []).extend(operations)
            self.got.extend(body.got)
            self.rows.extend(body.rows)
            self.mutations.extend(body.mutations)

    def size(self) -> int:
        """Number of patch operations."""
        return (
            len(self.lmids)
            + sum(map(len, self.desired.values()))
            + len(self.got)
            + sum(map(len, self.rows))
            + len(self.mutations)
        )

    def weight(self) -> tuple[int, int]:
        """Number of operations, and about how many bytes they hold; looked at once, so for a body
        that is complete."""
        if self._weight is None:
            rows = sum(map(size_of, self.rows))
            size = self.size()
            self._weight = size, rows + sum(map(len, self.mutations)) + 64 * size
        return self._weight

    def frames(self, binary: bool) -> list[bytes]:
        """The payloads of the frames between ``pokeStart`` and ``pokeEnd``."""
        poke_id = self.version.cookie()
        return self._assemble(PokeChunks(poke_id) if binary else PokeParts(poke_id))

    def poke(self, base: ViewVersion | None, binary: bool) -> tuple[bytes, ...]:
        """A whole poke for whoever is at ``base`` (None: has nothing), as runs of frames. Made
        once, whoever asks; do not change the body after the first call."""
        made = self._pokes.get((base, binary))
        if made is None:
            made = self._pokes[base, binary] = self._make_poke(base, binary)
        return made

    def _make_poke(self, base: ViewVersion | None, binary: bool) -> tuple[bytes, ...]:
        parts = self._parts.get(binary)
        if parts is None:
            opcode = wire.BINARY if binary else wire.TEXT
            parts = tuple(wire.frame(opcode, payload) for payload in self.frames(binary))
            self._parts[binary] = parts
        cookie = self.version.cookie()
        start = wire.text(downstream.poke_start(cookie, None if base is None else base.cookie()))
        runs = (start, *parts, wire.text(downstream.poke_end(cookie, cookie)))
        return (b"".join(runs),) if sum(map(len, runs)) <= SMALL_POKE_BYTES else runs

    def forget_frames(self) -> None:
        """Free what was made for the wire; it can be made again."""
        self._parts.clear()
        self._pokes.clear()

    def _assemble(self, parts: PokeParts) -> list[bytes]:
        frames: list[bytes] = []
        if self.clear:
            # Alone in its part: it also cancels what stands before it in the poke.
            parts.add_rows([CLEAR_ROWS])
            parts.close_part()
        for client, lmid in self.lmids.items():
            parts.add_lmid(client, lmid)
        for client, operations in self.desired.items():
            parts.add_desired(client, operations)
        for run in self.rows:
            if run:
                parts.add_rows(run)
                frames.extend(parts.take())
        # After the rows: a query is complete only once all of them are there.
        parts.add_got(self.got)
        parts.add_mutations(self.mutations)
        frames.extend(parts.finish())
        return frames


def merge(version: ViewVersion, bodies: Iterable[PokeBody], keys: RowKeys) -> PokeBody:
    """One body that has the effect of ``bodies`` in order, with one operation for each row;
    ``keys`` name the rows to the clients."""
    merged = PokeBody(version)
    merged.add(bodies)
    merged.rows = [coalesced(merged.rows, keys)]
    return merged


class History:
    """The recent bodies of one group, contiguous up to its present version.

    Bounded by the number and the size of the operations it holds, since it is most of what an
    idle group costs; the newest body also keeps its frames, for the other groups that share it.
    """

    def __init__(
        self, max_operations: int = MAX_HISTORY_OPERATIONS, max_bytes: int = MAX_HISTORY_BYTES
    ) -> None:
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        self._bodies: deque[PokeBody] = deque()
        self._operations = 0
        self._bytes = 0
        self.floor: ViewVersion = NEVER
        """Clients at this version or later can be brought up to date from here."""

    def restart(self, version: ViewVersion) -> None:
        """Forget everything: nothing before ``version`` can be proven."""
        self._bodies.clear()
        self._operations = self._bytes = 0
        self.floor = version

    def add(self, body: PokeBody, *, first: bool = False) -> None:
        """``first`` if nobody who has any rows is before it."""
        if self._bodies:
            self._bodies[-1].forget_frames()
        operations, size = body.weight()
        if first and size > MAX_FIRST_BYTES:
            self.restart(body.version)
            return
        self._bodies.append(body)
        self._operations += 1 + operations
        self._bytes += size
        while self._bodies and self._is_full():
            oldest = self._bodies.popleft()
            operations, size = oldest.weight()
            self._operations -= 1 + operations
            self._bytes -= size
            self.floor = oldest.version

    def _is_full(self) -> bool:
        return self._operations > self._max_operations or self._bytes > self._max_bytes

    def since(self, version: ViewVersion) -> list[PokeBody] | None:
        """The bodies after ``version``; None if they are no longer all here."""
        if version < self.floor:
            return None
        return [body for body in self._bodies if body.version > version]
