"""WebSocket frames as a server puts them on the wire (RFC 6455), without I/O.

Owns the header of a final, unmasked frame. A server's frames carry no mask, so the same bytes
serve every client; whoever sends to many frames once. Only sockets that negotiated an extension
need the payloads back (:func:`payloads`). Invariant: a *run* is any number of whole frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

TEXT: Final = 0x1
BINARY: Final = 0x2
_FINAL: Final = 0x80


def header(opcode: int, size: int) -> bytes:
    """What goes before a payload of so many bytes."""
    if size < 126:
        return bytes((_FINAL | opcode, size))
    if size < 65_536:
        return bytes((_FINAL | opcode, 126)) + size.to_bytes(2, "big")
    return bytes((_FINAL | opcode, 127)) + size.to_bytes(8, "big")


def frame(opcode: int, payload: bytes) -> bytes:
    return header(opcode, len(payload)) + payload


def text(payload: bytes) -> bytes:
    return frame(TEXT, payload)


def payloads(runs: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Opcode and payload of each frame in ``runs``, which must be of this module's making."""
    for run in runs:
        position = 0
        while position < len(run):
            start, size = _extent(run, position)
            yield run[position] & 0x0F, run[start : start + size]
            position = start + size


def _extent(run: bytes, position: int) -> tuple[int, int]:
    """Where the payload of the frame at ``position`` begins, and its size."""
    size = run[position + 1]
    if size == 126:
        return position + 4, int.from_bytes(run[position + 2 : position + 4], "big")
    if size == 127:
        return position + 10, int.from_bytes(run[position + 2 : position + 10], "big")
    return position + 2, size
