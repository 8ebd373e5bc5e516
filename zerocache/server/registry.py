"""Trees of named mutators and queries, and the validators in front of them.

Owns the rules shared by ``define_mutators`` and ``define_queries``: names are paths joined with
dots, overrides merge deeply and replace leaves. It never runs anything asynchronous itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

from zerocache.errors import SdkError
from zerocache.server.errors import InputValidationError, describe

Leaf = TypeVar("Leaf")
Tree: TypeAlias = Mapping[str, Any]
"""Nested mappings whose leaves are mutators, queries or plain functions."""

Validator: TypeAlias = Any
"""A callable that returns the validated value or raises; or a pydantic model or TypeAdapter."""

# Very old clients joined the parts of a name with a pipe.
_SEPARATORS = re.compile(r"[.|]")


def validate(validator: Validator | None, name: str, value: Any) -> Any:
    """``value`` as ``validator`` returns it; :class:`InputValidationError` if it raises."""
    if validator is None:
        return value
    check: Callable[[Any], Any] = (
        getattr(validator, "model_validate", None)
        or getattr(validator, "validate_python", None)
        or validator
    )
    try:
        return check(value)
    except Exception as error:
        raise InputValidationError(
            f"arguments of {name} are not valid: {describe(error)}", _report(error), cause=error
        ) from error


def _report(error: Exception) -> Any:
    """Pydantic says what is wrong in a list; others in their text."""
    errors = getattr(error, "errors", None)
    if callable(errors):
        # The input and the context may hold objects that are not JSON.
        return errors(include_url=False, include_context=False, include_input=False)
    return describe(error)


def merge(base: Tree, overrides: Tree) -> dict[str, Any]:
    """``base`` with ``overrides`` on top: groups merge, a leaf replaces what it meets."""
    merged = dict(base)
    for name, value in overrides.items():
        existing = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(existing, Mapping)
        merged[name] = merge(existing, value) if both and existing is not None else value
    return merged


def name_leaves(tree: Tree, build: Callable[[str, Any], Any], prefix: str = "") -> dict[str, Any]:
    """A copy of ``tree`` whose leaves went through ``build(full name, leaf)``."""
    named: dict[str, Any] = {}
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            named[name] = name_leaves(value, build, f"{full}.")
        else:
            named[name] = build(full, value)
    return named


def find(tree: Tree, name: str, *, legacy_separator: bool = False) -> Any:
    """The leaf at ``name``, or None; a group is not a leaf."""
    parts = _SEPARATORS.split(name) if legacy_separator else name.split(".")
    current: Any = tree
    for part in parts:
        if not isinstance(current, Mapping) or part not in current:
            return None
        current = current[part]
    return None if isinstance(current, Mapping) else current


def must_find(tree: Tree, kind: str, name: str, *, legacy_separator: bool = False) -> Any:
    found = find(tree, name, legacy_separator=legacy_separator)
    if found is None:
        known = ", ".join(sorted(_names(tree))) or "(none)"
        raise SdkError(f'{kind} "{name}" is not defined; defined are: {known}')
    return found


def _names(tree: Tree, prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
