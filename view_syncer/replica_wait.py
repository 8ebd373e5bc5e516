"""Clients that know more than this server's replica: another server, with a newer one, told them.

Owns how long they wait, and what they hear when the replica has not come that far by then. A state
of this replica's own generation will be reached, so whoever is there comes back later and keeps
all it has: a client that is told to start over loses the mutations that it has not sent yet.

Two copies of one upstream have the same states from the younger one on, unless upstream was
restored to the past in between; the numbers do not tell. What a client was told from another copy,
and that is newer than this one, is therefore believed to have happened, but proves no row.
"""

from __future__ import annotations

from view_syncer.engine_host import EngineHost
from view_syncer.queries import QuerySource
from zerocache.errors import ClientFacingError
from zerocache.protocol.versions import ViewVersion, Watermark

REPLICA_WAIT_S = 10.0
"""How long a client is kept that may be served soon. It is connected, and waits for its pokes."""
BEHIND_MIN_BACKOFF_MS = 5000
BEHIND_MAX_BACKOFF_MS = 30_000


class ReplicaWait:
    """One per worker. A *generation* names the initial copy a replica stems from; that of a client
    group is the newest one it was served from, None if that is not known."""

    def __init__(self, engine: EngineHost, queries: QuerySource) -> None:
        self._engine = engine
        self._queries = queries
        # Clients that were sent away because the replica is behind, since the worker started.
        self.sent_away = 0

    async def wait(self, version: ViewVersion) -> None:
        """For a replica that has ``version``, or until that takes too long."""
        await self._queries.wait_for_version(version.state, REPLICA_WAIT_S)

    async def reach(self, version: ViewVersion, generation: Watermark | None) -> None:
        """:meth:`wait`, then :meth:`require`."""
        if generation is None or generation <= self._engine.state.replica_version:
            await self.wait(version)
        self.require(version, generation)

    def require(self, version: ViewVersion, generation: Watermark | None) -> None:
        """Raise ``ServerOverloaded`` if ``version``, which a group of that ``generation`` was told,
        is yet to come, and ``ClientNotFound`` if it is not known that it ever will."""
        replica = self._engine.state
        own = replica.replica_version
        if generation is not None and generation > own:
            raise self._unknown(version)
        if replica.version >= version.state:
            return
        if generation != own:
            raise self._unknown(version)
        self.sent_away += 1
        raise ClientFacingError(
            "ServerOverloaded",
            f"This server's replica is at {replica.version} and has not reached "
            f"{version.cookie()}, which another server sent; come back later.",
            minBackoffMs=BEHIND_MIN_BACKOFF_MS,
            maxBackoffMs=BEHIND_MAX_BACKOFF_MS,
        )

    def is_of_another_copy(self, version: ViewVersion, generation: Watermark | None) -> bool:
        """Whether what a group of that ``generation`` was told at ``version`` may be the history
        of an upstream that lost it."""
        own = self._engine.state.replica_version
        return generation not in (None, own) and version.state >= own

    def _unknown(self, version: ViewVersion) -> ClientFacingError:
        return ClientFacingError(
            "ClientNotFound",
            f"{version.cookie()} is a state that this server's replica, made at "
            f"{self._engine.state.replica_version}, does not have; start a new client group.",
        )
