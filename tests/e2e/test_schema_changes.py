"""Clients live through changes of the schema, or are told that theirs is not supported any more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.cases import CASES, Case
from tests.e2e.client import Client, Driver
from tests.e2e.comparison import Subscriber, follow, left_over
from tests.e2e.lines import Row
from tests.e2e.node import Node
from tests.e2e.upstream import Upstream
from zerocache.replica.pending import load_pending
from zerocache.replica.reader import open_replica

CASE = {case.name: case for case in CASES}
WATCHED = ("issues.withComments", "issues.labelled", "issues.top", "teams.tree")
# None of these takes anything away from the clients' schema.
HARMLESS = (
    ("ALTER TABLE issues ADD COLUMN extra int DEFAULT 7", "UPDATE issues SET title = title || '!'"),
    ("ALTER TABLE comments ADD COLUMN stamp float8 DEFAULT random()", "DELETE FROM comments"
     " WHERE id = 'c5'"),
    ("UPDATE issues SET rank = 3", "CREATE TABLE unrelated AS SELECT * FROM issues",
     "INSERT INTO labels VALUES ('l9', 'bug')"),
    ("CREATE INDEX by_rank ON issues (rank DESC, title)", "UPDATE issues SET rank = length(title)"),
    ("ALTER TABLE issues ALTER rank TYPE bigint",),
    ("ALTER TABLE issues ALTER rank TYPE numeric USING rank * 2 + 0.5",),
    ("ALTER TABLE comments ALTER body TYPE varchar(200) USING upper(body)",),
    # No type changes here, only values, which are not in the stream.
    ("ALTER TABLE issues ALTER title TYPE text USING upper(title) || '?'",),
    ("UPDATE issues SET title = lower(title)",
     "ALTER TABLE issues ALTER title TYPE text USING title || 'x', ALTER open TYPE bool"
     " USING NOT open", "UPDATE issues SET title = title || 'y' WHERE open"),
    # The column for which rows are read again is gone before they are.
    ("ALTER TABLE issues ADD brief text DEFAULT md5(random()::text)",
     "ALTER TABLE issues ALTER title TYPE text USING title || 'z'",
     "ALTER TABLE issues DROP brief"),
    # No client sees the column for which rows are read again.
    ("ALTER TABLE issues ADD span interval DEFAULT random() * interval '1 day'",
     "ALTER TABLE issues ALTER title TYPE text USING title || 'w'"),
    ("ALTER TABLE issues DROP span",),
    ("DO $$ BEGIN ALTER TABLE comments ALTER body TYPE varchar(200) USING reverse(body); END $$",),
    ("ALTER TABLE comments ALTER likes DROP NOT NULL", "ALTER TABLE teams ADD UNIQUE (name)"),
    ("UPDATE issues SET extra = 9", "ALTER TABLE issues DROP COLUMN extra",
     "UPDATE issues SET open = NOT open"),
    ("DROP INDEX by_rank", "ALTER TABLE unrelated RENAME TO other", "DROP TABLE other"),
)  # fmt: skip
# What a client finds missing, and how it comes back.
BREAKING = (
    ("ALTER TABLE labels RENAME name TO title", "ALTER TABLE labels RENAME title TO name",
     '"labels"'),
    ("ALTER TABLE labels RENAME TO tags", "ALTER TABLE tags RENAME TO labels", '"labels"'),
    ("ALTER TABLE comments ALTER likes TYPE text",
     "ALTER TABLE comments ALTER likes TYPE int USING likes::int", '"likes"'),
    ("ALTER TABLE teams DROP CONSTRAINT teams_pkey", "ALTER TABLE teams ADD PRIMARY KEY (id)",
     '"teams"'),
    ("ALTER TABLE issues DROP COLUMN meta",
     "ALTER TABLE issues ADD COLUMN meta jsonb DEFAULT to_jsonb(random())", '"meta"'),
)  # fmt: skip


@pytest.fixture
def subscribers(
    drivers: dict[str, Driver], upstream: Upstream, node: Node
) -> Iterator[list[Subscriber]]:
    opened = [
        Subscriber.open(driver, node.url, CASE[name])
        for driver in drivers.values()
        for name in WATCHED
    ]
    for subscriber in opened:
        subscriber.wait_first(upstream)
    yield opened
    for subscriber in opened:
        subscriber.client.close()


def test_clients_follow_changes_that_leave_their_schema_alone(
    subscribers: list[Subscriber], upstream: Upstream
) -> None:
    for statements in HARMLESS:
        beat = upstream.write(*statements)
        assert not follow(subscribers, upstream, beat, deadline_s=20), statements
    for subscriber in subscribers:
        assert not left_over(subscriber.client, [subscriber.case], upstream)
        assert subscriber.client.notices == [], "the client had to ask for a reload"


def _asked_to_reload(client: Client) -> Row:
    """Why the client wants its page to be reloaded; waits until it does."""
    reported = client.driver.reported(client.name)
    return client.driver.wait(
        lambda: next((n for n in reported.notices if n["event"] == "updateNeeded"), None),
        f"{client.name} asking for an update",
        20,
    )


def _is_replicated(node: Node, beat: int) -> bool:
    with contextlib.closing(open_replica(node.directory / "replica.db")) as replica:
        ((present,),) = replica.execute("SELECT n FROM beat").fetchall()
        assert isinstance(present, int)
        return present >= beat and not load_pending(replica)


def _knows(subscriber: Subscriber, beat: int) -> bool | None:
    newest = subscriber.beat.reports[-1:]
    shown = [row["n"] for report in newest for row in report["data"]]
    return bool(subscriber.client.notices) or max(shown, default=0) >= beat or None


def _reloaded(driver: Driver, node: Node, case: Case, beat: int) -> Subscriber:
    """A client that shows ``beat``; its page is reloaded as long as it asks for that."""
    while not _is_replicated(node, beat):
        threading.Event().wait(0.02)
    while True:
        subscriber = Subscriber.open(driver, node.url, case)
        client = subscriber.client
        driver.wait(partial(_knows, subscriber, beat), "an answer", 30)
        if not client.notices:
            return subscriber
        client.close()


@pytest.mark.parametrize(("broken", "mended", "named"), BREAKING)
def test_clients_whose_schema_breaks_are_told_so_and_new_ones_come_back(
    driver: Driver, upstream: Upstream, node: Node, broken: str, mended: str, named: str
) -> None:
    case = CASE["issues.withComments"]
    before = Subscriber.open(driver, node.url, case)
    before.wait_first(upstream)
    upstream.write(broken)
    reason = _asked_to_reload(before.client)["reason"]
    assert reason["type"] == "SchemaVersionNotSupported"
    late = driver.open(node.url)
    late.view("beat")
    assert _asked_to_reload(late)["reason"]["type"] == "SchemaVersionNotSupported"
    before.client.close()
    late.close()
    assert named.strip('"') in node.log.read_text()
    upstream.write(mended)
    after = _reloaded(driver, node, case, upstream.beat)
    after.view.wait_answer(upstream.answer(case.answer), deadline_s=30)
    after.client.close()
