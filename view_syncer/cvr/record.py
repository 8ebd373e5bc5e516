"""The record of one client group: clients, desired queries, got queries, and its version.

Pure state and the rules that move it (sync-protocol.md §4.3-4.5); no I/O. Every method that
changes what clients see notes it in a :class:`ConfigChange`, from which the caller makes one
version bump, one flush and one poke. Rows are not in here: they belong to queries.

Several servers may serve a group, each with the record as it read it. One that another overtook
goes on telling its clients the truth about the queries it knows, and fails when it has something
to write: its clients then come back and hear of the others' changes. It does not look before,
because each look could only end in taking the group over, which the other would notice in turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.messages import ClearQueries, DeleteQuery, PutQuery, QueryOp
from zerocache.protocol.versions import NEVER, NO_STATE, NOBODY, ViewVersion, Watermark

DEFAULT_TTL_MS = 300_000.0
MAX_TTL_MS = 600_000.0

MAX_TAKEOVERS = 32
"""Changes of the server that wrote a record of which it knows. Clients of before start over."""

ClientId = str
QueryHash = str


def clamp_ttl(ttl_ms: float | None) -> float:
    """The TTL that counts: absent means the default, negative ("forever") the maximum."""
    if ttl_ms is None:
        return DEFAULT_TTL_MS
    # Compared first: an integer of any size may have been sent.
    return MAX_TTL_MS if ttl_ms < 0 or ttl_ms >= MAX_TTL_MS else float(ttl_ms)


@dataclass(slots=True)
class Desire:
    """One client's wish for one query. ``inactivated_at_ms`` (on the group's TTL clock) is set
    once the client stopped wanting it; the query then lives on for ``ttl_ms``."""

    ttl_ms: float
    inactivated_at_ms: float | None = None

    @property
    def active(self) -> bool:
        return self.inactivated_at_ms is None

    def expired(self, now_ms: float) -> bool:
        return self.inactivated_at_ms is not None and (
            self.inactivated_at_ms + self.ttl_ms <= now_ms
        )


@dataclass(slots=True)
class QueryRecord:
    """A query of the group: an AST, or a name with arguments (JSON text). ``got_at`` is the
    version of the poke that carried its got put; None while it does not run."""

    ast_json: bytes | None = None
    name: str | None = None
    args_json: bytes | None = None
    got_at: ViewVersion | None = None
    unit: str | None = None

    @property
    def got(self) -> bool:
        return self.got_at is not None


@dataclass(slots=True)
class ConfigChange:
    """What a request changed: the desired patches to poke, and the rows a store must write."""

    desired: dict[ClientId, list[tuple[str, QueryHash]]] = field(default_factory=dict)
    clients: set[ClientId] = field(default_factory=set)
    desires: set[tuple[ClientId, QueryHash]] = field(default_factory=set)
    queries: set[QueryHash] = field(default_factory=set)
    bump: bool = False
    meta: bool = False

    def __bool__(self) -> bool:
        return bool(self.bump or self.meta or self.clients or self.desires or self.queries)

    def include(self, earlier: ConfigChange) -> None:
        """Have the effect of both, ``earlier`` first."""
        desired = {client: [*patches] for client, patches in earlier.desired.items()}
        for client, patches in self.desired.items():
            desired.setdefault(client, []).extend(patches)
        self.desired = desired
        self.clients |= earlier.clients
        self.desires |= earlier.desires
        self.queries |= earlier.queries
        self.bump |= earlier.bump
        self.meta |= earlier.meta

    def note(self, client: ClientId, op: str, query: QueryHash) -> None:
        self.desired.setdefault(client, []).append((op, query))
        self.desires.add((client, query))
        self.bump = True


@dataclass(slots=True)
class GroupRecord:
    """Everything durable about a client group.

    ``version`` is the newest one ever promised by a *config* change; data advances move the
    group's version further without writing here (the replica proves them).

    Clients below ``provable_from`` cannot be caught up by differences. ``takeovers``: from which
    version on who wrote it, each entry another author than the one before; ``NOBODY`` from where a
    new copy of upstream (``replica_version``) begins until somebody writes with it. A ``deleted``
    record was purged: its clients start over.
    """

    group_id: str
    version: ViewVersion = NEVER
    exists: bool = False
    deleted: bool = False
    client_schema: ClientSchema | None = None
    profile_id: str | None = None
    replica_version: Watermark | None = None
    ttl_clock_ms: float = 0.0
    provable_from: ViewVersion = NEVER
    takeovers: list[tuple[ViewVersion, int]] = field(default_factory=list)
    clients: set[ClientId] = field(default_factory=set)
    queries: dict[QueryHash, QueryRecord] = field(default_factory=dict)
    desires: dict[tuple[ClientId, QueryHash], Desire] = field(default_factory=dict)

    def note_author(self, author: int, version: ViewVersion, read_at: ViewVersion = NEVER) -> None:
        """``author`` writes the record at ``version``. It read it at ``read_at``: an author that
        has written it before may have issued cookies up to there without knowing it."""
        authors = [earlier for _, earlier in self.takeovers]
        if authors[-1:] == [author]:
            return
        if author in authors or len(authors) == MAX_TAKEOVERS:
            version = max(version, read_at)
        self.takeovers = [*self.takeovers, (version, author)][-MAX_TAKEOVERS:]

    def enter_generation(self, replica_version: Watermark) -> bool:
        """The group is served from this copy of upstream from now on; whether that is news. To be
        saved with a version of that copy."""
        if self.replica_version == replica_version:
            return False
        if self.replica_version is not None:
            begins = ViewVersion(replica_version)
            self.takeovers = [*self.takeovers, (begins, NOBODY)][-MAX_TAKEOVERS:]
        self.replica_version = replica_version
        return True

    def was_known_at(self, cookie: ViewVersion) -> bool:
        """Whether the server that issued ``cookie`` knew what the record said of that version.
        Servers do not look at the record for changes of data; one that goes on issuing cookies
        after another has written the record may have other queries in mind. And what was issued
        before the group was served from its present copy of upstream, but is newer than that, may
        be of an upstream that was restored to the past since."""
        if cookie.state == NO_STATE:
            return True  # without rows
        author = self._author_at(cookie)
        if cookie.issuer == NOBODY:
            return author != NOBODY  # a version of the record itself
        return author == cookie.issuer

    def _author_at(self, version: ViewVersion) -> int | None:
        authors = [author for first, author in self.takeovers if first <= version]
        return authors[-1] if authors else None

    def add_client(self, client: ClientId, change: ConfigChange) -> None:
        if client not in self.clients:
            self.clients.add(client)
            change.clients.add(client)
            change.bump = True

    def apply_query_ops(
        self, client: ClientId, ops: Iterable[QueryOp], now_ms: float, change: ConfigChange
    ) -> None:
        """All of ``ops``, or none: ``ValueError`` if one of them cannot be."""
        ops = list(ops)
        self.check_query_ops(ops)
        for op in ops:
            match op:
                case PutQuery():
                    self._put(client, op, change)
                case DeleteQuery(hash=query):
                    self._del(client, query, now_ms, change)
                case ClearQueries():
                    self._clear(client, change)

    def check_query_ops(self, ops: Iterable[QueryOp]) -> None:
        """``ValueError`` if a query is wanted that nobody ever defined."""
        known = {*INTERNAL_HASHES, *self.queries}
        for op in ops:
            if isinstance(op, PutQuery) and op.hash not in known:
                if not op.is_defined:
                    raise ValueError(
                        f"query {op.hash!r} is new to the client group but has neither an AST nor "
                        "a name with arguments"
                    )
                known.add(op.hash)

    def delete_client(self, client: ClientId, now_ms: float, change: ConfigChange) -> None:
        """Its desires become inactive and its record goes; unknown clients are fine."""
        for owner, query in list(self.desires):
            if owner == client and self.desires[owner, query].active:
                self._del(client, query, now_ms, change)
        if client in self.clients:
            self.clients.discard(client)
            change.clients.add(client)

    def live_queries(self, now_ms: float) -> set[QueryHash]:
        """Queries some client wants, or wanted recently enough."""
        return {query for (_, query), desire in self.desires.items() if not desire.expired(now_ms)}

    def next_expiry_ms(self) -> float | None:
        """When, on the TTL clock, the next query may expire. One without any desire has."""
        last: dict[QueryHash, float] = dict.fromkeys(self.queries, 0.0)
        for (_, query), desire in self.desires.items():
            end = float("inf")
            if desire.inactivated_at_ms is not None:
                end = desire.inactivated_at_ms + desire.ttl_ms
            last[query] = max(last.get(query, 0.0), end)
        ends = [end for end in last.values() if end != float("inf")]
        return min(ends, default=None)

    def drop_query(self, query: QueryHash, change: ConfigChange) -> None:
        """Forget an expired query and all desires for it."""
        if self.queries.pop(query, None) is not None:
            change.queries.add(query)
        for key in [key for key in self.desires if key[1] == query]:
            del self.desires[key]
            change.desires.add(key)

    def prune(self, now_ms: float, change: ConfigChange) -> None:
        """Forget desires that ran out while another client keeps their query alive: every reload
        of a page leaves some behind."""
        for key in [key for key, desire in self.desires.items() if desire.expired(now_ms)]:
            del self.desires[key]
            change.desires.add(key)

    def desired_of(self, query: QueryHash) -> set[ClientId]:
        return {client for client, wanted in self.desires if wanted == query}

    def active_desires(self) -> dict[ClientId, list[QueryHash]]:
        found: dict[ClientId, list[QueryHash]] = {}
        for (client, query), desire in self.desires.items():
            if desire.active:
                found.setdefault(client, []).append(query)
        return found

    def _put(self, client: ClientId, op: PutQuery, change: ConfigChange) -> None:
        if op.hash in INTERNAL_HASHES:
            return
        if op.hash not in self.queries:
            self.queries[op.hash] = _query_record(op)
            change.queries.add(op.hash)
        ttl = clamp_ttl(op.ttl_ms)
        desire = self.desires.get((client, op.hash))
        if desire is not None and desire.active and ttl <= desire.ttl_ms:
            return
        # It may have been deleted by another one while it stayed connected.
        self.add_client(client, change)
        self.desires[client, op.hash] = Desire(ttl)
        change.note(client, "put", op.hash)

    def _del(self, client: ClientId, query: QueryHash, now_ms: float, change: ConfigChange) -> None:
        desire = self.desires.get((client, query))
        if desire is None or not desire.active:
            # Echoed all the same, or the client would repeat it at every reconnect (§9.18).
            change.desired.setdefault(client, []).append(("del", query))
            change.bump = True
            return
        desire.inactivated_at_ms = now_ms
        change.note(client, "del", query)

    def _clear(self, client: ClientId, change: ConfigChange) -> None:
        for owner, query in list(self.desires):
            if owner == client:
                del self.desires[owner, query]
                change.note(client, "del", query)


INTERNAL_HASHES = frozenset({"lmids", "mutationResults"})


def _query_record(op: PutQuery) -> QueryRecord:
    if op.ast_json is not None:
        return QueryRecord(ast_json=op.ast_json)
    return QueryRecord(name=op.name, args_json=msgspec.json.encode(op.args))
