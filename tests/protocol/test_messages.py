"""Decoding of upstream messages: one case per message type, and every way to be malformed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.errors import ClientFacingError
from zerocache.protocol.messages import (
    MAX_QUERY_DEPTH,
    AckMutationResponses,
    ChangeDesiredQueries,
    ClearQueries,
    CloseConnection,
    CrudMutation,
    CustomMutation,
    DeleteClients,
    DeleteQuery,
    InitConnection,
    Inspect,
    Ping,
    Pull,
    Push,
    PutQuery,
    UpdateAuth,
    decode_upstream,
)

AST = {
    "table": "issue",
    "where": {
        "type": "simple",
        "op": "=",
        "left": {"type": "column", "name": "open"},
        "right": {"type": "literal", "value": True},
    },
    "orderBy": [["id", "asc"]],
}
PUSH: dict[str, Any] = {
    "clientGroupID": "g1",
    "mutations": [],
    "pushVersion": 1,
    "timestamp": 1760000000000.5,
    "requestID": "r-1",
}


def frame(kind: str, body: Any) -> str:
    return json.dumps([kind, body])


def test_init_connection_carries_queries_schema_and_overrides() -> None:
    schema = {"tables": {"issue": {"columns": {"id": {"type": "string"}}, "primaryKey": ["id"]}}}
    message = decode_upstream(
        frame(
            "initConnection",
            {
                "desiredQueriesPatch": [
                    {"op": "put", "hash": "h1", "ttl": 1000, "ast": AST},
                    {"op": "put", "hash": "h2", "name": "issues", "args": [{"x": 1}]},
                    {"op": "del", "hash": "h3"},
                    {"op": "clear"},
                ],
                "clientSchema": schema,
                "deleted": {"clientIDs": ["c0"]},
                "userPushURL": "https://a.test/push",
                "userPushHeaders": {"x-a": "1"},
                "userQueryURL": "https://a.test/query",
                "userQueryHeaders": {"x-b": "2"},
                "activeClients": ["c1"],
                "traceparent": "00-1",
            },
        )
    )
    assert isinstance(message, InitConnection)
    by_ast, by_name, removed, cleared = message.desired_queries_patch
    assert isinstance(by_ast, PutQuery)
    assert by_ast.is_defined
    assert by_ast.query is not None
    assert by_ast.query.table == "issue"
    assert json.loads(by_ast.ast_json or b"") == AST
    assert by_ast.ttl_ms == 1000
    assert by_name == PutQuery("h2", name="issues", args=[{"x": 1}])
    assert removed == DeleteQuery("h3")
    assert cleared == ClearQueries()
    assert message.client_schema is not None
    assert message.client_schema.tables["issue"].primary_key == ["id"]
    assert message.deleted == DeleteClients(client_ids=("c0",))
    assert (message.user_push_url, message.user_push_headers) == (
        "https://a.test/push",
        {"x-a": "1"},
    )
    assert (message.user_query_url, message.user_query_headers) == (
        "https://a.test/query",
        {"x-b": "2"},
    )
    assert message.active_clients == ("c1",)
    assert message.traceparent == "00-1"


def test_unset_members_are_none_or_empty() -> None:
    message = decode_upstream(frame("initConnection", {"desiredQueriesPatch": []}))
    assert message == InitConnection(desired_queries_patch=())


@pytest.mark.parametrize(
    ("put", "defined"),
    [
        ({"ast": AST}, True),
        ({"name": "q", "args": []}, True),
        ({}, False),
        ({"name": "q"}, False),
        ({"args": []}, False),
        ({"ast": AST, "name": "q", "args": []}, False),
    ],
)
def test_a_put_is_defined_by_an_ast_or_by_name_and_args(put: dict[str, Any], defined: bool) -> None:
    text = frame(
        "changeDesiredQueries", {"desiredQueriesPatch": [{"op": "put", "hash": "h", **put}]}
    )
    message = decode_upstream(text)
    assert isinstance(message, ChangeDesiredQueries)
    (op,) = message.desired_queries_patch
    assert isinstance(op, PutQuery)
    assert op.is_defined is defined


def test_a_custom_mutation_keeps_its_bytes() -> None:
    raw = (
        '{"type":"custom","id":7,"clientID":"c1","name":"issue|create",'
        '"args":[ {"n":1.0,"t":"é😀"} ],"timestamp":1.5,"later":true}'
    )
    text = json.dumps(["push", PUSH]).replace('"mutations": []', f'"mutations": [{raw}]')
    message = decode_upstream(text)
    assert isinstance(message, Push)
    assert message.mutations == (CustomMutation(7, "c1", "issue|create", raw.encode()),)
    assert (message.client_group_id, message.push_version) == ("g1", 1)
    assert (message.timestamp, message.request_id) == (1760000000000.5, "r-1")


def test_a_crud_mutation_is_decoded_to_its_operations() -> None:
    op = {"op": "update", "tableName": "issue", "primaryKey": ["id"], "value": {"id": "i1"}}
    mutation = {
        "type": "crud",
        "id": 8,
        "clientID": "c2",
        "name": "_zero_crud",
        "timestamp": 1,
        "args": [{"ops": [op]}],
    }
    message = decode_upstream(frame("push", {**PUSH, "mutations": [mutation]}))
    assert isinstance(message, Push)
    (decoded,) = message.mutations
    assert isinstance(decoded, CrudMutation)
    assert (decoded.id, decoded.client_id, decoded.ops[0].table_name) == (8, "c2", "issue")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["ping",{}]', Ping()),
        ('[ "ping" , {"later":1} ]', Ping()),
        (frame("deleteClients", {"clientIDs": ["a", "b"]}), DeleteClients(client_ids=("a", "b"))),
        (frame("updateAuth", {"auth": ""}), UpdateAuth(auth="")),
        (
            frame("ackMutationResponses", {"id": 12, "clientID": "c1"}),
            AckMutationResponses(id=12, client_id="c1"),
        ),
        (
            frame("pull", {"clientGroupID": "g", "cookie": None, "requestID": "r"}),
            Pull(client_group_id="g", cookie=None, request_id="r"),
        ),
        (frame("closeConnection", []), CloseConnection()),
        (
            frame("inspect", {"op": "authenticate", "id": "n", "value": "pw"}),
            Inspect("n", "authenticate", "pw"),
        ),
        (
            frame("inspect", {"op": "queries", "id": "n", "clientID": "c"}),
            Inspect("n", "queries", client_id="c"),
        ),
    ],
)
def test_small_messages(text: str, expected: Any) -> None:
    assert decode_upstream(text) == expected
    assert decode_upstream(text.encode()) == expected


@pytest.mark.parametrize("member", ["ast", "value"])
def test_analyze_query_takes_the_ast_under_both_names(member: str) -> None:
    message = decode_upstream(frame("inspect", {"op": "analyze-query", "id": "n", member: AST}))
    assert isinstance(message, Inspect)
    assert message.query is not None
    assert message.query.table == "issue"
    assert message.options.synced_rows
    assert not message.options.vended_rows


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "null",
        "[]",
        '["ping"]',
        '["ping",{},1]',
        '["ping",{}] x',
        '["ping",[]]',
        '["pong",{}]',
        "[1,{}]",
        '["updateAuth",{}]',
        '["updateAuth",{"auth":1}]',
        '["updateAuth",{"auth":null}]',
        '["ackMutationResponses",{"id":"1","clientID":"c"}]',
        '["ackMutationResponses",{"id":NaN,"clientID":"c"}]',
        '["changeDesiredQueries",{}]',
        '["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"put"}]}]',
        '["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"update","hash":"h"}]}]',
        '["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"put","hash":"h","ast":{}}]}]',
        '["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"put","hash":"h","args":{}}]}]',
        '["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"put","hash":"a\\u0000"}]}]',
        '["changeDesiredQueries",{"desiredQueriesPatch":'
        '[{"op":"put","hash":"h","name":"a\\u0000","args":[]}]}]',
        frame("changeDesiredQueries", {"desiredQueriesPatch": [{"op": "put", "hash": "h" * 600}]}),
        '["inspect",{"op":"drop","id":"n"}]',
        '["inspect",{"op":"authenticate","id":"n"}]',
        '["closeConnection",{}]',
        '["initConnection",{"desiredQueriesPatch":[],"userPushHeaders":{"a":1}}]',
        '["initConnection",{"desiredQueriesPatch":[],"clientSchema":{"tables":{"t":{}}}}]',
        frame("push", {**PUSH, "mutations": [{"type": "other", "id": 1}]}),
        frame("push", {**PUSH, "requestID": None}),
        '["ping",{"a":"\udc00"}]',
    ],
)
def test_malformed_frames_are_invalid_messages(text: str) -> None:
    with pytest.raises(ClientFacingError) as caught:
        decode_upstream(text)
    assert caught.value.kind == "InvalidMessage"
    assert caught.value.origin == "zeroCache"
    assert caught.value.close_code == 1000


def test_the_message_names_the_place() -> None:
    text = frame("changeDesiredQueries", {"desiredQueriesPatch": [{"op": "del", "hash": 5}]})
    with pytest.raises(ClientFacingError, match=r"changeDesiredQueries.*desiredQueriesPatch"):
        decode_upstream(text)


@pytest.mark.parametrize("schema", ['{"tables":{"t":{"primaryKey":["a"]}}}', "7", '"x"'])
def test_the_message_names_the_schema(schema: str) -> None:
    frame = f'["initConnection",{{"desiredQueriesPatch":[],"clientSchema":{schema}}}]'
    with pytest.raises(ClientFacingError, match="clientSchema") as caught:
        decode_upstream(frame)
    assert caught.value.kind == "InvalidMessage"


def test_a_query_that_is_no_text_where_nobody_reads_it_is_refused() -> None:
    """The text of a query is stored as it was sent."""
    put = b'{"op":"put","hash":"h","ast":{"table":"t","unknown":"\xff"}}'
    with pytest.raises(ClientFacingError) as raised:
        decode_upstream(b'["changeDesiredQueries",{"desiredQueriesPatch":[' + put + b"]}]")
    assert raised.value.kind == "InvalidMessage"


def test_crud_without_a_key_is_refused() -> None:
    op = {"op": "delete", "tableName": "t", "primaryKey": [], "value": {}}
    mutation = {
        "type": "crud",
        "id": 1,
        "clientID": "c",
        "name": "_zero_crud",
        "timestamp": 1,
        "args": [{"ops": [op]}],
    }
    with pytest.raises(ClientFacingError, match="primaryKey"):
        decode_upstream(frame("push", {**PUSH, "mutations": [mutation]}))


@pytest.mark.parametrize("depth", [MAX_QUERY_DEPTH, 100_000])
def test_a_query_nested_too_deeply_is_refused_without_exhausting_the_stack(depth: int) -> None:
    where = '{"type":"and","conditions":[' * depth + '{"type":"or","conditions":[]}' + "]}" * depth
    text = (
        '["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"put","hash":"h",'
        f'"ast":{{"table":"t","where":{where}}}}}]}}]'
    )
    with pytest.raises(ClientFacingError) as caught:
        decode_upstream(text)
    assert caught.value.kind == "InvalidMessage"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
kinds = st.sampled_from(
    ["initConnection", "changeDesiredQueries", "push", "inspect", "deleteClients", "ping", "x"]
)


@given(
    st.one_of(st.text(), json_values.map(json.dumps), st.tuples(kinds, json_values).map(json.dumps))
)
def test_nothing_but_invalid_message_escapes(text: str) -> None:
    kinds = []
    try:
        decode_upstream(text)
    except ClientFacingError as error:
        kinds.append(error.kind)
    assert kinds in ([], ["InvalidMessage"])
