"""Outbound calls: checklist items 1-11 of api-and-auth.md §9."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from tests.view_syncer.application import Application, Sleeps, api_client, endpoint
from view_syncer.api_client import (
    ApiClient,
    ApiEndpoint,
    RequestContext,
    is_auth_failure,
    join_headers,
    open_session,
)
from zerocache.errors import ApplicationCallError, ClientFacingError, ConfigurationError
from zerocache.options import Endpoint

ANYONE = RequestContext()


async def test_a_plain_call(application: Application, client: ApiClient) -> None:
    application.default = (200, {"ok": True})
    answer = await client.post(endpoint(application.url("/push?x=1")), ANYONE, b'{"a":1}')
    assert answer == b'{"ok": true}'
    (request,) = application.requests
    assert (request.method, request.path, request.body) == ("POST", "/push", {"a": 1})
    assert request.query == "x=1&schema=zero_0&appID=zero"
    assert request.headers["Content-Type"] == "application/json"
    for absent in ("X-Api-Key", "Authorization", "Cookie", "Origin"):
        assert absent not in request.headers


async def test_existing_query_parameters_are_kept_as_written(
    application: Application, client: ApiClient
) -> None:
    url = application.url("/push") + "?q=a+b&r=%2Fx%26&r=2#frag"
    await client.post(endpoint(url), ANYONE, b"1")
    assert application.requests[0].query == "q=a+b&r=/x%26&r=2&schema=zero_0&appID=zero"


CALLER = RequestContext(auth_token="t1", cookie="sid=9", origin="https://app.test", user_id="u1")


async def test_credentials_of_the_connection(application: Application, client: ApiClient) -> None:
    await client.post(endpoint(application.url(), api_key="secret"), CALLER, b"1")
    headers = application.requests[0].headers
    assert headers["X-Api-Key"] == "secret"
    assert headers["Authorization"] == "Bearer t1"
    assert headers["Origin"] == "https://app.test"
    assert "Cookie" not in headers


async def test_cookies_travel_only_where_switched_on(
    application: Application, client: ApiClient
) -> None:
    await client.post(endpoint(application.url(), forward_cookies=True), CALLER, b"1")
    assert application.requests[0].headers["Cookie"] == "sid=9"


async def test_cookies_set_by_the_application_are_not_kept(
    application: Application, client: ApiClient
) -> None:
    answer = web.Response(text="1")
    answer.set_cookie("session", "of-somebody-else")
    application.answers.append((200, answer))
    target = endpoint(application.url(), forward_cookies=True)
    await client.post(target, CALLER, b"1")
    await client.post(target, ANYONE, b"1")
    assert "Cookie" not in application.requests[1].headers


HEADERS = {"X-Tenant": "acme", "AUTHORIZATION": "Bearer forged", "x-other": "1", "Host": "evil"}


async def test_client_headers_need_an_allowlist(
    application: Application, client: ApiClient
) -> None:
    context = RequestContext(client_headers=HEADERS)
    await client.post(endpoint(application.url()), context, b"1")
    assert not {"X-Tenant", "Authorization", "X-Other"} & set(application.requests[0].headers)


async def test_listed_headers_match_in_any_case_and_never_replace_credentials(
    application: Application, client: ApiClient
) -> None:
    listed = frozenset({"x-tenant", "authorization", "content-type", "x-api-key", "host"})
    context = RequestContext(
        auth_token="t1",
        client_headers={**HEADERS, "x-api-KEY": "forged", "content-type": "text/html"},
        request_headers={"authorization": "Basic forged"},
    )
    target = endpoint(
        application.url(),
        api_key="secret",
        allowed_client_headers=listed,
        allowed_request_headers=listed,
    )
    await client.post(target, context, b"1")
    headers = application.requests[0].headers
    assert headers["X-Tenant"] == "acme"
    assert headers.getall("Authorization") == ["Bearer t1"]
    assert headers.getall("X-Api-Key") == ["secret"]
    assert headers.getall("Content-Type") == ["application/json"]
    assert headers["Host"] != "evil"
    assert "X-Other" not in headers


async def test_request_headers_are_joined_and_need_their_own_allowlist(
    application: Application, client: ApiClient
) -> None:
    upgrade = join_headers(
        [("X-Forwarded-For", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2"), ("X-Secret", "no")]
    )
    context = RequestContext(request_headers=upgrade)
    target = endpoint(application.url(), allowed_request_headers=frozenset({"x-forwarded-for"}))
    await client.post(target, context, b"1")
    headers = application.requests[0].headers
    assert headers["X-Forwarded-For"] == "1.1.1.1, 2.2.2.2"
    assert "X-Secret" not in headers


def test_repeated_cookies_join_as_cookies() -> None:
    assert join_headers([("Cookie", "a=1"), ("cookie", "b=2")]) == {"cookie": "a=1; b=2"}


async def test_a_header_that_would_split_the_request_fails_the_call(
    application: Application, client: ApiClient
) -> None:
    target = endpoint(application.url(), allowed_client_headers=frozenset({"x-a"}))
    context = RequestContext(client_headers={"X-A": "1\r\nX-Api-Key: forged"})
    with pytest.raises(ApplicationCallError) as caught:
        await client.post(target, context, b"1")
    assert caught.value.reason == "internal"
    assert application.requests == []


async def test_an_override_must_be_allowed(application: Application, client: ApiClient) -> None:
    target = endpoint(application.url("/push"), application.url("/v2/") + "*")
    await client.post(target, RequestContext(url=application.url("/v2/push")), b"1")
    await client.post(target, RequestContext(url=""), b"1")
    assert [r.path for r in application.requests] == ["/v2/push", "/push"]
    with pytest.raises(ApplicationCallError, match="ZERO_MUTATE_URL") as caught:
        await client.post(target, RequestContext(url=application.url("/other")), b"1")
    assert caught.value.reason == "internal"
    assert len(application.requests) == 2


@pytest.mark.parametrize("query", ["schema=x", "a=1&appID=y", "schema"])
async def test_reserved_parameters_in_the_url_fail_before_any_attempt(
    application: Application, client: ApiClient, query: str
) -> None:
    with pytest.raises(ApplicationCallError, match=r"schema|appID") as caught:
        await client.post(endpoint(application.url("/push") + "?" + query), ANYONE, b"1")
    assert caught.value.reason == "internal"
    assert application.requests == []


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
async def test_server_errors_are_retried(
    application: Application, client: ApiClient, sleeps: Sleeps, status: int
) -> None:
    application.answers.append((status, "down"))
    assert await client.post(endpoint(application.url()), ANYONE, b"1")
    assert len(application.requests) == 2
    assert sleeps.delays_s == [0.15]


@pytest.mark.parametrize(("rand", "delays"), [(0.0, [0.1, 0.2, 0.4]), (1.0, [0.2, 0.3, 0.5])])
async def test_delays_double(application: Application, rand: float, delays: list[float]) -> None:
    application.default = (503, "down")
    sleeps = Sleeps()
    async with api_client(sleeps, rand) as client:
        with pytest.raises(ApplicationCallError):
            await client.post(endpoint(application.url()), ANYONE, b"1")
    assert sleeps.delays_s == pytest.approx(delays)


async def test_dropped_connections_are_retried(
    application: Application, client: ApiClient, sleeps: Sleeps
) -> None:
    application.answers.extend([None, None, None])
    assert await client.post(endpoint(application.url()), ANYONE, b"1")
    assert len(application.requests) == 4
    assert len(sleeps.delays_s) == 3


async def test_a_refused_connection_is_retried_and_then_internal(
    client: ApiClient, sleeps: Sleeps
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(ApplicationCallError) as caught:
            await client.post(endpoint(f"http://127.0.0.1:{port}/push"), ANYONE, b"1")
    assert caught.value.reason == "internal"
    assert len(sleeps.delays_s) == 3


async def test_an_attempt_has_a_time_limit(application: Application, sleeps: Sleeps) -> None:
    application.hold()
    async with open_session() as session:
        client = ApiClient(session, "zero", 0, attempt_timeout_s=0.05, sleep=sleeps)
        with pytest.raises(ApplicationCallError) as caught:
            await client.post(endpoint(application.url()), ANYONE, b"1")
    assert caught.value.reason == "internal"
    assert len(application.requests) == 4


async def test_four_failures_are_final(application: Application, client: ApiClient) -> None:
    application.default = (503, "no capacity")
    with pytest.raises(ApplicationCallError) as caught:
        await client.post(endpoint(application.url()), ANYONE, b"1")
    assert len(application.requests) == 4
    failure = caught.value.to_client("PushFailed", mutationIDs=[])
    body = failure.body()
    assert body.pop("message")
    assert body == {
        "kind": "PushFailed",
        "origin": "zeroCache",
        "reason": "http",
        "status": 503,
        "bodyPreview": "no capacity",
        "mutationIDs": [],
    }


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 418])
async def test_other_statuses_are_not_retried(
    application: Application, client: ApiClient, status: int
) -> None:
    application.default = (status, "no")
    with pytest.raises(ApplicationCallError) as caught:
        await client.post(endpoint(application.url()), ANYONE, b"1")
    assert (caught.value.reason, caught.value.status) == ("http", status)
    assert len(application.requests) == 1
    failure = caught.value.to_client("TransformFailed", queryIDs=[])
    assert is_auth_failure(failure) is (status in (401, 403))


@pytest.mark.parametrize(
    ("text", "preview"),
    [("é" * 512, "é" * 512), ("é" * 513, "é" * 512 + "..."), ("", "")],
)
async def test_previews_are_cut_after_512_characters(
    application: Application, client: ApiClient, text: str, preview: str
) -> None:
    application.default = (400, text)
    with pytest.raises(ApplicationCallError) as caught:
        await client.post(endpoint(application.url()), ANYONE, b"1")
    assert caught.value.body_preview == preview


async def test_redirects_are_followed(application: Application, client: ApiClient) -> None:
    moved = web.Response(status=307, headers={"Location": "/moved"})
    application.answers.append((307, moved))
    await client.post(endpoint(application.url()), ANYONE, b"[1]")
    assert [(r.method, r.path, r.body) for r in application.requests][1] == ("POST", "/moved", [1])


async def test_an_answer_that_breaks_off_is_not_retried(client: ApiClient) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ApplicationCallError) as caught:
            await client.post(endpoint(f"http://127.0.0.1:{port}/"), ANYONE, b"1")
    assert caught.value.reason == "parse"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ClientFacingError("Unauthorized", ""), True),
        (ClientFacingError("AuthInvalidated", ""), True),
        (ClientFacingError("PushFailed", "", reason="http", status=401), True),
        (ClientFacingError("PushFailed", "", reason="http", status=409), False),
        (ClientFacingError("PushFailed", "", reason="parse"), False),
        (ClientFacingError("Internal", ""), False),
    ],
)
def test_auth_failures(error: ClientFacingError, expected: bool) -> None:
    assert is_auth_failure(error) is expected


def test_endpoints_are_made_from_options() -> None:
    options = Endpoint(
        url=("https://a.test/push", "https://*.a.test/push"),
        api_key="k",
        forward_cookies=True,
        allowed_client_headers=("X-A",),
        allowed_request_headers=("X-B",),
    )
    made = ApiEndpoint.from_options(options, "ZERO_MUTATE_URL")
    assert made.enabled
    assert (made.api_key, made.forward_cookies) == ("k", True)
    assert made.allowed_client_headers == frozenset({"x-a"})
    assert made.allowed_request_headers == frozenset({"x-b"})
    assert made.target(ANYONE) == "https://a.test/push"
    assert not ApiEndpoint.from_options(Endpoint(), "ZERO_QUERY_URL").enabled


def test_a_bad_pattern_in_the_options_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="ZERO_QUERY_URL"):
        ApiEndpoint.from_options(Endpoint(url=("https://a.test/(",)), "ZERO_QUERY_URL")
