"""The rules of sync-protocol.md §3, as the benchmarks' client checks them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.sync_messages import ClientSchema, Other, Poke, TableSchema
from benchmarks.sync_state import ProtocolViolation, SyncSession, SyncState

SCHEMA = ClientSchema(
    {
        "task": TableSchema(
            {
                "id": {"type": "string"},
                "rank": {"type": "number"},
                "open": {"type": "boolean"},
                "extra": {"type": "json"},
            },
            ["id"],
        ),
        "pair": TableSchema({"a": {"type": "string"}, "b": {"type": "number"}}, ["a", "b"]),
    }
)


def task(key: str, rank: Any = 1, open_: Any = True, extra: Any = None) -> dict[str, Any]:
    return {"id": key, "rank": rank, "open": open_, "extra": extra}


def put(row: dict[str, Any], table: str = "task") -> dict[str, Any]:
    return {"op": "put", "tableName": table, "value": row}


def delete(key: dict[str, Any], table: str = "task") -> dict[str, Any]:
    return {"op": "del", "tableName": table, "id": key}


class Server:
    """Speaks to a session as a server would."""

    def __init__(self, *, version: int = 51, keep_rows: bool = True) -> None:
        self.session = SyncSession(SyncState(SCHEMA, keep_rows=keep_rows), version)
        self.state = self.session.state
        self.say("connected", {"wsid": "w", "timestamp": 1})

    def say(self, kind: str, body: Any) -> Poke | Other | None:
        return self.session.receive_text(json.dumps([kind, body], separators=(",", ":")).encode())

    def poke(self, base: str | None, cookie: str, *parts: dict[str, Any]) -> Poke:
        self.say("pokeStart", {"pokeID": "p", "baseCookie": base})
        for part in parts:
            self.say("pokePart", {"pokeID": "p", **part})
        poke = self.say("pokeEnd", {"pokeID": "p", "cookie": cookie})
        assert isinstance(poke, Poke)
        return poke

    def rows(self, *ops: dict[str, Any]) -> None:
        """A poke with these row operations on top of whatever came before."""
        base = self.state.cookie
        cookie = "00:01" if base is None else base + "0"
        self.poke(base, cookie, {"rowsPatch": list(ops)})


def test_a_poke_moves_rows_queries_and_mutation_ids() -> None:
    server = Server()
    poke = server.poke(
        None,
        "01",
        {
            "lastMutationIDChanges": {"c1": 7},
            "desiredQueriesPatches": {"c1": [{"op": "put", "hash": "q"}]},
            "gotQueriesPatch": [{"op": "put", "hash": "q"}],
            "rowsPatch": [put(task("t1"))],
            "mutationsPatch": [
                {"op": "put", "mutation": {"id": {"id": 7, "clientID": "c1"}, "result": {}}}
            ],
        },
        {"rowsPatch": [put({"a": "x", "b": 2}, "pair")]},
    )
    state = server.state
    assert (poke.base_cookie, poke.cookie, poke.row_ops, poke.frames) == (None, "01", 2, 4)
    assert state.cookie == "01"
    assert state.rows == {("task", ("t1",)): task("t1"), ("pair", ("x", 2)): {"a": "x", "b": 2}}
    assert (state.desired, state.got) == ({"c1": {"q"}}, {"q"})
    assert (state.last_mutation_ids, state.mutation_results) == ({"c1": 7}, {("c1", 7): {}})
    assert state.table("task") == {("t1",): task("t1")}


def test_nothing_is_visible_before_the_end_of_a_poke() -> None:
    server = Server()
    server.say("pokeStart", {"pokeID": "p", "baseCookie": None})
    server.say("pokePart", {"pokeID": "p", "rowsPatch": [put(task("t1"))]})
    assert not server.state.rows


def test_a_cancelled_poke_changes_nothing() -> None:
    server = Server()
    server.say("pokeStart", {"pokeID": "p", "baseCookie": None})
    server.say("pokePart", {"pokeID": "p", "rowsPatch": [put(task("t1"))]})
    assert server.say("pokeEnd", {"pokeID": "p", "cookie": "", "cancel": True}) is None
    server.poke(None, "01")
    assert (server.state.cookie, server.state.rows) == ("01", {})


def test_put_replaces_and_delete_of_a_missing_row_is_no_error() -> None:
    server = Server()
    server.rows(put(task("t1", 1)), put(task("t1", 2)), delete({"id": "t9"}))
    assert server.state.table("task") == {("t1",): task("t1", 2)}
    server.rows(delete({"id": "t1"}))
    assert not server.state.rows


def test_update_merges_into_an_existing_row_only() -> None:
    server = Server()
    update = {"op": "update", "tableName": "task", "merge": {"rank": 5}}
    server.rows(put(task("t1", 1)), update | {"id": {"id": "t1"}}, update | {"id": {"id": "t2"}})
    assert server.state.table("task") == {("t1",): task("t1", 5)}


def test_clear_wipes_the_whole_view() -> None:
    server = Server()
    server.poke(None, "01", {"gotQueriesPatch": [{"op": "put", "hash": "q"}]})
    server.rows(put(task("t1")))
    server.rows({"op": "clear"}, put(task("t2")))
    assert list(server.state.table("task")) == [("t2",)]
    assert not server.state.got


def test_an_empty_poke_at_the_same_cookie_is_allowed() -> None:
    server = Server()
    server.poke(None, "01")
    server.poke("01", "01")
    assert server.session.poke_count == 2


def test_counting_needs_no_parsed_rows() -> None:
    server = Server(keep_rows=False)
    ops = [put(task("t1", extra='"tableName":')), delete({"id": "t2"})]
    poke = server.poke(None, "01", {"rowsPatch": ops})
    assert (poke.row_ops, server.state.row_ops) == (2, 2)
    assert [json.loads(bytes(part.rows)) for part in poke.counted] == [ops]  # type: ignore[arg-type]
    assert not server.state.rows


def test_chunks_may_be_cut_anywhere() -> None:
    server = Server(version=52)
    parts = [{"pokeID": "p", "rowsPatch": [put(task("é1"))]}, {"pokeID": "p"}]
    data = json.dumps(parts, ensure_ascii=False).encode()
    cut = data.index("é".encode()) + 1
    server.say("pokeStart", {"pokeID": "p", "baseCookie": None})
    for slice_ in (data[:cut], data[cut:]):
        server.session.receive_binary(b"\0" + slice_)
    server.say("pokeEnd", {"pokeID": "p", "cookie": "01"})
    assert list(server.state.table("task")) == [("é1",)]


def test_rows_of_undeclared_tables_are_skipped_by_new_clients_and_refused_by_old_ones() -> None:
    row = put({"id": "x"}, "secret")
    server = Server()
    server.rows(row)
    assert (server.state.undeclared_rows, server.state.rows) == (1, {})
    with pytest.raises(ProtocolViolation, match="undeclared"):
        Server(version=44).rows(row)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (put({"id": "t1", "rank": 1, "open": True}), "lacks the declared column extra"),
        (put(task("t1", open_=1)), "declared boolean"),
        (put(task("t1", rank="1")), "declared number"),
        (put(task("t1", rank=True)), "declared number"),
        (put(task("t1", rank=2**53)), "declared number"),
        (put(task(None)), "key column task.id"),  # type: ignore[arg-type]
        ({"op": "put", "tableName": "task"}, "without a value"),
        (delete({"id": "t1", "rank": 1}), "declared key"),
        (delete({"a": "x"}, "pair"), "declared key"),
    ],
)
def test_rows_that_do_not_fit_the_schema_are_refused(op: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        Server().rows(op)


def test_a_poke_must_start_where_the_client_is() -> None:
    server = Server()
    server.poke(None, "02")
    for wrong in (None, "01", "03"):
        with pytest.raises(ProtocolViolation, match="is based on"):
            server.say("pokeStart", {"pokeID": "p", "baseCookie": wrong})


def test_a_poke_must_not_go_back() -> None:
    server = Server()
    server.poke(None, "02")
    with pytest.raises(ProtocolViolation, match="goes back"):
        server.poke("02", "01")


def test_patches_without_a_new_cookie_are_refused() -> None:
    server = Server()
    server.poke(None, "02")
    with pytest.raises(ProtocolViolation, match="stays at"):
        server.poke("02", "02", {"rowsPatch": [put(task("t1"))]})


def test_last_mutation_ids_must_not_fall() -> None:
    server = Server()
    server.poke(None, "01", {"lastMutationIDChanges": {"c1": 3}})
    with pytest.raises(ProtocolViolation, match="fell from 3 to 2"):
        server.poke("01", "02", {"lastMutationIDChanges": {"c1": 2}})


def test_a_mutation_result_must_not_change() -> None:
    server = Server()
    id_ = {"id": 1, "clientID": "c1"}
    results = [{"op": "put", "mutation": {"id": id_, "result": r}} for r in ({}, {"error": "app"})]
    server.poke(None, "01", {"mutationsPatch": results[:1]})
    with pytest.raises(ProtocolViolation, match="replaced"):
        server.poke("01", "02", {"mutationsPatch": results[1:]})
    server.state.mutation_results.clear()
    server.poke("01", "02", {"mutationsPatch": [*results[:1], {"op": "del", "id": id_}]})
    assert not server.state.mutation_results


START = ("pokeStart", {"pokeID": "p", "baseCookie": None})


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([START, START], "began inside"),
        ([("pokePart", {"pokeID": "p"})], "open poke is None"),
        ([START, ("pokePart", {"pokeID": "other"})], "open poke is p"),
        ([START, ("pokeEnd", {"pokeID": "other", "cookie": "01"})], "open poke is p"),
        ([("pokeStart", {"pokeID": "p"})], "baseCookie"),
        ([("connected", {"wsid": "w"})], "twice"),
        ([("surprise", {})], "unknown message type"),
        ([("error", {"message": "no kind"})], "kind"),
        ([("error", {"kind": "Internal", "message": "x"}), ("pong", {})], "after a fatal error"),
        ([START, ("pokePart", {"pokeID": "p", "rowsPatch": [{"op": "swap"}]})], "malformed"),
    ],
)
def test_messages_out_of_order_or_shape_are_refused(
    messages: list[tuple[str, Any]], reason: str
) -> None:
    server = Server()
    for kind, body in messages[:-1]:
        server.say(kind, body)
    with pytest.raises(ProtocolViolation, match=reason):
        server.say(*messages[-1])


def test_nothing_but_an_error_may_precede_connected() -> None:
    for kind, body in (START, ("pong", {})):
        session = SyncSession(SyncState(SCHEMA), 51)
        with pytest.raises(ProtocolViolation, match="before 'connected'"):
            session.receive_text(json.dumps([kind, body]).encode())
    session = SyncSession(SyncState(SCHEMA), 51)
    session.receive_text(b'["error",{"kind":"Unauthorized","message":"no"}]')
    assert session.ended


def test_mutation_errors_leave_the_connection_open() -> None:
    server = Server()
    server.say("error", {"kind": "MutationFailed", "message": "x", "origin": "zeroCache"})
    server.poke(None, "01")
    assert not server.session.ended


@pytest.mark.parametrize("frame", [b"", b"\x01[]", b"\x00[]"])
def test_binary_frames_outside_a_poke_or_of_unknown_kind_are_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Server(version=52).session.receive_binary(frame)


def test_binary_frames_are_not_for_version_51() -> None:
    server = Server()
    server.say(*START)
    with pytest.raises(ProtocolViolation, match="version 51"):
        server.session.receive_binary(b"\0[]")


def test_a_poke_must_not_mix_parts_and_chunks() -> None:
    server = Server(version=52)
    server.say(*START)
    server.say("pokePart", {"pokeID": "p"})
    with pytest.raises(ProtocolViolation, match="after text parts"):
        server.session.receive_binary(b"\0[]")


@pytest.mark.parametrize("text", [b"[]", b'["pong"]', b'["pong",{}] x', b"\xff", b'["pong",NaN]'])
def test_malformed_json_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="malformed"):
        Server().session.receive_text(text)
