"""Row operations of several pokes as those of one: at most one for each row.

Owns what makes two operations be about the same row: the table and the key that clients declare,
both as they stand in the text. Never changes an operation, only which of them remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

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


@dataclass(frozen=True, slots=True)
class Step:
    """The row operations of an advance that clients were not shown. ``fresh`` names, as deletions,
    rows it puts that they did not have before, unless it deletes another under the same key
    first."""

    runs: Sequence[Sequence[str]]
    fresh: Sequence[Sequence[str]]


def coalesced(
    runs: Iterable[Sequence[str]], keys: RowKeys, skipped: Sequence[Step] = ()
) -> list[str]:
    """The last operation on each row of what was ``skipped`` and of the ``runs`` after it: it makes
    the ones before it pointless. Deletions come first; there are none of rows that came with what
    was skipped: clients never had them, and are not to hear what they are called."""
    last: dict[Key, str] = {}
    # Of the rows that are put before anything else happens to them, by which step.
    came: dict[Key, int] = {}
    for number, step in enumerate(skipped):
        for text in chain.from_iterable(step.runs):
            key = _key_of(text, keys)
            if key not in last and _is_put(text):
                came[key] = number
            last[key] = text
    for text in chain.from_iterable(runs):
        last[_key_of(text, keys)] = text
    gone = {key for key in came if not _is_put(last[key])}
    for number, step in enumerate(skipped):
        if any(came[key] == number for key in gone):
            for text in chain.from_iterable(step.fresh):
                key = _key_of(text, keys)
                if key in gone and came[key] == number:
                    del last[key]
                    gone.discard(key)
    return sorted(last.values(), key=_is_put)


def _key_of(text: str, keys: RowKeys) -> Key:
    operation = _decode(text)
    columns = operation.id or operation.value or {}
    names = keys.get(operation.table)
    if names is None or not columns.keys() >= set(names):
        return (text,)
    return operation.table, *(str(bytes(columns[name]), "utf-8") for name in names)


def _is_put(text: str) -> bool:
    return text.startswith('{"op":"put"')
