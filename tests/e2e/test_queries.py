"""Every kind of query shows PostgreSQL's own answer, at first and after every write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.e2e.cases import CASES, SERIES, Case
from tests.e2e.client import Driver
from tests.e2e.comparison import Subscriber, follow, left_over
from tests.e2e.javascript import CLIENT_VERSIONS
from tests.e2e.lines import DriverError
from tests.e2e.node import Node
from tests.e2e.upstream import Upstream


@dataclass
class Played:
    """What went wrong, per query, while the series was played to one client for each query."""

    subscribers: dict[Case, Subscriber] = field(default_factory=dict)
    at_first: dict[Case, list[str]] = field(default_factory=dict)
    later: dict[Case, list[str]] = field(default_factory=dict)
    left_over: dict[Case, list[str]] = field(default_factory=dict)


@pytest.fixture(scope="module", params=CLIENT_VERSIONS)
def played(
    request: pytest.FixtureRequest,
    drivers: dict[str, Driver],
    upstream_db: Upstream,
    node: Node,
) -> Iterator[Played]:
    """The whole series of writes, watched by one client for each query.

    Playing it once for all queries instead of once for each keeps the suite short, and makes the
    server keep many queries of many client groups up to date at the same time.
    """
    upstream_db.seed()
    played = Played()
    for case in CASES:
        played.subscribers[case] = Subscriber.open(drivers[request.param], node.url, case)
    for case, subscriber in played.subscribers.items():
        played.at_first[case] = []
        try:
            subscriber.wait_first(upstream_db)
        except DriverError as error:
            played.at_first[case].append(str(error))
        played.left_over[case] = left_over(subscriber.client, [case], upstream_db)
    for step in SERIES:
        beat = upstream_db.write(*step.statements)
        for case, subscriber in played.subscribers.items():
            for line in follow([subscriber], upstream_db, beat):
                played.later.setdefault(case, []).append(f"after {step.name!r}: {line}")
            for line in left_over(subscriber.client, [case], upstream_db):
                played.left_over[case].append(f"after {step.name!r}: {line}")
    yield played
    for subscriber in played.subscribers.values():
        subscriber.client.close()


def _lines(lines: list[str]) -> str:
    return "\n".join(lines[:5]) + (f"\n… {len(lines)} in all" if len(lines) > 5 else "")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_query_shows_postgres_answer_at_first(played: Played, case: Case) -> None:
    assert not played.at_first[case], _lines(played.at_first[case])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_query_shows_postgres_answer_after_every_write(played: Played, case: Case) -> None:
    assert not played.later.get(case), _lines(played.later[case])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_client_stores_no_row_its_query_does_not_need(played: Played, case: Case) -> None:
    assert not played.left_over[case], _lines(played.left_over[case])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_new_client_gets_what_a_long_lived_one_shows(
    played: Played, upstream_db: Upstream, node: Node, case: Case
) -> None:
    old = played.subscribers[case]
    new = Subscriber.open(old.client.driver, node.url, case)
    new.wait_first(upstream_db)
    assert new.shown() == old.shown()
    new.client.close()


def test_rows_go_when_the_last_query_that_needs_them_goes(
    driver: Driver, upstream: Upstream, node: Node
) -> None:
    client = driver.open(node.url)
    wide = client.view("issues.all", ttl="none")
    narrow = client.view("issues.open", ttl="none")
    wide.wait_complete()
    narrow.wait_complete()
    open_ids = upstream.answer("SELECT jsonb_agg(id ORDER BY id) FROM issues WHERE open")

    wide.destroy()
    client.wait_rows(
        lambda rows: sorted(row["id"] for row in rows["issue"]) == open_ids,
        "came down to the open issues",
    )
    narrow.destroy()
    client.wait_rows(lambda rows: not any(rows.values()), "became empty")
    client.close()


def test_many_queries_of_one_client_share_rows_without_mixing_them_up(
    driver: Driver, upstream: Upstream, node: Node
) -> None:
    # Not with issues.uncommented: the client shows every issue there is for that one.
    cases = [case for case in CASES if case.name != "issues.uncommented"]
    client = driver.open(node.url)
    beat = client.view("beat")
    subscribers = [Subscriber(client, c, client.view(c.name, c.args), beat) for c in cases]
    for subscriber in subscribers:
        subscriber.wait_first(upstream)
    for step in SERIES[15:28]:
        assert not follow(subscribers, upstream, upstream.write(*step.statements)), step.name
        assert not left_over(client, cases, upstream), step.name
    client.close()


def test_refused_query_reports_the_application_error_and_others_go_on(
    driver: Driver, upstream: Upstream, node: Node
) -> None:
    client = driver.open(node.url)
    refused = client.view("issues.forbidden")
    report = refused.wait(lambda r: r["type"] == "error", "refused")
    assert report["error"]["message"] == "issues.forbidden is not for you"

    allowed = client.view("issues.open")
    expected = upstream.answer(next(c for c in CASES if c.name == "issues.open").answer)
    assert allowed.wait_complete()["data"] == expected
    client.close()


def test_query_without_a_name_runs_under_the_deployed_read_permissions(
    driver: Driver, upstream: Upstream, node: Node
) -> None:
    client = driver.open(node.url, legacyQueries=True)
    upstream.deploy_permissions(node.app_id, {"issues": "open"})
    view = client.legacy_view("issue", ["rank", "<=", 30])
    view.wait_complete()
    query = """SELECT jsonb_agg(id ORDER BY id) FROM issues WHERE open AND rank <= 30"""

    def right(report: dict[str, list[dict[str, object]]]) -> bool:
        return bool([row["id"] for row in report["data"]] == upstream.answer(query))

    view.wait(right, "the permitted rows")
    upstream.write("UPDATE issues SET open = NOT open")
    view.wait(right, "the newly permitted rows")
    client.close()
