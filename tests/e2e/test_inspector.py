"""The official client's inspector: every operation, and who may use it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.e2e.app import App
from tests.e2e.cases import CASES, Case
from tests.e2e.client import Client, Driver
from tests.e2e.comparison import Subscriber
from tests.e2e.javascript import CLIENT_VERSIONS
from tests.e2e.lines import DriverError
from tests.e2e.node import Node
from tests.e2e.upstream import Upstream

CASE: dict[str, Case] = {case.name: case for case in CASES}
NEWEST = CLIENT_VERSIONS[-1]
WATCHED = ("issues.withComments", "issues.labelled")


@pytest.fixture(scope="module")
def development(
    upstream_db: Upstream, app: App, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node that asks nobody for a password: clients before 1.0 can only type one."""
    node = Node(
        directory=tmp_path_factory.mktemp("development"),
        upstream=upstream_db.url,
        app_id=f"e2e_{uuid.uuid4().hex[:8]}",
        api=app.url,
        settings={"NODE_ENV": "development", "ZERO_ADMIN_PASSWORD": ""},
    )
    node.start()
    try:
        yield node
    finally:
        node.kill9()


@pytest.fixture
def watching(driver: Driver, development: Node, upstream: Upstream) -> Iterator[Client]:
    """A client with two complete queries, one of which has been advanced."""
    first = Subscriber.open(driver, development.url, CASE[WATCHED[0]])
    first.wait_first(upstream)
    view = first.client.view(WATCHED[1], CASE[WATCHED[1]].args)
    view.wait_answer(upstream.answer(CASE[WATCHED[1]].answer))
    first.wait_beat(upstream.write("UPDATE issues SET title = 'again' WHERE id = 'i1'"))
    yield first.client
    first.client.close()


def test_queries_are_shown_with_their_figures(watching: Client) -> None:
    queries = {query["name"]: query for query in watching.inspect("queries")}
    assert set(queries) == {*WATCHED, "beat"}
    for name, query in queries.items():
        assert query["clientID"] == watching.client_id
        assert (query["got"], query["deleted"]) == (True, False)
        table = "beat" if name == "beat" else "issues"
        assert query["serverZQL"].startswith(table)
        assert query["rowCount"] >= 1
        assert query["metrics"]["query-update-server"]["count"] >= 1
        assert query["updateServerP50"] > 0
    assert queries[WATCHED[1]]["args"] == [{"name": "bug"}]
    if watching.driver.version == NEWEST:
        assert queries[WATCHED[0]]["hydrateServer"] > 0
    assert len(watching.inspect("groupQueries")) == len(queries)


def test_metrics_count_hydrations_and_updates(watching: Client) -> None:
    metrics = watching.inspect("metrics")
    for name in ("query-materialization-server", "query-update-server"):
        assert metrics[name]["count"] >= 2
        assert metrics[name]["median"] > 0


def test_server_says_its_version(watching: Client) -> None:
    assert isinstance(watching.inspect("version"), str)


def test_running_queries_can_be_analyzed(watching: Client) -> None:
    results = watching.inspect("analyzeQueries", {"syncedRows": True})
    assert len(results) == 3
    for result in results:
        assert result["syncedRowCount"] == sum(map(len, result["syncedRows"].values())) >= 1
        assert result["elapsed"] >= 0
        assert result["sqlitePlans"]


def test_only_the_password_opens_the_inspector(
    drivers: dict[str, Driver], upstream: Upstream, node: Node
) -> None:
    subscriber = Subscriber.open(drivers[NEWEST], node.url, CASE["issues.open"])
    subscriber.wait_first(upstream)
    client = subscriber.client
    assert client.inspect("authenticate", "wrong") is False
    with pytest.raises(DriverError):
        client.inspect("version")  # it would ask for the password in a page
    assert client.inspect("authenticate", "e2e") is True
    assert isinstance(client.inspect("version"), str)
    result = client.inspect("analyzeNamed", "issues.open", [], {"vendedRows": True})
    assert result["syncedRowCount"] == 4
    assert result["readRows"]
    assert client.inspect("authenticate", "") is False
    with pytest.raises(DriverError):
        client.inspect("queries")
    # None of this disturbed what the client shows.
    subscriber.wait_beat(upstream.write("DELETE FROM issues WHERE id = 'i1'"))
    assert subscriber.shown() == upstream.answer(subscriber.case.answer)
    client.close()


def test_ast_is_analyzed_under_the_read_permissions(
    drivers: dict[str, Driver], upstream: Upstream, node: Node
) -> None:
    subscriber = Subscriber.open(drivers[NEWEST], node.url, CASE["issues.all"])
    subscriber.wait_first(upstream)
    client = subscriber.client
    assert client.inspect("authenticate", "e2e") is True
    result = client.inspect("analyzeAST", {"table": "issues"}, {})
    assert result["syncedRowCount"] == 0
    assert "issues" in result["warnings"][0]
    with pytest.raises(DriverError, match="nowhere"):
        client.inspect("analyzeAST", {"table": "nowhere"}, {})
    client.close()
