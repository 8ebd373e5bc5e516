"""From desired queries to what the engine runs, with a real application and a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.protocol_client import DesiredQuery, named_query
from tests.view_syncer.application import Application
from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Replica,
    Server,
    TestClient,
    cookies,
    edit_task,
    got_ops,
    row_ops,
    server_config,
    serving,
)
from tests.view_syncer.test_client_group import failure, refused
from view_syncer.fan_out import GroupUpdate
from view_syncer.ivm.encode import RowPatch
from view_syncer.poke import PokeBody
from view_syncer.queries import LMIDS, MUTATION_RESULTS, QuerySource
from zerocache.errors import UnsafeIntegerError
from zerocache.protocol.versions import ViewVersion, Watermark

GOOD, BAD = named_query("good"), named_query("bad", 1)


def answer(*entries: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"kind": "QueryResponse", "queries": list(entries)}


GOOD_ANSWER = {"id": GOOD.hash, "name": "good", "ast": {"table": "task"}}
BAD_ANSWER = {"id": BAD.hash, "name": "bad", "error": "app", "message": "no such thing"}


@pytest.fixture
async def asking(
    application: Application, database: str, app_id: str, replica: Replica
) -> AsyncIterator[Server]:
    application.default = answer(GOOD_ANSWER, BAD_ANSWER)
    config = server_config(database, app_id, replica.path, query={"url": [application.url()]})
    async with serving(replica, config) as server:
        yield server


def transform_errors(client: TestClient) -> list[Any]:
    return [m.body for m in client.messages if m.type == "transformError"]


async def test_rejected_query_is_reported_and_the_others_run(asking: Server) -> None:
    """sync-protocol.md §10 #54"""
    client = asking.client(GOOD, BAD)
    await client.connect()
    await client.wait_got(GOOD)
    assert transform_errors(client)[0] == [
        {"error": "app", "id": BAD.hash, "name": "bad", "message": "no such thing"}
    ]
    assert client.state.got == {GOOD.hash}
    assert set(client.titles) == {"a", "b", "c"}
    assert client.failure is None


async def test_query_that_is_rejected_later_goes_with_its_rows(
    asking: Server, application: Application
) -> None:
    """sync-protocol.md §10 #54"""
    client = await asking.connected(GOOD, ALL_TAGS)
    application.default = answer({**BAD_ANSWER, "id": GOOD.hash, "name": "good"})
    asking.worker._queries._transformer._cache.clear()
    await asking.group().refresh_queries()
    await client.wait_for(lambda: GOOD.hash not in client.state.got)
    assert client.titles == {}
    assert got_ops(client.pokes[-1]) == [("del", GOOD.hash)]
    assert transform_errors(client)


async def test_query_rejected_after_a_restart_is_not_claimed_complete(
    asking: Server, application: Application
) -> None:
    first = await asking.connected(GOOD, ALL_TAGS)
    first.close()
    application.default = answer({**BAD_ANSWER, "id": GOOD.hash, "name": "good"})
    async with serving(asking.replica, asking.config) as restarted:
        again = restarted.client(client_id=first.client_id, state=first.state)
        await again.connect()
        await again.wait_for(lambda: again.session.poke_count >= 1)
        assert again.state.got == {ALL_TAGS.hash}
        assert again.titles == {}


async def test_rows_of_a_query_that_means_something_else_after_a_restart_are_exact(
    asking: Server, application: Application
) -> None:
    first = await asking.connected(GOOD)
    first.close()
    application.default = answer({**GOOD_ANSWER, "ast": ast_of_task("b")})
    async with serving(asking.replica, asking.config) as restarted:
        again = restarted.client(client_id=first.client_id, state=first.state)
        await again.connect()
        await again.wait_for(lambda: again.session.poke_count >= 1)
        assert set(again.titles) == {"b"}


@pytest.mark.parametrize("status", [401, 500])
async def test_failed_validation_ends_the_connection_before_any_data(
    asking: Server, application: Application, status: int
) -> None:
    """sync-protocol.md §10 #56"""
    application.default = (status, "no")
    client = asking.client(ALL_TASKS)
    error = await refused(client)
    assert (error.kind, error.body["status"]) == ("TransformFailed", status)
    assert client.session.poke_count == 0
    assert not (await asking.worker._store.load("g")).exists


async def test_unvalidated_connection_sees_nothing_of_its_group(
    asking: Server, application: Application
) -> None:
    """It knows the names of a client and its group, and the cookie, but has no credentials."""
    owner = await asking.connected(GOOD)
    application.hold()
    application.answers.append((401, "no"))
    before = len(application.requests)
    stranger = asking.client(client_id="stranger")
    stranger.state.cookie = owner.state.cookie
    await stranger.connect()
    await application.received(before + 1)
    version = asking.replica.write(edit_task("a", title="secret"))
    await owner.wait_cookie(version)  # the group is not held up either
    application.release()
    assert (await failure(stranger)).kind == "TransformFailed"
    assert stranger.session.poke_count == 0
    assert asking.group().clients.keys() == {owner.client_id}


async def test_user_the_application_does_not_confirm_is_refused(
    asking: Server, application: Application
) -> None:
    status, body = application.default
    application.default = (status, {**body, "userID": "alice"})
    assert (await refused(asking.client(GOOD, user_id="mallory"))).kind == "Unauthorized"
    client = await asking.connected(GOOD, user_id="alice")
    assert set(client.titles) == {"a", "b", "c"}


async def test_failed_transformation_ends_who_asked_and_spares_the_rest(
    asking: Server, application: Application
) -> None:
    """sync-protocol.md §10 #55"""
    watcher = await asking.connected(ALL_TASKS)
    asker = await asking.connected(ALL_TASKS)
    application.default = (500, "down")
    asker.change_queries(put=[GOOD])
    assert (await failure(asker)).kind == "TransformFailed"
    version = asking.replica.write(edit_task("a", title="A2"))
    await watcher.wait_cookie(version)
    assert watcher.failure is None


async def test_only_another_token_asks_the_application_again(
    application: Application, database: str, app_id: str, replica: Replica
) -> None:
    """sync-protocol.md §10 #57, #53"""
    application.default = answer(GOOD_ANSWER)
    url = {"url": [application.url()]}
    config = server_config(database, app_id, replica.path, query=url, mutate=url)
    async with serving(replica, config) as server:
        client = await server.connected(GOOD, user_id="u", auth_token="first")
        before, asked = client.state.cookie, len(application.requests)
        client.send("updateAuth", {"auth": "first"})
        client.send("ping", {})
        await client.wait_message("pong")
        assert len(application.requests) == asked
        only_b = {**GOOD_ANSWER, "ast": ast_of_task("b")}
        application.default = answer(only_b)
        client.send("updateAuth", {"auth": "second"})
        await client.wait_for(lambda: set(client.titles) == {"b"})
        tokens = {r.headers["Authorization"] for r in application.requests[asked:]}
        assert tokens == {"Bearer second"}
        # The rows' difference under a new version; the query was and stays complete.
        assert cookies(client)[-1] == (before, f"{before}:01")
        assert sorted(row_ops(client.pokes[-1])) == [("del", "a"), ("del", "c")]
        assert got_ops(client.pokes[-1]) == []
        client.send("updateAuth", {"auth": ""})
        assert (await failure(client)).kind == "Unauthorized"


def ast_of_task(id: str) -> dict[str, Any]:
    return {
        "table": "task",
        "where": {
            "type": "simple",
            "op": "=",
            "left": {"type": "column", "name": "id"},
            "right": {"type": "literal", "value": id},
        },
    }


async def test_equal_queries_under_two_hashes_each_have_their_own_life(server: Server) -> None:
    one, two = (DesiredQuery(h, ast={"table": "task"}, ttl_ms=0) for h in ("one", "two"))
    client = await server.connected(one, two)
    client.change_queries(delete=[one])
    await client.wait_for(lambda: client.state.got == {"two"})
    assert set(client.titles) == {"a", "b", "c"}
    version = server.replica.write(edit_task("a", title="A2"))
    await client.wait_cookie(version)
    assert client.titles["a"] == "A2"


# -- the source itself --------------------------------------------------------------------------


def source() -> QuerySource:
    return QuerySource("app", "app_0", None)  # type: ignore[arg-type]  # never asked here


async def test_waiting_for_a_version_ends_when_it_is_reached_or_the_time_is_up() -> None:
    queries = source()
    queries.set_version(Watermark("05"))
    assert await queries.wait_for_version(Watermark("05"), 0.01)
    assert not await queries.wait_for_version(Watermark("06"), 0.01)
    waiting = asyncio.create_task(queries.wait_for_version(Watermark("07"), 10))
    await asyncio.sleep(0)
    queries.set_version(Watermark("06"))
    queries.set_version(Watermark("08"))
    assert await waiting


def test_internal_rows_become_mutation_ids_and_results() -> None:
    body = PokeBody(ViewVersion(Watermark("01")))
    result = '{"op":"put","mutation":{"id":{"clientID":"c","id":1},"result":{}}}'
    deleted = '{"op":"del","id":{"clientID":"c","id":1}}'
    update = GroupUpdate(
        (),
        internal={
            LMIDS: RowPatch(dels=[("t", 1, '["gone",9]')], puts=['["c",4]']),
            MUTATION_RESULTS: RowPatch(dels=[("t", 1, deleted)], puts=[result]),
        },
    )
    source().add_internal("g", update, body)
    assert body.lmids == {"c": 4}
    assert body.mutations == [deleted.encode(), result.encode()]
    assert body.rows == []


@pytest.mark.parametrize("lmid", [2**53, -1])
def test_mutation_id_without_an_exact_number_is_an_error(lmid: int) -> None:
    body = PokeBody(ViewVersion(Watermark("01")))
    with pytest.raises(UnsafeIntegerError, match="lastMutationID"):
        source().add_internal_rows("g", {LMIDS: [f'["c",{lmid}]']}, body)
