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

    @classmethod
    def forgotten(cls, author: str) -> Self:
        return cls(
            f"the facts of author {author!r} are gone: it was silent for too long, and no client "
            "group named it; all of them must be written again"
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
    """``checkpoint`` replaces the author's one of this unit; ``delta`` is kept beside the others.
    One of the same version is replaced."""

    unit: str
    checkpoint: Checkpoint | None = None
    delta: Delta | None = None


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
      for an hour and that no group names is forgotten. Its next write then fails.
    """

    async def write_facts(
        self, author: str, complete_to: Watermark, writes: Sequence[UnitWrite]
    ) -> None:
        """All of ``writes`` and the author's ``complete_to``, or nothing."""

    async def read_facts(self, author: str, units: Collection[str]) -> StoredFacts:
        """What ``author`` wrote of ``units``, as of one moment."""

    async def drop_facts(self, author: str, units: Collection[str]) -> None:
        """Forget all that ``author`` wrote of ``units``."""


class PurgeStore(Protocol):
    """What garbage collection does (sync-protocol.md §5.7). Times are Unix seconds."""

    async def claim_purging(self, worker: str, lease_s: float) -> bool:
        """Whether for the next ``lease_s`` it is ``worker``, and no other, that purges."""

    async def purge_groups(self, inactive_since_s: float, limit: int) -> int:
        """Turn at most ``limit`` groups into tombstones, those inactive longest first; how many
        there were. Records that are being written are passed over."""

    async def forget(self, tombstones_before_s: float, authors_before_s: float) -> None:
        """Delete tombstones made before, and authors inactive since, unless a group names them
        as issuer, with their facts."""


class Store(RecordStore, FactStore, PurgeStore, Protocol):
    """Everything a store does."""
