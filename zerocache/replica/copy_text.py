"""Rows from what ``COPY ... TO STDOUT`` sends in text format.

Owns how lines become fields (rows end with a newline, fields are split by tabs) and the escapes
(``\\N``, ``\\t``, ...). Many rows are taken apart and decoded at once, column by column, so that
nearly all of the work is done by loops of the interpreter instead of loops in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zerocache.replica.types import SQLiteValue, TextDecoder

_NULL = "\\N"
_ESCAPES = {"\\b": "\b", "\\f": "\f", "\\n": "\n", "\\r": "\r", "\\t": "\t", "\\v": "\v"}
# No text of Postgres contains it.
_NUL = "\x00"


def decode_rows(
    data: bytes, decoders: Sequence[TextDecoder | None]
) -> Iterable[tuple[SQLiteValue, ...]]:
    """The rows of ``data`` in stored form; ``decoders`` has one entry per column.

    ``data`` is whole lines, without the newline of the last one.
    """
    count = data.count(b"\n") + 1
    width = len(decoders)
    if not width:
        return [()] * count
    text = data.decode()
    fields = text.replace("\n", "\t").split("\t")
    if len(fields) != count * width:
        raise ValueError(f"{count} lines have {len(fields)} fields instead of {width} each")
    columns: list[Sequence[str | None]] = [fields[at::width] for at in range(width)]
    if "\\" in text:
        columns = [*map(_unescape_column, columns)]
    return zip(*map(_decode_column, columns, decoders), strict=True)


def _unescape_column(column: Sequence[str | None]) -> Sequence[str | None]:
    # One search through everything costs less than one through each field.
    if "\\" not in "".join(column):  # type: ignore[arg-type]  # nothing is None before this
        return column
    return [*map(_unescape, column)]  # type: ignore[arg-type]


def _decode_column(
    column: Sequence[str | None], decode: TextDecoder | None
) -> Iterable[SQLiteValue]:
    if decode is None:
        return column
    if None in column:
        return [None if text is None else decode(text) for text in column]
    return map(decode, column)  # type: ignore[arg-type]


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
