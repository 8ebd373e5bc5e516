"""Mutators: the named functions that change data on behalf of clients.

Owns their definition and lookup; running them is ``mutate.py``'s. Invariant: a mutator's function
sees validated arguments only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, overload

from zerocache.server import registry
from zerocache.server.registry import Tree, Validator

MutatorRegistry: TypeAlias = Tree
"""What :func:`define_mutators` returns: nested mappings of :class:`Mutator`."""


@dataclass(frozen=True, slots=True)
class Mutator:
    """``implementation(tx=, args=, ctx=)`` behind a validator; ``name`` once it is in a tree."""

    implementation: Callable[..., Any]
    validator: Validator | None = None
    name: str = "mutator"

    def fn(self, *, tx: Any, args: Any = None, ctx: Any = None) -> Any:
        """Validate ``args`` and call the function; returns what it returns (maybe awaitable)."""
        checked = registry.validate(self.validator, self.name, args)
        return self.implementation(tx=tx, args=checked, ctx=ctx)


@overload
def define_mutator(fn: Callable[..., Any], /) -> Mutator: ...
@overload
def define_mutator(validator: Validator, fn: Callable[..., Any], /) -> Mutator: ...
def define_mutator(first: Any, fn: Callable[..., Any] | None = None, /) -> Mutator:
    """``define_mutator(fn)`` or ``define_mutator(validator, fn)``.

    ``fn(tx=, args=, ctx=)`` may be ``async`` (not with the synchronous adapters).
    """
    return Mutator(first) if fn is None else Mutator(fn, first)


def define_mutators(tree: Tree, overrides: Tree | None = None) -> MutatorRegistry:
    """Give every mutator its name; ``overrides`` replaces single ones, however deep."""
    return registry.name_leaves(registry.merge(tree, overrides or {}), _named)


def _named(name: str, leaf: Any) -> Mutator:
    return replace(leaf if isinstance(leaf, Mutator) else Mutator(leaf), name=name)


def get_mutator(mutators: MutatorRegistry, name: str) -> Mutator | None:
    """The mutator called ``name`` (parts joined with dots), or None."""
    found = registry.find(mutators, name)
    return found if isinstance(found, Mutator) else None


def must_get_mutator(mutators: MutatorRegistry, name: str) -> Mutator:
    found = registry.must_find(mutators, "mutator", name)
    return found if isinstance(found, Mutator) else Mutator(found, name=name)
