"""Rows from what ``COPY ... TO STDOUT`` sends in text format.

Owns how lines become fields (rows end with a newline, fields are split by tabs) and the escapes
(``\\N``, ``\\t``, ...). Values stay Postgres text; :func:`decode_columns` applies the
decoders of a table to many rows at once, column by column, which is what makes it fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zerocache.replica.types import SQLiteValue, TextDecoder

_NULL = "\\N"
_ESCAPES = {"\\b": "\b", "\\f": "\f", "\\n": "\n", "\\r": "\r", "\\t": "\t", "\\v": "\v"}
# No text of Postgres contains it.
_NUL = "\x00"


def parse_rows(data: bytes) -> list[list[str | None]]:
    """The rows of ``data``: whole lines, without the newline of the last one."""
    rows: list[list[str | None]] = []
    for line in data.decode().split("\n"):
        fields = line.split("\t")
        rows.append([*map(_unescape, fields)] if "\\" in line else [*fields])
    return rows


def decode_columns(
    rows: Sequence[Sequence[str | None]], decoders: Sequence[TextDecoder | None]
) -> Iterable[tuple[SQLiteValue, ...]]:
    """``rows`` with every field in stored form; ``decoders`` has one entry per column."""
    if not rows or not decoders:
        return [() for _ in rows]
    columns: list[Sequence[SQLiteValue]] = []
    for column, decode in zip(zip(*rows, strict=True), decoders, strict=True):
        if decode is None:
            columns.append(column)
        elif None in column:
            columns.append([None if text is None else decode(text) for text in column])
        else:
            columns.append([*map(decode, column)])
    return zip(*columns, strict=True)


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
