"""Parsing request heads and building answers, bytes to bytes."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from view_syncer.http_head import BadRequest, RequestHead, error_response, parse_head, response


def request(target: str, *lines: str, method: str = "GET") -> RequestHead:
    return parse_head("\r\n".join([f"{method} {target} HTTP/1.1", *lines]).encode("latin-1"))


def test_target_is_split_into_path_and_parameters() -> None:
    head = request("/a/b?x=1&y=%2F&x=2&empty=&flag")
    assert (head.method, head.path) == ("GET", "/a/b")
    assert head.query == {"x": "1", "y": "/", "empty": "", "flag": ""}


def test_header_names_ignore_case_and_repetitions_join() -> None:
    head = request("/", "HOST: h", "X-A:1", "x-a: 2 ")
    assert head.headers == {"host": "h", "x-a": "1, 2"}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Upgrade: websocket"], True),
        (["upgrade: h2c, WebSocket"], True),
        (["Upgrade: h2c"], False),
        ([], False),
    ],
)
def test_upgrade_is_recognised(lines: list[str], expected: bool) -> None:
    assert request("/", *lines).is_websocket_upgrade is expected
    assert request("/", *lines, method="POST").is_websocket_upgrade is False


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/sync/v51/connect", True),
        ("/api/sync/v51/connect", True),
        ("/a/b/sync/v51/connect", False),
        ("/sync/v51/connect/", False),
        ("/sync/v51/connect/more", False),
        ("/sync/vX/connect", False),
        ("/sync/v51/other", False),
        ("/mutate/v51/connect", False),
    ],
)
def test_sync_path_may_have_one_leading_segment(path: str, expected: bool) -> None:
    assert request(path).is_sync_connect is expected


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x16\x03\x01",
        b"GET /",
        b"GET / HTTP/2",
        b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\n folded: x",
        b"GET //[ HTTP/1.1",
    ],
)
def test_anything_else_is_a_bad_request(head: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_head(head)
    assert caught.value.status == HTTPStatus.BAD_REQUEST


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda b: b"GET /" + b + b" HTTP/1.1"))
def test_parsing_raises_nothing_but_bad_request(head: bytes) -> None:
    try:
        parsed = parse_head(head)
    except BadRequest:
        return
    assert isinstance(parsed.is_sync_connect, bool)


def test_response_names_its_length_and_closes() -> None:
    answer = response(HTTPStatus.OK, b"OK").split(b"\r\n")
    assert answer[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Length: 2" in answer
    assert b"Connection: close" in answer
    assert answer[-1] == b"OK"


def test_response_to_head_has_length_but_no_body() -> None:
    answer = response(HTTPStatus.OK, b"OK", head_only=True)
    assert b"Content-Length: 2" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_error_is_json_with_message_error_and_status() -> None:
    head, _, body = error_response(HTTPStatus.NOT_FOUND, "no").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 Not Found")
    assert json.loads(body) == {"message": "no", "error": "Not Found", "statusCode": 404}
