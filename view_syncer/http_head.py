"""The head of an HTTP request, and the answers the dispatcher gives itself: bytes in, bytes out.

Owns just enough HTTP/1.1 to route a connection and to answer health checks; must never do I/O,
and never be used for what a WebSocket library should parse. Invariant: parsing never raises
anything but ``BadRequest``, whatever the bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

END_OF_HEAD = b"\r\n\r\n"

_SYNC_PATH = re.compile(r"(?:/[^/]+)?/sync/v\d+(?:\.\d+)?/connect")
_REQUEST_LINE = re.compile(r"([A-Z]+) (\S+) HTTP/1\.[01]")


class BadRequest(Exception):
    """The bytes are no request this server understands."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RequestHead:
    """Request line and headers; header names are lower case, repeated ones joined by commas."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def is_websocket_upgrade(self) -> bool:
        upgrades = self.headers.get("upgrade", "").lower().split(",")
        return self.method == "GET" and "websocket" in (word.strip() for word in upgrades)

    @property
    def is_sync_connect(self) -> bool:
        """Whether the path is ``[/base]/sync/v{N}/connect``."""
        return _SYNC_PATH.fullmatch(self.path) is not None


def parse_head(head: bytes) -> RequestHead:
    """Parse the bytes up to and without the empty line; raises BadRequest."""
    first, *lines = head.decode("latin-1").split("\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "This port speaks HTTP/1.1 and WebSocket.")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A header line is malformed.")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    try:
        target = urlsplit(match[2])
        named = parse_qs(target.query, keep_blank_values=True)
    except ValueError:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "The request target is malformed.") from None
    query = {name: values[0] for name, values in named.items()}
    return RequestHead(match[1], target.path, query, headers)


def response(
    status: HTTPStatus,
    body: bytes,
    content_type: str = "text/plain; charset=utf-8",
    headers: Mapping[str, str] | None = None,
    *,
    head_only: bool = False,
) -> bytes:
    """A whole answer, after which the connection is closed."""
    fields = {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "Connection": "close",
        **(headers or {}),
    }
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    head = "\r\n".join(lines).encode("latin-1") + END_OF_HEAD
    return head if head_only else head + body


def error_response(status: HTTPStatus, message: str) -> bytes:
    """The JSON answer to a request nobody serves."""
    body = {"message": message, "error": status.phrase, "statusCode": status.value}
    return response(status, json.dumps(body).encode(), "application/json; charset=utf-8")
