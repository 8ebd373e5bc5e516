"""URL, versions and subprotocol header of a connection request."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.errors import ClientFacingError, HandshakeRefused
from zerocache.protocol.handshake import (
    ConnectParams,
    check_version,
    close_reason,
    decode_subprotocol,
    encode_subprotocol,
    parse_connect_url,
)

QUERY = "clientID=c1&clientGroupID=g1&ts=123.456&lmid=0"


@pytest.mark.parametrize("name", ["clientID", "clientGroupID", "profileID"])
@pytest.mark.parametrize("value", ["a%00b", "x" * 3000])
def test_names_that_no_database_stores_are_refused(name: str, value: str) -> None:
    query = QUERY if name == "profileID" else QUERY.replace(f"{name}=", f"{name}={value}")
    with pytest.raises(HandshakeRefused, match=name):
        parse_connect_url(f"/sync/v51/connect?{query}&{name}={value}")


@pytest.mark.parametrize("path", ["/sync/v51/connect", "/api/sync/v51/connect"])
def test_base_is_at_most_one_segment(path: str) -> None:
    assert parse_connect_url(f"{path}?{QUERY}").version == 51


@pytest.mark.parametrize(
    "path",
    [
        "/a/b/sync/v51/connect",
        "/sync/v51/connect/",
        "/sync/v51/connect/more",
        "/sync/v51/other",
        "/sync/vx/connect",
        "/sync/51/connect",
        "/sync/v/connect",
        "/",
    ],
)
def test_other_paths_are_refused_with_1002(path: str) -> None:
    with pytest.raises(HandshakeRefused, match="not a sync URL") as caught:
        parse_connect_url(f"{path}?{QUERY}")
    assert caught.value.close_code == 1002


def test_every_parameter() -> None:
    url = (
        "/sync/v44/connect?clientID=c%201&clientGroupID=g1&ts=8123.400000006&lmid=17"
        "&baseCookie=4ewakg%3A0a&wsid=w1&userID=u%2B1&profileID=p9&debugPerf=true"
        "&schemaVersion=3&reconnect=yes&clientID=second"
    )
    assert parse_connect_url(url) == ConnectParams(
        version=44,
        client_id="c 1",
        client_group_id="g1",
        ts=8123,
        lmid=17,
        base_cookie="4ewakg:0a",
        wsid="w1",
        user_id="u+1",
        profile_id="p9",
        debug_perf=True,
    )


def test_empty_values_count_as_absent() -> None:
    params = parse_connect_url(f"/sync/v30/connect?{QUERY}&baseCookie=&wsid=&userID=&profileID=")
    assert (params.base_cookie, params.wsid, params.user_id) == (None, "", None)
    assert params.profile_id == "cgg1"


@pytest.mark.parametrize("name", ["clientID", "clientGroupID", "ts", "lmid"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_missing_parameter_is_named(name: str, empty: bool) -> None:
    kept = [p for p in QUERY.split("&") if not p.startswith(name + "=")]
    query = "&".join([*kept, f"{name}="] if empty else kept)
    with pytest.raises(HandshakeRefused, match=rf"\b{name}\b"):
        parse_connect_url(f"/sync/v51/connect?{query}")


@pytest.mark.parametrize("name", ["ts", "lmid"])
def test_a_parameter_that_is_no_number_is_named_in_a_short_reason(name: str) -> None:
    query = "&".join(p for p in QUERY.split("&") if not p.startswith(name + "="))
    with pytest.raises(HandshakeRefused, match=rf"\b{name}\b") as caught:
        parse_connect_url(f"/sync/v51/connect?{query}&{name}={'é' * 500}")
    assert len(str(caught.value).encode()) <= 123


@given(st.text())
def test_close_reasons_fit_and_stay_text(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    reason = close_reason(text)
    assert len(reason.encode()) <= 123
    assert text.startswith(reason)


@pytest.mark.parametrize("version", [30, 44, 51, 52])
def test_supported_versions(version: int) -> None:
    check_version(version)


@pytest.mark.parametrize(("version", "side"), [(29, "client"), (53, "server")])
def test_unsupported_versions_name_the_side_to_upgrade(version: int, side: str) -> None:
    with pytest.raises(ClientFacingError, match=f"Upgrade the {side}") as caught:
        check_version(version)
    assert caught.value.body()["kind"] == "VersionNotSupported"
    assert caught.value.body()["origin"] == "zeroCache"


def init_message(args: list[Any]) -> list[Any]:
    patch = [{"op": "put", "hash": "h", "name": "q", "args": args}]
    return ["initConnection", {"desiredQueriesPatch": patch, "activeClients": ["c1"]}]


def test_subprotocol_round_trip_with_any_script() -> None:
    """sync-protocol.md §10 #4"""
    header = encode_subprotocol("tökén", init_message(["😀 漢字", "é"]))
    decoded = decode_subprotocol(header)
    assert decoded.raw == header
    assert decoded.auth_token == "tökén"
    init = decoded.init_connection()
    assert init is not None
    assert init.active_clients == ("c1",)
    (put,) = init.desired_queries_patch
    assert put.args == ["😀 漢字", "é"]  # type: ignore[union-attr]


@given(st.text(max_size=50), st.lists(st.text(max_size=20), max_size=4))
def test_subprotocol_loses_nothing(token: str, args: list[str]) -> None:
    token = token.encode(errors="ignore").decode()
    args = [a.encode(errors="ignore").decode() for a in args]
    decoded = decode_subprotocol(encode_subprotocol(token, init_message(args)))
    assert decoded.auth_token == (token or None)
    init = decoded.init_connection()
    assert init is not None
    assert init.desired_queries_patch[0].args == args  # type: ignore[union-attr]


def test_a_mebibyte_in_the_header() -> None:
    """sync-protocol.md §10 #4"""
    token = "x" * (1 << 20)
    assert decode_subprotocol(encode_subprotocol(token)).auth_token == token


def test_the_empty_object_is_spelled_as_clients_do() -> None:
    assert encode_subprotocol() == "e30%3D"
    decoded = decode_subprotocol("e30%3D")
    assert (decoded.auth_token, decoded.init_connection()) == (None, None)


@pytest.mark.parametrize("header", [None, "", "  ", "%%%", "!", "e30", quote("W10=", safe="")])
def test_a_missing_or_undecodable_header_is_refused(header: str | None) -> None:
    with pytest.raises(HandshakeRefused) as caught:
        decode_subprotocol(header)
    assert len(str(caught.value).encode()) <= 123


@pytest.mark.parametrize("message", ['["ping",{}]', '["initConnection",{}]', '"x"'])
def test_a_bad_embedded_message_fails_only_when_it_is_looked_at(message: str) -> None:
    content = f'{{"initConnectionMessage":{message}}}'
    decoded = decode_subprotocol(quote(base64.b64encode(content.encode()), safe=""))
    with pytest.raises(ClientFacingError) as caught:
        decoded.init_connection()
    assert caught.value.kind == "InvalidMessage"


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=6), st.booleans())
def test_parameters_are_read_as_form_fields(fields: list[tuple[str, str]], absolute: bool) -> None:
    query = urlencode([*fields, ("clientID", "c"), ("clientGroupID", "g"), ("ts", "1")])
    query += "&lmid=5&wsid=a%zz+%C3%A9&&x&=y"
    read = dict(reversed(parse_qsl(query, keep_blank_values=True)))
    origin = "https://app.example" if absolute else ""
    params = parse_connect_url(f"{origin}/base/sync/v51/connect?{query}")
    assert params.wsid == read["wsid"]
    assert params.client_id == read["clientID"]
    assert params.user_id == (read.get("userID") or None)
