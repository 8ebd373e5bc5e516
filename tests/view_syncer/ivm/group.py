"""A client group reduced to its rows: what the engine's patches make of a client's store.

Owns the store and the rule of which deletions reach it (a row another query keeps is not
deleted). Invariant after every step: the store is what a client of that schema would hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from view_syncer.ivm.encode import ClientTables
from view_syncer.ivm.engine import Advance, Engine, Subscription
from view_syncer.ivm.hydration import Hydration, HydrationRequest
from view_syncer.ivm.pipeline import Pipeline
from zerocache.zql.ast import Query

Identity: TypeAlias = tuple[str, str]
"""Table, and the key columns as canonical JSON."""


def to_hydrate(engine: Engine, query: Query, client: ClientTables) -> HydrationRequest:
    """What a hydration beside the engine needs of a query that does not run yet."""
    found = engine.request(query, client)
    assert isinstance(found, HydrationRequest)
    return found


class Group:
    """Queries of one client schema over one engine, and the client's copy of their rows."""

    def __init__(self, engine: Engine, client: ClientTables) -> None:
        self.engine = engine
        self.client = client
        self.queries: dict[str, Subscription] = {}
        self.store: dict[Identity, dict[str, Any]] = {}
        # Operations of the last step, for tests that look at the patches themselves.
        self.last: list[dict[str, Any]] = []

    def add(self, name: str, query: Query, prepared: Hydration | None = None) -> Subscription:
        """Start a query, with what a hydration beside the engine ``prepared`` if there is one."""
        if prepared is not None:
            self.engine.adopt(prepared)
        subscription = self.engine.subscribe(query, self.client)
        self.queries[name] = subscription
        rows = subscription.pipeline.rows()
        ready = [] if prepared is None else [prepared.encoded]
        self._apply([], self.engine.encode_rows(self.client, rows, ready))
        return subscription

    def remove(self, name: str) -> None:
        subscription = self.queries.pop(name)
        kept = [s.pipeline for s in self.queries.values()]
        gone = {
            table: {r for r in rows if not any(p.holds(table, r) for p in kept)}
            for table, rows in subscription.pipeline.rows().items()
        }
        self._apply([t for _, _, t in self.engine.deletions(self.client, gone)], [])
        self.engine.unsubscribe(subscription)

    def receive(self, advance: Advance | None) -> None:
        """Apply what an advance of the engine means for this group."""
        dels: list[str] = []
        puts: list[str] = []
        pipelines = {s.pipeline for s in self.queries.values()}
        for pipeline in pipelines if advance is not None else ():
            assert advance is not None
            assert (pipeline, self.client) not in advance.failed
            patch = advance.patches.get(pipeline, {}).get(self.client)
            if patch is not None:
                dels += [
                    text
                    for table, rowid, text in patch.dels
                    if not any(
                        _keeps(p, table, rowid, advance) for p in pipelines if p is not pipeline
                    )
                ]
                puts += patch.puts
        self._apply(dels, puts)

    def advance(self) -> Advance | None:
        result = self.engine.advance()
        self.receive(result)
        return result

    def _apply(self, dels: list[str], puts: Sequence[str]) -> None:
        self.last = [msgspec.json.decode(text) for text in (*dels, *puts)]
        for op in self.last:
            table = op["tableName"]
            if op["op"] == "del":
                self.store.pop(identity(table, op["id"]), None)
            else:
                key = {c: op["value"][c] for c in self.client.tables[table].key}
                self.store[identity(table, key)] = op["value"]


def identity(table: str, key: dict[str, Any]) -> Identity:
    # 1 and 1.0 are one number on the client.
    plain = {c: int(v) if isinstance(v, float) and v.is_integer() else v for c, v in key.items()}
    return table, msgspec.json.encode(plain, order="sorted").decode()


def _keeps(pipeline: Pipeline, table: str, rowid: int, advance: Advance) -> bool:
    """A row that only just entered does not count: its rowid may have been another row's."""
    if not pipeline.holds(table, rowid):
        return False
    delta = advance.deltas.get(pipeline, {}).get(table)
    return delta is None or rowid not in delta.entered
