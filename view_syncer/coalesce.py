"""Row operations of several pokes as those of one: at most one for each row.

Owns what makes two operations be about the same row: the table and the key that clients declare,
both as they stand in the text. Never changes an operation, only which of them remain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

RowKeys = Mapping[str, tuple[str, ...]]
"""The columns that name a row to clients, by table."""


class _RowOperation(msgspec.Struct, frozen=True):
    """``value`` of a put, ``id`` of a del."""

    table: str = msgspec.field(name="tableName")
    value: dict[str, msgspec.Raw] | None = None
    id: dict[str, msgspec.Raw] | None = None


_decode = msgspec.json.Decoder(_RowOperation).decode


Key = tuple[str, ...]


def coalesced(
    runs: Iterable[Sequence[str]], keys: RowKeys, unheld: Collection[Key] = ()
) -> list[str]:
    """The last operation on each row: it makes the ones before it pointless. Deletions come
    first; there are none of ``unheld``, rows that clients do not have."""
    last: dict[Key, str] = {}
    for run in runs:
        for text in run:
            last[_key_of(text, keys)] = text
    kept = (text for key, text in last.items() if key not in unheld or _is_put(text))
    return sorted(kept, key=_is_put)


@dataclass(frozen=True, slots=True)
class Step:
    """The row operations of an advance. ``fresh`` names, as deletions, rows it puts that clients
    did not have before, unless it deletes another under the same key first."""

    runs: Sequence[Sequence[str]]
    fresh: Collection[str]


def unheld_before(steps: Iterable[Step], keys: RowKeys) -> set[Key]:
    """Of the rows that ``steps`` are about those that clients surely did not have before."""
    unheld: dict[Key, bool] = {}
    for step in steps:
        fresh = {_key_of(text, keys) for text in step.fresh}
        for run in step.runs:
            for text in run:
                key = _key_of(text, keys)
                unheld.setdefault(key, key in fresh and _is_put(text))
    return {key for key, surely in unheld.items() if surely}


def _key_of(text: str, keys: RowKeys) -> Key:
    operation = _decode(text)
    columns = operation.id or operation.value or {}
    names = keys.get(operation.table)
    if names is None or not columns.keys() >= set(names):
        return (text,)
    return operation.table, *(str(bytes(columns[name]), "utf-8") for name in names)


def _is_put(text: str) -> bool:
    return text.startswith('{"op":"put"')
