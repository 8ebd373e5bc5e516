"""A fuzz case as plain data: it can be printed, read back, and cut into smaller cases.

Owns the form only; generate.py makes scenarios, check.py judges them, shrink.py cuts them. Any
scenario from which parts were removed is again a scenario.
"""

from __future__ import annotations

import msgspec

from tests.view_syncer.ivm.replica import Change, Row, Table
from view_syncer.ivm.encode import ClientTables, SyncedTable
from zerocache.zql.ast import Query


class Declared(msgspec.Struct, frozen=True):
    """A table as a client schema declares it."""

    columns: tuple[str, ...]
    key: tuple[str, ...]


class Asked(msgspec.Struct, frozen=True):
    """A query of client ``client`` that runs from before step ``since`` to before ``until``;
    ``beside``: hydrated beside the engine, one step earlier."""

    query: Query
    client: int = 0
    since: int = 0
    until: int = 1_000_000
    beside: bool = False

    def alive(self, step: int) -> bool:
        return self.since <= step < self.until


class Scenario(msgspec.Struct, frozen=True):
    """``steps``: what happens between two advances of the engine, as upstream transactions."""

    tables: dict[str, Table]
    clients: tuple[dict[str, Declared], ...]
    rows: dict[str, tuple[Row, ...]]
    queries: tuple[Asked, ...]
    steps: tuple[tuple[tuple[Change, ...], ...], ...]
    rehydrate_early: bool = False

    @property
    def size(self) -> int:
        changes = sum(len(t) for step in self.steps for t in step)
        return changes + sum(map(len, self.rows.values()))


def client_tables(scenario: Scenario, number: int) -> ClientTables:
    declared = scenario.clients[number]
    return ClientTables(
        f"client{number}", {n: SyncedTable(n, d.columns, d.key) for n, d in declared.items()}
    )


def to_json(scenario: Scenario) -> str:
    return msgspec.json.encode(scenario).decode()


def from_json(text: str | bytes) -> Scenario:
    return msgspec.json.decode(text, type=Scenario)
