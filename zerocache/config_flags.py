"""Command line flags: parsing them, and the text of ``--help``.

Owns the syntax of flags (lists take several values or repeat, a boolean without value is true).
Must never interpret a value: text goes to the validation that variables go through too.
Invariant: every flag that the caller does not know is an error, none is guessed from a prefix.
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from zerocache.errors import ConfigurationError
from zerocache.options import Option


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports errors like every other configuration error."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"Invalid arguments: {message}. See `zerocache --help`.")


def parse_flags(argv: Sequence[str], fields: Mapping[str, FieldInfo]) -> dict[str, str | list[str]]:
    """The given flags and their text; raises ConfigurationError on an unknown one."""
    parser = _Parser(prog="zerocache", add_help=False, allow_abbrev=False)
    for flag, field in fields.items():
        kwargs: dict[str, Any] = {"dest": flag, "default": argparse.SUPPRESS}
        match _kind(field):
            case "boolean":
                kwargs |= {"nargs": "?", "const": "true"}
            case "string[]":
                kwargs |= {"nargs": "+", "action": "extend"}
        parser.add_argument(flag, **kwargs)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        # A stray value may be a secret that lost its flag, so only flags are repeated here.
        names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        parser.error(f"unknown {' '.join(names) or 'value without a flag'}")
    return dict(vars(namespace))


def help_text(options: Sequence[Option], *, version: str) -> str:
    """What ``zerocache --help`` prints: usage, then every option that is not hidden."""
    width = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))
    parts = [
        f"zerocache {version}: puts Postgres data into browsers and keeps it live.\n",
        "Usage: zerocache [flags]        run the server\n"
        "       zerocache dev [flags]    run it with a database of its own and a demo app\n"
        "       zerocache analyze-query  explain a query; see its own --help\n"
        "       zerocache verify         compare the replica with its upstream, row by row\n"
        "       zerocache --help | --version\n",
        "Every flag is also an environment variable; a flag wins over the environment, which wins\n"
        "over a .env file in the working directory. Exit status: 0 after a drain, 78 for a\n"
        "configuration error, 14 after SIGQUIT, 13 or 255 after a failure.\n",
        "Options:",
    ]
    parts += [_help_entry(option, width) for option in options if not option.info.hidden]
    return "\n".join(parts)


def _help_entry(option: Option, width: int) -> str:
    description = option.field.description or ""
    if option.info.inert:
        description += " (Accepted; has no effect yet.)"
    body = textwrap.fill(description, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
    head = f"  {option.flag} {_kind(option.field)}   {_default(option)}"
    return f"{head}\n      {option.variable}\n{body}\n"


def _default(option: Option) -> str:
    if option.field.is_required():
        return "required"
    if option.info.derived:
        return f"default: {option.info.derived}"
    default = option.field.get_default(call_default_factory=False)
    if default is None or default is PydanticUndefined:
        return "optional"
    return f"default: {json.dumps(default)}"


def _kind(field: FieldInfo) -> str:
    """How the type of an option is called in ``--help``."""
    types = _leaf_types(field.annotation)
    literals = [leaf for leaf in types if isinstance(leaf, str)]
    if literals:
        return ",".join(literals)
    if get_origin(field.annotation) is tuple:
        return "string[]"
    if bool in types:
        return "boolean"
    return "number" if {int, float} & types.keys() else "string"


def _leaf_types(annotation: Any) -> dict[Any, None]:
    """What an annotation is made of, in order: ``Annotated[int, …] | None`` has int and None."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        arguments = arguments[:1]
    if not arguments:
        return {annotation: None}
    return {leaf: None for argument in arguments for leaf in _leaf_types(argument)}
