"""Row operations of several pokes as those of one: at most one for each row.

Owns what makes two operations be about the same row: the table and the key that clients declare,
both as they stand in the text. Never changes an operation, only which of them remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

RowKeys = Mapping[str, tuple[str, ...]]
"""The columns that name a row to clients, by table."""


class _RowOperation(msgspec.Struct, frozen=True):
    """``value`` of a put, ``id`` of a del."""

    table: str = msgspec.field(name="tableName")
    value: dict[str, msgspec.Raw] | None = None
    id: dict[str, msgspec.Raw] | None = None


_decode = msgspec.json.Decoder(_RowOperation).decode


def coalesced(runs: Iterable[Sequence[str]], keys: RowKeys) -> list[str]:
    """The last operation on each row: it makes the ones before it pointless. Deletions come
    first."""
    last: dict[tuple[str, ...], str] = {}
    for run in runs:
        for text in run:
            last[_key_of(text, keys)] = text
    return sorted(last.values(), key=_is_put)


def _key_of(text: str, keys: RowKeys) -> tuple[str, ...]:
    operation = _decode(text)
    columns = operation.id or operation.value or {}
    names = keys.get(operation.table)
    if names is None or not columns.keys() >= set(names):
        return (text,)
    return operation.table, *(str(bytes(columns[name]), "utf-8") for name in names)


def _is_put(text: str) -> bool:
    return text.startswith('{"op":"put"')
