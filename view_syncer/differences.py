"""Differences of the present version, made once for all who need the same one.

Many groups come, or come back, at once, and most of them have the same way to go. Owns what is kept
of that: only what a second one asked for, never of another version than the newest, never of a
query that ended, and never more than the bounds say, whatever is sent by it. Runs where the engine
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from view_syncer.cvr.facts import RowKey
from view_syncer.ivm.encode import ClientTables
from view_syncer.ivm.pipeline import Pipeline
from zerocache.protocol.joined_rows import size_of
from zerocache.protocol.versions import Watermark

MAX_DIFFERENCES = 64
MAX_DIFFERENCE_BYTES = 64 * 1024 * 1024
"""Of all that are kept together. One that is larger by itself is made for each who needs it."""
MAX_ASKED = 10_000
"""Of so many that were asked for it is remembered that they were."""
_OPERATION_BYTES = 64
_HELD_BYTES = 160
"""Of an operation beside its text, and of a key that was held: about what they take in memory."""


class DifferenceKey(NamedTuple):
    """From ``held``, the rows at version ``base``, to what ``pipelines`` yield at ``version``. The
    same set of keys should be the same object: that makes comparing it cheap."""

    version: Watermark
    client: ClientTables
    pipelines: frozenset[Pipeline]
    held: frozenset[RowKey]
    base: Watermark


class Difference(NamedTuple):
    """Both must not be changed: others are sent them too."""

    dels: Sequence[str]
    puts: Sequence[str]


class Differences:
    """:meth:`clear` when the engine moves, :meth:`ended` when a pipeline has no readers left."""

    def __init__(self) -> None:
        # With what each takes; the oldest first.
        self._made: dict[DifferenceKey, tuple[Difference, int]] = {}
        self._bytes = 0
        # The hashes of what was asked for: by the first alone it is not kept. Two that are equal
        # only cost one that is kept in vain.
        self._asked: set[int] = set()

    def __len__(self) -> int:
        return len(self._made)

    @property
    def bytes(self) -> int:
        return self._bytes

    def get(self, key: DifferenceKey, make: Callable[[], Difference]) -> Difference:
        found = self._made.get(key)
        if found is not None:
            return found[0]
        made = make()
        if self._is_first(key):
            return made
        size = _size(key, made)
        if size <= MAX_DIFFERENCE_BYTES:
            self._keep(key, made, size)
        return made

    def clear(self) -> None:
        self._made.clear()
        self._asked.clear()
        self._bytes = 0

    def ended(self, pipeline: Pipeline) -> None:
        """Nobody reads it any more, so nobody can need a difference it has part in."""
        for key in [key for key in self._made if pipeline in key.pipelines]:
            self._drop(key)

    def _is_first(self, key: DifferenceKey) -> bool:
        """Whether nobody asked for it yet."""
        name = hash(key)
        if name in self._asked:
            return False
        if len(self._asked) >= MAX_ASKED:
            self._asked.clear()
        self._asked.add(name)
        return True

    def _keep(self, key: DifferenceKey, made: Difference, size: int) -> None:
        while self._made and (
            len(self._made) >= MAX_DIFFERENCES or self._bytes + size > MAX_DIFFERENCE_BYTES
        ):
            self._drop(next(iter(self._made)))
        self._made[key] = made, size
        self._bytes += size

    def _drop(self, key: DifferenceKey) -> None:
        self._bytes -= self._made.pop(key)[1]


def _size(key: DifferenceKey, made: Difference) -> int:
    return _HELD_BYTES * len(key.held) + _texts_size(made.dels) + _texts_size(made.puts)


def _texts_size(texts: Sequence[str]) -> int:
    return _OPERATION_BYTES * len(texts) + size_of(texts)
