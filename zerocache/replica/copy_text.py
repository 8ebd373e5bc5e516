"""Rows from what ``COPY ... TO STDOUT`` sends in text format.

Owns how lines become fields (rows end with a newline, fields are split by tabs) and the escapes
(``\\N``, ``\\t``, ...). Many rows are taken apart and decoded at once, column by column, so that
nearly all of the work is done by loops of the interpreter instead of loops in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from zerocache.replica.types import SQLiteValue, TextDecoder

_NULL = "\\N"
_ESCAPES = {"\\b": "\b", "\\f": "\f", "\\n": "\n", "\\r": "\r", "\\t": "\t", "\\v": "\v"}
# No text of Postgres contains it.
_NUL = "\x00"


def decode_fields(data: bytes, decoders: Sequence[TextDecoder | None]) -> list[SQLiteValue]:
    """All values of ``data`` in stored form, row after row; ``decoders`` has one per column.

    ``data`` is whole lines, without the newline of the last one, of a table with columns.
    """
    width = len(decoders)
    text = data.decode()
    fields: list[Any] = text.replace("\n", "\t").split("\t")
    count = data.count(b"\n") + 1
    if len(fields) != count * width:
        raise ValueError(f"{count} lines have {len(fields)} fields instead of {width} each")
    escaped = "\\" in text
    for at, decode in enumerate(decoders):
        if escaped or decode is not None:
            column = fields[at::width]
            # One search through everything costs less than one through each field.
            if escaped and "\\" in "".join(column):
                column = [*map(_unescape, column)]
            elif decode is None:
                continue
            fields[at::width] = column if decode is None else _decode_column(column, decode)
    return fields


def decode_rows(
    data: bytes, decoders: Sequence[TextDecoder | None]
) -> Iterable[tuple[SQLiteValue, ...]]:
    """As :func:`decode_fields`, one tuple per row; the table may have no columns."""
    width = len(decoders)
    if not width:
        return [()] * (data.count(b"\n") + 1)
    fields = iter(decode_fields(data, decoders))
    return zip(*[fields] * width, strict=True)


def _decode_column(column: list[str | None], decode: TextDecoder) -> list[SQLiteValue]:
    if None in column:
        return [None if text is None else decode(text) for text in column]
    return [*map(decode, column)]  # type: ignore[arg-type]  # nothing is None


def _unescape(field: str) -> str | None:
    if field == _NULL:
        return None
    if "\\" not in field:
        return field
    # Escaped backslashes first: what follows one of them is no escape. Replacing is what handles
    # values of many megabytes; JSON is full of backslashes.
    field = field.replace("\\\\", _NUL)
    if "\\" in field:
        for escape, character in _ESCAPES.items():
            field = field.replace(escape, character)
    return field.replace(_NUL, "\\")
