"""The clients of the model checker: they come, go, stall and lie in wait for a broken promise.

Owns one :class:`Tab` per client: what its application wants, its local store, and the task that
keeps it connected while it is online. A tab does what the stock client does (sync-protocol.md
§4): it sends differences only, and comes back by itself after a plain close. Whatever the stock
client could not recover from by itself is a :class:`Broken`.
"""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.protocol_client import ConnectionLost, DesiredQuery, ServerError, SyncClient
from benchmarks.sync_messages import Poke
from benchmarks.sync_state import ProtocolViolation, SyncState

_RETRY_S = 0.1
_CONNECT_TIMEOUT_S = 60.0
# Everything else makes the stock client drop its data or stop.
_RETRIED_KINDS = frozenset({"Rehome", "Rebalance"})
# Only where a plan has a reason for it.
_OVERLOADED = "ServerOverloaded"
_SAVED = 6


@dataclass
class Seen:
    """What a client showed after a poke."""

    tab: Tab
    cookie: str
    beat: int
    rows: dict[Any, Any]
    got: frozenset[str]
    last_mutation_ids: dict[str, int]
    results: set[tuple[str, int]]


@dataclass
class Group:
    """``queries`` by hash; ``doubtful``: hashes that some client that nobody hears of may still
    desire; ``saved``: what pages stored at some time, the newest last; ``permitted`` once the
    server has the permissions, without which it shows no row."""

    id: str
    variant: int
    queries: dict[str, DesiredQuery]
    tabs: list[Tab] = field(default_factory=list)
    saved: list[SyncState] = field(default_factory=list)
    doubtful: set[str] = field(default_factory=set)
    made: int = 0
    permitted: bool = False

    def save(self, state: SyncState) -> None:
        self.saved.append(state)
        del self.saved[:-_SAVED]


class ModelClient(SyncClient):
    """One connection of a tab; its first message may also delete."""

    deletes: tuple[str, ...] = ()
    active: tuple[str, ...] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Little is under way to a client that does not read: the rest waits in the server.
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        super().connection_made(transport)

    def _init_body(self) -> dict[str, Any]:
        body = super()._init_body()
        body["desiredQueriesPatch"] += [{"op": "del", "hash": h} for h in self.deletes]
        if self.active is not None:
            body["activeClients"] = list(self.active)
        return body

    def pause(self, paused: bool) -> None:
        """Stop or go on reading."""
        if self._transport is None or self._transport.is_closing():
            return
        if paused and self._transport.is_reading():
            self._transport.pause_reading()
        elif not paused and not self._transport.is_reading():
            self._transport.resume_reading()


class Tab:
    """One client of a group; see the module docstring."""

    def __init__(
        self,
        urls: list[str],
        group: Group,
        state: SyncState,
        version: int,
        on_seen: Callable[[Seen], None],
        on_broken: Callable[[Tab, Exception], None],
        *,
        overload: bool,
    ) -> None:
        group.made += 1
        self.id = f"{group.id}c{group.made}"
        self.group = group
        self.state = state
        self.wanted: set[str] = set()
        self.ever_wanted: set[str] = set()
        self.pokes = 0
        self.connections = 0
        # How often all may come to rest without this one.
        self.away = 0
        # Since the last look: a lost connection may have swallowed changes of queries.
        self.was_interrupted = True
        self.client: ModelClient | None = None
        # The connection that has said all that was wanted when it was made.
        self._live: ModelClient | None = None
        self._urls = urls
        self._version = version
        self._on_seen = on_seen
        self._on_broken = on_broken
        self._retried = _RETRIED_KINDS | ({_OVERLOADED} if overload else set())
        self._send_active = False
        self._keeper: asyncio.Task[None] | None = None

    # -- what happens to it ----------------------------------------------------------------------

    @property
    def online(self) -> bool:
        return self._keeper is not None

    def go_online(self, *, tell_active: bool = False) -> None:
        self.away = 0
        self._send_active |= tell_active
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    async def go_offline(self) -> None:
        keeper, self._keeper = self._keeper, None
        self.was_interrupted = True
        if self.client is not None:
            self.client.close()
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])

    def want(self, put: Iterable[str] = (), delete: Iterable[str] = ()) -> None:
        put, delete = set(put) - self.wanted, set(delete) & self.wanted
        self.wanted = (self.wanted | put) - delete
        self.ever_wanted |= put
        self.send_changes(put, delete)

    def send_changes(self, put: set[str], delete: set[str]) -> None:
        client = self._live
        if client is None or client.failure is not None or not (put or delete):
            return
        client.change_queries([self.group.queries[h] for h in sorted(put)], sorted(delete))

    def reassert(self) -> None:
        """What the next connection would send: changes swallowed by a lost one. Only once, and
        only if there was a lost one: nothing else may swallow any."""
        desired = self.state.desired.get(self.id, set())
        live = self._live is not None and self._live.session.poke_count
        if live and self.was_interrupted and desired != self.wanted:
            self.was_interrupted = False
            self.send_changes(self.wanted - desired, desired - self.wanted)

    def send_delete_clients(self, ids: list[str]) -> bool:
        client = self._live
        if client is None or client.failure is not None:
            return False
        client.send("deleteClients", {"clientIDs": ids})
        return True

    def stall(self, seconds: float) -> None:
        client = self.client
        if client is not None:
            client.pause(True)
            asyncio.get_running_loop().call_later(seconds, client.pause, False)

    def resume(self) -> None:
        if self.client is not None:
            self.client.pause(False)

    def copy_of_state(self) -> SyncState:
        return copy.deepcopy(self.state)

    # -- inside ----------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            try:
                await self._connection()
            except (ConnectionLost, OSError, TimeoutError) as error:
                # After a kill; that it comes back at all is checked when everything is quiet.
                lost: Exception = error
            except ServerError as error:
                lost = error
                if error.kind not in self._retried:
                    self._on_broken(self, error)
                    return
            except ProtocolViolation as error:
                self._on_broken(self, error)
                return
            self.was_interrupted = True
            await asyncio.sleep(0 if isinstance(lost, ServerError) else _RETRY_S)

    async def _connection(self) -> None:
        desired = self.state.desired.get(self.id, set())
        self.connections += 1
        client = ModelClient(
            # One after the other, and tabs of a group not the same at the same time.
            self._urls[(self.connections + self.group.made) % len(self._urls)],
            self.state.schema,
            [self.group.queries[h] for h in sorted(self.wanted - desired)],
            client_id=self.id,
            client_group_id=self.group.id,
            version=self._version,
            state=self.state,
            on_poke=self._poked,
        )
        client.deletes = tuple(sorted(desired - self.wanted))
        if self._send_active:
            client.active = tuple(tab.id for tab in self.group.tabs)
        sent = set(self.wanted)
        self.client = client
        try:
            await client.connect(_CONNECT_TIMEOUT_S)
            self._send_active = False
            self._live = client
            # The application changed its mind while the handshake was under way.
            self.send_changes(self.wanted - sent, sent - self.wanted)
            raise await client.wait_closed(3600)
        finally:
            self._live = None
            client.close()

    def _poked(self, poke: Poke) -> None:
        self.pokes += 1
        self._check_puts(poke)
        beat = self.state.rows.get(("beat", (1,)))
        if beat is not None:
            self._on_seen(self.seen(beat["n"]))
        elif "beat" in self.state.got and self.group.permitted:
            raise ProtocolViolation("the query 'beat' is got, but its only row is not there")
        elif self.state.rows and not self.state.got:
            raise ProtocolViolation(f"{len(self.state.rows)} rows, but no query is got")

    def _check_puts(self, poke: Poke) -> None:
        """Whoever reads along sees more than what is left at the end: no poke may put a row that
        it takes away again, which may be hidden by then."""
        for part in poke.parts:
            for op in part.rows or ():
                table = self.state.schema.tables.get(op.table_name)
                if op.op != "put" or table is None:
                    continue
                assert isinstance(op.value, dict)
                key = op.table_name, tuple(op.value[column] for column in table.primary_key)
                if self.state.rows.get(key) != op.value:
                    raise ProtocolViolation(f"poke {poke.cookie} puts {key} and takes it back")

    def seen(self, beat: int) -> Seen:
        state = self.state
        return Seen(
            self,
            state.cookie or "",
            beat,
            dict(state.rows),
            frozenset(state.got),
            dict(state.last_mutation_ids),
            set(state.mutation_results),
        )
