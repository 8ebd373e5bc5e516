"""What the mutate and the query endpoint have in common: bodies, identities, logs.

Owns no state. Invariant: decoding never raises anything but :class:`BodyError`.
"""

from __future__ import annotations

import inspect
import logging
from enum import Enum
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec
import structlog

from zerocache.errors import SdkError

T = TypeVar("T")
Json: TypeAlias = dict[str, Any]
LogLevel: TypeAlias = Literal["debug", "info", "warn", "error"]
Body: TypeAlias = Any
"""A request body: parsed JSON, or its text as ``bytes`` or ``str``."""


class _Unset(Enum):
    UNSET = "unset"


UNSET: Final = _Unset.UNSET
"""The answer says nothing about who is logged in; ``None`` says that nobody is."""

UserID: TypeAlias = str | Literal[_Unset.UNSET] | None


class BodyError(SdkError):
    """A request cannot be understood; the message says where it is wrong."""

    code = "ZC660"


def parse_json(body: Body) -> Any:
    if not isinstance(body, bytes | bytearray | str):
        return body
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BodyError(f"the body is not JSON: {error}") from error


def convert(value: Any, to: type[T]) -> T:
    try:
        return msgspec.convert(value, to)
    except msgspec.MsgspecError as error:
        raise BodyError(str(error)) from error


def identity(user_id: UserID) -> Json:
    """``{"userID": …}`` for a success response, or nothing."""
    return {} if user_id is UNSET else {"userID": user_id}


async def settle(value: Any) -> Any:
    """The result of a call that may have been to an ``async`` function."""
    return await value if inspect.isawaitable(value) else value


def logger(name: str, level: LogLevel) -> Any:
    """A logger of the application's structlog configuration that is silent below ``level``."""
    number = logging.getLevelNamesMapping()[level.upper()]
    wrapper = structlog.make_filtering_bound_logger(number)
    return structlog.wrap_logger(None, wrapper_class=wrapper).bind(logger=name)
