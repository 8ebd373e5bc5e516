"""The connections of one client group: who may hear of its data, and how far each has heard.

Owns the group's present version and its recent pokes. Never does I/O but :meth:`Client.send`,
which does not block. A client that does not keep up (:attr:`Client.clogged`) is passed over: it
stays where it is, nothing is queued for it, and once it has drained it gets one poke for all that
it missed. Invariants: only an *admitted* connection is sent anything of the group; the pokes of
one connection form a chain; the version only ever grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from view_syncer import wire
from view_syncer.coalesce import RowKeys
from view_syncer.context import ConnectionContext
from view_syncer.poke import History, PokeBody, merge
from zerocache.errors import ClientFacingError
from zerocache.protocol.versions import NEVER, ViewVersion

BINARY_POKES_SINCE = 52


class Client(Protocol):
    """What a group needs of a connection.

    * ``base`` is the version of the last poke sent (initially the one the client came with, None
      for nothing); the audience advances it;
    * ``greeted`` is set with the first poke, ``admitted`` once the connection passed every check;
    * ``clogged`` while more waits for it than a client that reads would leave; when that ends it
      asks for what it missed;
    * ``validated_s`` is when (loop time) its credentials were last found good;
    * ``send`` takes runs of whole frames and must not block; ``fail`` ends the connection,
      and with it the admission.
    """

    client_id: str
    user_id: str | None
    version: int
    profile_id: str
    base: ViewVersion | None
    greeted: bool
    admitted: bool
    validated_s: float
    context: ConnectionContext

    @property
    def clogged(self) -> bool: ...
    def send(self, runs: Sequence[bytes]) -> None: ...
    def fail(self, error: ClientFacingError) -> None: ...
    def close(self) -> None: ...


class Audience:
    """See the module docstring."""

    def __init__(self) -> None:
        # In order of arrival, the newest last.
        self.clients: dict[str, Client] = {}
        self.version = NEVER
        # What names rows to clients, once that is known.
        self.row_keys: RowKeys = {}
        self._history = History()

    # -- who is there ----------------------------------------------------------------------------

    def join(self, client: Client) -> Client | None:
        """Register a connection; returns the one of the same client that it replaces."""
        replaced = self.clients.pop(client.client_id, None)
        self.clients[client.client_id] = client
        return replaced

    def leave(self, client: Client) -> None:
        if self.has(client):
            del self.clients[client.client_id]

    def has(self, client: Client) -> bool:
        """Whether this is (still) the connection of its client."""
        return self.clients.get(client.client_id) is client

    def admitted(self) -> list[Client]:
        return [client for client in self.clients.values() if client.admitted]

    def newest(self) -> Client | None:
        return next(reversed(self.admitted()), None)

    # -- what they hear --------------------------------------------------------------------------

    def restart(self, version: ViewVersion) -> None:
        """Be at ``version``; what leads there from any other is not known."""
        self.version = version
        self._history.restart(version)

    def emit(self, *bodies: PokeBody, first: bool = False) -> None:
        """Make each of ``bodies`` in turn the group's newest state and send them to those that are
        current. ``first`` if nobody had any rows before."""
        current = [client for client in self.clients.values() if self._is_current(client)]
        for body in bodies:
            if body.version <= self.version:
                raise AssertionError(f"version {body.version} does not follow {self.version}")
            self.version = body.version
            self._history.add(body, first=first)
        for client in current:
            self.send(client, *bodies)

    def _is_current(self, client: Client) -> bool:
        return client.admitted and (client.base or NEVER) == self.version and not client.clogged

    def send(self, client: Client, *bodies: PokeBody) -> None:
        """``bodies`` in a row, of which the first follows what the client has."""
        runs: list[bytes] = []
        for body in bodies:
            runs += body.poke(client.base, client.version >= BINARY_POKES_SINCE)
            client.base = body.version
        client.send(runs)
        client.greeted = True

    def catch_up(self) -> list[Client]:
        """Bring everybody to the present version as far as recent pokes lead there; returns those
        they do not reach."""
        return [client for client in self.admitted() if not self.catch_up_one(client)]

    def catch_up_one(self, client: Client) -> bool:
        """The same for one; False if recent pokes do not lead from where it is to the present.
        One that is clogged is left for later: it asks when it has drained. The first poke of a
        connection is sent even if it is empty (§3.6)."""
        if client.clogged:
            return True
        base = client.base or NEVER
        if base == self.version:
            if not client.greeted:
                self.send(client, PokeBody(self.version))
            return True
        bodies = self._history.since(base)
        if bodies is None:
            return False
        if len(bodies) == 1:
            self.send(client, bodies[0])
        else:
            self.send(client, merge(self.version, bodies, self.row_keys))
        return True

    def tell(self, frame: bytes) -> None:
        """A message that belongs to no poke, to everybody."""
        run = wire.text(frame)
        for client in self.admitted():
            client.send([run])

    def tell_one(self, client: Client, frame: bytes) -> None:
        client.send([wire.text(frame)])

    def fail(self, error: ClientFacingError) -> None:
        for client in list(self.clients.values()):
            client.fail(error)
