"""A network that falls silent while something is asked of upstream: it is asked again."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare
from tests.replication_manager.proxy import Proxy
from zerocache.postgres.connection import INACTIVITY_VARIABLE, connect, is_transient
from zerocache.postgres.shard import ShardNames

LIMIT_MS = "1500"


def hold_setup(holder: psycopg.Connection, shard: ShardNames) -> None:
    holder.execute("SELECT pg_advisory_lock(hashtext(%s))", [shard.setup_lock])


def hold_slot(holder: psycopg.Connection, _: ShardNames) -> None:
    """A slot can only begin when this transaction has ended."""
    holder.execute("BEGIN; SELECT pg_current_xact_id()")


@pytest.mark.parametrize(
    ("hold", "purpose"),
    [(hold_setup, "zero-setup"), (hold_slot, "zero-initial-sync-slot")],
    ids=["set-up", "slot"],
)
def test_silence_while_a_start_waits_for_upstream(
    new_replicator: Callable[..., Replicator],
    run_sql: RunSql,
    database: str,
    proxied_url: str,
    proxy: Proxy,
    app_id: str,
    hold: Callable[[psycopg.Connection, ShardNames], None],
    purpose: str,
) -> None:
    run_sql("CREATE TABLE issue (id int PRIMARY KEY); INSERT INTO issue VALUES (1)")
    replicator = new_replicator(url=proxied_url, change={"db": database})
    with psycopg.connect(database, autocommit=True) as holder:
        hold(holder, ShardNames(app_id))
        replicator.start(wait=False, environment={INACTIVITY_VARIABLE: LIMIT_MS})
        with psycopg.connect(database, autocommit=True) as observer:
            replicator.wait_until(
                lambda: bool(
                    observer.execute(
                        "SELECT FROM pg_stat_activity WHERE application_name = %s "
                        "AND datname = current_database() AND wait_event_type = 'Lock'",
                        [purpose],
                    ).fetchall()
                )
            )
        proxy.freeze()
    assert replicator.next_message("ready")["type"] == "ready"
    assert "no answer" in replicator.log()
    replicator.catch_up()
    assert compare(replicator)


def test_an_answer_that_does_not_come_is_given_up(
    proxied_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect(proxied_url, "test")
    monkeypatch.setenv(INACTIVITY_VARIABLE, "300")
    proxy.freeze()
    with (
        pytest.raises(psycopg.OperationalError, match="no answer") as caught,
        connection.transaction(),
    ):
        connection.execute("SELECT 1")
    assert is_transient(caught.value)
    assert connection.closed


def test_signs_of_life_are_waited_for(proxied_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INACTIVITY_VARIABLE, "1500")
    with connect(proxied_url, "test") as connection:
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..20 LOOP PERFORM pg_sleep(0.1); RAISE NOTICE 'alive'; "
            "END LOOP; END $$"
        )
        # Nobody has to notify.
        connection.execute("LISTEN something")
        assert list(connection.notifies(timeout=2.0)) == []
        assert connection.execute("SELECT 1").fetchone() == (1,)
