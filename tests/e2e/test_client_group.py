"""Clients of one group, like tabs of one browser: one synced view, separate wishes."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.cases import CASES, SERIES
from tests.e2e.client import Driver
from tests.e2e.comparison import Subscriber, follow, left_over
from tests.e2e.node import Node
from tests.e2e.upstream import Upstream

CASE = {case.name: case for case in CASES}


@pytest.fixture
def group() -> str:
    """The storage key that makes clients share a group; no other test's clients use it."""
    return f"tabs-{uuid.uuid4().hex[:8]}"


def test_two_clients_of_a_group_follow_each_their_own_query(
    driver: Driver, upstream: Upstream, node: Node, group: str
) -> None:
    tabs = [
        Subscriber.open(driver, node.url, CASE["issues.withLabels"], group=group),
        Subscriber.open(driver, node.url, CASE["issues.withComments"], group=group),
    ]
    assert tabs[0].client.group_id == tabs[1].client.group_id
    assert tabs[0].client.client_id != tabs[1].client.client_id
    for tab in tabs:
        tab.wait_first(upstream)
    for step in SERIES[17:28]:
        assert not follow(tabs, upstream, upstream.write(*step.statements)), step.name
        for tab in tabs:
            assert not left_over(tab.client, [t.case for t in tabs], upstream), step.name
    for tab in tabs:
        tab.client.close()


def test_closing_one_tab_leaves_the_other_alone(
    driver: Driver, upstream: Upstream, node: Node, group: str
) -> None:
    first = Subscriber.open(driver, node.url, CASE["issues.open"], group=group)
    second = Subscriber.open(driver, node.url, CASE["issues.open"], group=group)
    for tab in (first, second):
        tab.wait_first(upstream)
    first.client.close()
    for step in SERIES[:6]:
        assert not follow([second], upstream, upstream.write(*step.statements)), step.name
    second.client.close()


def test_query_dropped_by_one_tab_keeps_its_rows_while_another_wants_it(
    driver: Driver, upstream: Upstream, node: Node, group: str
) -> None:
    first, second = (driver.open(node.url, group=group) for _ in range(2))
    shared = [client.view("issues.open", ttl="none") for client in (first, second)]
    own = first.view("issues.commented", ttl="none")
    for view in (*shared, own):
        view.wait_complete()

    shared[0].destroy()
    own.destroy()
    for client in (first, second):
        client.wait_rows(
            lambda rows: not rows["comment"] and len(rows["issue"]) == 4,
            "came down to the open issues",
        )
    upstream.write("UPDATE issues SET open = true")
    shared[1].wait(lambda r: len(r["data"]) == 6, "all six issues")
    for client in (first, second):
        client.close()


def test_mutation_of_one_tab_reaches_the_other(
    driver: Driver, upstream: Upstream, node: Node, group: str
) -> None:
    tabs = [Subscriber.open(driver, node.url, CASE["issues.all"], group=group) for _ in range(2)]
    for tab in tabs:
        tab.wait_first(upstream)
    here, there = (
        tab.client.mutate("issue.append", id=f"new{n}", title="appended")
        for n, tab in enumerate(tabs)
    )
    assert here.wait("server") == there.wait("server") == {"type": "success"}
    assert not follow(tabs, upstream, upstream.write())
    for tab in tabs:
        tab.client.close()


def test_reloaded_tab_shows_what_the_group_stored_and_then_what_changed_meanwhile(
    driver: Driver, upstream: Upstream, node: Node, group: str
) -> None:
    before = Subscriber.open(driver, node.url, CASE["issues.withComments"], group=group)
    before.wait_first(upstream)
    # Reading the stored rows makes the client write them to its store first.
    assert before.client.rows()["issue"]
    before.client.close()
    upstream.write(
        "DELETE FROM issues WHERE id = 'i1'", "UPDATE issues SET title = 'new' WHERE id = 'i2'"
    )

    after = Subscriber.open(driver, node.url, CASE["issues.withComments"], group=group)
    assert after.client.group_id == before.client.group_id
    after.wait_first(upstream)
    assert not follow([after], upstream, upstream.write())
    assert not left_over(after.client, [after.case], upstream)
    after.client.close()
