"""Where values come from, and what is said about wrong ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from zerocache.config import Config
from zerocache.config_loader import load_config
from zerocache.errors import ConfigurationError
from zerocache.options import Option, options_of

UPSTREAM = "postgres://u:hunter2@h:5432/d"
MINIMAL = {"ZERO_UPSTREAM_DB": UPSTREAM, "NODE_ENV": "development"}


def load(*argv: str, **environ: str) -> Config:
    return load_config(argv, {**MINIMAL, **environ}).config


def load_beside(dotenv: Path, *argv: str, **environ: str) -> Config:
    return load_config(argv, {**MINIMAL, **environ}, dotenv=dotenv).config


def complaint(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(*argv, **environ)
    return str(caught.value)


def value_at(config: Config, path: tuple[str, ...]) -> Any:
    found: Any = config
    for name in path:
        found = getattr(found, name)
    return found


# --- precedence ---


def test_flag_beats_environment_beats_dotenv_beats_default(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("ZERO_PORT=1\nZERO_APP_ID=from_file\nZERO_LOG_LEVEL=warn\n")
    config = load_beside(dotenv, "--port", "3", ZERO_PORT="2", ZERO_APP_ID="from_environment")
    assert config.port == 3
    assert config.app.id == "from_environment"
    assert config.log.level == "warn"
    assert config.log.format == "text"


def test_missing_dotenv_is_no_problem(tmp_path: Path) -> None:
    assert load_beside(tmp_path / ".env").port == 4848


def test_dotenv_values_are_taken_verbatim(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("ZERO_ADMIN_PASSWORD='pa$HOME${X}'\n")
    assert load_beside(dotenv).admin_password == "pa$HOME${X}"


def test_dotenv_may_declare_development(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("NODE_ENV=development\n")
    assert load_config([], {"ZERO_UPSTREAM_DB": UPSTREAM}, dotenv=dotenv).config.development


def test_empty_text_counts_as_unset() -> None:
    config = load("--app-id", "", ZERO_PORT="", ZERO_APP_ID="shop", ZERO_ADMIN_PASSWORD="")
    assert (config.port, config.app.id, config.admin_password) == (4848, "shop", None)


def test_lists_replace_and_never_append() -> None:
    config = load("--app-publications", "c", ZERO_APP_PUBLICATIONS="a,b")
    assert config.app.publications == ("c",)


def test_list_flag_takes_several_values_and_repeats() -> None:
    config = load("--mutate-url", "http://a", "http://b", "--port", "1", "--mutate-url", "http://c")
    assert config.mutate.url == ("http://a", "http://b", "http://c")


def test_boolean_flag_without_value_means_true() -> None:
    assert load("--websocket-compression", "--port", "1").websocket.compression is True
    assert load("--auto-reset=false").auto_reset is False


@pytest.mark.parametrize("variable", ["NODE_ENV", "ZEROCACHE_ENV"])
def test_production_needs_an_admin_password(variable: str) -> None:
    environ = {"ZERO_UPSTREAM_DB": UPSTREAM, variable: "production"}
    with pytest.raises(ConfigurationError, match="ZERO_ADMIN_PASSWORD"):
        load_config([], environ)
    assert load_config([], {**environ, "ZERO_ADMIN_PASSWORD": "p"}).config.admin_password == "p"
    assert load_config([], {**environ, variable: "development"}).config.development


# --- every option ---


def example(option: Option) -> tuple[str, object]:
    """Text for an option that differs from its default, and its value."""
    kind = str(option.field.annotation)
    special: dict[tuple[str, ...], tuple[str, object]] = {
        ("upstream", "type"): ("pg", "pg"),
        ("change_streamer", "uri"): ("", None),
        ("change_streamer", "mode"): ("dedicated", "dedicated"),
        ("change_streamer", "protocol"): ("wss", "wss"),
        ("change_streamer", "sqlite_change_log_mode"): ("off", "off"),
        ("websocket", "compression_options"): ('{"a":1}', '{"a":1}'),
        ("log", "level"): ("error", "error"),
        ("litestream", "log_level"): ("error", "error"),
        ("log", "format"): ("json", "json"),
        ("num_sync_workers",): ("0", 0),
        ("trusted_proxies",): ("10.0.0.0/8", ("10.0.0.0/8",)),
        ("max_header_bytes",): ("2048", 2048),
    }
    if option.path in special:
        return special[option.path]
    if option.path[-1] == "db":
        return "postgres://other/db", "postgres://other/db"
    if "tuple" in kind:
        return "x", ("x",)
    if "bool" in kind:
        flipped = not option.field.default
        return str(flipped).lower(), flipped
    if "int" in kind:
        return "41", 41
    if "float" in kind:
        is_share = option.path[-1].endswith(("_rate", "_heap_proportion"))
        return ("0.5", 0.5) if is_share else ("41.5", 41.5)
    return "x", "x"


@pytest.mark.parametrize("option", options_of(Config), ids=lambda option: option.variable)
def test_every_option_is_a_variable_and_a_flag(option: Option) -> None:
    text, value = example(option)
    assert value_at(load(**{option.variable: text}), option.path) == value
    assert value_at(load(f"{option.flag}={text}"), option.path) == value


def test_the_variables_of_the_specification_are_known() -> None:
    known = {option.variable for option in options_of(Config)}
    listed = """
        UPSTREAM_DB UPSTREAM_TYPE UPSTREAM_MAX_CONNS CVR_DB CVR_MAX_CONNS CHANGE_DB
        CHANGE_MAX_CONNS CHANGE_STATEMENT_TIMEOUT_MS CHANGE_LOG_BATCH_SIZE REPLICA_FILE
        REPLICA_VACUUM_INTERVAL_HOURS STORAGE_DB_TMP_DIR INITIAL_SYNC_TABLE_COPY_WORKERS
        INITIAL_SYNC_TEXT_COPY AUTO_RESET APP_ID APP_PUBLICATIONS SHARD_NUM MUTATE_URL
        QUERY_URL MUTATE_API_KEY QUERY_API_KEY AUTH_SECRET MUTATE_FORWARD_COOKIES
        QUERY_FORWARD_COOKIES MUTATE_ALLOWED_CLIENT_HEADERS AUTH_JWK
        QUERY_ALLOWED_REQUEST_HEADERS ENABLE_CRUD_MUTATIONS PER_USER_MUTATION_LIMIT_MAX
        AUTH_JWKS_URL PER_USER_MUTATION_LIMIT_WINDOW_MS ADMIN_PASSWORD PORT NUM_SYNC_WORKERS
        YIELD_THRESHOLD_MS TASK_ID KEEPALIVE_TIMEOUT_MS LAZY_STARTUP WEBSOCKET_COMPRESSION
        WEBSOCKET_MAX_PAYLOAD_BYTES ENABLE_QUERY_PLANNER QUERY_HYDRATION_STATS
        SERVER_VERSION TARGET_CLIENT_ROW_COUNT CHANGE_STREAMER_URI CHANGE_STREAMER_PORT
        CHANGE_STREAMER_STARTUP_DELAY_MS REPLICATION_LAG_REPORT_INTERVAL_MS
        LITESTREAM_BACKUP_URL LITESTREAM_ENDPOINT LOG_LEVEL LITESTREAM_RESTORE_PARALLELISM
        LITESTREAM_CHECKPOINT_THRESHOLD_MB LOG_FORMAT LOG_IVM_SAMPLING ENABLE_TELEMETRY
        CLOUD_EVENT_SINK_ENV CLOUD_EVENT_EXTENSION_OVERRIDES_ENV SHADOW_SYNC_ENABLED
        SQLITE_CORRUPTION_CHECKS AUTH_REVALIDATE_INTERVAL_SECONDS LITESTREAM_EXECUTABLE_V5
    """
    assert {f"ZERO_{name}" for name in listed.split()} <= known


# --- deprecated names ---


def test_old_group_names_step_in_field_by_field_with_one_warning_each() -> None:
    loaded = load_config(
        [],
        {
            **MINIMAL,
            "ZERO_PUSH_URL": "http://old",
            "ZERO_PUSH_API_KEY": "hunter2",
            "ZERO_MUTATE_URL": "http://new",
            "ZERO_GET_QUERIES_FORWARD_COOKIES": "true",
        },
    )
    assert loaded.config.mutate.url == ("http://new",)
    assert loaded.config.mutate.api_key == "hunter2"
    assert loaded.config.query.forward_cookies is True
    assert sorted(loaded.warnings) == [
        "ZERO_GET_QUERIES_FORWARD_COOKIES is deprecated. Use ZERO_QUERY_FORWARD_COOKIES instead.",
        "ZERO_PUSH_API_KEY is deprecated. Use ZERO_MUTATE_API_KEY instead.",
        "ZERO_PUSH_URL is deprecated. Use ZERO_MUTATE_URL instead.",
    ]


def test_old_flags_work_too() -> None:
    loaded = load_config(["--push-url", "http://a", "http://b"], MINIMAL)
    assert loaded.config.mutate.url == ("http://a", "http://b")
    assert loaded.warnings == ("--push-url is deprecated. Use --mutate-url instead.",)


def test_deprecated_option_warns_once() -> None:
    (warning,) = load_config([], {**MINIMAL, "ZERO_AUTH_SECRET": "hunter2"}).warnings
    assert warning.startswith("ZERO_AUTH_SECRET is deprecated.")
    assert "hunter2" not in warning


def test_shard_id_is_always_refused() -> None:
    assert "ZERO_APP_ID" in complaint(ZERO_SHARD_ID="x")


# --- messages ---


def test_missing_upstream_names_the_variable_and_the_way_out() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config([], {})
    assert "Missing required option ZERO_UPSTREAM_DB at upstream.db" in str(caught.value)
    assert "zerocache dev" in str(caught.value)


def test_invalid_value_names_variable_value_and_expectation() -> None:
    assert complaint(ZERO_PORT="abc") == (
        'Invalid input for ZERO_PORT: "abc". Expected a whole number.'
    )
    assert complaint("--port", "70000") == (
        'Invalid input for ZERO_PORT: "70000". Expected less than or equal to 65535.'
    )
    assert complaint(ZERO_LOG_LEVEL="verbose") == (
        'Invalid input for ZERO_LOG_LEVEL: "verbose". '
        'Expected literal value "debug", "info", "warn" or "error".'
    )
    assert 'ZERO_REPLICA_VACUUM_INTERVAL_HOURS: "x"' in complaint(
        ZERO_REPLICA_VACUUM_INTERVAL_HOURS="x"
    )


def test_all_problems_come_in_one_message() -> None:
    message = complaint(ZERO_PORT="abc", ZERO_AUTO_RESET="maybe")
    assert message.count("Invalid input for") == 2


def test_no_message_shows_a_secret() -> None:
    message = complaint(ZERO_UPSTREAM_DB="mysql://u:hunter2@h/d", ZERO_CVR_DB="hunter2")
    assert "ZERO_UPSTREAM_DB: (not shown)" in message
    assert "ZERO_CVR_DB: (not shown)" in message
    assert "hunter2" not in message


def test_unknown_flag_is_named_but_not_its_value() -> None:
    message = complaint("--upstream-dbb=hunter2", "hunter2")
    assert "--upstream-dbb" in message
    assert "hunter2" not in message


def test_flags_are_not_guessed_from_a_prefix() -> None:
    assert "--upstream-d" in complaint("--upstream-d", "x")


# --- Amazon ECS ---


@pytest.fixture
def ecs() -> Iterator[str]:
    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"TaskARN": "arn:aws:ecs:x:1:task/c/abc123"}).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = HTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_ecs_gives_the_task_id_and_arms_keepalive(ecs: str) -> None:
    config = load(ECS_CONTAINER_METADATA_URI_V4=ecs)
    assert config.task_id == "abc123"
    assert config.keepalive_timeout_ms == 20_000
    given = load(ECS_CONTAINER_METADATA_URI_V4=ecs, ZERO_TASK_ID="t", ZERO_KEEPALIVE_TIMEOUT_MS="5")
    assert (given.task_id, given.keepalive_timeout_ms) == ("t", 5)


def test_unreachable_ecs_metadata_falls_back_to_a_random_task_id() -> None:
    assert load(ECS_CONTAINER_METADATA_URI_V4="http://127.0.0.1:1").task_id
