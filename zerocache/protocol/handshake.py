"""How a connection to port 4848 introduces itself (sync-protocol.md §1).

Owns the URL, the subprotocol header and the range of versions. It must never decide who may
connect: it only says whether the request can be understood. Invariant: a request that cannot is
a :class:`HandshakeRefused` whose reason fits a WebSocket close frame.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit

import msgspec

from zerocache.errors import ClientFacingError, HandshakeRefused
from zerocache.protocol.identifiers import fault_of
from zerocache.protocol.messages import InitConnection, decode_upstream

MIN_VERSION: Final = 30
MAX_VERSION: Final = 52
MAX_REASON_BYTES: Final = 123

_PATH: Final = re.compile(r"(?:/[^/]+)?/sync/v(?P<version>[0-9]{1,9})/connect")
_STORED: Final = frozenset({"clientID", "clientGroupID", "profileID"})
_LEADING_INTEGER: Final = re.compile(r"\s*[+-]?[0-9]+")


class ConnectParams(msgspec.Struct, frozen=True, kw_only=True):
    """The query parameters; an empty value counts as an absent one."""

    version: int
    client_id: str
    client_group_id: str
    ts: float
    lmid: int
    base_cookie: str | None = None
    wsid: str = ""
    user_id: str | None = None  # None = logged out
    profile_id: str = ""  # never empty after parsing: defaults to the client group
    debug_perf: bool = False


def close_reason(text: str) -> str:
    """``text`` cut to what a close frame can carry, never inside a character."""
    return text.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


def parse_connect_url(path_and_query: str) -> ConnectParams:
    """Read ``/sync/v51/connect?…``; the version's number is read but not judged here."""
    url = urlsplit(path_and_query)
    match = _PATH.fullmatch(url.path)
    if match is None:
        raise HandshakeRefused(
            close_reason(f"{url.path[:60]} is not a sync URL: use [/BASE]/sync/vN/connect")
        )
    params: dict[str, str] = {}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        params.setdefault(name, value)
    for name in _STORED & params.keys():
        fault = fault_of(params[name])
        if fault is not None:
            raise HandshakeRefused(close_reason(f"the URL parameter {name} {fault}"))
    client_group_id = _required(params, "clientGroupID")
    return ConnectParams(
        version=int(match["version"]),
        client_id=_required(params, "clientID"),
        client_group_id=client_group_id,
        ts=float(_integer(params, "ts")),
        lmid=_integer(params, "lmid"),
        base_cookie=params.get("baseCookie") or None,
        wsid=params.get("wsid", ""),
        user_id=params.get("userID") or None,
        profile_id=params.get("profileID") or f"cg{client_group_id}",
        debug_perf=params.get("debugPerf") == "true",
    )


def _required(params: Mapping[str, str], name: str) -> str:
    value = params.get(name)
    if not value:
        raise HandshakeRefused(close_reason(f"the URL parameter {name} is missing"))
    return value


def _integer(params: Mapping[str, str], name: str) -> int:
    """The leading integer: ``ts`` is usually fractional, and nothing depends on the rest."""
    value = _required(params, name)
    match = _LEADING_INTEGER.match(value)
    if match is None:
        raise HandshakeRefused(
            close_reason(f"the URL parameter {name} is {value[:20]!r}, not a number")
        )
    return int(match[0][:40])


def check_version(version: int) -> None:
    """Refuse a protocol this server does not speak, saying which side must move."""
    if version < MIN_VERSION:
        advice = "Upgrade the client: reload the page to get the newest release of the app."
    elif version > MAX_VERSION:
        advice = "Upgrade the server before releasing this client."
    else:
        return
    raise ClientFacingError(
        "VersionNotSupported",
        f"The client speaks sync protocol v{version}, this server v{MIN_VERSION} to "
        f"v{MAX_VERSION}. {advice}",
    )


class Subprotocol(msgspec.Struct, frozen=True):
    """What travelled in ``Sec-WebSocket-Protocol``.

    - ``raw`` must be echoed byte for byte as the selected subprotocol;
    - the embedded first message is decoded on demand, because a connection that is rejected for
      its version or token must not fail over its content first.
    """

    raw: str
    auth_token: str | None = None  # None also for an empty token
    init_frame: bytes | None = None

    def init_connection(self) -> InitConnection | None:
        """The embedded ``initConnection``, validated as a frame would be."""
        if self.init_frame is None:
            return None
        message = decode_upstream(self.init_frame)
        if not isinstance(message, InitConnection):
            raise ClientFacingError(
                "InvalidMessage",
                "The message in Sec-WebSocket-Protocol is not an initConnection; "
                "other messages must follow as frames.",
            )
        return message


class _Content(msgspec.Struct, frozen=True, rename="camel"):
    auth_token: str | None = None
    init_connection_message: msgspec.Raw = msgspec.Raw()


_decode_content: Final = msgspec.json.Decoder(_Content).decode


def decode_subprotocol(header: str | None) -> Subprotocol:
    """Percent-encoding, base64, UTF-8, JSON, in that order (§1.3)."""
    raw = (header or "").split(",", 1)[0].strip()
    if not raw:
        raise HandshakeRefused("the header Sec-WebSocket-Protocol is missing")
    try:
        text = base64.b64decode(unquote_to_bytes(raw), validate=True)
        content = _decode_content(text)
    except (binascii.Error, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise HandshakeRefused(
            close_reason(f"the header Sec-WebSocket-Protocol cannot be decoded: {error}")
        ) from error
    init = bytes(content.init_connection_message)
    return Subprotocol(raw, content.auth_token or None, None if init in (b"", b"null") else init)


def encode_subprotocol(
    auth_token: str | None = None, init_connection_message: list[Any] | None = None
) -> str:
    """What a client puts into the header; the reverse of :func:`decode_subprotocol`."""
    content: dict[str, Any] = {}
    if init_connection_message is not None:
        content["initConnectionMessage"] = init_connection_message
    if auth_token:
        content["authToken"] = auth_token
    return quote(base64.b64encode(msgspec.json.encode(content)), safe="")
