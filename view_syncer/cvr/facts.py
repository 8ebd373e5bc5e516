"""Membership facts: which rows a shared query had at which version.

A *unit* is one query as one client schema reads it; its facts do not depend on who asks. They are
kept as one set of members at some version and the *moves* around it, so the members at any version
in between, earlier or later, can be told. A row is named by the text of the patch operation that
deletes it: nothing else is needed to take it from a client, long after the row is gone.

Pure functions and values; no I/O. The bytes of :func:`pack` are what a
:class:`~view_syncer.cvr.store.FactStore` keeps.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from view_syncer.cvr.store import UnitFacts
from zerocache.protocol.versions import Watermark

RowKey = str
RESULTS_UNIT = "mutationResults"
"""The unit of the mutation results of all groups; a key is the group's :func:`results_prefix` and
the deletion of one result."""


def results_prefix(group_id: str) -> str:
    return f"{group_id.encode().hex().upper()}:"


T = TypeVar("T")


class Move(msgspec.Struct, frozen=True, array_like=True):
    """Rows that left and then rows that entered a unit, by the advance to ``version``. One that
    ``begins`` says that nobody followed the unit for a while before ``version``: what was known
    of its rows does not lead any further."""

    version: Watermark
    left: list[RowKey]
    entered: list[RowKey]
    begins: bool = False


class Members(msgspec.Struct, frozen=True, array_like=True):
    """All rows of a unit at one version; its moves are complete from ``since`` on."""

    since: Watermark
    keys: list[RowKey]


def pack(value: Members | Sequence[Move]) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(value), 1)


def _unpack(body: bytes, kind: type[T]) -> T:
    return msgspec.msgpack.decode(zlib.decompress(body), type=kind)


@dataclass(frozen=True, slots=True)
class Held:
    """What a client has: rows, and mutation results, each as the operation that deletes it."""

    rows: frozenset[RowKey] = frozenset()
    results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnitHistory:
    """``keys`` are the members at ``version``; ``moves`` are in order."""

    since: Watermark
    version: Watermark
    keys: frozenset[RowKey]
    moves: tuple[Move, ...]

    @classmethod
    def read(cls, facts: UnitFacts) -> UnitHistory | None:
        """None if the members were never written down."""
        if facts.checkpoint is None:
            return None
        members = _unpack(facts.checkpoint.body, Members)
        moves: list[Move] = []
        for delta in facts.deltas:
            moves.extend(_unpack(delta.body, list[Move]))
        moves.sort(key=lambda move: move.version)
        return cls(members.since, facts.checkpoint.version, frozenset(members.keys), tuple(moves))

    def at(self, version: Watermark) -> frozenset[RowKey] | None:
        """The members at ``version``, which must not lie beyond what was written; None if the
        unit was not followed that early, or not all the way."""
        if version < self.since:
            return None
        first, last = sorted((version, self.version))
        between = [move for move in self.moves if first < move.version <= last]
        if any(move.begins for move in between):
            return None
        if version >= self.version:
            return _forwards(self.keys, between)
        return _backwards(self.keys, between)


def _forwards(keys: frozenset[RowKey], moves: Iterable[Move]) -> frozenset[RowKey]:
    members: set[RowKey] | None = None
    for move in moves:
        members = set(keys) if members is None else members
        members.difference_update(move.left)
        members.update(move.entered)
    return keys if members is None else frozenset(members)


def _backwards(keys: frozenset[RowKey], moves: Sequence[Move]) -> frozenset[RowKey]:
    """A key in both lists of a move passed from one row to another: it was there before."""
    members: set[RowKey] | None = None
    for move in reversed(moves):
        members = set(keys) if members is None else members
        members.difference_update(move.entered)
        members.update(move.left)
    return keys if members is None else frozenset(members)
