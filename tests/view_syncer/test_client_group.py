"""A client group as its clients see it: chains of pokes, and what they hold in the end."""

from __future__ import annotations

from tests.view_syncer.server import (
    ALL_TASKS,
    Server,
    cookies,
    desired_ops,
    got_ops,
    row_ops,
)


async def test_new_group_is_poked_its_desires_and_then_its_rows(server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    version = server.replica.version
    assert cookies(client) == [(None, "00:01"), ("00:01", version)]
    first, second = client.pokes
    assert desired_ops(first, client.client_id) == [("put", ALL_TASKS.hash)]
    assert got_ops(first) == []
    assert row_ops(first) == []
    assert got_ops(second) == [("put", ALL_TASKS.hash)]
    assert sorted(row_ops(second)) == [("put", "a"), ("put", "b"), ("put", "c")]
