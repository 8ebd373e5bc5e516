"""Where view records live: the interfaces every store implements.

Durability contract (sync-protocol.md §5.1.4): when a method that writes returns, a server that
reads later sees the change, whatever happens to this one. Concurrency contract: a record is saved
only if the stored version is still the one it was loaded or last saved with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, Self

import msgspec

from view_syncer.cvr.record import ConfigChange, GroupRecord
from zerocache.errors import ZerocacheError
from zerocache.protocol.versions import ViewVersion, Watermark


class ConcurrentModification(ZerocacheError):
    """Another server changed the record since this one read it."""

    code = "ZC530"

    @classmethod
    def of(cls, group_id: str, expected: ViewVersion) -> Self:
        return cls(
            f"client group {group_id!r} is no longer at version {expected.cookie()}: another "
            "server changed it; its clients must reconnect"
        )


class StoreUnavailable(ZerocacheError):
    """The store failed; whether the last change was written is unknown."""

    code = "ZC540"


class AuthorForgotten(StoreUnavailable):
    """The author was silent for too long, and what it wrote is gone."""

    @classmethod
    def of(cls, author: int) -> Self:
        return cls(
            f"author {author} of membership facts is unknown to the store of the view records: it "
            "was silent for too long"
        )


class RecordStore(Protocol):
    async def open(self) -> None:
        """Create or migrate the tables; ``ConfigurationError`` if that is not possible."""

    async def close(self) -> None: ...

    async def load(self, group_id: str) -> GroupRecord:
        """The record, or a fresh one (``exists`` False) if the group is unknown."""

    async def save(self, record: GroupRecord, change: ConfigChange, expected: ViewVersion) -> None:
        """Write ``change`` and the record's version atomically;
        :class:`ConcurrentModification` if the stored version is not ``expected``. After any
        failure the caller must load the record anew."""

    async def touch(self, group_id: str, ttl_clock_ms: float) -> None:
        """Note that the group is alive and how far its TTL clock is; that never goes back."""


class Checkpoint(msgspec.Struct, frozen=True):
    """All there is to know of a unit at ``version``."""

    version: Watermark
    body: bytes


class Delta(msgspec.Struct, frozen=True):
    """What happened to a unit up to ``version``, the newest one that occurs in it."""

    version: Watermark
    body: bytes


class UnitWrite(msgspec.Struct, frozen=True):
    """``checkpoint`` replaces the author's one of this unit; ``delta`` is kept beside the others,
    except those below ``drop_before``. One of the same version is replaced."""

    unit: str
    checkpoint: Checkpoint | None = None
    delta: Delta | None = None
    drop_before: Watermark | None = None


class UnitFacts(msgspec.Struct, frozen=True):
    """``deltas`` in the order of their versions."""

    checkpoint: Checkpoint | None
    deltas: list[Delta]


class StoredFacts(msgspec.Struct, frozen=True):
    """``complete_to`` is None if the author is unknown. Units without any facts are left out."""

    complete_to: Watermark | None
    units: Mapping[str, UnitFacts]


class FactStore(Protocol):
    """Facts about units (queries as the engine runs them), by the author that wrote them: one
    life of one worker. Bodies mean nothing here.

    * An author writes one thing at a time, and after a failure cannot know what is stored.
    * It writes at least every few minutes, if only its ``complete_to``: an author that was silent
      for long is forgotten.
    """

    async def new_author(self) -> int:
        """A number from 1 on, larger than any that was given out before."""

    async def write_facts(
        self, author: int, complete_to: Watermark, writes: Sequence[UnitWrite]
    ) -> None:
        """All of ``writes`` and the author's ``complete_to``, or nothing; :class:`AuthorForgotten`
        if there is no such author (any more)."""

    async def read_facts(self, author: int, units: Collection[str]) -> StoredFacts:
        """What ``author`` wrote of ``units``, as of one moment."""

    async def drop_facts(self, author: int, units: Collection[str]) -> None:
        """Forget all that ``author`` wrote of ``units``."""


class PurgeStore(Protocol):
    """What garbage collection does (sync-protocol.md §5.7). Times are Unix seconds."""

    async def claim_purging(self, worker: str, lease_s: float) -> bool:
        """Whether for the next ``lease_s`` it is ``worker``, and no other, that purges."""

    async def purge_groups(self, inactive_since_s: float, limit: int) -> int:
        """Turn at most ``limit`` groups into tombstones, those inactive longest first; how many
        there were. Records that are being written are passed over."""

    async def forget_tombstones(self, before_s: float) -> None:
        """Delete those of groups that were purged before."""

    async def forget_authors(
        self, inactive_since_s: float, silent_since_s: float, keep: int
    ) -> None:
        """Delete with their facts the authors that did not write since ``inactive_since_s``, and
        of those that did not since ``silent_since_s`` all but the newest ``keep``. One that wrote
        later is never deleted."""


class Store(RecordStore, FactStore, PurgeStore, Protocol):
    """Everything a store does."""
