"""Mutations: the optimistic result at once, the authoritative one from the server, and errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.app import App
from tests.e2e.cases import CASES
from tests.e2e.client import Client, Driver, View
from tests.e2e.comparison import left_over
from tests.e2e.lines import Row
from tests.e2e.node import Node
from tests.e2e.upstream import Upstream

ALL = next(case for case in CASES if case.name == "issues.all")


@pytest.fixture
def client(driver: Driver, upstream: Upstream, node: Node) -> Iterator[Client]:
    client = driver.open(node.url)
    yield client
    client.close()


@pytest.fixture
def issues(client: Client, upstream: Upstream) -> View:
    """All issues, as the client shows them from the seed on."""
    view = client.view("issues.all")
    view.wait_answer(upstream.answer(ALL.answer))
    view.forget()
    return view


def states_of(view: View, issue: str) -> list[Row | None]:
    """What the view showed of one issue, report by report, without repetitions."""
    seen: list[Row | None] = []
    for report in view.reports:
        state = next((row for row in report["data"] if row["id"] == issue), None)
        if not seen or seen[-1] != state:
            seen.append(state)
    return seen


def ranks_of(view: View, issue: str) -> list[Any]:
    return [state and state["rank"] for state in states_of(view, issue)]


def test_optimistic_result_shows_at_once_and_gives_way_to_the_authoritative_one(
    client: Client, issues: View, upstream: Upstream
) -> None:
    mutation = client.mutate("issue.append", id="new", title="appended")
    assert mutation.wait("client") == {"type": "success"}
    assert mutation.wait("server") == {"type": "success"}
    issues.wait(lambda r: r["data"] == upstream.answer(ALL.answer), "PostgreSQL's own answer")

    # Absent, then the client's guess, then the rank the server gave; nothing in between.
    assert ranks_of(issues, "new") == [None, 0, 61]
    assert not left_over(client, [ALL], upstream)


def test_mutations_in_a_row_end_in_postgres_answer(
    client: Client, issues: View, upstream: Upstream
) -> None:
    mutations = [client.mutate("issue.append", id=f"n{n}", title=f"{n}") for n in range(10)]
    mutations.append(client.mutate("issue.update", id="n3", title="renamed", open=False))
    mutations.append(client.mutate("issue.delete", id="n4"))
    mutations.append(client.mutate("issue.delete", id="i1"))
    for mutation in mutations:
        assert mutation.wait("server") == {"type": "success"}
    issues.wait(lambda r: r["data"] == upstream.answer(ALL.answer), "PostgreSQL's own answer")
    assert ranks_of(issues, "n9")[-1] == 70
    assert states_of(issues, "i1")[-1] is None
    assert not left_over(client, [ALL], upstream)


def test_failing_mutation_reports_the_application_error_and_is_rolled_back(
    client: Client, issues: View, upstream: Upstream
) -> None:
    before = upstream.answer(ALL.answer)
    mutation = client.mutate("issue.rename", id="i1", title="")
    assert mutation.wait("client") == {"type": "success"}
    assert mutation.wait("server") == {
        "type": "error",
        "error": {
            "type": "app",
            "message": "a title must not be empty",
            "details": {"field": "title"},
        },
    }
    issues.wait(lambda r: r["data"] == before, "the state before the mutation")
    titles = [state and state["title"] for state in states_of(issues, "i1")]
    assert titles == ["first", "", "first"]
    assert upstream.answer(ALL.answer) == before

    # The failure used up its mutation id: the next one is not out of order.
    after = client.mutate("issue.rename", id="i1", title="good")
    assert after.wait("server") == {"type": "success"}


def test_stored_error_is_deleted_once_the_client_has_seen_it(
    client: Client, issues: View, upstream: Upstream, node: Node
) -> None:
    assert client.mutate("issue.rename", id="i1", title="").wait("server")["type"] == "error"
    deadline = time.monotonic() + 10
    while upstream.stored_results(node.app_id):
        assert time.monotonic() < deadline, "the stored result is still there"
        time.sleep(0.02)


def test_violated_constraint_is_an_application_error(
    client: Client, issues: View, upstream: Upstream
) -> None:
    # Only the server knows about this row, so the client cannot foresee the conflict.
    narrow = client.view("issues.byID", {"id": "i1"}, ttl="none")
    narrow.wait_complete()
    mutation = client.mutate("issue.create", id="i8", title=None, open=True)
    result = mutation.wait("server")
    assert result["type"] == "error"
    assert result["error"]["type"] == "app"
    assert "null value" in result["error"]["message"]
    issues.wait(lambda r: r["data"] == upstream.answer(ALL.answer), "PostgreSQL's own answer")


def test_mutation_the_client_refuses_never_reaches_the_server(
    client: Client, issues: View, app: App
) -> None:
    app.mutations.clear()
    result = client.mutate("issue.failOnClient").wait("client")
    assert result["type"] == "error"
    assert "the client refuses" in result["error"]["message"]
    assert client.mutate("issue.update", id="i1", title="fine").wait("server")["type"] == "success"
    assert app.mutations == ["issue.update"]


def test_mutations_survive_an_application_that_refuses_them_for_a_while(
    client: Client, issues: View, upstream: Upstream, app: App
) -> None:
    with app.answering_mutations_with(status=400):
        client.mutate("issue.append", id="late", title="late")
        client.wait_connection("error")
    seen = len(client.connection_reports)
    client.connect()
    client.wait_connection("connected", after=seen)
    issues.wait(lambda r: r["data"] == upstream.answer(ALL.answer), "PostgreSQL's own answer")
    assert ranks_of(issues, "late")[-1] == 61


def test_other_clients_see_the_mutation(
    client: Client, issues: View, driver: Driver, upstream: Upstream, node: Node
) -> None:
    other = driver.open(node.url)
    theirs = other.view("issues.all")
    theirs.wait_answer(upstream.answer(ALL.answer))
    client.mutate("issue.append", id="new", title="appended").wait("server")
    theirs.wait(lambda r: r["data"] == upstream.answer(ALL.answer), "PostgreSQL's own answer")
    # They never see the guess.
    assert ranks_of(theirs, "new") == [None, 61]
    other.close()
