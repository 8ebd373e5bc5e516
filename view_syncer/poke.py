"""What one poke says, and the recent pokes of a group.

A :class:`PokeBody` is a group's move from one version to the next, as encoded patch operations;
it is framed once per wire form however many sockets receive it. A :class:`History` keeps the last
of them, so that a client that was away for a moment is brought up to date by one merged poke.
Replaying bodies in order always ends in the newest state: a later operation on a key wins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zerocache.protocol import downstream
from zerocache.protocol.poke_parts import PokeChunks, PokeParts
from zerocache.protocol.versions import NEVER, ViewVersion

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
    _frames: dict[bool, list[bytes]] = field(default_factory=dict)

    def size(self) -> int:
        """Number of patch operations."""
        return (
            len(self.lmids)
            + sum(map(len, self.desired.values()))
            + len(self.got)
            + sum(map(len, self.rows))
            + len(self.mutations)
        )

    def frames(self, binary: bool) -> list[bytes]:
        """The frames between ``pokeStart`` and ``pokeEnd``."""
        found = self._frames.get(binary)
        if found is None:
            poke_id = self.version.cookie()
            parts = PokeChunks(poke_id) if binary else PokeParts(poke_id)
            found = self._frames[binary] = self._assemble(parts)
        return found

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


def merge(version: ViewVersion, bodies: Iterable[PokeBody]) -> PokeBody:
    """One body that has the effect of ``bodies`` in order."""
    merged = PokeBody(version)
    for body in bodies:
        merged.lmids.update(body.lmids)
        for client, operations in body.desired.items():
            merged.desired.setdefault(client, []).extend(operations)
        merged.got.extend(body.got)
        merged.rows.extend(body.rows)
        merged.mutations.extend(body.mutations)
    return merged


class History:
    """The recent bodies of one group, contiguous up to its present version.

    Bounded by the number of operations it holds; the encoded rows are shared with the other
    groups that received them.
    """

    def __init__(self, max_operations: int = 10_000) -> None:
        self._max = max_operations
        self._bodies: deque[PokeBody] = deque()
        self._operations = 0
        self.floor: ViewVersion = NEVER
        """Clients at this version or later can be brought up to date from here."""

    def restart(self, version: ViewVersion) -> None:
        """Forget everything: nothing before ``version`` can be proven."""
        self._bodies.clear()
        self._operations = 0
        self.floor = version

    def add(self, body: PokeBody) -> None:
        self._bodies.append(body)
        self._operations += 1 + body.size()
        while self._operations > self._max and self._bodies:
            oldest = self._bodies.popleft()
            self._operations -= 1 + oldest.size()
            self.floor = oldest.version

    def since(self, version: ViewVersion) -> list[PokeBody] | None:
        """The bodies after ``version``; None if they are no longer all here."""
        if version < self.floor:
            return None
        return [body for body in self._bodies if body.version > version]


def frame_poke(base: ViewVersion | None, body: PokeBody, binary: bool) -> list[bytes]:
    """A whole poke: every frame in order. ``base`` None is a client that has nothing."""
    cookie = body.version.cookie()
    base_cookie = None if base is None else base.cookie()
    return [
        downstream.poke_start(cookie, base_cookie),
        *body.frames(binary),
        downstream.poke_end(cookie, cookie),
    ]
