"""Named queries: the functions that turn a name and arguments into a query.

Owns their definition and lookup; answering requests is ``query.py``'s. Invariant: the hash of a
named query is over the arguments as they came, its function sees the validated ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, overload

from zerocache.server import registry
from zerocache.server.registry import Tree, Validator
from zerocache.zql.normal import hash_of_name_and_args

QueryRegistry: TypeAlias = Tree
"""What :func:`define_queries` returns: nested mappings of :class:`NamedQuery`."""


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """``implementation(args=, ctx=)`` behind a validator; ``name`` once it is in a tree."""

    implementation: Callable[..., Any]
    validator: Validator | None = None
    name: str = "query"

    def fn(self, *, args: Any = None, ctx: Any = None) -> Any:
        """Validate ``args`` and call the function; returns the query it returns."""
        checked = registry.validate(self.validator, self.name, args)
        return self.implementation(args=checked, ctx=ctx)

    def hash(self, *args: Any) -> str:
        """The id clients give this query called with ``args`` (none or one)."""
        return hash_of_name_and_args(self.name, list(args))


@overload
def define_query(fn: Callable[..., Any], /) -> NamedQuery: ...
@overload
def define_query(validator: Validator, fn: Callable[..., Any], /) -> NamedQuery: ...
def define_query(first: Any, fn: Callable[..., Any] | None = None, /) -> NamedQuery:
    """``define_query(fn)`` or ``define_query(validator, fn)``.

    ``fn(args=, ctx=)`` returns a query of a builder, or an awaitable of one.
    """
    return NamedQuery(first) if fn is None else NamedQuery(fn, first)


def define_queries(tree: Tree, overrides: Tree | None = None) -> QueryRegistry:
    """Give every query its name; ``overrides`` replaces single ones, however deep."""
    return registry.name_leaves(registry.merge(tree, overrides or {}), _named)


def _named(name: str, leaf: Any) -> NamedQuery:
    return replace(leaf if isinstance(leaf, NamedQuery) else NamedQuery(leaf), name=name)


def get_query(queries: QueryRegistry, name: str) -> NamedQuery | None:
    """The query called ``name`` (parts joined with dots or, as old clients do, pipes), or None."""
    found = registry.find(queries, name, legacy_separator=True)
    return found if isinstance(found, NamedQuery) else None


def must_get_query(queries: QueryRegistry, name: str) -> NamedQuery:
    found = registry.must_find(queries, "query", name, legacy_separator=True)
    return found if isinstance(found, NamedQuery) else NamedQuery(found, name=name)
