"""Clients come back after the server ended in any way, with no row missing and none left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cases import CASES
from tests.e2e.client import Driver
from tests.e2e.comparison import Subscriber, follow, left_over
from tests.e2e.node import Node
from tests.e2e.upstream import Upstream

CASE = {case.name: case for case in CASES}
WATCHED = (
    "issues.withComments",
    "issues.withLabels",
    "issues.labelled",
    "issues.uncommented",
    "issues.top",
    "teams.tree",
)
# The client waits 5 s before it tries again to reach a server that refused it.
RECONNECT_S = 25.0
WRITES_MEANWHILE = (
    "INSERT INTO issues VALUES ('i7', 'seventh', true, 70, 'p2', 'epoch', NULL)",
    "UPDATE issues SET open = false, title = 'closed' WHERE id = 'i1'",
    "UPDATE issues SET open = true WHERE id = 'i3'",
    "UPDATE issues SET id = 'i9' WHERE id = 'i2'",
    "DELETE FROM issues WHERE id IN ('i4', 'i6')",
    "DELETE FROM comments WHERE id = 'c5'",
    "INSERT INTO comments VALUES ('c6', 'i7', 'six', 2)",
    "DELETE FROM labels WHERE id = 'l2'",
    "UPDATE people SET team_id = 't3' WHERE id = 'p2'",
)


@pytest.fixture(autouse=True)
def running(node: Node) -> None:
    """A test that failed half-way must not take the next one with it."""
    if node.process is None:
        node.start()


@pytest.fixture
def subscribers(
    drivers: dict[str, Driver], upstream: Upstream, node: Node
) -> Iterator[list[Subscriber]]:
    """Clients of every release, all complete; one run of a slow test serves them all."""
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


def assert_all_is_well(subscribers: list[Subscriber], upstream: Upstream) -> None:
    """Everyone catches up, and then follows further writes."""
    assert not follow(subscribers, upstream, upstream.beat, deadline_s=RECONNECT_S)
    for subscriber in subscribers:
        assert not left_over(subscriber.client, [subscriber.case], upstream)
        assert subscriber.client.notices == [], "the client had to ask for a reload"
    beat = upstream.write("UPDATE issues SET open = NOT open, rank = coalesce(rank, 0) + 1")
    assert not follow(subscribers, upstream, beat)


def test_no_row_is_missing_or_left_over_after_kill_9_with_writes_in_between(
    subscribers: list[Subscriber], upstream: Upstream, node: Node
) -> None:
    node.kill9()
    for statement in WRITES_MEANWHILE:
        upstream.write(statement)
    node.start()
    assert_all_is_well(subscribers, upstream)


def test_kill_9_right_after_a_write_loses_nothing(
    subscribers: list[Subscriber], upstream: Upstream, node: Node
) -> None:
    # Killed somewhere between replicating these writes and telling clients.
    for statement in WRITES_MEANWHILE:
        upstream.write(statement)
    node.kill9()
    node.start()
    assert_all_is_well(subscribers, upstream)


def test_orphans_of_a_killed_supervisor_end_and_a_new_node_takes_over(
    subscribers: list[Subscriber], upstream: Upstream, node: Node
) -> None:
    alive = node.kill9_supervisor()
    for orphan in alive:
        orphan.kill()
    assert not alive, f"still running without their supervisor: {alive}"
    for statement in WRITES_MEANWHILE:
        upstream.write(statement)
    node.start()
    assert_all_is_well(subscribers, upstream)


def test_clients_come_back_after_a_graceful_restart(
    subscribers: list[Subscriber], upstream: Upstream, node: Node
) -> None:
    assert node.stop() == 0
    for statement in WRITES_MEANWHILE:
        upstream.write(statement)
    node.start()
    assert_all_is_well(subscribers, upstream)


def test_killed_sync_worker_is_replaced_and_its_clients_come_back(
    subscribers: list[Subscriber], upstream: Upstream, node: Node
) -> None:
    workers = node.sync_workers()
    assert len(workers) == 2
    for statement in WRITES_MEANWHILE[:3]:
        upstream.write(statement)
    workers[0].kill()
    for statement in WRITES_MEANWHILE[3:]:
        upstream.write(statement)
    assert_all_is_well(subscribers, upstream)
    assert len(node.sync_workers()) == 2


def test_mutation_made_while_the_server_is_down_is_applied_once(
    drivers: dict[str, Driver], upstream: Upstream, node: Node
) -> None:
    subscribers = [
        Subscriber.open(driver, node.url, CASE["issues.all"]) for driver in drivers.values()
    ]
    for subscriber in subscribers:
        subscriber.wait_first(upstream)
    node.kill9()
    mutations = []
    for n, subscriber in enumerate(subscribers):
        seen = len(subscriber.client.connection_reports)
        subscriber.client.wait_connection("connecting", after=max(0, seen - 1))
        mutations.append(subscriber.client.mutate("issue.append", id=f"new{n}", title="offline"))
    for mutation in mutations:
        assert mutation.wait("client") == {"type": "success"}
    node.start()
    for mutation in mutations:
        assert mutation.wait("server", deadline_s=RECONNECT_S) == {"type": "success"}
    assert not follow(subscribers, upstream, upstream.write())
    ranks = upstream.answer("SELECT jsonb_agg(rank ORDER BY rank) FROM issues WHERE id LIKE 'new%'")
    assert ranks == [61, 62]
    for subscriber in subscribers:
        subscriber.client.close()
