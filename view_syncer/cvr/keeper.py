"""One group's record in the hands of the object that serves the group.

Owns what the store has of the record, and the group's TTL clock. Invariant: a save finds in the
store what this object last left there, or fails; after a failed save the keeper is of no use any
more.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from view_syncer.cvr.record import ConfigChange, GroupRecord
from view_syncer.cvr.store import ConcurrentModification, RecordStore, StoreUnavailable
from view_syncer.ttl_clock import TtlClock
from zerocache.protocol.versions import NEVER, ViewVersion, Watermark

log = structlog.get_logger(__name__)


class RecordKeeper:
    """See the module docstring. Until :meth:`load` has returned the record is empty."""

    def __init__(self, group_id: str, store: RecordStore, author: int) -> None:
        self._store = store
        self._author = author
        self.record = GroupRecord(group_id)
        self.clock = TtlClock(asyncio.get_running_loop().time)
        # The version the store has; a save must find it there.
        self._stored = NEVER
        self._read_at = NEVER

    def note_read(self, state: Watermark) -> None:
        """The record was loaded before the replica got further than ``state``."""
        first = ViewVersion.of_issuer(self._author, state)
        self._read_at = replace(first, config=first.config + 1)

    async def load(self) -> GroupRecord:
        self.record = record = await self._store.load(self.record.group_id)
        self._stored = record.version
        self.clock.load(record.ttl_clock_ms)
        return record

    async def verify(self) -> None:
        """``ConcurrentModification`` if another server wrote the record since."""
        present = (await self._store.load(self.record.group_id)).version
        if present != self._stored:
            raise ConcurrentModification(
                f"client group {self.record.group_id!r} is at {present.cookie()} now and no longer "
                f"at {self._stored.cookie()}: another server changed it"
            )

    async def save(self, change: ConfigChange, version: ViewVersion) -> None:
        """``ConcurrentModification`` if another server wrote the record since."""
        record = self.record
        record.version = version
        record.ttl_clock_ms = self.clock.now_ms()
        record.note_author(self._author, version, self._read_at)
        await self._store.save(record, change, self._stored)
        self._stored = version
        self.clock.saved_ms = record.ttl_clock_ms

    async def touch(self) -> None:
        """Write down how far the TTL clock is. A failure costs queries nothing but a longer life;
        so it is only logged."""
        now_ms = self.clock.now_ms()
        if not self.record.exists or now_ms == self.clock.saved_ms:
            return
        try:
            await self._store.touch(self.record.group_id, now_ms)
        except StoreUnavailable as error:
            log.warning("touch_failed", clientGroupID=self.record.group_id, reason=str(error))
        else:
            self.clock.saved_ms = now_ms
