"""The client schema a group declares once (sync-protocol.md §2.2, §6).

Owns its shape and its canonical form. It must never judge whether the replica can serve it; that
needs the replica. Invariant: two schemas that mean the same have the same digest, whatever the
order of their tables and columns on the wire.
"""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from typing import Final, Literal, TypeAlias

import msgspec

from zerocache.errors import ClientFacingError

ColumnType: TypeAlias = Literal["string", "number", "boolean", "null", "json"]


class ClientColumn(msgspec.Struct, frozen=True):
    type: ColumnType


class ClientTable(msgspec.Struct, frozen=True, rename="camel"):
    """``primary_key`` arrives sorted by column name, not in declared order."""

    columns: dict[str, ClientColumn]
    primary_key: list[str]


class ClientSchema(msgspec.Struct, frozen=True, dict=True):
    """Tables and columns under their server names. Must not be changed inside either."""

    tables: dict[str, ClientTable]

    def canonical(self) -> bytes:
        """JSON with sorted keys: equal bytes exactly when the schemas are deep-equal."""
        return self._canonical

    @cached_property
    def _canonical(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")

    def digest(self) -> str:
        """Short name of the canonical form; key for whatever is encoded once per schema."""
        return hashlib.blake2b(self.canonical(), digest_size=16).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes) -> ClientSchema:
        """Decode a *stored* schema; one this server no longer understands needs a newer client."""
        try:
            return decode_client_schema(text)
        except msgspec.DecodeError as error:
            raise ClientFacingError(
                "SchemaVersionNotSupported",
                f"The stored schema of this client group cannot be read: {error}. "
                "Reload the page to start with a new client group.",
            ) from error


def decode_client_schema(text: str | bytes) -> ClientSchema:
    """``msgspec.DecodeError`` if it is none. Most client groups declare the same one."""
    return (_known if len(text) <= _MAX_KNOWN else _decode)(text)


def _decode(text: str | bytes) -> ClientSchema:
    return msgspec.json.decode(text, type=ClientSchema)


_known: Final = lru_cache(maxsize=64)(_decode)
_MAX_KNOWN: Final = 65_536
"""Clients may invent any number of larger ones: those are not kept."""
