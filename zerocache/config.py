"""The configuration of one node: a frozen tree of options, the same in every process.

Owns the top level of the tree, the derived defaults, the checks that involve several options and
the names derived from app id and shard. Must never read the environment by itself, except what a
parent process handed down (``from_environment``); ``config_loader`` reads flags and variables.
Invariant: a ``Config`` that exists is valid, and its repr shows no secret.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, Self
from uuid import uuid4

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from zerocache.errors import ConfigurationError
from zerocache.options import (
    App,
    Auth,
    Boolean,
    Change,
    CloudEvent,
    Cvr,
    Endpoint,
    InitialSync,
    Log,
    Number,
    PerUserMutationLimit,
    Replica,
    ShadowSync,
    Shard,
    Upstream,
    Websocket,
    Whole,
    option,
    redacted_repr_args,
)
from zerocache.options_distributed import ChangeStreamer, Litestream, ReplicationLag
from zerocache.options_limits import ClientLimits

RESOLVED_CONFIG_VARIABLE = "ZEROCACHE_RESOLVED_CONFIG"

_APP_ID = re.compile(r"[a-z0-9_]+")
_PUBLICATION = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


def default_num_sync_workers() -> int:
    """One worker per usable CPU, less one for replication and the operating system."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


class Config(ClientLimits, BaseSettings):
    """Everything zerocache can be told. Built by ``config_loader.load_config``.

    Constructing one directly (tests, embedding) reads nothing but the given values.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    upstream: Upstream
    port: Whole = option(4848, "Port for clients.", ge=0, le=65535)
    cvr: Cvr = option(Cvr(), "")
    change: Change = option(Change(), "")
    replica: Replica = option(Replica(), "")
    initial_sync: InitialSync = option(InitialSync(), "")
    shadow_sync: ShadowSync = option(ShadowSync(), "")
    app: App = option(App(), "")
    shard: Shard = option(Shard(), "")
    mutate: Endpoint = option(Endpoint(), "")
    query: Endpoint = option(Endpoint(), "")
    per_user_mutation_limit: PerUserMutationLimit = option(PerUserMutationLimit(), "")
    auth: Auth = option(Auth(), "")
    websocket: Websocket = option(Websocket(), "")
    change_streamer: ChangeStreamer = option(ChangeStreamer(), "")
    replication_lag: ReplicationLag = option(ReplicationLag(), "")
    litestream: Litestream = option(Litestream(), "")
    log: Log = option(Log(), "")
    cloud_event: CloudEvent = option(CloudEvent(), "")

    enable_crud_mutations: Boolean = option(True, "Accept CRUD mutations.")
    admin_password: str | None = option(
        None, "Password of /statz and the inspector. Required outside development.", secret=True
    )
    num_sync_workers: Whole = option(
        default_num_sync_workers,
        "Processes that serve clients.",
        ge=0,
        derived="usable CPUs - 1, at least 1",
    )
    yield_threshold_ms: Number = option(10, "Longest uninterrupted stretch of query work.", ge=0)
    task_id: str = option("", "Identifies this node in logs.", derived="random")
    keepalive_timeout_ms: Number | None = option(
        None, "Drain when calls of /keepalive stop for this long.", ge=1, derived="20000 on ECS"
    )
    auto_reset: Boolean = option(True, "Wipe and resync when replication cannot continue.")
    lazy_startup: Boolean = option(False, "Start everything at the first connection.", inert=True)
    storage_db_tmp_dir: str | None = option(None, "Directory for spill files.", inert=True)
    sqlite_corruption_checks: Boolean = option(
        False, "Integrity scans once corruption is seen.", hidden=True, inert=True
    )
    enable_query_planner: Boolean = option(True, "SQLite plans every query.", inert=True)
    enable_query_covering: Boolean = option(True, "Shadow statistics.", inert=True)
    query_hydration_stats: Boolean = option(False, "Log row counts of slow hydrations.", inert=True)
    server_version: str | None = option(None, "Shown at startup.")
    target_client_row_count: Whole = option(
        20_000, "Ignored.", hidden=True, inert=True, deprecated="nothing; it has no effect"
    )
    enable_telemetry: Boolean = option(
        True, "zerocache never reports to anyone; accepted for compatibility.", inert=True
    )
    drain_timeout_seconds: Number = option(
        0,
        "Longest drain after SIGTERM; 0 waits as long as it takes.",
        ge=0,
        prefix="ZEROCACHE_",
    )
    max_rows_per_query: Whole = option(
        1_000_000,
        "A query that needs more rows of one table fails, alone; 0 is no limit.",
        ge=0,
        prefix="ZEROCACHE_",
    )
    max_hydration_seconds: Number = option(
        60,
        "A query that takes longer to compute fails, alone; 0 is no limit.",
        ge=0,
        prefix="ZEROCACHE_",
    )
    quick_hydration_rows: Whole = option(
        300,
        "A query of no more rows of one table that takes no time is computed between two advances, "
        "not beside them; 0: none is.",
        ge=0,
        prefix="ZEROCACHE_",
    )
    auto_indexes: Boolean = option(
        True,
        "Give the replica indexes of its own where queries scan or sort a large table.",
        prefix="ZEROCACHE_",
    )
    auto_index_max: Whole = option(
        32,
        "Most such indexes at a time; the ones not asked for longest make room.",
        ge=0,
        prefix="ZEROCACHE_",
    )
    development: bool = option(False, "NODE_ENV or ZEROCACHE_ENV is development.", internal=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only explicit values: what a ``Config`` contains never depends on who builds it."""
        return (init_settings,)

    def __repr_args__(self) -> Any:
        return redacted_repr_args(self)

    # --- defaults that depend on other options ---

    @field_validator("cvr", "change")
    @classmethod
    def _default_to_upstream(cls, group: Any, info: ValidationInfo) -> Any:
        upstream = info.data.get("upstream")
        if group.db or upstream is None:
            return group
        return group.model_copy(update={"db": upstream.db})

    @field_validator("change_streamer", "litestream")
    @classmethod
    def _default_to_next_ports(cls, group: Any, info: ValidationInfo) -> Any:
        port = info.data.get("port")
        if group.port or not port:
            return group
        offset = 1 if isinstance(group, ChangeStreamer) else 2
        return group.model_copy(update={"port": port + offset})

    @field_validator("task_id")
    @classmethod
    def _default_to_random(cls, task_id: str) -> str:
        return task_id or uuid4().hex[:16]

    # --- checks that involve several options, or need names in their messages ---

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        problems = [
            *self._identity_problems(),
            *self._connection_problems(),
            *self._auth_problems(),
            *self._role_problems(),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _identity_problems(self) -> list[str]:
        problems = []
        if not _APP_ID.fullmatch(self.app.id):
            problems.append(
                f"Invalid input for ZERO_APP_ID: {json.dumps(self.app.id)}. "
                "Expected lower-case letters, digits and underscores, because it names schemas."
            )
        for name in self.app.publications:
            if not _PUBLICATION.fullmatch(name):
                problems.append(
                    f"Invalid input for ZERO_APP_PUBLICATIONS: {json.dumps(name)}. Expected names "
                    "of at most 63 letters, digits and underscores that start with a letter."
                )
        return problems

    def _connection_problems(self) -> list[str]:
        workers = self.num_sync_workers
        limits = [("ZERO_CVR_MAX_CONNS", self.cvr.max_conns, True)]
        limits.append(
            ("ZERO_UPSTREAM_MAX_CONNS", self.upstream.max_conns, self.enable_crud_mutations)
        )
        return [
            f"Insufficient connections: {variable} is {conns}, but each of the {workers} sync "
            f"workers (ZERO_NUM_SYNC_WORKERS) needs one. Raise {variable} to at least {workers} "
            "or lower ZERO_NUM_SYNC_WORKERS."
            for variable, conns, applies in limits
            if applies and conns < workers
        ]

    def _auth_problems(self) -> list[str]:
        problems = []
        keys = {
            "ZERO_AUTH_SECRET": self.auth.secret,
            "ZERO_AUTH_JWK": self.auth.jwk,
            "ZERO_AUTH_JWKS_URL": self.auth.jwks_url,
        }
        given = [variable for variable, value in keys.items() if value]
        if len(given) > 1:
            problems.append(
                f"{' and '.join(given)} are set together, but tokens are verified with one key. "
                "Keep one of them."
            )
        if not self.admin_password and not self.development:
            problems.append(
                "Missing required option ZERO_ADMIN_PASSWORD at adminPassword. Set it, or set "
                "NODE_ENV=development on a machine that nobody else can reach."
            )
        options = self.websocket.compression_options
        if options is not None and not _is_json_object(options):
            problems.append(
                f"Invalid input for ZERO_WEBSOCKET_COMPRESSION_OPTIONS: {json.dumps(options)}. "
                "Expected a JSON object."
            )
        return problems

    def _role_problems(self) -> list[str]:
        # Ignoring these would let two nodes fight over one replication slot.
        streamer = self.change_streamer
        asked = {
            "ZERO_CHANGE_STREAMER_URI": streamer.uri,
            "ZERO_CHANGE_STREAMER_MODE": streamer.mode if streamer.mode != "dedicated" else None,
        }
        return [
            f"Invalid input for {variable}: {json.dumps(value)}. This version runs as a single "
            f"node that owns the replication slot and cannot follow another node. Unset {variable}."
            for variable, value in asked.items()
            if value
        ]

    # --- names in Postgres ---

    @property
    def app_schema(self) -> str:
        return self.app.id

    @property
    def shard_schema(self) -> str:
        return f"{self.app.id}_{self.shard.num}"

    @property
    def cvr_schema(self) -> str:
        return f"{self.shard_schema}/cvr"

    @property
    def cdc_schema(self) -> str:
        return f"{self.shard_schema}/cdc"

    # --- for child processes ---

    def to_environment(self) -> dict[str, str]:
        """The variables a child needs to come to the same ``Config`` (it contains secrets)."""
        return {RESOLVED_CONFIG_VARIABLE: self.model_dump_json()}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The ``Config`` the parent process handed down; raises ConfigurationError without."""
        text = (os.environ if environ is None else environ).get(RESOLVED_CONFIG_VARIABLE)
        if not text:
            raise ConfigurationError(
                f"{RESOLVED_CONFIG_VARIABLE} is not set. This process is started by `zerocache`, "
                "not by hand; run `zerocache` instead."
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigurationError(
                f"{RESOLVED_CONFIG_VARIABLE} does not hold a configuration of this version "
                f"({error.error_count()} problems). Do not set it by hand; run `zerocache`."
            ) from None


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
