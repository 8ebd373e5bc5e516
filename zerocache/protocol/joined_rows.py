"""Row operations that were joined where they were made, as a ``rowsPatch`` carries them.

Most rows go from the replica to the wire without anybody looking at a single one of them: these
are never taken apart. Owns the separator, which makes it possible nevertheless. Invariant: no
operation holds a line break. JSON escapes those of its strings, and SQLite writes none between
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, overload

SEPARATOR: Final = ",\n"
"""White space between the elements of an array means nothing to JSON (RFC 8259 §2)."""


class Block(NamedTuple):
    """``length`` operations, at least one, in UTF-8."""

    data: bytes
    length: int

    def operations(self) -> list[str]:
        found = self.data.decode().split(SEPARATOR)
        if len(found) != self.length:
            raise AssertionError(f"{self.length} row operations came apart as {len(found)}")
        return found


class JoinedRows(Sequence[str]):
    """The operations of ``blocks`` in order. To look at one takes them all apart each time."""

    __slots__ = ("_count", "blocks", "size")

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.size = sum(len(block.data) for block in blocks)
        """Bytes, with separators."""
        self._count = sum(block.length for block in blocks)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks:
            yield from block.operations()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return list(self)[index]


def size_of(rows: Sequence[str]) -> int:
    """About how large the operations are, in characters or bytes."""
    return rows.size if isinstance(rows, JoinedRows) else sum(map(len, rows))
