"""Clients of one group at different cookies: each is told what it misses, once, in one piece.

The cases of sync-protocol.md §10 that turn on who is where; ``test_client_group.py`` has the rest.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.protocol_client import DesiredQuery
from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Server,
    TestClient,
    cookies,
    copied,
    delete_task,
    desired_ops,
    edit_task,
    got_ops,
    put_tag,
    put_task,
    row_ops,
    serving,
    task_where,
)
from tests.view_syncer.test_client_group import Gate, refused
from zerocache.protocol.versions import lexi_decode, lexi_encode


async def answered(client: TestClient) -> None:
    """Everything sent so far has been dealt with."""
    seen = sum(m.type == "pong" for m in client.messages)
    client.send("ping", {})
    await client.wait_for(lambda: sum(m.type == "pong" for m in client.messages) > seen)


# -- first pokes --------------------------------------------------------------------------------


async def test_rows_got_and_mutation_ids_of_a_new_group_come_in_one_poke(server: Server) -> None:
    """sync-protocol.md §10 #13"""
    server.replica.set_last_mutation_id("g", "me", 1)
    client = await server.connected(ALL_TASKS, client_id="me")
    assert cookies(client) == [(None, "00:01"), ("00:01", server.replica.version)]
    desires, data = client.pokes
    (part,) = desires.parts
    assert desired_ops(desires, "me") == [("put", ALL_TASKS.hash)]
    assert (got_ops(desires), row_ops(desires), bool(part.last_mutation_ids)) == ([], [], False)
    (part,) = data.parts
    assert part.last_mutation_ids == {"me": 1}
    assert got_ops(data) == [("put", ALL_TASKS.hash)]
    assert sorted(row_ops(data)) == [("put", "a"), ("put", "b"), ("put", "c")]


async def test_mutation_id_of_a_new_group_without_queries_follows_by_itself(
    server: Server,
) -> None:
    """sync-protocol.md §10 #14"""
    server.replica.set_last_mutation_id("g", "me", 1)
    client = server.client(client_id="me")
    await client.connect()
    await client.wait_last_mutation_id(1)
    assert cookies(client) == [(None, "00:01"), ("00:01", server.replica.version)]
    assert client.pokes[0].parts == ()
    (part,) = client.pokes[1].parts
    assert part.last_mutation_ids == {"me": 1}
    assert (got_ops(client.pokes[1]), row_ops(client.pokes[1])) == ([], [])


# -- nothing to tell ----------------------------------------------------------------------------


async def test_client_that_is_current_and_greeted_hears_nothing_more(server: Server) -> None:
    """sync-protocol.md §10 #19"""
    first = await server.connected(ALL_TASKS)
    first.close()
    again = server.client(client_id=first.client_id, state=first.state)
    await again.connect()
    await again.wait_for(lambda: again.session.poke_count == 1)
    # Known already, and not for longer: no version, so nothing to say.
    again.change_queries(put=[ALL_TASKS])
    await answered(again)
    cookie = server.replica.version
    assert cookies(again) == [(cookie, cookie)]


async def test_what_comes_and_goes_within_one_transaction_is_no_version(server: Server) -> None:
    """sync-protocol.md §10 #21, #52"""
    client = await server.connected(ALL_TASKS)
    before = client.state.cookie
    server.replica.write(put_task("x"), delete_task("x"))
    version = server.replica.write(edit_task("a", title="A2"))
    await client.wait_cookie(version)
    assert cookies(client)[-1] == (before, version)
    assert row_ops(client.pokes[-1]) == [("put", "a")]


# -- several cookies at once --------------------------------------------------------------------


async def test_three_clients_each_get_what_is_newer_than_their_cookie(server: Server) -> None:
    """sync-protocol.md §10 #20"""
    first = await server.connected(ALL_TASKS)
    far = copied(first.state)
    await first.wait_cookie(server.replica.write(edit_task("a", title="A2")))
    near = copied(first.state)
    newest = server.replica.write(delete_task("b"))
    await first.wait_cookie(newest)
    current = copied(first.state)
    first.close()
    # The same client all the time: its return changes nothing in the record.
    for state, changed in (
        (current, []),
        (near, [("del", "b")]),
        (far, [("del", "b"), ("put", "a")]),
    ):
        base = state.cookie
        again = server.client(client_id=first.client_id, state=state)
        await again.connect()
        await again.wait_for(lambda again=again: again.session.poke_count == 1)  # type: ignore[misc]
        assert cookies(again) == [(base, newest)]
        assert sorted(row_ops(again.pokes[0])) == changed
        assert got_ops(again.pokes[0]) == []
        assert again.titles == {"a": "A2", "c": "C"}


async def test_ten_tabs_at_ten_cookies_end_with_the_same_rows(server: Server) -> None:
    """Of every cookie that was issued, with queries that came and went in between."""
    brief = DesiredQuery("brief", ast=task_where(title="A").ast, ttl_ms=0)
    first = await server.connected(ALL_TAGS)
    states = [copied(first.state)]

    def kept() -> None:
        states.append(copied(first.state))

    for number in range(3):
        first.change_queries(put=[brief])
        await first.wait_got(brief)
        kept()
        await first.wait_cookie(server.replica.write(put_tag(f"t{number}"), put_task(f"x{number}")))
        kept()
        await first.wait_cookie(
            server.replica.write(
                edit_task("a", title="A" if number else "B"), put_tag(f"u{number}")
            )
        )
        kept()
        first.change_queries(delete=[brief])
        await first.wait_for(lambda: "brief" not in first.state.got)
    tabs = [await server.connected(ALL_TASKS, state=state) for state in states]
    final = server.replica.write(edit_task("c", title="end"))
    for tab in [first, *tabs]:
        await tab.wait_cookie(final)
        assert tab.state.rows == first.state.rows
        assert tab.state.got == first.state.got == {ALL_TAGS.hash, ALL_TASKS.hash}


async def test_client_that_comes_just_before_an_advance_gets_one_complete_poke(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync-protocol.md §10 #32"""
    first = await server.connected(ALL_TASKS)
    old = copied(first.state)
    base = old.cookie
    gate = Gate(monkeypatch, server.worker._queries, "resolve")
    second = server.client(ALL_TASKS, state=old)
    await second.connect()
    await gate.reached.wait()
    version = server.replica.write(edit_task("a", title="A2"), put_task("d", title="D"))
    await first.wait_for(lambda: "d" in first.titles)
    gate.open()
    await second.wait_for(lambda: "d" in second.titles)
    assert second.titles == first.titles == {"a": "A2", "b": "B", "c": "C", "d": "D"}
    # Its bases follow each other (the client checks that), and no change came in two pieces.
    assert cookies(second)[0][0] == base
    changed = [row_ops(poke) for poke in second.pokes if row_ops(poke)]
    assert [sorted(ops) for ops in changed] == [[("put", "a"), ("put", "d")]]
    assert (second.state.cookie or "").startswith(version)


async def test_rows_of_a_record_ahead_of_the_replica_wait_for_it(server: Server) -> None:
    """sync-protocol.md §10 #33: another node, whose replica is newer, served the group before."""
    first = await server.connected(ALL_TASKS)
    behind = server.replica.version
    ahead = lexi_encode(lexi_decode(behind) + 3)
    first.close()
    async with serving(server.replica, server.config) as restarted:
        state = copied(first.state)
        state.cookie = ahead
        late = restarted.client(client_id=first.client_id, state=state)
        await late.connect()
        await answered_before_data(late)
        for number in range(3):
            server.replica.write(edit_task("a", title=f"A{number}"))
        await late.wait_for(lambda: late.session.poke_count > 0)
        assert late.pokes[0].base_cookie == ahead
        assert late.titles == {"a": "A2", "b": "B", "c": "C"}


async def answered_before_data(client: TestClient) -> None:
    """The server is alive for this client, and has sent it nothing of the group."""
    silent = await client.wait_message("connected")
    assert silent.body is not None
    assert client.session.poke_count == 0


# -- TTLs and deletions -------------------------------------------------------------------------


async def test_time_without_anybody_does_not_count_towards_a_ttl(server: Server) -> None:
    """sync-protocol.md §10 #47, with a restart in between: the clock is in the record."""
    brief = DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=300_000)
    first = await server.connected(brief, ALL_TAGS)
    first.change_queries(delete=[brief])
    await first.wait_for(lambda: "brief" not in first.state.desired[first.client_id])
    group = server.group()
    # Half of its time goes by while somebody is there.
    group._keeper.clock.load(group.ttl_now_ms() + 150_000)
    await group.touch()
    first.close()
    await first.wait_closed()
    async with serving(server.replica, server.config) as restarted:
        again = restarted.client(client_id=first.client_id, state=first.state)
        await again.connect()
        await again.wait_for(lambda: again.session.poke_count == 1)
        assert "brief" in again.state.got
        group = restarted.group()
        now = group.ttl_now_ms()
        assert 150_000 <= now < 200_000
        group._keeper.clock.load(150_000 + 149_900)
        await group.settle()
        await again.wait_for(lambda: "brief" not in again.state.got)
        assert again.titles == {}


async def test_deletion_sent_by_a_replaced_connection_has_no_effect(server: Server) -> None:
    """sync-protocol.md §10 #49"""
    other = await server.connected(DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=0))
    old = await server.connected(ALL_TAGS)
    new = server.client(client_id=old.client_id, state=old.state)
    old._fail = lambda error: None  # type: ignore[method-assign]  # it goes on sending
    await new.connect()
    await new.wait_for(lambda: new.session.poke_count == 1)
    old.send("deleteClients", {"clientIDs": [other.client_id]})
    new.change_queries(put=[task_where(title="A")])
    await new.wait_got(task_where(title="A"))
    await answered(other)
    assert other.state.desired[other.client_id] == {"brief"}
    assert "brief" in other.state.got
    assert not any(m.type == "deleteClients" for m in [*new.messages, *other.messages])


async def test_cookie_that_was_never_issued_means_everything_newer(server: Server) -> None:
    """§9.30: below the group's version any cookie will do."""
    first = await server.connected(ALL_TASKS)
    server.replica.write(put_tag("unseen"))
    never = server.replica.version
    state = copied(first.state)
    version = server.replica.write(delete_task("b"))
    await first.wait_cookie(version)
    state.cookie = never
    late = await server.connected(ALL_TASKS, state=state)
    assert late.titles == {"a": "A", "c": "C"}


async def test_unknown_cookie_in_several_forms_does_not_disturb_others(server: Server) -> None:
    """sync-protocol.md §10 #35"""
    current = await server.connected(ALL_TASKS)
    for cookie in ("foo-bar", "1:2:3", "01:a2gosa7pa2gw", "zz", "", "01:", ":01"):
        client = server.client(ALL_TASKS)
        client.state.cookie = cookie or "zzzz"
        assert (await refused(client)).kind == "InvalidConnectionRequestBaseCookie"
    version = server.replica.write(edit_task("a", title="A2"))
    await current.wait_cookie(version)
    assert current.titles["a"] == "A2"


async def test_storm_of_ten_tabs_is_one_chain_for_each(server: Server) -> None:
    """All at once, while the data moves: whoever is let in holds exactly what the others hold."""
    first = await server.connected(ALL_TASKS)
    state = copied(first.state)
    tabs: list[TestClient] = [
        server.client(ALL_TAGS, task_where(n=number), state=copied(state)) for number in range(10)
    ]

    async def write() -> Any:
        for number in range(20):
            server.replica.write(edit_task("a", n=number % 10), put_tag(f"t{number}"))
            await asyncio.sleep(0)

    await asyncio.gather(write(), *(tab.connect() for tab in tabs))
    final = server.replica.write(put_tag("end"))
    wanted = {ALL_TASKS.hash, ALL_TAGS.hash, *(task_where(n=n).hash for n in range(10))}
    for tab in [first, *tabs]:
        await tab.wait_got(*wanted)
        await tab.wait_cookie(final)
    newest = max(tab.state.cookie or "" for tab in tabs)
    for tab in [first, *tabs]:
        await tab.wait_cookie(newest)
        assert tab.state.rows == first.state.rows
        assert len(tab.state.table("tag")) == 21
