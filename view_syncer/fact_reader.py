"""Reads membership facts back: the members of units at earlier versions.

Owns the cache of what was read. Those who come back come in crowds, and each of them may ask for
other units: readings gather, and go to the store together. Never decides what a missing fact means.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from view_syncer.batches import Batches
from view_syncer.cvr.facts import Move, UnitHistory
from view_syncer.cvr.store import FactStore, UnitFacts
from view_syncer.membership import UnitId
from zerocache.protocol.versions import ViewVersion, Watermark

MAX_CACHED_KEYS = 500_000
READS_AT_ONCE = 2
MAX_UNITS = 64
"""Units in one reading; all of their rows are in memory at once."""
SMALL_BYTES = 32 * 1024
"""Facts up to this size, as they are stored, are unpacked sooner than a thread would begin."""

_Key = tuple[int, UnitId]
"""The issuer that wrote about a unit."""


@dataclass(frozen=True, slots=True)
class _Cached:
    complete_to: Watermark
    history: UnitHistory


class FactReader:
    """See the module docstring."""

    def __init__(self, store: FactStore) -> None:
        self._store = store
        self._cache: OrderedDict[_Key, _Cached] = OrderedDict()
        self._cached_keys = 0
        self._reads: Batches[_Key, _Cached | None] = Batches(
            self._read, key=_same, lanes=READS_AT_ONCE, max_items=MAX_UNITS
        )
        self._reading: dict[_Key, asyncio.Future[_Cached | None]] = {}

    async def histories(
        self, base: ViewVersion, units: Collection[UnitId]
    ) -> Mapping[UnitId, UnitHistory | None]:
        """Of each unit as the issuer of ``base`` wrote about it, up to ``base`` at least; None if
        there is no such thing."""
        found = {unit: self._cache.get((base.issuer, unit)) for unit in units}
        missing = [unit for unit, cached in found.items() if not _reaches(cached, base)]
        # One reading of each for all who ask, whoever of them gives up.
        reading = (asyncio.shield(self._read_once((base.issuer, unit))) for unit in missing)
        found.update(zip(missing, await asyncio.gather(*reading), strict=True))
        return {
            unit: None if cached is None or not _reaches(cached, base) else cached.history
            for unit, cached in found.items()
        }

    def _read_once(self, key: _Key) -> asyncio.Future[_Cached | None]:
        running = self._reading.get(key)
        if running is None:
            running = self._reading[key] = asyncio.ensure_future(self._reads.run(key))
            running.add_done_callback(lambda _: self._reading.pop(key))
        return running

    async def _read(self, keys: Sequence[_Key]) -> list[_Cached | None]:
        by_issuer: dict[int, list[UnitId]] = {}
        for issuer, unit in keys:
            by_issuer.setdefault(issuer, []).append(unit)
        found: dict[_Key, _Cached] = {}
        for issuer, units in by_issuer.items():
            read = await self._read_of(issuer, units)
            found.update(((issuer, unit), cached) for unit, cached in read.items())
        for key, cached in found.items():
            self._remember(key, cached)
        return [found.get(key) for key in keys]

    async def _read_of(self, issuer: int, units: Collection[UnitId]) -> dict[UnitId, _Cached]:
        """Of those units of which something is known. The others are asked for again each time:
        they may be written about any moment, and from before on."""
        stored = await self._store.read_facts(issuer + 1, units)
        complete_to = stored.complete_to
        if complete_to is None:
            return {}
        covered = {u: f for u, f in stored.units.items() if _is_covered(f, complete_to)}
        if sum(map(_size, covered.values())) <= SMALL_BYTES:
            histories = _unpacked(covered)
        else:
            histories = await asyncio.to_thread(_unpacked, covered)
        return {unit: _Cached(complete_to, history) for unit, history in histories.items()}

    def _remember(self, key: _Key, cached: _Cached) -> None:
        replaced = self._cache.pop(key, None)
        self._cache[key] = cached
        self._cached_keys += _weight(cached) - (0 if replaced is None else _weight(replaced))
        while self._cached_keys > MAX_CACHED_KEYS and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_keys -= _weight(oldest)


def _same(key: _Key) -> _Key:
    return key


def _reaches(cached: _Cached | None, base: ViewVersion) -> bool:
    return cached is not None and cached.complete_to >= base.state


def _unpacked(units: Mapping[UnitId, UnitFacts]) -> dict[UnitId, UnitHistory]:
    read = ((unit, UnitHistory.read(facts)) for unit, facts in units.items())
    return {unit: history for unit, history in read if history is not None}


def _is_covered(facts: UnitFacts, complete_to: Watermark) -> bool:
    """Whether the moves that lead back from the members are there."""
    return facts.checkpoint is None or facts.checkpoint.version <= complete_to


def _size(facts: UnitFacts) -> int:
    checkpoint = 0 if facts.checkpoint is None else len(facts.checkpoint.body)
    return checkpoint + sum(len(delta.body) for delta in facts.deltas)


def _weight(cached: _Cached) -> int:
    return 1 + len(cached.history.keys) + _moved_rows(cached.history.moves)


def _moved_rows(moves: Iterable[Move]) -> int:
    return sum(1 + len(move.left) + len(move.entered) for move in moves)
