"""The options of zerocache, one frozen model per group: name, type, default and meaning.

Owns what each ``ZERO_*`` variable is called (group ``upstream``, field ``max_conns`` is variable
``ZERO_UPSTREAM_MAX_CONNS`` and flag ``--upstream-max-conns``), how its text is parsed, and what
``--help`` says about it. Must never read the environment or a file: ``config_loader`` does.
Invariant: every group can be built without arguments, except ``Upstream``, whose database is the
one thing nobody can guess; text and typed values are accepted alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class OptionInfo:
    """What the loader and ``--help`` know about an option beyond its type and default."""

    secret: bool = False  # the value never appears in a repr, a log line or an error message
    hidden: bool = False  # not listed by --help
    inert: bool = False  # accepted so that existing deployments start; changes nothing yet
    internal: bool = False  # not an option at all: computed by the loader
    deprecated: str | None = None  # what to use instead
    derived: str | None = None  # how --help words a default that is computed
    prefix: str = "ZERO_"


def option(
    default: Any,
    description: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    secret: bool = False,
    hidden: bool = False,
    inert: bool = False,
    internal: bool = False,
    deprecated: str | None = None,
    derived: str | None = None,
    prefix: str = "ZERO_",
) -> Any:
    """Declare one option; ``...`` as default makes it required, a callable computes it."""
    info = OptionInfo(secret, hidden, inert, internal, deprecated, derived, prefix)
    extra: dict[str, Any] = {"option": vars(info)}
    if default is not ... and callable(default):
        return Field(
            default_factory=default, description=description, ge=ge, le=le, json_schema_extra=extra
        )
    return Field(default, description=description, ge=ge, le=le, json_schema_extra=extra)


def option_info(field: FieldInfo) -> OptionInfo:
    """The ``OptionInfo`` that ``option`` attached to a field."""
    extra = field.json_schema_extra
    stored: Any = extra.get("option", {}) if isinstance(extra, dict) else {}
    return OptionInfo(**stored)


@dataclass(frozen=True)
class Option:
    """One option as the outside names it, and where its value goes in the tree."""

    path: tuple[str, ...]
    variable: str
    flag: str
    field: FieldInfo
    info: OptionInfo


def options_of(model: type[BaseModel]) -> tuple[Option, ...]:
    """Every option of a tree of groups, in the order of declaration."""
    return tuple(_walk(model, ()))


def _walk(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        here = (*path, name)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _walk(annotation, here)
            continue
        info = option_info(field)
        if not info.internal:
            words = "_".join(here)
            yield Option(
                path=here,
                variable=info.prefix + words.upper(),
                flag="--" + words.replace("_", "-"),
                field=field,
                info=info,
            )


def _parse_whole(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not _NUMBER.fullmatch(value) or not float(value).is_integer():
        raise ValueError("Expected a whole number")
    # Through float only when it has to be: 2**53 + 1 written out stays exact.
    return int(value) if value.lstrip("+-").isdigit() else int(float(value))


def _parse_number(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not _NUMBER.fullmatch(value):
        raise ValueError("Expected a number")
    return float(value)


def _parse_boolean(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lower() not in _BOOLEANS:
        raise ValueError('Expected "true", "1", "false" or "0"')
    return _BOOLEANS[value.lower()]


def _parse_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _check_postgres_url(value: str) -> str:
    if value and urlsplit(value).scheme not in ("postgres", "postgresql"):
        raise ValueError(
            "Expected a Postgres connection URL such as postgres://user:password@host:5432/database"
        )
    return value


def _check_cvr_url(value: str) -> str:
    return value if value.startswith("sqlite:") else _check_postgres_url(value)


Whole = Annotated[int, BeforeValidator(_parse_whole)]
Number = Annotated[float, BeforeValidator(_parse_number)]
Boolean = Annotated[bool, BeforeValidator(_parse_boolean)]
Strings = Annotated[tuple[str, ...], BeforeValidator(_parse_list)]
PostgresUrl = Annotated[str, AfterValidator(_check_postgres_url)]
CvrUrl = Annotated[str, AfterValidator(_check_cvr_url)]
LogLevel = Literal["debug", "info", "warn", "error"]


class Group(BaseModel):
    """Base of all option groups: immutable, strict about names, silent about secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __repr_args__(self) -> Any:
        return redacted_repr_args(self)


def redacted_repr_args(model: BaseModel) -> Any:
    """Name/value pairs for a repr in which a secret that is set shows as ``'***'``."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        yield name, "***" if option_info(field).secret and value else value


class Upstream(Group):
    db: PostgresUrl = option(
        ...,
        "Postgres database to sync from: a direct connection with replication rights, no pooler.",
        secret=True,
    )
    # The reference also knows "custom" (a change source behind a URL); zerocache reads Postgres.
    type: Literal["pg"] = option("pg", "Kind of upstream.", hidden=True)
    max_conns: Whole = option(
        20, "Connections for committing CRUD mutations, divided among sync workers.", ge=0
    )
    max_conns_per_worker: Whole | None = option(
        None, "Set internally.", ge=0, hidden=True, inert=True
    )
    pg_replication_slot_failover: Boolean = option(
        False, "Create the replication slot with failover (PostgreSQL 17+)."
    )
    pg_stream_inbound_timeout_ms: Number | None = option(
        None,
        "Silence on the replication stream before reconnecting.",
        ge=0,
        derived="2 x wal_sender_timeout",
    )


class Cvr(Group):
    db: CvrUrl = option(
        "", "Database for client view records.", secret=True, derived="ZERO_UPSTREAM_DB"
    )
    max_conns: Whole = option(
        30, "Connections for client view records, divided among sync workers.", ge=1
    )
    max_conns_per_worker: Whole | None = option(
        None, "Set internally.", ge=0, hidden=True, inert=True
    )
    garbage_collection_inactivity_threshold_hours: Number = option(
        48, "Idle time before a client view record may be purged.", ge=0
    )
    garbage_collection_initial_interval_seconds: Number = option(
        60, "First purge interval; grows while there is nothing to purge.", ge=0
    )
    garbage_collection_initial_batch_size: Whole = option(
        25, "Records per purge; 0 disables purging.", ge=0
    )


class Change(Group):
    db: PostgresUrl = option(
        "", "Database for the recent change log.", secret=True, derived="ZERO_UPSTREAM_DB"
    )
    max_conns: Whole = option(
        5,
        "Accepted without effect: the change log is stored over one connection, in as large "
        "batches as it takes to keep up.",
        ge=1,
    )
    statement_timeout_ms: Number = option(
        20_000, "Limit on change-log statements.", ge=0, hidden=True
    )
    log_batch_size: Whole = option(
        2000, "Rows (of up to 256 KiB) per COPY into the change log.", ge=1, hidden=True
    )


class Replica(Group):
    file: str = option(
        "zero.db", "SQLite replica of the upstream data. Disposable; wants a fast disk."
    )
    vacuum_interval_hours: Number | None = option(
        None, "VACUUM the replica at startup when this much time passed.", ge=0, inert=True
    )
    page_cache_size_kib: Whole | None = option(
        None, "SQLite page cache of the replica.", ge=0, inert=True
    )


class InitialSync(Group):
    table_copy_workers: Whole = option(5, "Tables copied in parallel in the initial sync.", ge=1)
    text_copy: Boolean = option(False, "Use the text instead of the binary COPY format.")
    profile_copy: Boolean = option(False, "Profile the copy phase.", hidden=True, inert=True)


class ShadowSync(Group):
    enabled: Boolean = option(False, "Periodic trial initial sync on samples.", inert=True)
    interval_hours: Number = option(12, "Time between trials.", ge=0, inert=True)
    sample_rate: Number = option(0.1, "Share of rows sampled.", ge=0, le=1, inert=True)
    max_rows_per_table: Whole = option(10_000, "Sampled rows per table.", ge=0, inert=True)


class App(Group):
    id: str = option(
        "zero",
        "Names this app's schemas, so that several apps can share a database. "
        "Lower-case letters, digits and underscores.",
    )
    publications: Strings = option(
        (),
        "Publications to replicate; without any, zerocache publishes the public schema itself. "
        "Changing the list starts a new initial sync.",
    )


class Shard(Group):
    num: Whole = option(0, "Number of the shard.", ge=0, hidden=True)


class Endpoint(Group):
    """Where the app answers mutations or named queries."""

    url: Strings = option((), "Endpoint of the app, and patterns of further allowed ones.")
    api_key: str | None = option(None, "Sent to the endpoint as X-Api-Key.", secret=True)
    forward_cookies: Boolean = option(False, "Forward the client's cookies to the endpoint.")
    allowed_client_headers: Strings = option(
        (), "Headers set by the client that are passed to the endpoint."
    )
    allowed_request_headers: Strings = option(
        (), "Headers of the WebSocket upgrade request that are passed to the endpoint."
    )


class PerUserMutationLimit(Group):
    max: Whole | None = option(None, "CRUD mutations allowed per client group and window.", ge=0)
    window_ms: Number = option(60_000, "Length of that window.", ge=1)


_AUTH_REPLACEMENT = "authentication in the app's own endpoints (ZERO_QUERY_URL, ZERO_MUTATE_URL)"


class Auth(Group):
    secret: str | None = option(
        None,
        "Symmetric key that verifies tokens.",
        secret=True,
        hidden=True,
        deprecated=_AUTH_REPLACEMENT,
    )
    jwk: str | None = option(
        None,
        "Public key (JWK) that verifies tokens.",
        secret=True,
        hidden=True,
        deprecated=_AUTH_REPLACEMENT,
    )
    jwks_url: str | None = option(
        None,
        "Address of the key set that verifies tokens.",
        hidden=True,
        deprecated=_AUTH_REPLACEMENT,
    )
    issuer: str | None = option(
        None, "Required iss claim.", hidden=True, deprecated=_AUTH_REPLACEMENT
    )
    audience: str | None = option(
        None, "Required aud claim.", hidden=True, deprecated=_AUTH_REPLACEMENT
    )
    revalidate_interval_seconds: Number = option(
        300, "How often a connection's credentials are validated again.", ge=0
    )
    retransform_interval_seconds: Number = option(
        300, "How often named queries are transformed again.", ge=0
    )


class Websocket(Group):
    compression: Boolean = option(False, "Per-message compression on client sockets.")
    compression_options: str | None = option(
        None, "Options of the compression, a JSON object.", inert=True
    )
    max_payload_bytes: Whole = option(
        10_485_760, "Larger inbound frames close the connection with 1009.", ge=1
    )


class Log(Group):
    level: LogLevel = option("info", "Least severe level that is logged.")
    format: Literal["text", "json"] = option("text", "text for people, json for machines.")
    slow_row_threshold: Number = option(2, "Milliseconds.", ge=0, inert=True)
    slow_hydrate_threshold: Number = option(
        100, "Milliseconds after which a hydration is logged as slow.", ge=0, inert=True
    )
    ivm_sampling: Whole = option(5000, "One in this many advances is logged.", ge=0, inert=True)


class CloudEvent(Group):
    sink_env: str | None = option(
        None, "Name of the variable that holds the sink's address.", inert=True
    )
    extension_overrides_env: str | None = option(
        None, "Name of the variable that holds extensions as JSON.", inert=True
    )
