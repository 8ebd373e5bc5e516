"""Bytes of the downstream messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zerocache.errors import ClientFacingError
from zerocache.protocol import downstream


def parsed(frame: bytes | str) -> Any:
    return json.loads(frame)


def test_control_messages() -> None:
    assert parsed(downstream.connected("w1", 17)) == ["connected", {"wsid": "w1", "timestamp": 17}]
    assert parsed(downstream.connected("w1"))[1]["timestamp"] > 1_600_000_000_000
    assert parsed(downstream.pong()) == ["pong", {}]
    assert parsed(downstream.delete_clients(["a", "é"])) == [
        "deleteClients",
        {"clientIDs": ["a", "é"]},
    ]
    assert parsed(downstream.inspect_reply("n", "version", "1.2")) == [
        "inspect",
        {"id": "n", "op": "version", "value": "1.2"},
    ]


def test_poke_brackets() -> None:
    """sync-protocol.md §10 #22"""
    assert parsed(downstream.poke_start("01", None)) == [
        "pokeStart",
        {"pokeID": "01", "baseCookie": None},
    ]
    assert parsed(downstream.poke_end("01", "01:01")) == [
        "pokeEnd",
        {"pokeID": "01", "cookie": "01:01"},
    ]
    assert parsed(downstream.poke_cancel("01")) == [
        "pokeEnd",
        {"pokeID": "01", "cookie": "", "cancel": True},
    ]


def test_errors_always_carry_an_origin() -> None:
    failure = ClientFacingError("Rehome", "moved", maxBackoffMs=0)
    assert parsed(downstream.error(failure)) == [
        "error",
        {"kind": "Rehome", "message": "moved", "origin": "zeroCache", "maxBackoffMs": 0},
    ]


PUSH_FAILED = ClientFacingError(
    "PushFailed", "no", reason="http", status=503, mutationIDs=[{"id": 1, "clientID": "c"}]
)
TRANSFORM_FAILED = ClientFacingError("TransformFailed", "no", reason="parse", queryIDs=["q"])


def test_clients_before_38_get_failures_they_can_decode() -> None:
    assert parsed(downstream.error(PUSH_FAILED, 37)) == [
        "pushResponse",
        {
            "error": "http",
            "status": 503,
            "details": "no",
            "mutationIDs": [{"id": 1, "clientID": "c"}],
        },
    ]
    assert parsed(downstream.error(TRANSFORM_FAILED, 37)) == [
        "error",
        {"kind": "Internal", "message": "no", "origin": "zeroCache"},
    ]


@pytest.mark.parametrize("failure", [PUSH_FAILED, TRANSFORM_FAILED])
def test_clients_since_38_get_them_unchanged(failure: ClientFacingError) -> None:
    assert parsed(downstream.error(failure, 38)) == ["error", failure.body()]


def test_transform_errors_for_old_clients_have_details_and_no_parse() -> None:
    entry = {"error": "parse", "id": "h", "name": "q", "message": "bad"}
    assert parsed(downstream.transform_error([entry], 39)) == ["transformError", [entry]]
    assert parsed(downstream.transform_error([entry], 38)) == [
        "transformError",
        [{**entry, "error": "app", "details": None}],
    ]


def test_patch_operations() -> None:
    assert parsed(downstream.put_query("h")) == {"op": "put", "hash": "h"}
    assert parsed(downstream.del_query("h")) == {"op": "del", "hash": "h"}
    assert parsed(downstream.put_row('t"é', '{"id":1}')) == {
        "op": "put",
        "tableName": 't"é',
        "value": {"id": 1},
    }
    assert parsed(downstream.del_row("t", '{"id":1}')) == {
        "op": "del",
        "tableName": "t",
        "id": {"id": 1},
    }
    assert parsed(downstream.put_mutation("c", 7, '{"error":"app"}')) == {
        "op": "put",
        "mutation": {"id": {"id": 7, "clientID": "c"}, "result": {"error": "app"}},
    }
    assert parsed(downstream.del_mutation("c", 7)) == {
        "op": "del",
        "id": {"id": 7, "clientID": "c"},
    }
