"""Connections to PostgreSQL, and what their failures mean to an operator.

Owns how a connection is opened (name, time limits, keepalives) and how an error of the server or
of the network becomes a :class:`ConfigurationError` that says what to do. It never retries: who
wants a retry asks :func:`is_transient`. Invariants: no message made here contains a password, even
if the URL could not be parsed; nobody waits for an answer from a network that has fallen silent,
however alive what lies between us and the server seems to the kernel.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import psycopg
from psycopg import pq, sql
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict

from zerocache.errors import ConfigurationError

CONNECT_TIMEOUT_S = 10
INACTIVITY_VARIABLE = "ZERO_PG_SOCKET_INACTIVITY_TIMEOUT"
_INACTIVITY_MS = 120_000.0
UNREACHABLE = "ZC120"
AUTHENTICATION = "ZC121"
UNKNOWN_DATABASE = "ZC122"
MISSING_PRIVILEGE = "ZC123"
TOO_MANY_CONNECTIONS = "ZC124"
UNREADABLE_URL = "ZC125"

_KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    # Keepalives say nothing while something we sent is unacknowledged.
    "tcp_user_timeout": "60000",
}
SESSION_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # A transaction that we forgot must not hold back vacuum for ever.
        "idle_in_transaction_session_timeout": "60000",
        # A default set for the role or the database must not cut a copy or a set-up short.
        "statement_timeout": "0",
    }
)

# Refused connections carry no SQLSTATE, so their text has to do. A server that answers in
# another language ends at the last row: still an error, only a less specific one.
_BY_TEXT = (
    # It starts, stops or recovers; this passes by itself.
    ("the database system is ", UNREACHABLE),
    ("password authentication failed", AUTHENTICATION),
    ("no password supplied", AUTHENTICATION),
    ("no pg_hba.conf entry", AUTHENTICATION),
    ("is not permitted to log in", AUTHENTICATION),
    ("authentication failed", AUTHENTICATION),
    ("must be superuser or replication role", MISSING_PRIVILEGE),
    ("role ", AUTHENTICATION),
    ("permission denied", MISSING_PRIVILEGE),
    ("database ", UNKNOWN_DATABASE),
    ("too many ", TOO_MANY_CONNECTIONS),
    ("remaining connection slots", TOO_MANY_CONNECTIONS),
    ("all replication slots", TOO_MANY_CONNECTIONS),
    ("number of requested standby", TOO_MANY_CONNECTIONS),
)
_BY_SQLSTATE = {
    "28000": AUTHENTICATION,
    "28P01": AUTHENTICATION,
    "3D000": UNKNOWN_DATABASE,
    "42501": MISSING_PRIVILEGE,
    "53300": TOO_MANY_CONNECTIONS,
}
_ADVICE = {
    UNREACHABLE: "check host, port and firewall, and that the server is running",
    AUTHENTICATION: "check the user, the password and the server's pg_hba.conf",
    UNKNOWN_DATABASE: "create the database, or correct the name in the URL",
    MISSING_PRIVILEGE: "grant the role what is missing, or use a role that has it",
    TOO_MANY_CONNECTIONS: "close other connections, or raise max_connections and max_wal_senders",
}


def parse_url(url: str) -> dict[str, Any]:
    """The parts of a connection string; ``ConfigurationError`` (without the text) if malformed."""
    try:
        parts = dict(conninfo_to_dict(url))
    except psycopg.ProgrammingError:
        # The parser's message quotes the part it could not read, which may be the password.
        parts = None
    # A password with an unescaped "@" ends up in the host.
    if parts is None or "@" in str(parts.get("host", "")):
        raise ConfigurationError(
            "a PostgreSQL URL cannot be read (it is not shown because it may hold a password): it "
            "must look like postgresql://user:password@host:5432/database; write special "
            "characters of user and password percent-encoded",
            code=UNREADABLE_URL,
        )
    return parts


def redact(url: str) -> str:
    """``url`` as it may be logged: user, host, port and database, nothing else."""
    try:
        parts = parse_url(url)
    except ConfigurationError:
        return "postgresql://(unreadable)"
    user = f"{parts['user']}@" if parts.get("user") else ""
    port = f":{parts['port']}" if parts.get("port") else ""
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"postgresql://{user}{host}{port}/{parts.get('dbname') or parts.get('user') or ''}"


def connection_parameters(url: str, purpose: str) -> dict[str, Any]:
    """libpq parameters for ``url``; what the URL sets itself wins, except the application name."""
    parameters = {"connect_timeout": str(CONNECT_TIMEOUT_S), **_KEEPALIVES, **parse_url(url)}
    return {**parameters, "application_name": f"zero-{purpose}"}


def inactivity_limit_s() -> float | None:
    """How long an answer may be silent (no byte, in either direction); None for ever."""
    text = os.environ.get(INACTIVITY_VARIABLE, "").strip()
    try:
        limit_ms = float(text) if text else _INACTIVITY_MS
    except ValueError as error:
        raise ConfigurationError(
            f"{INACTIVITY_VARIABLE} is {text!r}: it must be a number of milliseconds, 0 for no "
            "limit"
        ) from error
    return limit_ms / 1_000 if limit_ms > 0 else None


def silence(limit_s: float) -> psycopg.OperationalError:
    """The error for a connection that was given up."""
    return psycopg.OperationalError(
        f"no answer for {limit_s:.0f} s, and nothing else either: the connection is given up "
        f"({INACTIVITY_VARIABLE} sets the limit)"
    )


_Result = TypeVar("_Result")
_Row = TypeVar("_Row")


class WatchedConnection(psycopg.Connection[_Row]):
    """Gives up an answer that is silent for :func:`inactivity_limit_s`; it is closed then.

    Keepalives do not see that: a proxy answers them, whether or not it has anybody behind it. To
    wait for notifications is not to wait for an answer.
    """

    def wait(self, gen: PQGen[_Result], *args: Any, **kwargs: Any) -> _Result:
        return super().wait(self._watched(gen), *args, **kwargs)

    def _watched(self, gen: PQGen[_Result]) -> PQGen[_Result]:
        limit_s = inactivity_limit_s()
        wanted = None
        heard_s = time.monotonic()
        ready: Any = None
        while True:
            try:
                wanted = gen.send(ready)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            ready = yield wanted
            if ready:
                heard_s = time.monotonic()
            elif limit_s is not None and time.monotonic() - heard_s >= limit_s:
                self._give_up(limit_s)

    def _give_up(self, limit_s: float) -> None:
        if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            # Whoever cleans up after this must not wait for it once more.
            self.pgconn.finish()
            raise silence(limit_s)


def connect(
    url: str,
    purpose: str,
    *,
    autocommit: bool = True,
    settings: Mapping[str, str] = SESSION_SETTINGS,
) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a connection named ``zero-<purpose>``; failures are raised as :func:`explain` says."""
    parameters = connection_parameters(url, purpose)
    try:
        connection = WatchedConnection.connect(**parameters, autocommit=True)
        connection.execute(_settings_query(settings))
    except psycopg.Error as error:
        raise explain(error, url, f"connecting for {purpose}") from error
    connection.autocommit = autocommit
    return connection


async def connect_async(
    url: str,
    purpose: str,
    *,
    autocommit: bool = True,
    settings: Mapping[str, str] = SESSION_SETTINGS,
) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    """:func:`connect` for asyncio."""
    parameters = connection_parameters(url, purpose)
    try:
        connection = await psycopg.AsyncConnection.connect(**parameters, autocommit=True)
        await connection.execute(_settings_query(settings))
    except psycopg.Error as error:
        raise explain(error, url, f"connecting for {purpose}") from error
    await connection.set_autocommit(autocommit)
    return connection


def _settings_query(settings: Mapping[str, str]) -> sql.Composed:
    calls = [
        sql.SQL("set_config({}, {}, false)").format(sql.Literal(name), sql.Literal(value))
        for name, value in settings.items()
    ]
    return sql.SQL("SELECT ") + sql.SQL(", ").join(calls)


def abort(connection: psycopg.Connection[Any]) -> None:
    """Shut the socket down, from any thread: whoever waits for the server gets an error at once.

    The connection still has to be closed by its owner.
    """
    try:
        descriptor = os.dup(connection.pgconn.socket)
    except (psycopg.OperationalError, OSError):
        return  # it is closed already
    with socket.socket(fileno=descriptor) as shared, contextlib.suppress(OSError):
        shared.shutdown(socket.SHUT_RDWR)


def error_code(error: psycopg.Error) -> str:
    """The stable code of the class of failures ``error`` belongs to."""
    if error.sqlstate in _BY_SQLSTATE:
        return _BY_SQLSTATE[error.sqlstate]
    if error.sqlstate is not None:
        return ConfigurationError.code
    text = str(error)
    # Only what the server itself said ("FATAL: ...") is told apart by its text: a host name or a
    # path in a network error may contain any of these words.
    if "FATAL:" in text:
        said = text.split("FATAL:", 1)[1]
        for fragment, code in _BY_TEXT:
            if fragment in said:
                return code
    return UNREACHABLE


def explain(error: psycopg.Error, url: str, doing: str) -> ConfigurationError:
    """The error to show for ``error``, which happened to ``url`` while ``doing`` something."""
    code = error_code(error)
    said = " ".join(_without_password(str(error), url).split())
    advice = _ADVICE.get(code, "see the server's log")
    return ConfigurationError(f"{doing} to {redact(url)} failed: {said}; {advice}", code=code)


def _without_password(text: str, url: str) -> str:
    try:
        password = parse_url(url).get("password")
    except ConfigurationError:
        return "(details withheld: they may quote the password)"
    return text.replace(password, "***") if password else text


def is_transient(error: BaseException) -> bool:
    """True if the same attempt may succeed later without anybody changing anything."""
    if isinstance(error, ConfigurationError):
        cause = error.__cause__
        return error.code in (UNREACHABLE, TOO_MANY_CONNECTIONS) or (
            isinstance(cause, psycopg.Error) and is_transient(cause)
        )
    if not isinstance(error, psycopg.OperationalError):
        return False
    if error.sqlstate is None:
        return error_code(error) in (UNREACHABLE, TOO_MANY_CONNECTIONS)
    # 08 connection, 53 resources, 57P0x shut down or starting up, 55 object in use, 40 rollback
    return error.sqlstate[:2] in ("08", "53", "55", "40") or error.sqlstate[:4] == "57P0"
