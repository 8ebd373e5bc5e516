"""Rows from the stream of ``COPY ... TO STDOUT`` in text format.

Owns the framing (chunks end anywhere, rows end with a newline, fields are split by tabs) and the
escapes (``\\N``, ``\\t``, ...). Values stay Postgres text; :func:`decode_columns` applies the
decoders of a table to many rows at once, column by column, which is what makes it fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from zerocache.errors import ReplicationError
from zerocache.replica.types import SQLiteValue, TextDecoder

_NULL = "\\N"
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def iter_row_batches(
    chunks: Iterable[bytes | bytearray | memoryview], *, batch_bytes: int = 256 * 1024
) -> Iterator[list[list[str | None]]]:
    """Batches of rows of text fields (None for NULL), each from about ``batch_bytes`` of input.

    ``ReplicationError`` if the input ends inside a row.
    """
    held: list[bytes | bytearray | memoryview] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= batch_bytes:
            complete, newline, rest = b"".join(held).rpartition(b"\n")
            held, size = [rest], len(rest)
            if newline:
                yield parse_rows(complete)
    complete, newline, rest = b"".join(held).rpartition(b"\n")
    if rest:
        raise ReplicationError(
            f"the COPY stream ended inside a row ({len(rest)} bytes after the last newline): "
            "rows would be lost; the copy has to be repeated"
        )
    if newline:
        yield parse_rows(complete)


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
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), field)
