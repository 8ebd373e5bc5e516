"""Names that clients make up and servers store: of groups, clients, profiles and queries.

Owns what such a name may be. A database that refuses one would do so again at every attempt, so
whoever sends it must be told once and for all, and before anything is stored.
"""

from __future__ import annotations

from typing import Final

MAX_BYTES: Final = 512
"""Three of them are the key of a table, and PostgreSQL's keys have at most 2704 bytes. Those of
official clients have some 20."""


def fault_of(name: str) -> str | None:
    """What is wrong with ``name``, for a sentence that begins with what it is; None if nothing."""
    if "\0" in name:
        return "contains a NUL character, which no database can store"
    size = len(name.encode())
    if size > MAX_BYTES:
        return f"has {size} bytes; at most {MAX_BYTES} are allowed"
    return None
