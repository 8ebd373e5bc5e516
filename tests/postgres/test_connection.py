"""Connections: what their failures say, and what they never say."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import PostgresCluster, free_port
from zerocache.errors import ConfigurationError
from zerocache.postgres.connection import (
    AUTHENTICATION,
    UNKNOWN_DATABASE,
    UNREACHABLE,
    UNREADABLE_URL,
    connect,
    connect_async,
    explain,
    is_transient,
    redact,
)

SECRET = "s3cr3t-word"


@pytest.fixture
def password_role(postgres: PostgresCluster) -> Iterator[str]:
    role = "password_role"
    postgres.psql(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
    yield role
    postgres.psql(f"DROP ROLE {role}")


def _failure(url: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        connect(url, "test")
    assert SECRET not in str(caught.value)
    return caught.value


def test_wrong_password(postgres: PostgresCluster, password_role: str) -> None:
    error = _failure(postgres.url_of("postgres", password_role, f"{SECRET}-wrong"))
    assert error.code == AUTHENTICATION
    assert "password_role@127.0.0.1" in str(error)
    assert not is_transient(error)
    connect(postgres.url_of("postgres", password_role, SECRET), "test").close()


def test_unknown_role(postgres: PostgresCluster) -> None:
    assert _failure(postgres.url_of("postgres", "nobody_here")).code == AUTHENTICATION


def test_unknown_database(postgres: PostgresCluster) -> None:
    error = _failure(postgres.url_of("nowhere"))
    assert error.code == UNKNOWN_DATABASE
    assert not is_transient(error)


def test_nobody_listens() -> None:
    error = _failure(f"postgresql://u:{SECRET}@127.0.0.1:{free_port()}/d")
    assert error.code == UNREACHABLE
    assert is_transient(error)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@host:port/d",
        f"postgresql://u:x@{SECRET}@host/d",
        f"postgresql://u:%zz{SECRET}@host/d",
        f"password={SECRET} 'nonsense",
    ],
)
def test_malformed_urls_are_not_quoted(url: str) -> None:
    error = _failure(url)
    assert error.code in (UNREADABLE_URL, UNREACHABLE)
    assert SECRET not in redact(url)


def test_redacted_url_names_the_place_only() -> None:
    assert redact(f"postgresql://u:{SECRET}@h:5433/d?sslpassword={SECRET}") == (
        "postgresql://u@h:5433/d"
    )
    assert redact("postgresql://u@/d?host=/run/pg") == "postgresql://u@/run/pg/d"


def test_passwords_inside_messages_are_masked() -> None:
    error = psycopg.OperationalError(f"something about {SECRET}")
    assert SECRET not in str(explain(error, f"postgresql://u:{SECRET}@h/d", "testing"))


def test_session_is_named_and_unlimited(postgres: PostgresCluster, database: str) -> None:
    name = database.rsplit("/", 1)[1]
    postgres.psql(f'ALTER DATABASE "{name}" SET statement_timeout = 1000')
    with connect(database, "test") as connection:
        shown = [
            connection.execute(f"SHOW {setting}".encode()).fetchone()
            for setting in ("application_name", "statement_timeout")
        ]
    assert shown == [("zero-test",), ("0",)]


async def test_async_connections_behave_alike(postgres: PostgresCluster, database: str) -> None:
    async with await connect_async(database, "test") as connection:
        cursor = await connection.execute("SHOW application_name")
        assert await cursor.fetchone() == ("zero-test",)
    with pytest.raises(ConfigurationError) as caught:
        await connect_async(postgres.url_of("nowhere"), "test")
    assert caught.value.code == UNKNOWN_DATABASE


def test_failures_that_pass_are_transient_however_they_are_told() -> None:
    """A shutdown or a lock held too long must not look like a mistake of the operator."""
    for passing in (psycopg.errors.AdminShutdown, psycopg.errors.LockNotAvailable):
        cause = passing("later")
        told = explain(cause, "postgresql://u@h/d", "testing")
        told.__cause__ = cause
        assert is_transient(told)


@pytest.mark.parametrize(
    "said",
    [
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is in recovery mode",
        "the database system is not yet accepting connections",
    ],
)
def test_a_server_that_starts_or_stops_is_waited_for(said: str) -> None:
    """Without an SQLSTATE, as libpq reports a refused connection."""
    error = psycopg.OperationalError(f'connection to server at "h" failed: FATAL:  {said}')
    assert is_transient(error)
    assert is_transient(explain(error, "postgresql://h/d", "connecting"))
