"""Validation of what clients send to the demo's queries and mutators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def checked(kind: type[T]) -> Callable[[object], T]:
    """A validator for ``define_query`` and ``define_mutator``; the error names the field."""
    return lambda value: msgspec.convert(value, kind)
