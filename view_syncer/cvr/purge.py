"""Garbage collection of view records (sync-protocol.md §5.7).

Owns when how many inactive groups are purged. Of all workers of a shard one purges: whoever holds
the lease in the store. Invariant: a group is purged only after it was inactive for the configured
time, and its clients are told to start over as long as anything is left of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

import structlog

from view_syncer.cvr.store import PurgeStore, StoreUnavailable
from zerocache.config import Config

log = structlog.get_logger(__name__)

MAX_INTERVAL_S = 16 * 60.0
MAX_GROWTH = 64
"""A batch is one transaction; it grows up to this many times its first size."""
TOMBSTONE_S = 31 * 86_400.0
SILENT_S = 3600.0
"""A worker that lives writes more often."""
KEPT_AUTHORS = 64
"""Of the authors that fell silent so many are kept, if groups are. Their facts are in the way of
no one; but a worker that crashes in a loop must not fill the store."""


@dataclass(frozen=True, slots=True)
class PurgePolicy:
    """A ``batch_size`` of 0 turns purging off; facts and tombstones go all the same."""

    inactive_s: float
    interval_s: float
    batch_size: int

    @classmethod
    def of(cls, config: Config) -> PurgePolicy:
        cvr = config.cvr
        return cls(
            inactive_s=cvr.garbage_collection_inactivity_threshold_hours * 3600,
            interval_s=cvr.garbage_collection_initial_interval_seconds,
            batch_size=cvr.garbage_collection_initial_batch_size,
        )


class Reaper:
    """One per worker; does nothing while another one holds the lease."""

    def __init__(
        self, store: PurgeStore, policy: PurgePolicy, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._policy, self._clock = store, policy, clock
        self._worker = uuid4().hex
        self.interval_s = policy.interval_s
        self.batch_size = policy.batch_size

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(max(1.0, self.interval_s))
            try:
                await self.step()
            except StoreUnavailable as error:
                log.warning("purge_failed", reason=str(error))

    async def step(self) -> int:
        """Purge one batch, if that is this worker's task; how many groups it was."""
        lease_s = 2 * max(MAX_INTERVAL_S, self.interval_s)
        if not await self._store.claim_purging(self._worker, lease_s):
            self.interval_s = self._policy.interval_s
            return 0
        now = self._clock()
        await self._store.forget_tombstones(now - TOMBSTONE_S)
        await self._store.forget_authors(
            now - self._policy.inactive_s, now - SILENT_S, keep=KEPT_AUTHORS
        )
        if self.batch_size == 0:
            return 0
        purged = await self._store.purge_groups(now - self._policy.inactive_s, self.batch_size)
        if purged:
            log.info("purged", groups=purged, limit=self.batch_size)
        self._adapt(purged)
        return purged

    def _adapt(self, purged: int) -> None:
        """More at once while there is more to do, less often while there is nothing."""
        policy = self._policy
        if purged == 0:
            self.interval_s = max(policy.interval_s, min(2 * self.interval_s, MAX_INTERVAL_S))
            self.batch_size = policy.batch_size
        elif purged < self.batch_size:
            self.interval_s, self.batch_size = policy.interval_s, policy.batch_size
        else:
            self.interval_s = policy.interval_s
            self.batch_size = min(2 * self.batch_size, MAX_GROWTH * policy.batch_size)
