"""Where group records live: the interface every store implements.

Durability contract (sync-protocol.md §5.1.4): when :meth:`RecordStore.save` returns, a server that
loads the record later sees the change. Concurrency contract: a save succeeds only if the stored
version is still the one the record was loaded or last saved with.
"""

from __future__ import annotations

from typing import Protocol

from view_syncer.cvr.record import ConfigChange, GroupRecord
from zerocache.errors import ZerocacheError
from zerocache.protocol.versions import ViewVersion


class ConcurrentModification(ZerocacheError):
    """Another server changed the record since this one read it."""

    code = "ZC530"


class StoreUnavailable(ZerocacheError):
    """The store failed; whether the last change was written is unknown."""

    code = "ZC540"


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
