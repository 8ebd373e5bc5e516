"""Clients that know more than this server's replica: another server, with a newer one, told them.

Owns how long they wait, and what they hear when the replica has not come that far by then. A state
of this replica's own history will be reached, so whoever is there comes back later and keeps all
it has: a client that is told to start over loses the mutations that it has not sent yet. A state
of another history is never reached, whatever its number, and only a new beginning helps.
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
        """:meth:`wait`, then :meth:`require`; who waits in vain is told so at once."""
        self._require_history(version, generation)
        await self.wait(version)
        self.require(version, generation)

    def require(self, version: ViewVersion, generation: Watermark | None) -> None:
        """Raise ``ClientNotFound`` if ``version``, which a group of that ``generation`` was told,
        is of another history than the replica; ``ServerOverloaded`` if it is yet to come."""
        self._require_history(version, generation)
        replica = self._engine.state
        if replica.version >= version.state:
            return
        if generation is None:
            raise self.unknown(version)
        self.sent_away += 1
        raise ClientFacingError(
            "ServerOverloaded",
            f"This server's replica is at {replica.version} and has not reached "
            f"{version.cookie()}, which another server sent; come back later.",
            minBackoffMs=BEHIND_MIN_BACKOFF_MS,
            maxBackoffMs=BEHIND_MAX_BACKOFF_MS,
        )

    def _require_history(self, version: ViewVersion, generation: Watermark | None) -> None:
        """A copy has all that its upstream had told before. What is newer than the copy, and was
        told before the group was ever served from it, its upstream has lost."""
        own = self._engine.state.replica_version
        if generation is None or generation == own:
            return
        if generation > own or version.state > own:
            raise self.unknown(version)

    def unknown(self, version: ViewVersion) -> ClientFacingError:
        return ClientFacingError(
            "ClientNotFound",
            f"{version.cookie()} is a state that this server's replica, made at "
            f"{self._engine.state.replica_version}, does not have; start a new client group.",
        )
