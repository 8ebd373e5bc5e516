"""Reads the configuration: flags over environment over ``.env`` over defaults.

Owns the rules that turn text into a ``Config`` (empty means unset, lists replace, deprecated
names step in), the wording of what is wrong, and nothing else: which options exist is declared in
``options`` and ``config``. Must never put a secret into a message, and never changes the process
environment. Invariant: either a valid ``Config`` comes back, or a ``ConfigurationError`` whose
message names every offending variable, what it was and what is expected.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from zerocache.config import Config
from zerocache.config_flags import parse_flags
from zerocache.errors import ConfigurationError
from zerocache.options import Option, options_of

# Old names of groups: the first name is what the variables start with.
_RENAMED_GROUPS = {"push": "mutate", "get_queries": "query"}
_ECS_METADATA_VARIABLE = "ECS_CONTAINER_METADATA_URI_V4"
_ECS_KEEPALIVE_TIMEOUT_MS = "20000"
_ECS_REQUEST_TIMEOUT_S = 2.0


class Loaded(NamedTuple):
    config: Config
    warnings: tuple[str, ...]  # for the log, which can only be set up once the config is known


class _TextSource(PydanticBaseSettingsSource):
    """A settings source over option paths and their text."""

    def __init__(
        self, settings_cls: type[BaseSettings], texts: Mapping[tuple[str, ...], object]
    ) -> None:
        super().__init__(settings_cls)
        self._texts = texts

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("values are read for all fields at once")

    def __call__(self) -> dict[str, Any]:
        # A group with a required option is always present, so that the option is named as missing.
        tree: dict[str, Any] = {"upstream": {}}
        for path, text in self._texts.items():
            *groups, name = path
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node[name] = text
        return tree


def load_config(
    argv: Sequence[str], environ: Mapping[str, str], *, dotenv: Path | None = None
) -> Loaded:
    """Read a ``Config`` from flags, environment and ``.env``; raises ConfigurationError."""
    options = options_of(Config)
    variables = merged_environment(environ, dotenv)
    warnings: list[str] = []
    from_environment = _from_environment(options, variables, warnings)
    from_flags = _from_flags(options, argv, warnings)
    given = {**from_environment, **from_flags}
    for path, text in _platform_defaults(variables, given).items():
        from_environment[path] = text
    from_environment[("development",)] = "development" in (
        variables.get("NODE_ENV"),
        variables.get("ZEROCACHE_ENV"),
    )
    if variables.get("ZERO_SHARD_ID"):
        raise ConfigurationError("ZERO_SHARD_ID is no longer an option. Use ZERO_APP_ID instead.")
    return Loaded(_validate(from_flags, from_environment), tuple(warnings))


def merged_environment(environ: Mapping[str, str], dotenv: Path | None) -> dict[str, str]:
    """The environment on top of ``.env``; a variable set to the empty string counts as unset."""
    from_file: dict[str, str | None] = {}
    if dotenv is not None and dotenv.is_file():
        # No interpolation: a "$" in a password is just a "$".
        from_file = dotenv_values(dotenv, interpolate=False)
    return {name: text for name, text in {**from_file, **environ}.items() if text}


def _validate(
    flags: Mapping[tuple[str, ...], object], environment: Mapping[tuple[str, ...], object]
) -> Config:
    class Sources(Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return _TextSource(settings_cls, flags), _TextSource(settings_cls, environment)

    try:
        loaded = Sources.model_validate({})
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None
    # The class above lives only to carry its sources; callers get the plain type.
    return Config.from_environment(loaded.to_environment())


# --- where text comes from ---


def _from_environment(
    options: Sequence[Option], variables: Mapping[str, str], warnings: list[str]
) -> dict[tuple[str, ...], object]:
    values: dict[tuple[str, ...], object] = {}
    for option in options:
        if option.variable in variables:
            values[option.path] = variables[option.variable]
            if option.info.deprecated:
                warnings.append(_deprecation(option.variable, option.info.deprecated))
    for old, option in _renamed(options):
        old_variable = f"ZERO_{old}_{option.path[1]}".upper()
        if old_variable in variables:
            warnings.append(_deprecation(old_variable, option.variable))
            values.setdefault(option.path, variables[old_variable])
    return values


def _from_flags(
    options: Sequence[Option], argv: Sequence[str], warnings: list[str]
) -> dict[tuple[str, ...], object]:
    by_flag = {option.flag: option for option in options}
    old_flags = {
        f"--{old}-{option.path[1]}".replace("_", "-"): option for old, option in _renamed(options)
    }
    fields = {flag: option.field for flag, option in {**by_flag, **old_flags}.items()}
    given = parse_flags(argv, fields)
    values = {by_flag[flag].path: value for flag, value in given.items() if flag in by_flag}
    for flag, value in given.items():
        if flag in old_flags:
            warnings.append(_deprecation(flag, old_flags[flag].flag))
            values.setdefault(old_flags[flag].path, value)
        elif deprecated := by_flag[flag].info.deprecated:
            warnings.append(_deprecation(flag, deprecated))
    # As with variables, an empty value says nothing.
    return {path: value for path, value in values.items() if value != ""}


def _renamed(options: Sequence[Option]) -> Iterator[tuple[str, Option]]:
    for old, new in _RENAMED_GROUPS.items():
        for option in options:
            if option.path[0] == new:
                yield old, option


def _deprecation(name: str, replacement: str) -> str:
    return f"{name} is deprecated. Use {replacement} instead."


def _platform_defaults(
    variables: Mapping[str, str], given: Mapping[tuple[str, ...], object]
) -> dict[tuple[str, ...], object]:
    """Defaults that Amazon ECS suggests: task id from its ARN, keepalive monitor on."""
    metadata_uri = variables.get(_ECS_METADATA_VARIABLE)
    if metadata_uri is None:
        return {}
    defaults: dict[tuple[str, ...], object] = {}
    if ("keepalive_timeout_ms",) not in given:
        defaults[("keepalive_timeout_ms",)] = _ECS_KEEPALIVE_TIMEOUT_MS
    if ("task_id",) not in given and (task_id := _ecs_task_id(metadata_uri)):
        defaults[("task_id",)] = task_id
    return defaults


def _ecs_task_id(metadata_uri: str) -> str | None:
    try:
        with urllib.request.urlopen(
            f"{metadata_uri}/task", timeout=_ECS_REQUEST_TIMEOUT_S
        ) as answer:
            arn = json.load(answer).get("TaskARN", "")
    except (OSError, ValueError):
        # A random id serves as well; nothing depends on the platform's name for the task.
        return None
    return str(arn).rpartition("/")[2] or None


# --- what is wrong ---


def _explain(error: ValidationError) -> str:
    by_path = {option.path: option for option in options_of(Config)}
    return "\n".join(_explain_one(by_path, details) for details in error.errors())


def _explain_one(by_path: Mapping[tuple[str, ...], Option], details: ErrorDetails) -> str:
    path = tuple(str(part) for part in details["loc"] if isinstance(part, str))
    option = by_path.get(path)
    if option is None:
        # A check over several options: its message is complete, pydantic only prefixes it.
        return details["msg"].removeprefix("Value error, ")
    if details["type"] == "missing" and option.path == ("upstream", "db"):
        return (
            "Missing required option ZERO_UPSTREAM_DB at upstream.db. Set it to the URL of the "
            "Postgres database to sync from, or run `zerocache dev`, which brings a database."
        )
    if details["type"] == "missing":
        return f"Missing required option {option.variable} at {'.'.join(path)}."
    expected = details["msg"].removeprefix("Value error, ").replace("Input should be", "Expected")
    if details["type"] == "literal_error":
        literals = str(details.get("ctx", {}).get("expected", "")).replace("'", '"')
        expected = f"Expected literal value {literals}"
    shown = "(not shown)" if option.info.secret else json.dumps(_as_given(details["input"]))
    return f"Invalid input for {option.variable}: {shown}. {expected}."


def _as_given(value: object) -> str | list[str]:
    return [str(item) for item in value] if isinstance(value, list) else str(value)


def environment_of_this_process() -> Loaded:
    """Configuration without flags, from the process environment and ``.env`` beside it."""
    return load_config((), os.environ, dotenv=Path(".env"))
