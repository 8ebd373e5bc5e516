"""The configuration as an object: derived defaults, cross checks, the way to child processes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from zerocache.config import Config
from zerocache.errors import ConfigurationError

UPSTREAM = "postgres://u:hunter2@h:5432/d"


def config(**given: Any) -> Config:
    return Config.model_validate({"upstream": {"db": UPSTREAM}, "development": True, **given})


def test_other_databases_default_to_upstream() -> None:
    assert config().cvr.db == UPSTREAM
    assert config().change.db == UPSTREAM
    other = config(cvr={"db": "postgres://h/cvr"}, change={"max_conns": 3})
    assert other.cvr.db == "postgres://h/cvr"
    assert other.change.db == UPSTREAM


def test_client_view_records_may_live_in_sqlite() -> None:
    assert config(cvr={"db": "sqlite:cvr.db"}).cvr.db == "sqlite:cvr.db"


def test_other_ports_follow_the_client_port() -> None:
    derived = config(port=6000)
    assert (derived.change_streamer.port, derived.litestream.port) == (6001, 6002)
    assert config(change_streamer={"port": 7}).change_streamer.port == 7


def test_task_id_is_random_unless_given() -> None:
    assert config().task_id != config().task_id
    assert config(task_id="t1").task_id == "t1"


def test_there_is_at_least_one_sync_worker_by_default() -> None:
    assert config().num_sync_workers >= 1


def test_schema_names_contain_app_and_shard() -> None:
    shop = config(app={"id": "shop"}, shard={"num": 2})
    assert shop.app_schema == "shop"
    assert shop.shard_schema == "shop_2"
    assert shop.cvr_schema == "shop_2/cvr"
    assert shop.cdc_schema == "shop_2/cdc"


def test_repr_and_str_show_no_secret() -> None:
    full = config(
        admin_password="hunter2",
        mutate={"api_key": "hunter2"},
        query={"api_key": "hunter2"},
        auth={"jwk": "hunter2"},
    )
    assert "hunter2" not in repr(full) + str(full)
    assert full.admin_password == "hunter2"


def test_is_immutable() -> None:
    with pytest.raises(ValidationError):
        config().port = 1


def test_building_one_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("ZERO_PORT", "1")
    assert config().port == 4848


def test_children_come_to_the_same_configuration() -> None:
    parent = config(
        mutate={"url": ("http://a", "http://b")}, yield_threshold_ms=2.5, log={"level": "warn"}
    )
    assert Config.from_environment(parent.to_environment()) == parent


@pytest.mark.parametrize("text", ["", "{", '{"port": "hunter2"}'])
def test_child_without_a_valid_configuration_says_who_starts_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="run `zerocache`") as caught:
        Config.from_environment({"ZEROCACHE_RESOLVED_CONFIG": text})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"development": False}, "Missing required option ZERO_ADMIN_PASSWORD"),
        ({"app": {"id": "Shop-1"}}, 'ZERO_APP_ID: "Shop-1"'),
        ({"app": {"publications": ("ok", "_mine")}}, 'ZERO_APP_PUBLICATIONS: "_mine"'),
        ({"app": {"publications": ("a" * 64,)}}, "at most 63"),
        ({"auth": {"secret": "s", "jwk": "j"}}, "ZERO_AUTH_SECRET and ZERO_AUTH_JWK"),
        ({"websocket": {"compression_options": "[1]"}}, "Expected a JSON object"),
        ({"change_streamer": {"uri": "ws://m:4849"}}, "ZERO_CHANGE_STREAMER_URI"),
        ({"change_streamer": {"mode": "discover"}}, "ZERO_CHANGE_STREAMER_MODE"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**given)


def test_too_few_connections_name_both_numbers_and_both_variables() -> None:
    with pytest.raises(ValidationError) as caught:
        config(num_sync_workers=31, cvr={"max_conns": 30}, upstream={"db": UPSTREAM})
    message = str(caught.value)
    for part in ("ZERO_CVR_MAX_CONNS is 30", "31", "ZERO_NUM_SYNC_WORKERS", "UPSTREAM_MAX_CONNS"):
        assert part in message


def test_upstream_connections_do_not_matter_without_crud() -> None:
    few = {"db": UPSTREAM, "max_conns": 0}
    assert config(upstream=few, enable_crud_mutations=False, num_sync_workers=2)
    with pytest.raises(ValidationError, match="ZERO_UPSTREAM_MAX_CONNS is 0"):
        config(upstream=few, num_sync_workers=2)
