"""Comparing what a client shows and stores with what PostgreSQL says.

Owns the two checks every scenario makes: the view is right, and nothing is left over. Never
derives an expectation from the client or the server under test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.e2e.cases import Case
from tests.e2e.client import Client, Driver, View
from tests.e2e.lines import Row
from tests.e2e.upstream import Upstream


@dataclass(frozen=True)
class Subscriber:
    """A client with one query and a view of the clock."""

    client: Client
    case: Case
    view: View
    beat: View

    @classmethod
    def open(cls, driver: Driver, server: str, case: Case, **options: Any) -> Subscriber:
        client = driver.open(server, **options)
        return cls(client, case, client.view(case.name, case.args), client.view("beat"))

    def wait_beat(self, beat: int, *, deadline_s: float = 10.0) -> None:
        """Wait until this client has applied the write that returned ``beat``."""
        self.beat.wait(
            lambda report: any(row["n"] >= beat for row in report["data"]),
            f"beat {beat}",
            deadline_s=deadline_s,
        )

    def shown(self) -> Any:
        """What the view shows now, together with the clock: both come from one poke."""
        return self.client.snapshot()[self.view.name]["data"]

    def wait_first(self, upstream: Upstream) -> None:
        """Wait until the query is complete and shows PostgreSQL's answer for the first time."""
        self.view.wait_answer(upstream.answer(self.case.answer))
        self.wait_beat(upstream.beat)


def follow(
    subscribers: Iterable[Subscriber], upstream: Upstream, beat: int, *, deadline_s: float = 10.0
) -> list[str]:
    """Wait for ``beat`` everywhere; a line for every view that then differs from PostgreSQL."""
    wrong = []
    for subscriber in subscribers:
        subscriber.wait_beat(beat, deadline_s=deadline_s)
        shown, expected = subscriber.shown(), upstream.answer(subscriber.case.answer)
        if shown != expected:
            wrong.append(
                f"{subscriber.case} on {subscriber.client.driver.version}:"
                f"\n  shows    {shown}\n  expected {expected}"
            )
    return wrong


def left_over(client: Client, cases: Iterable[Case], upstream: Upstream) -> list[str]:
    """A line for every stored row that no query of ``cases`` accounts for, or that is outdated."""
    wanted: dict[str, list[Row]] = {"beat": upstream.answer("SELECT jsonb_agg(b) FROM beat b")}
    for case in cases:
        _collect(upstream.answer(case.answer), case.table, case, wanted)
        for table, query in case.also.items():
            wanted.setdefault(table, []).extend(upstream.answer(query))
    return [
        f"{table} {row} is stored by {client.driver.version}, but no query needs it"
        for table, rows in client.rows().items()
        for row in rows
        if row not in wanted.get(table, [])
    ]


def _collect(node: Any, table: str, case: Case, found: dict[str, list[Row]]) -> None:
    if isinstance(node, list):
        for row in node:
            _collect(row, table, case, found)
    elif node is not None:
        own = {key: value for key, value in node.items() if key not in case.relationships}
        found.setdefault(table, []).append(own)
        for name, child in case.relationships.items():
            _collect(node.get(name), child, case, found)
