"""Calls of the application's own HTTP endpoints (api-and-auth.md §1).

Owns the request line, the headers, the attempts and the classification of failures; knows nothing
of mutations or queries. It must never call a URL outside the allowlist, let a client's header
replace a credential, or keep a cookie the application sets (they would reach other users).

Invariant: :meth:`ApiClient.post` returns the body of a 2xx answer or raises
:class:`ApplicationCallError`; cancellation is the only other way out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

import aiohttp
import structlog
from multidict import CIMultiDict
from yarl import URL

from view_syncer.url_pattern import UrlAllowlist, compile_patterns, parse_url
from zerocache.errors import ApplicationCallError, ClientFacingError
from zerocache.options import Endpoint

log = structlog.get_logger(__name__)

MAX_ATTEMPTS: Final = 4
ATTEMPT_TIMEOUT_S: Final = 300.0
PREVIEW_CHARACTERS: Final = 512
MAX_CONNECTIONS: Final = 256
"""Requests under way at once per process; more wait for one of these connections."""

_FRAMING_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""They describe the connection they came on; passed on they would break or split the request."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What one connection contributes to calls made in its name.

    Push and query calls of one connection differ in ``url`` and ``client_headers``.
    """

    auth_token: str | None = None
    cookie: str | None = None
    origin: str | None = None
    user_id: str | None = None
    url: str | None = None  # the client's override; empty or None = the configured default
    client_headers: Mapping[str, str] = field(default_factory=dict)
    request_headers: Mapping[str, str] = field(default_factory=dict)  # of the upgrade request


def join_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers of an upgrade request for a :class:`RequestContext`: lower case, repeated ones
    joined."""
    joined: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        separator = "; " if key == "cookie" else ", "
        joined[key] = f"{joined[key]}{separator}{value}" if key in joined else value
    return joined


@dataclass(frozen=True, slots=True)
class ApiEndpoint:
    """One configured endpoint: where it may be and what is sent along."""

    allowlist: UrlAllowlist
    api_key: str | None = None
    forward_cookies: bool = False
    allowed_client_headers: frozenset[str] = frozenset()
    allowed_request_headers: frozenset[str] = frozenset()

    @classmethod
    def from_options(cls, options: Endpoint, variable: str) -> ApiEndpoint:
        """Compile the options of ``variable`` (ZERO_MUTATE_URL or ZERO_QUERY_URL)."""
        return cls(
            compile_patterns(options.url, variable),
            options.api_key,
            options.forward_cookies,
            frozenset(name.lower() for name in options.allowed_client_headers),
            frozenset(name.lower() for name in options.allowed_request_headers),
        )

    @property
    def enabled(self) -> bool:
        return self.allowlist.default is not None

    def target(self, context: RequestContext) -> str:
        """The URL a call in this context goes to; not yet checked."""
        return context.url or self.allowlist.default or ""

    def headers(self, context: RequestContext) -> CIMultiDict[str]:
        """Reserved names last, so that no header of a client can take their place."""
        headers: CIMultiDict[str] = CIMultiDict()
        for given, allowed in (
            (context.client_headers, self.allowed_client_headers),
            (context.request_headers, self.allowed_request_headers),
        ):
            for name, value in given.items():
                if name.lower() in allowed and name.lower() not in _FRAMING_HEADERS:
                    headers[name] = value
        headers["Content-Type"] = "application/json"
        if self.api_key:
            headers["X-Api-Key"] = self.api_key
        if context.auth_token:
            headers["Authorization"] = f"Bearer {context.auth_token}"
        if self.forward_cookies and context.cookie:
            headers["Cookie"] = context.cookie
        if context.origin:
            headers["Origin"] = context.origin
        return headers


def is_auth_failure(error: ClientFacingError) -> bool:
    """Whether clients take ``error`` as "credentials needed" (api-and-auth.md §4)."""
    if error.kind in ("AuthInvalidated", "Unauthorized"):
        return True
    status = error.extra.get("status")
    refused = error.extra.get("reason") == "http" and status in (401, 403)
    return refused and error.kind in ("PushFailed", "TransformFailed")


def open_session() -> aiohttp.ClientSession:
    """The HTTP session of one process, for :class:`ApiClient`; the caller closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
    )


class ApiClient:
    """Posts JSON to the application.

    - ``session`` comes from :func:`open_session` and outlives the client;
    - ``sleep`` and ``rand`` (0 ≤ x < 1) are injected so that tests own time and chance.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        app_id: str,
        shard_num: int,
        *,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._session = session
        self._parameters = {"schema": f"{app_id}_{shard_num}", "appID": app_id}
        self._timeout = aiohttp.ClientTimeout(total=attempt_timeout_s)
        self._sleep = sleep
        self._rand = rand

    async def post(self, endpoint: ApiEndpoint, context: RequestContext, body: bytes) -> bytes:
        """POST ``body`` in the name of ``context``; the body of the answer."""
        url = self._url(endpoint, context)
        headers = endpoint.headers(context)
        attempt = 1
        while True:
            try:
                return await self._attempt(url, headers, body)
            except _Retryable as failure:
                log.warning(
                    "api_attempt_failed",
                    host=url.host,
                    path=url.path,
                    attempt=attempt,
                    status=failure.error.status,
                    reason=failure.error.reason,
                )
                if attempt == MAX_ATTEMPTS:
                    raise failure.error from failure
            await self._sleep(self._backoff_s(attempt))
            attempt += 1

    def _backoff_s(self, attempt: int) -> float:
        delay_ms: float = 100 * 2 ** (attempt - 1) + 100 * self._rand()
        return min(1000.0, delay_ms) / 1000.0

    def _url(self, endpoint: ApiEndpoint, context: RequestContext) -> URL:
        target = endpoint.target(context)
        url = parse_url(target)
        if url is None or not endpoint.allowlist.matches(target):
            raise ApplicationCallError(
                "internal",
                f"The URL {target!r} is not allowed by {endpoint.allowlist.variable}, so it was "
                "not called. Add a pattern that matches it.",
            )
        for name in self._parameters:
            if name in url.query:
                raise ApplicationCallError(
                    "internal",
                    f"The URL {target!r} already has the parameter {name}, which is reserved for "
                    "the server. Rename it.",
                )
        added = "&".join(f"{name}={quote(value)}" for name, value in self._parameters.items())
        separator = "&" if url.raw_query_string else "?"
        return URL(f"{url.with_fragment(None)}{separator}{added}", encoded=True)

    async def _attempt(self, url: URL, headers: CIMultiDict[str], body: bytes) -> bytes:
        try:
            response = await self._session.post(
                url, data=body, headers=headers, timeout=self._timeout, max_redirects=20
            )
        except (aiohttp.ClientConnectionError, TimeoutError, OSError) as error:
            raise _Retryable(
                ApplicationCallError(
                    "internal", f"The application's endpoint cannot be reached: {_told(error)}"
                )
            ) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise ApplicationCallError(
                "internal", f"The call of the application's endpoint failed: {_told(error)}"
            ) from error
        async with response:
            if response.ok and response.status < 300:
                return await _read(response)
            raise await _http_failure(response)


class _Retryable(Exception):
    """An attempt that failed in a way worth repeating."""

    def __init__(self, error: ApplicationCallError) -> None:
        super().__init__(str(error))
        self.error = error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Once headers are there the application may have acted: a broken body is not retried."""
    try:
        return await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ApplicationCallError(
            "parse", f"The answer of the application's endpoint broke off: {_told(error)}"
        ) from error


async def _http_failure(response: aiohttp.ClientResponse) -> Exception:
    try:
        text: str | None = (await response.read()).decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError):
        text = None  # the status alone is worth reporting
    if text is not None and len(text) > PREVIEW_CHARACTERS:
        text = text[:PREVIEW_CHARACTERS] + "..."
    status = response.status
    error = ApplicationCallError(
        "http",
        f"The application's endpoint answered with status {status}.",
        status=status,
        body_preview=text,
    )
    return _Retryable(error) if 500 <= status <= 599 else error


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
